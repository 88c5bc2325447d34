"""Deletion in every phase: nothing stays on the node, and no object of a writable origin goes with the pod."""

import time

import cluster as k8s
import pods
import pytest
from test_kills import only, supervisors, tree

# The origin counts: a server outside of the pod whose objects an emptyDir's removal could walk into.
SLOW_WARM = {"warm": "all"}


def gone(namespace, pod="victim", seconds=60, grace=None):
    begun = time.monotonic()
    namespace.delete_pod(pod, seconds, grace)
    print(f"gone after {time.monotonic() - begun:.1f} s")
    assert namespace.pod(pod) is None


def victim(namespace, origin, command=pods.VERIFY_FOREVER, change=None, **annotations):
    namespace.apply(*origin.objects())
    # What stubborn processes cost a test: 2 + 6 s.
    pod = pods.injected(pods.wanted("victim", command, {"flush-seconds": "6", **annotations}, grace=2))[0]
    if change:
        change(pod)
    namespace.create(pod)


def init_started(namespace, container):
    pod = namespace.pod("victim")
    status = pod and k8s.container_status(pod, container)
    return status and "running" in status["state"]


def test_pending(namespace, image, origin):
    """No node may take it."""
    victim(namespace, origin, change=lambda pod: pod["spec"].update(nodeSelector={"no": "such-node"}))
    time.sleep(1)
    assert namespace.pod("victim")["status"]["phase"] == "Pending"
    gone(namespace)
    assert origin.whole()


def test_while_the_holder_starts(namespace, image, origin):
    victim(namespace, origin)
    k8s.until("the holder's container", lambda: init_started(namespace, "warpdrive-mountd"), 30, 0.02)
    gone(namespace)
    assert origin.whole()


def test_while_the_worker_starts(namespace, image, origin):
    """The worker's container has begun, and nothing is ready yet."""
    namespace.apply(*origin.objects())
    victim(namespace, origin)
    k8s.until("the worker's container", lambda: init_started(namespace, "warpdrive"), 30, 0.02)
    gone(namespace)
    assert origin.whole()


def test_while_the_cache_is_warmed(namespace, image, origin):
    """One connection to the origin at 1 MiB steps: the warm-up is met at work."""
    namespace.apply(*origin.objects())

    def slowly(pod):
        container = next(c for c in pod["spec"]["initContainers"] if c["name"] == "warpdrive-warm")
        container["command"] += ["--rate", "1MiB"] if "--rate" in warm_help() else []

    victim(namespace, origin, change=slowly, warm="all")
    k8s.until("the warm-up", lambda: init_started(namespace, "warpdrive-warm"), 60, 0.02)
    gone(namespace)
    assert origin.whole()


def warm_help():
    import subprocess

    return subprocess.run([k8s.PROGRAM, "warm", "--help"], capture_output=True, text=True).stdout


@pytest.mark.parametrize("grace", [None, 0, 1])
def test_while_it_reads(make_namespace, image, origin, grace):
    """Under load; with its own grace period, forced, and with a grace too short for anything."""
    namespace = make_namespace(f"-{grace}".lower())
    victim(namespace, origin)
    namespace.wait_ready("victim", 90)
    k8s.until("it reads", lambda: "round 1 " in namespace.logs("victim", "main"), 60, 0.2)
    gone(namespace, grace=grace)
    assert origin.whole()


def test_while_it_ends(namespace, image, origin):
    """The main container takes its time to end; then the deletion is forced."""
    stubborn = ["python3", "-c", "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('/data/train/set/0/0021.bin', 'rb').read()\nprint('up', flush=True)\ntime.sleep(600)"]
    victim(namespace, origin, stubborn)
    namespace.wait_ready("victim", 90)
    namespace.kubectl("delete", "pod", "victim", "--wait=false")
    time.sleep(1)
    assert namespace.pod("victim")["metadata"]["deletionTimestamp"]
    gone(namespace, grace=0)
    assert origin.whole()


def test_after_its_worker_died_for_good(cluster, namespace, image, origin):
    """Readers wait in the kernel for a worker that does not come; deletion ends them all the same."""
    victim(namespace, origin, change=lambda pod: next(
        c for c in pod["spec"]["initContainers"] if c["name"] == "warpdrive").pop("livenessProbe", None))
    namespace.wait_ready("victim", 90)
    k8s.until("it reads", lambda: "round 1 " in namespace.logs("victim", "main"), 60, 0.2)
    # Stopped and not killed: nothing takes its place, and what it has taken stays unanswered.
    first = only(supervisors(cluster))
    for pid in [first] + [pid for pid, parent, _ in tree(cluster) if parent == first]:
        cluster.inside("kill", "-STOP", str(pid))
    time.sleep(2)
    gone(namespace, seconds=90)
    assert origin.whole()


def test_a_drained_node_is_clean_and_the_job_goes_on_elsewhere(cluster, namespace, image, origin):
    """`kubectl drain` evicts the pod; the Job's next pod waits until the node takes pods again, and completes."""
    namespace.apply(*origin.objects())
    slow = ["python3", "-c", pods.READER, *["files"] * 8]
    namespace.create(*pods.injected(pods.as_job(pods.wanted("job", slow), "job", backoffLimit=4)))
    k8s.until("it reads", lambda: any("verified" in namespace.logs(p["metadata"]["name"], "main") for p in namespace.pods()), 60)
    try:
        cluster.kubectl("drain", "wd-node1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s",
                        f"--pod-selector=job-name=job", timeout=70)
        k8s.until("a clean node", lambda: not cluster.mounts(), 20)
    finally:
        cluster.kubectl("uncordon", "wd-node1")
    namespace.kubectl("wait", "--for=condition=complete", "job/job", "--timeout=120s", timeout=130)
    assert origin.whole()


@pytest.mark.timeout(400)
def test_a_hundred_pods_come_and_go(cluster, namespace, image, origin):
    """One after another in ten columns of ten: each verifies, each leaves nothing."""
    namespace.apply(*origin.objects())
    name = min(origin.sums)
    begun = time.monotonic()
    for batch in range(10):
        batch_pods = []
        for number in range(10):
            command = ["sh", "-c", f"cd /data/train && grep -F {name} /expected/SHA256SUMS | sha256sum -c -"]
            pod = pods.wanted(f"p{batch}-{number}", command, {"cpu": "10m", "memory": "16Mi", "cache-size": "64Mi"}, image=k8s.BOX)
            batch_pods += pods.injected(pod)
        namespace.create(*batch_pods)
        selector = [f"pod/{pod['metadata']['name']}" for pod in batch_pods]
        namespace.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", *selector, "--timeout=90s", timeout=100)
        namespace.kubectl("delete", "--timeout=60s", *selector, timeout=70)
    took = time.monotonic() - begun
    print(f"100 pods in {took:.0f} s")
    k8s.until(lambda: f"a clean node: {cluster.mounts()} {cluster.pod_folders()}", lambda: not cluster.mounts() and not cluster.pod_folders(), 30)
    assert origin.whole()
