"""Fixtures: one cluster for all tests, the project's image on it, a real origin, a namespace a test.

After each test nothing of it may be left on a node: no pod's folder, no mount, no process that no signal
reaches, and no object of the origin may be gone.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cluster as k8s
from origin import Origin


def missing():
    """Why no cluster can be started on this machine, or None."""
    if os.geteuid() != 0:
        return "a cluster takes root"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    for program in ("unshare", "nsenter", "containerd", "runc", "etcd", "iptables", "busybox", "buildah", "openssl", "conntrack", "ip", "pgrep", "curl"):
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            failed = k8s.TOOLS / "stamps/apt-failed-k8s"
            return f"{program} is not installed" + ("" if failed.exists() else " (tests/install)")
    for name in ("kube1", "kubelet"):
        if not (k8s.TOOLS / "k8s/bin" / name).exists():
            return "Kubernetes is not built (tests/install)"
    if os.system("unshare --mount --net --pid --fork true 2>/dev/null") != 0:
        return "namespaces may not be made here"
    groups = Path("/sys/fs/cgroup")
    if not ((groups / "cgroup.controllers").exists() or (groups / "memory").is_dir()):
        return "there is no cgroup hierarchy"
    return None


@pytest.fixture(scope="session", autouse=True)
def possible():
    reason = missing()
    if reason and reason.endswith("(tests/install)") and os.environ.get("WARPDRIVE_REQUIRE_TOOLS") == "1":
        pytest.fail(f"required but {reason}")
    if reason:
        pytest.skip(f"no cluster: {reason}")


@pytest.fixture(scope="session")
def cluster(possible):
    # Kubelet's own longest wait between two starts of a container is 5 minutes, which no test sits through:
    # the holder's patience is a minute more. Everything else about restarts is as it is everywhere.
    running = k8s.Cluster(backoff=os.environ.get("CRASH_BACKOFF", "30s"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def image(cluster, tmp_path_factory):
    """The project's image on every node; its reference."""
    archive = tmp_path_factory.mktemp("image") / "warpdrive.tar"
    k8s.script("build-image", archive, k8s.PROGRAM)
    cluster.load(archive)
    return k8s.IMAGE


@pytest.fixture(scope="session")
def next_image(cluster, tmp_path_factory):
    """The same program under another name, and so another image for kubelet."""
    archive = tmp_path_factory.mktemp("image") / "next.tar"
    k8s.script("build-image", archive, k8s.PROGRAM, TAG="localhost/warpdrive:next", SOURCE_DATE_EPOCH="1700000000")
    cluster.load(archive)
    return "localhost/warpdrive:next"


@pytest.fixture(scope="session")
def origin(cluster):
    """versitygw on the cluster's network with a data set in a bucket."""
    folder = Path(tempfile.mkdtemp(prefix="warpdrive-k8s-origin-"))
    running = Origin(cluster, folder)
    yield running
    running.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_namespace(cluster, request):
    made = []

    def make(suffix="", labels=None):
        name = request.node.originalname.removeprefix("test_").replace("_", "-")[:45].rstrip("-") + suffix
        found = k8s.Namespace(cluster, name, labels)
        made.append(found)
        return found

    request.node.namespaces = made
    yield make
    for namespace in made:
        namespace.delete()
    left = lambda: [
        f"node {node}: {kind} {what}"
        for node in range(1, cluster.nodes + 1)
        for kind, found in (("pod folder", cluster.pod_folders(node)), ("mount", cluster.mounts(node)))
        for what in found
    ]
    k8s.until(lambda: f"a clean node: {left()}", lambda: not left(), 20)
    assert not cluster.stuck()


@pytest.fixture
def namespace(make_namespace):
    return make_namespace()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows pods, events and logs."""
    report = yield
    if report.failed and call.when == "call":
        for namespace in getattr(item, "namespaces", []):
            try:
                report.sections.append((f"namespace {namespace.name}", namespace.report()))
            except BaseException as error:  # noqa: BLE001 (what goes wrong here must not hide the failure)
                report.sections.append((f"namespace {namespace.name}", f"no report: {error}"))
    return report
