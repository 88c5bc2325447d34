#!/usr/bin/env bash
# Prolog of Slurm (as root, on each node of a job): a mount and an S3 endpoint of the job's own.
#
# Exit status 0: the job may start; what it is told is in `environment`, or `failed` says why it cannot run.
# Anything else makes Slurm drain this node and hold the job, so it means one thing: this node cannot
# do it (no program, no /dev/fuse, no room). An origin that is down or a configuration that is wrong are
# the same on every node, and would drain them one after the other: then the job fails, or waits.
set -uo pipefail
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck source=common.sh
. "$(dirname "$(readlink -f "$0")")/common.sh"

if [ -n "$WARPDRIVE_PARTITIONS" ]; then
  case " $WARPDRIVE_PARTITIONS " in *" ${SLURM_JOB_PARTITION:-} "*) ;; *) exit 0 ;; esac
fi
if [ -n "$WARPDRIVE_CONSTRAINT" ]; then
  case ",${SLURM_JOB_CONSTRAINTS:-}," in *[,\&\|\(\[]"$WARPDRIVE_CONSTRAINT"[],\&\|\)]*) ;; *) exit 0 ;; esac
fi

# The node is at fault: nothing stays behind, Slurm drains it and shows this line as the reason's cause.
node_fails() {
  say "this node cannot serve it: $*"
  clean || say "and something is left: $directory"
  exit 1
}

# The job is at fault, or something that all nodes share.
job_fails() {
  say "$*"
  clean || exit 1
  mkdir -p -m 0755 "$directory" && printf '%s\n' "$*" >"$directory/failed" || exit 1
  exit 0
}

trap 'node_fails "the prolog was stopped"' TERM INT

# A job that was requeued may come again; whatever its first run left is not for this one.
clean || node_fails "an earlier run of this job left something"
[ -x "$WARPDRIVE_PROGRAM" ] || node_fails "$WARPDRIVE_PROGRAM is not there"
[ -c /dev/fuse ] || node_fails "there is no /dev/fuse (modprobe fuse)"
worker_uid=$(id -u "$WARPDRIVE_USER") || node_fails "there is no user $WARPDRIVE_USER"
worker_gid=$(id -g "$WARPDRIVE_USER") || node_fails "there is no user $WARPDRIVE_USER"
user=${SLURM_JOB_UID:?is set by Slurm}
[ -r "$WARPDRIVE_CONFIG" ] || job_fails "$WARPDRIVE_CONFIG cannot be read"

# False where another job has the node's cache; one that is gone without an epilog has lost it.
take_node_cache() (
  flock -w 10 9 || exit 1
  owner=$(cat "$node_cache.job" 2>/dev/null)
  [ -z "$owner" ] || [ ! -d "$WARPDRIVE_RUN/jobs/$owner" ] || exit 1
  echo "$job" >"$node_cache.job"
) 9>>"$node_cache.lock"

mkdir -p "$WARPDRIVE_RUN/jobs" "$WARPDRIVE_CACHE/jobs" &&
  chmod 0711 "$WARPDRIVE_RUN" "$WARPDRIVE_RUN/jobs" "$WARPDRIVE_CACHE" "$WARPDRIVE_CACHE/jobs" &&
  install -d -m 0711 "$directory" "$directory/holder" &&
  install -d -m 0700 "$WARPDRIVE_CACHE/logs" "$directory/mount" &&
  install -d -m 0755 "$mount_point" || node_fails "its directories cannot be made"
# Only now: to the other jobs this one is there by its directory.
cache=$job_cache
if [ "$WARPDRIVE_CACHE_OF" = node ] && take_node_cache; then cache=$node_cache; fi
install -d -m 0700 -o "$worker_uid" -g "$worker_gid" "$directory/worker" "$cache" ||
  node_fails "its directories cannot be made"

