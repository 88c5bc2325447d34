# The settings that every script here shares; each can be set from outside.
k8s=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Programs and the images that do not change are kept with the other tools of the tests.
export WARPDRIVE_K8S=${WARPDRIVE_K8S:-$("$k8s/../install" --where)/k8s}
export BIN=${BIN:-$WARPDRIVE_K8S/bin} IMAGES=${IMAGES:-$WARPDRIVE_K8S/images} STATE=${STATE:-$WARPDRIVE_K8S/state}
# One flat layer-2 network: node i is $NET.0.i, its pods are $NET.i.2 to $NET.i.250.
export NET=${NET:-10.77} SERVICES=${SERVICES:-10.96}
export CGROUP=${CGROUP:-warpdrive-k8s}
export API_IP=$NET.0.1 SERVICE_IP=$SERVICES.0.1
export PATH=$BIN:$PATH:/usr/sbin:/sbin

# keep NAME COMMAND...: runs a component until it ends; an end that `restart` did not ask for is the
# end of the caller too.
keep() {
  local name=$1 code; shift
  while :; do
    "$@" >>"$STATE/log/$name.log" 2>&1 &
    echo $! >"$STATE/$name.pid"
    wait $! && code=0 || code=$?
    [[ -e $STATE/restart.$name ]] || { echo "$name ended with $code"; return 1; }
    rm "$STATE/restart.$name"
  done
}
start() { keep "$@" & }
