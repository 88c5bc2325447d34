"""What dies under a reader that verifies: the worker costs it a pause, never an error; the holder ends it, never hangs it."""

import contextlib
import re
import time

import cluster as k8s
import pods
import pytest

# A reader's first round fills the cache; what follows is what a training epoch sees.
ROUND_SECONDS = 60


def tree(cluster, node=1):
    """Processes of the node: (pid, parent, arguments)."""
    table = cluster.inside("ps", "-eo", "pid=,ppid=,stat=,args=", node=node).stdout.splitlines()
    rows = [line.split(None, 3) for line in table]
    return [(int(pid), int(parent), args) for pid, parent, state, args in rows if not state.startswith("Z")]


def supervisors(cluster):
    """First processes of workers' containers."""
    rows = tree(cluster)
    ours = {pid for pid, _, args in rows if args.startswith("/usr/local/bin/warpdrive run")}
    return [pid for pid, parent, _ in rows if pid in ours and parent not in ours]


def workers(cluster):
    """What a supervisor has started."""
    rows = tree(cluster)
    first = set(supervisors(cluster))
    return [pid for pid, parent, args in rows if parent in first and args.startswith("/usr/local/bin/warpdrive run")]


def holders(cluster):
    """(first process of the container, holder) of each."""
    rows = [(pid, parent) for pid, parent, args in tree(cluster) if " mountd --mount-point" in args]
    pids = {pid for pid, _ in rows}
    return [(parent, pid) for pid, parent in rows if parent in pids]


def only(found):
    assert len(found) == 1, found
    return found[0]


def kill(cluster, pid):
    cluster.inside("kill", "-9", str(pid))


@contextlib.contextmanager
def reading(namespace, origin, restart="Never", command=pods.VERIFY_FOREVER, change=None, **annotations):
    """A pod whose main container verifies on and on; after the block it must have seen no error."""
    namespace.apply(*origin.objects())
    pod = pods.injected(pods.wanted("reader", command, annotations, restart=restart))[0]
    if change:
        change(pod)
    namespace.create(pod)
    namespace.wait_ready("reader", 90)
    k8s.until("the first round", lambda: "round 1 " in namespace.logs("reader", "main"), ROUND_SECONDS, 0.5)
    yield
    before = k8s.container_status(namespace.pod("reader"), "main")
    assert before["restartCount"] == 0 and "running" in before["state"], before
    namespace.exec("reader", "main", "kill", "-TERM", "1")
    namespace.wait_phase("reader", "Succeeded", 30)
    log = namespace.logs("reader", "main")
    found = re.search(r"end: reads (\d+) longest ([\d.]+) s, errors 0", log)
    assert found, log[-2000:]
    print(f"{found[1]} files verified, longest wait {found[2]} s")


def restarts(namespace, container="warpdrive"):
    return k8s.container_status(namespace.pod("reader"), container)["restartCount"]


def reads_on(namespace, cluster):
    """Rounds go on: a file is read through the mount now."""
    first = next(iter(sorted(pods_sums(namespace))))
    done = namespace.exec("reader", "main", "cat", f"/data/train/{first}", timeout=60)
    assert done.returncode == 0


def pods_sums(namespace):
    text = namespace.json("get", "configmap", "expected")["data"]["SHA256SUMS"]
    return [line.split()[1] for line in text.splitlines() if "set/" in line]


def test_the_worker_is_killed_ten_times(cluster, namespace, image, origin):
    """By its supervisor it is back within milliseconds; kubelet sees nothing."""
    with reading(namespace, origin):
        for _ in range(10):
            before = only(workers(cluster))
            kill(cluster, before)
            k8s.until("another worker", lambda: [pid for pid in workers(cluster) if pid != before], 20)
            time.sleep(0.5)
        assert restarts(namespace) == 0
    assert origin.whole()


@pytest.mark.timeout(400)
def test_the_workers_container_is_killed_and_kubelet_backs_off(cluster, namespace, image, origin):
    """The supervisor too: kubelet starts the container again, later each time (30 s at most here, 5 min by default)."""
    with reading(namespace, origin):
        for number in (1, 2, 3):
            begun = time.monotonic()
            kill(cluster, only(supervisors(cluster)))
            k8s.until("a restart", lambda: restarts(namespace) == number, 60)
            k8s.until("started", lambda: k8s.container_status(namespace.pod("reader"), "warpdrive").get("started"), 60)
            print(f"start {number} of the container took {time.monotonic() - begun:.1f} s")
            reads_on(namespace, cluster)


def test_the_worker_is_killed_for_memory(cluster, namespace, image, origin):
    """The kernel kills it at its limit, which is lowered under it, three times."""
    with reading(namespace, origin):
        for _ in range(3):
            worker = only(workers(cluster))
            limit = memory_limit(cluster, worker)
            before, original = oom_kills(cluster, limit), cluster.inside("cat", limit).stdout.strip()
            # Requests that take memory; they may fail, the reader may not.
            load = cluster.spawn("kubectl", "-n", namespace.name, "exec", "reader", "-c", "main", "--",
                                 "python3", "-c", pods.READER, *["objects"] * 20)
            try:
                cluster.inside("sh", "-c", SQUEEZE.format(folder=limit.rsplit("/", 1)[0], limit=limit, before=before), timeout=60)
            finally:
                cluster.inside("sh", "-c", f"echo {original} > {limit}", check=False)
                load.terminate()
                load.wait()
            # The kernel may take the supervisor too; then the group is gone with the container.
            assert oom_kills(cluster, limit, before + 1) > before
            k8s.until("another worker", lambda: [pid for pid in workers(cluster) if pid != worker], 60)
            reads_on(namespace, cluster)


