#!/usr/bin/env bash
# A machine in namespaces: a real systemd as its first process, with this system's /usr, an /etc of its
# own and nothing of the host's that can be written, except what is bound in. Needs root.
#
#   machine.sh ROOT NAME [DIR:THERE]...   runs until the machine is powered off; each DIR of the host is
#                                         seen at THERE
#
# ROOT holds etc/, bin/ (seen at /usr/local/bin) and gets log, and pid of the first process. Cgroups are
# called NAME. The network is the host's: servers of the tests are reached on loopback.
set -euo pipefail
if [ "${1:-}" != --inside ]; then
  root=$1 name=$2
  # Hybrid or legacy: a hierarchy of systemd's own. Unified: one for everything.
  if [ -d /sys/fs/cgroup/systemd ]; then
    hierarchies=(systemd unified memory pids)
  else
    hierarchies=("")
  fi
  for hierarchy in "${hierarchies[@]}"; do
    [ -w "/sys/fs/cgroup/$hierarchy/cgroup.procs" ] || continue
    mkdir -p "/sys/fs/cgroup/$hierarchy/$name"
    echo $$ >"/sys/fs/cgroup/$hierarchy/$name/cgroup.procs"
  done
  echo $$ >"$root/pid"
  exec unshare --cgroup --mount --uts --ipc --pid --fork --kill-child=SIGKILL \
    --propagation private "$0" --inside "$@"
fi
shift
root=$1
shift 2
new=$root/new
mkdir -p "$new"
mount -t tmpfs -o mode=755 machine "$new"
cd "$new"
mkdir usr etc run tmp var dev proc sys root mnt srv home old
mount --rbind /usr usr
mount -o remount,bind,ro usr
mount -t tmpfs -o mode=755 machine usr/local/bin
cp "$root"/bin/* usr/local/bin/
for directory in bin sbin lib lib32 lib64 libx32; do
  if [ -L "/$directory" ]; then cp -a "/$directory" .; fi
done
cp -a "$root/etc/." etc/
if [ -d /etc/ssl ]; then cp -aL /etc/ssl etc/ 2>/dev/null || true; fi
mount -t tmpfs -o mode=755 machine run
mount -t tmpfs -o mode=1777 machine tmp
mkdir -p var/log var/tmp var/lib var/cache run/lock
mount -t proc proc proc
mount --rbind /sys sys
mount -o remount,bind,ro sys
if [ -d /sys/fs/cgroup/systemd ]; then
  mount -t tmpfs -o mode=755 machine sys/fs/cgroup
  mkdir sys/fs/cgroup/{systemd,unified,memory,pids}
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
  mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
  mount -t cgroup -o memory cgroup sys/fs/cgroup/memory
  mount -t cgroup -o pids cgroup sys/fs/cgroup/pids
else
  mount -t cgroup2 cgroup2 sys/fs/cgroup
fi
mount -t tmpfs -o mode=755 machine dev
for device in null zero full random urandom tty fuse; do
  [ -e "/dev/$device" ] || continue
  touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 machine dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for directory in "$@"; do
  mkdir -p ".${directory#*:}"
  mount --rbind "${directory%%:*}" ".${directory#*:}"
done
# What a unit might try to set of the kernel is the host's.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
pivot_root . old
umount -l /old
rmdir /old
hostname warpdrive-machine
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
  setpriv --bounding-set=-sys_boot,-sys_time,-sys_module,-sys_rawio \
  /usr/lib/systemd/systemd --system --log-level=info --log-target=journal --show-status=0 --crash-reboot=0
