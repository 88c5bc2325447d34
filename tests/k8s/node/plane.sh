#!/usr/bin/env bash
# First process of the cluster's namespaces (started by up): the control plane and node 1.
set -euo pipefail
. "$(dirname "$0")/env.sh"
mkdir -p "$STATE/log"
mount --make-rshared /                   # Bidirectional mounts need a shared root
mount -t tmpfs tmpfs /run                # containerd, shim and CNI state stay inside
mkdir -p /run/etcd /run/lock
: >"$STATE/resolv.conf"; mount --bind "$STATE/resolv.conf" /etc/resolv.conf   # no look-up waits for a server out of reach
ip link set lo up

pki=$STATE/pki
"$k8s/node/node.sh" network 1
start etcd "${ETCD:-etcd}" --data-dir /run/etcd --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 ${ETCD_FLAGS:-}
start apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
  --advertise-address="$API_IP" --secure-port=6443 --allow-privileged=true \
  --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
  --client-ca-file="$pki/ca.crt" --authorization-mode=Node,RBAC \
  --enable-admission-plugins=NodeRestriction --enable-aggregator-routing=true \
  --service-cluster-ip-range="$SERVICES.0.0/16" --service-account-issuer=https://kubernetes.default.svc \
  --service-account-key-file="$pki/service-account.key" \
  --service-account-signing-key-file="$pki/service-account.key" \
  --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
  --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
  --kubelet-certificate-authority="$pki/ca.crt" \
  --kubelet-preferred-address-types=InternalIP ${APISERVER_FLAGS:-}
"$k8s/node/node.sh" run 1 &
# The controllers give up at once when the bootstrap roles are not there yet.
until KUBECONFIG=$pki/admin.kubeconfig kubectl get --raw /readyz >/dev/null 2>&1; do sleep 0.2; done
start controller-manager "$BIN/kube-controller-manager" --kubeconfig="$pki/controller-manager.kubeconfig" \
  --authentication-kubeconfig="$pki/controller-manager.kubeconfig" \
  --authorization-kubeconfig="$pki/controller-manager.kubeconfig" \
  --service-account-private-key-file="$pki/service-account.key" --root-ca-file="$pki/ca.crt" \
  --use-service-account-credentials=true --leader-elect=false --bind-address=127.0.0.1
start scheduler "$BIN/kube-scheduler" --kubeconfig="$pki/scheduler.kubeconfig" \
  --authentication-kubeconfig="$pki/scheduler.kubeconfig" \
  --authorization-kubeconfig="$pki/scheduler.kubeconfig" --leader-elect=false --bind-address=127.0.0.1
wait -n || true
