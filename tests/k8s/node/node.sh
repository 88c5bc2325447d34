#!/usr/bin/env bash
# One node. Inside its namespaces:
#   node.sh network I    its bridge, address and routes
#   node.sh run I        containerd, the images, the kubelet; ends when one of them does
#   node.sh all I        first process of a further node's namespaces (started by add-node)
set -euo pipefail
. "$(dirname "$0")/env.sh"
what=${1:?}; i=${2:?}
name=wd-node$i; ip=$NET.0.$i; dir=$STATE/$name

network() {
  # A bridge without an address of its own takes the lowest of its ports, and so another one whenever a pod
  # comes or goes: whoever has asked for the old one waits half a minute.
  ip link add wd0 address "02:77:00:00:00:$(printf %02x "$i")" type bridge
  ip addr add "$ip/16" dev wd0
  ip link set wd0 up
  ip route replace default dev wd0
  echo 1 >/proc/sys/net/ipv4/ip_forward
  # no kube-proxy: the one service every pod is told of leads to the apiserver
  local chain
  for chain in PREROUTING OUTPUT; do
    iptables -t nat -A "$chain" -d "$SERVICE_IP/32" -p tcp --dport 443 -j DNAT --to-destination "$API_IP:6443"
  done
}

run() {
  mkdir -p "$dir/cni" "$dir/kubelet" "$STATE/log" /var/log
  # Where everything expects it, and each node its own.
  [[ -d /var/lib/kubelet ]] || { mkdir /var/lib/kubelet; touch "$STATE/made-kubelet-folder"; }
  mount --bind "$dir/kubelet" /var/lib/kubelet
  mount -t tmpfs tmpfs /var/log          # /var/log/containers is fixed in the kubelet
  mkdir -p /run/netns
  hostname "$name"
  "$k8s/node/certs.sh" "$STATE/pki" node "$name" "$ip" "$API_IP"
  cat >"$dir/cni/10-wd.conflist" <<J
{"cniVersion": "0.4.0", "name": "wd", "plugins": [
  {"type": "bridge", "bridge": "wd0", "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "routes": [{"dst": "0.0.0.0/0", "gw": "$ip"}],
            "ranges": [[{"subnet": "$NET.0.0/16", "rangeStart": "$NET.$i.2", "rangeEnd": "$NET.$i.250", "gateway": "$ip"}]]}},
  {"type": "loopback"}]}
J
  cat >"$dir/containerd.toml" <<T
version = 2
root = "$dir/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/wd-pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
T
  cat >"$dir/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $ip
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $STATE/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $STATE/pki/$name-server.crt
tlsPrivateKeyFile: $STATE/pki/$name-server.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP/$name
cgroupsPerQOS: true
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
maxOpenFiles: $(ulimit -Hn)
oomScoreAdj: 0
evictionHard: {memory.available: 1%, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
clusterDNS: [$ip]
resolvConf: $STATE/resolv.conf
podLogsDir: /var/log/pods
volumePluginDir: $dir/volume-plugins
crashLoopBackOff: {maxContainerRestartPeriod: ${CRASH_BACKOFF:-300s}}
Y
  local c s
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    for c in "" "/$CGROUP" "/$CGROUP/$name"; do
      mkdir -p "/sys/fs/cgroup$c"
      for s in $(<"/sys/fs/cgroup$c/cgroup.controllers"); do echo "+$s" >"/sys/fs/cgroup$c/cgroup.subtree_control" || true; done
    done
  else
    for c in /sys/fs/cgroup/*/; do mkdir -p "$c$CGROUP/$name"; done
    for c in "$CGROUP" "$CGROUP/$name"; do
      for s in cpus mems; do cat /sys/fs/cgroup/cpuset/cpuset.$s >"/sys/fs/cgroup/cpuset/$c/cpuset.$s"; done
    done
  fi
  start "containerd-$i" "${CONTAINERD:-containerd}" --config "$dir/containerd.toml"
  until ctr version >/dev/null 2>&1; do sleep 0.1; done
  for tar in "$IMAGES"/*.tar; do ctr -n k8s.io images import "$tar" >/dev/null; done
  start "kubelet-$i" "$BIN/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$STATE/pki/$name.kubeconfig" \
    --hostname-override="$name" --node-ip="$ip" --root-dir=/var/lib/kubelet --v=2
  wait -n || true
}

case $what in
network) network ;;
run) run ;;
all)
  mount --make-rshared /
  mount -t tmpfs tmpfs /run
  mkdir -p /run/lock
  mount --bind "$STATE/resolv.conf" /etc/resolv.conf
  ip link set lo up
  network
  ip link set up0 master wd0 up          # the cable add-node put in
  run
  ;;
esac