# Of what both processes say, the newest 4 to 8 MiB. A full disk holds nobody up.
[ ! -e "$log" ] || mv -f "$log" "$log.old"
# shellcheck disable=SC2016 # for another shell
exec {to_log}> >(exec setsid bash -c 'size=$((4 << 20))
  umask 077
  while stdbuf -o0 head -c $size >"$1" && [ "$(stat -c %s "$1")" = $size ]; do mv -f "$1" "$1.old"; done
  exec cat' log "$log" >/dev/null 2>&1)

# In sessions of their own: they outlive the prolog, and nothing of it stays open in them.
setsid env -i PATH="$PATH" "$WARPDRIVE_PROGRAM" mountd --mount-point "$mount_point" --socket "$socket" \
  --allow-other --allow-uid "$worker_uid" --patience 10m --grace 1s \
  </dev/null >&"$to_log" 2>&1 {to_log}>&- &
timeout 15 "$WARPDRIVE_PROGRAM" probe --holder "$socket" --wait 10s >/dev/null 2>&1 ||
  node_fails "it cannot mount: $(tail -n 1 "$log")"
# Not before: up to here the user could have put a link where root mounts.
chown "$user" "$directory/mount" || node_fails "the mount cannot be given to user $user"
for holder in $(processes mountd); do echo -900 >"/proc/$holder/oom_score_adj"; done 2>/dev/null

as_worker=(setpriv "--reuid=$worker_uid" "--regid=$worker_gid" --clear-groups --no-new-privs
  --inh-caps=-all --bounding-set=-all)
# What is in the worker's directory is read as the worker, and whatever it is there.
of_worker() { "${as_worker[@]}" timeout 5 head -c 4096 "$directory/worker/$1"; }
with_secrets() {
  # They go into the worker's environment and nowhere else.
  (
    set -a
    # shellcheck source=/dev/null
    [ ! -r "$WARPDRIVE_SECRETS" ] || . "$WARPDRIVE_SECRETS"
    set +a
    unset "${!SLURM_@}"
    exec "${as_worker[@]}" "$@"
  )
}
settings=(
  --set "mount_point=$mount_point" --set allow_other=true --set "fuse.holder=$socket"
  --set "state_dir=$directory/worker" --set "cache.path=$cache"
  --set "cache.max_size=$WARPDRIVE_CACHE_SIZE" --set "cache.memory=$WARPDRIVE_MEMORY"
  --set s3.listen=127.0.0.1:0 --set s3.access=generated --set s3.keys=
  --set "s3.credentials_file=$directory/worker/credentials"
  --set "admin.listen=$admin" --set "drain_timeout=$((WARPDRIVE_STOP_SECONDS * 2 / 3))s"
)
with_secrets setsid "$WARPDRIVE_PROGRAM" run --supervise -c "$WARPDRIVE_CONFIG" --holder "$socket" \
  --termination-log "$directory/worker/ended" "${settings[@]}" </dev/null >&"$to_log" 2>&1 {to_log}>&- &
worker=$!
exec {to_log}>&-

begun=$SECONDS
endpoint=
while :; do
  # Each look is bounded: a second, and two for what hangs.
  if timeout 3 "$WARPDRIVE_PROGRAM" probe --ready --admin "$admin" --mount "$mount_point" --wait 1s >/dev/null 2>&1; then
    endpoint=$(sed -n 's/^ *export AWS_ENDPOINT_URL_S3=//p' "$log" 2>/dev/null | tail -n 1)
    [ -n "$endpoint" ] && break
  fi
  if ! kill -0 $worker 2>/dev/null; then
    wait $worker
    status=$?
    reason=$(of_worker ended 2>/dev/null | tr -s ' \n' ' ' | cut -c1-500)
    # 2: the configuration cannot be used, here as elsewhere.
    [ $status != 2 ] || job_fails "the configuration cannot be used: $reason"
    node_fails "the sidecar ended with $status: $reason"
  fi
  [ $((SECONDS - begun)) -lt "$WARPDRIVE_START_SECONDS" ] ||
    node_fails "not ready within $WARPDRIVE_START_SECONDS s: $(tail -n 1 "$log")"
  sleep 0.05
done

# An origin that does not answer now may answer in a moment; the job's time has not begun.
begun=$SECONDS
until origins=$(with_secrets timeout 15 "$WARPDRIVE_PROGRAM" check -c "$WARPDRIVE_CONFIG" "${settings[@]}" 2>&1); do
  if [ $((SECONDS - begun)) -ge "$WARPDRIVE_ORIGIN_SECONDS" ]; then
    # Of what `check` says below its table, what failed and not what follows from that.
    reason=$(sed -n '/the origin cannot be reached$/d; /not asked for$/d; s/^  \([^ ]* [a-z]*: \)/\1/p' <<<"$origins")
    reason="origins do not answer after $WARPDRIVE_ORIGIN_SECONDS s: $(tr -s ' \n' ' ' <<<"${reason:-$origins}" | cut -c1-500)"
    case $WARPDRIVE_WITHOUT_ORIGIN in
      run) say "$reason; it runs all the same" && break ;;
      requeue)
        # The job is held, so that it does not come back in a second; `scontrol release` lets it go.
        timeout 15 scontrol requeuehold "$job" &&
          timeout 15 scontrol update "jobid=$job" "comment=warpdrive: ${reason:0:200}"
        job_fails "$reason"
        ;;
      *) job_fails "$reason" ;;
    esac
  fi
  sleep 1
done

(umask 077 && of_worker credentials >"$directory/credentials") && [ -s "$directory/credentials" ] &&
  chmod 0400 "$directory/credentials" && chown "$user" "$directory/credentials" ||
  node_fails "the key cannot be written for user $user"
cat >"$directory/environment.new" <<END
WARPDRIVE_DATA=$mount_point
WARPDRIVE_S3=$endpoint
AWS_ENDPOINT_URL_S3=$endpoint
AWS_REGION=us-east-1
AWS_DEFAULT_REGION=us-east-1
AWS_SHARED_CREDENTIALS_FILE=$directory/credentials
END
chmod 0644 "$directory/environment.new" && mv "$directory/environment.new" "$directory/environment" ||
  node_fails "the environment cannot be written"
exit 0