# Lowers a group's limit to what it cannot do without, until the kernel has killed for it. The kernel refuses a
# limit that it cannot reach (cgroup v1), hence the second, just above what is in use.
SQUEEZE = """
cd {folder}
for i in $(seq 150); do
  [ -e {limit} ] || exit 0
  used=$(cat memory.usage_in_bytes 2>/dev/null || cat memory.current)
  echo $((used - 1048576)) > {limit} 2>/dev/null || echo $((used + 16384)) > {limit} 2>/dev/null
  killed=$(cat memory.oom_control memory.events 2>/dev/null | awk '$1 == "oom_kill" {{print $2}}')
  [ "$killed" -gt {before} ] && exit 0
  sleep 0.1
done
"""


def memory_limit(cluster, pid):
    """File with the memory limit of a process's container."""
    lines = cluster.inside("cat", f"/proc/{pid}/cgroup").stdout.splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"
    return f"/sys/fs/cgroup{lines[0].split(':', 2)[2]}/memory.max"


def oom_kills(cluster, limit, gone=0):
    """How often the kernel has killed in a group; `gone` when there is no such group any more."""
    folder = limit.rsplit("/", 1)[0]
    text = cluster.inside("cat", f"{folder}/memory.oom_control", f"{folder}/memory.events", check=False).stdout
    found = re.search(r"^oom_kill (\d+)", text, re.M)
    return int(found[1]) if found else gone


def test_the_workers_image_is_upgraded_in_place(namespace, image, next_image, origin):
    with reading(namespace, origin):
        for number, wanted in enumerate((next_image, image), 1):
            namespace.kubectl("set", "image", "pod/reader", f"warpdrive={wanted}")
            k8s.until("another start", lambda: restarts(namespace) == number, 90)

            def there():
                status = k8s.container_status(namespace.pod("reader"), "warpdrive")
                return status.get("started") and status["image"] == wanted

            k8s.until("the new image serves", there, 60)
            reads_on(namespace, namespace.cluster)


def test_kubelet_and_containerd_are_killed(cluster, namespace, image, origin):
    with reading(namespace, origin):
        for component in ("kubelet-1", "containerd-1"):
            cluster.restart(component)
            time.sleep(4)
            cluster.kubectl_until("wait", "--for=condition=Ready", "node/wd-node1", "--timeout=1s")
            k8s.until("kubelet answers", lambda: namespace.exec("reader", "main", "true", check=False).returncode == 0, 60)
            reads_on(namespace, cluster)


def test_a_killed_holder_ends_the_reader_and_its_next_start_reads_again(cluster, namespace, image, origin):
    namespace.apply(*origin.objects())
    namespace.create(*pods.injected(pods.wanted("reader", pods.VERIFY_FOREVER, restart="OnFailure")))
    namespace.wait_ready("reader", 90)
    k8s.until("the first round", lambda: "round 1 " in namespace.logs("reader", "main"), ROUND_SECONDS, 0.5)
    begun = time.monotonic()
    first, _ = only(holders(cluster))
    kill(cluster, first)

    def ended():
        status = k8s.container_status(namespace.pod("reader"), "main")
        return status["restartCount"] > 0 or "terminated" in status["state"] or "waiting" in status["state"]

    k8s.until("the reader fails visibly", ended, 30)
    print(f"the reader had ended {time.monotonic() - begun:.1f} s after its holder")
    k8s.until("a further start reads everything",
              lambda: restarts(namespace, "main") > 0 and "round 1 " in namespace.logs("reader", "main"), 120, 0.5)
    log = namespace.logs("reader", "main", previous=True)
    assert "Transport endpoint is not connected" in log or "Error" in log, log[-2000:]
    assert restarts(namespace, "warpdrive-mountd") >= 1
    namespace.delete_pod("reader")
    assert origin.whole()


def test_a_jobs_pod_is_replaced_after_its_holder_was_killed(cluster, namespace, image, origin):
    """With restartPolicy Never the pod fails, and the Job makes another, which completes.

    Nothing starts the holder of the first pod again: its parent takes the mount away, or the pod's volume
    would stay on the node.
    """
    namespace.apply(*origin.objects())
    # Long enough to be killed in; the second pod is left in peace and ends by itself.
    slow = ["python3", "-c", pods.READER + "\n", *["files"] * 12]
    namespace.create(*pods.injected(pods.as_job(pods.wanted("job", slow), "job", backoffLimit=3)))
    k8s.until("it reads", lambda: any("verified" in namespace.logs(p["metadata"]["name"], "main") for p in namespace.pods()), 60)
    _, holder = only(holders(cluster))
    kill(cluster, holder)
    namespace.kubectl("wait", "--for=condition=complete", "job/job", "--timeout=120s", timeout=130)
    phases = sorted(pod["status"]["phase"] for pod in namespace.pods("job-name=job"))
    assert phases == ["Failed", "Succeeded"], phases
    namespace.kubectl("delete", "job", "job", "--timeout=60s")
    assert origin.whole()
