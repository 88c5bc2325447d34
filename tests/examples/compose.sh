#!/usr/bin/env bash
# Runs examples/compose as it stands under podman, in mount, network and process namespaces of its own:
#   compose.sh FOLDER IMAGE.tar PYTHON.tar
# FOLDER gets the origin's files, podman's storage and what the trainer said; all of it may go afterwards.
# Environment: PODMAN_COMPOSE, VERSITYGW.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ${INSIDE:-} != 1 ]]; then
  INSIDE=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private "${BASH_SOURCE[0]}" "$@"
fi
folder=$(readlink -f "$1") image=$2 python=$3
ip link set lo up
# Podman's locks are in both, by names that the machine's own podman uses too.
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm

# What Debian's podman 4.3 takes on machines with runc and without a service manager.
cat >"$folder/containers.conf" <<'C'
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
C
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/storage"\nrunroot = "%s/run"\n' "$folder" "$folder" >"$folder/storage.conf"
export CONTAINERS_CONF=$folder/containers.conf CONTAINERS_STORAGE_CONF=$folder/storage.conf
trap 'podman rm -a -f >/dev/null 2>&1' EXIT
podman load -q -i "$image" >/dev/null
podman load -q -i "$python" >/dev/null

# The origin, and a data set in it.
mkdir -p "$folder/origin/acme-ml/datasets/a" "$folder/mnt/data"
head -c 3000000 /dev/urandom >"$folder/origin/acme-ml/datasets/a/1.bin"
head -c 1000 /dev/urandom >"$folder/origin/acme-ml/datasets/2.bin"
ROOT_ACCESS_KEY=key ROOT_SECRET_KEY=secret-of-the-origin "$VERSITYGW" --port 127.0.0.1:7070 posix "$folder/origin" >"$folder/origin.log" 2>&1 &

# The lines at the head of compose.yaml.
mount --bind "$folder/mnt" "$folder/mnt"
mount --make-shared "$folder/mnt"
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret-of-the-origin ORIGIN_ENDPOINT=http://127.0.0.1:7070
export WARPDRIVE_HOME=$folder WARPDRIVE_IMAGE=localhost/warpdrive:test TRAINER_IMAGE=localhost/wd-python:1
export CACHE_SIZE=1GiB CACHE_MEMORY=64MiB
# This network is the only one here; a bridge would need the host's.
printf 'services: {worker: {network_mode: host}}\n' >"$folder/network.yaml"
compose() { "$PODMAN_COMPOSE" -f "$here/../../examples/compose/compose.yaml" -f "$folder/network.yaml" "$@" 2>>"$folder/compose.log" >&2; }

wait_for() { # seconds, what, command...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < end)) || { echo "$what: not reached"; cat "$folder/compose.log"; podman ps -a; podman logs "$(container worker)"; return 1; }
    sleep 0.2
  done
}
container() { podman ps -aq --filter "name=warpdrive[_-]$1"; }
# "stopped" until podman has tidied up behind it.
ended() { [[ $(podman inspect --format '{{.State.Status}}' "$(container trainer)" 2>/dev/null) =~ ^(exited|stopped)$ ]]; }

# Podman before 4.6 waits for no health: in this order by hand, with the health checks of the file.
healthy() { podman healthcheck run "$(container "$1")" >/dev/null 2>&1; }
for service in mountd worker; do
  compose up -d $service
  wait_for 60 "$service is healthy" healthy $service
done
compose up -d trainer
wait_for 60 "the trainer ends" ended
echo "trainer: $(podman inspect --format '{{.State.ExitCode}}' "$(container trainer)")"
podman logs "$(container trainer)"

# A worker that is killed is a pause: a reader that has the mount goes on.
podman run --rm --network host -v "$folder/mnt/data:/data:ro,rslave" -e AWS_ENDPOINT_URL_S3=http://127.0.0.1:9000 \
  -e AWS_REGION=us-east-1 -e AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:9091/credentials \
  --name reader localhost/wd-python:1 python3 -c '
import hashlib, pathlib, time, boto3
end, digests, opens = time.monotonic() + 6, set(), 0
while time.monotonic() < end:
    digests.add(hashlib.sha256(pathlib.Path("/data/train/a/1.bin").read_bytes()).hexdigest())
    opens += 1
    if opens == 1:
        print("reading", flush=True)
body = boto3.client("s3").get_object(Bucket="train", Key="a/1.bin")["Body"].read()
digests.add(hashlib.sha256(body).hexdigest())
print("reader:", len(digests), "version,", opens > 5)
' >"$folder/reader.log" 2>&1 &
reader=$!
wait_for 30 "the reader reads" grep -q reading "$folder/reader.log"
before=$(podman inspect --format '{{.State.Pid}}' "$(container worker)")
pkill -KILL -P "$before"
wait "$reader"
cat "$folder/reader.log"
echo "worker: restarted beside the same supervisor: $([[ $before = "$(podman inspect --format '{{.State.Pid}}' "$(container worker)")" ]] && echo yes)"

compose down -t 10
unmounted() { ! grep -q " $folder/mnt/data " /proc/self/mountinfo; }
wait_for 20 "the mount is gone" unmounted
echo "mounts left: $(grep -c " $folder/mnt/data " /proc/self/mountinfo || true)"
find "$folder/origin/acme-ml/datasets" -type f | wc -l | sed 's/^/objects left: /'
podman rm -a -f >/dev/null 2>&1
podman volume rm -a -f >/dev/null
podman rmi -a -f >/dev/null
