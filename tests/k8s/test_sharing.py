"""One cache of a node for two pods, and two nodes."""

import cluster as k8s
import pods
import pytest

FOLDER = "/run/warpdrive-test-cache"


@pytest.fixture
def folder(cluster):
    """A folder of the node that the worker's user may write; gone afterwards."""
    cluster.inside("sh", "-c", f"rm -rf {FOLDER} && mkdir -p {FOLDER} && chown 65534:65534 {FOLDER}")
    yield FOLDER
    cluster.inside("rm", "-rf", FOLDER)


def test_two_pods_of_one_node_share_a_cache_folder(namespace, image, origin, folder):
    """Its lock has one owner: the second pod says whose it is and waits; it starts with what the first has left."""
    namespace.apply(*origin.objects())
    annotations = {"cache": f"hostPath:{folder}"}
    namespace.create(*pods.injected(pods.wanted("first", pods.VERIFY_FOREVER, annotations)))
    namespace.wait_ready("first", 90)
    k8s.until("it reads", lambda: "round 1 " in namespace.logs("first", "main"), 60, 0.3)

    namespace.create(*pods.injected(pods.wanted("second", pods.VERIFY_ONCE, annotations)))

    def refused():
        status = k8s.container_status(namespace.pod("second"), "warpdrive") or {}
        return status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated")

    ended = k8s.until("the second worker is refused", refused, 60)
    print(ended["message"].strip())
    assert "is used by process" in ended["message"] and "`first`" in ended["message"], ended
    assert ended["exitCode"] == 2 or ended["exitCode"] == 1, ended
    assert "running" in k8s.container_status(namespace.pod("first"), "main")["state"]
    namespace.delete_pod("first")
    # Kubelet's back-off is what it waits for.
    namespace.wait_phase("second", "Succeeded", 120)
    assert f"verified {len(origin.sums)} files" in namespace.logs("second", "main")
    namespace.delete_pod("second")
    assert origin.whole()


@pytest.mark.timeout(300)
def test_two_nodes_read_one_data_set(cluster, namespace, image, origin, tmp_path):
    """A pod on each node, spread as the ranks of one training are; each node has its own mount and cache."""
    if cluster.nodes < 2:
        cluster.add_node()
        archive = tmp_path / "warpdrive.tar"
        k8s.script("build-image", archive, k8s.PROGRAM)
        cluster.load(archive)
    namespace.apply(*origin.objects())
    ranks = []
    for rank in (0, 1):
        pod = pods.wanted(f"rank-{rank}", pods.VERIFY_ONCE, spec={"nodeName": f"wd-node{rank + 1}"})
        ranks += pods.injected(pod)
    namespace.create(*ranks)
    for rank in (0, 1):
        namespace.wait_phase(f"rank-{rank}", "Succeeded", 120)
        assert f"verified {len(origin.sums)} files" in namespace.logs(f"rank-{rank}", "main")
    assert {pod["spec"]["nodeName"] for pod in namespace.pods()} == {"wd-node1", "wd-node2"}
    # The other tests look at one node.
    cluster.kubectl("cordon", "wd-node2")
    assert origin.whole()
