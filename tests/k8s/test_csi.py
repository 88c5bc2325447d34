"""The CSI node service on a real node: what it mounted outlives it, whatever ends it, and pods always go."""

import time

import cluster as k8s
import pods
import pytest
from release import Release
from test_kills import reading

VALUES = {"csi": {"enabled": True}, "injection": {"mode": "none"}}


@pytest.fixture
def node_service(cluster, image, make_namespace):
    # Taken away before the check that nothing is left, which is that of namespaces.
    release = Release(cluster, image, "csi", "csi")
    release.install(VALUES)
    registered(cluster)
    yield release
    release.close()


def registered(cluster):
    """Kubelet knows the driver: it has written it to the node's CSINode."""
    def there():
        found = cluster.kubectl_json("get", "csinode", "wd-node1")["spec"].get("drivers") or []
        return any(driver["name"] == "csi.warpdrive.io" for driver in found)

    k8s.until("the driver is registered", there, 60)


def processes(cluster, command):
    """(pid, arguments) of our processes of one kind that have not ended."""
    rows = [line.split(None, 2) for line in cluster.inside("ps", "-eo", "pid=,stat=,args=").stdout.splitlines()]
    wanted = f"/usr/local/bin/warpdrive {command}"
    return [int(pid) for pid, state, args in rows if args.startswith(wanted) and not state.startswith("Z")]


def only(found):
    assert len(found) == 1, found
    return found[0]


def service_ready(release, other_than=()):
    def there():
        ready = release.running("csi")
        return ready and ready[0]["metadata"]["name"] not in other_than and processes(release.cluster, "csi")

    k8s.until(lambda: f"the node service is ready: {release.logs('csi')[-1500:]}", there, 90)
    return release.running("csi")[0]["metadata"]["name"]


def metric(release, series):
    pod = service_ready(release)
    ip = next(p for p in release.pods("csi") if p["metadata"]["name"] == pod)["status"]["podIP"]
    text = release.cluster.inside("curl", "-s", f"http://{ip}:9092/metrics").stdout
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(series + " ")))


@pytest.mark.timeout(400)
def test_a_mount_outlives_the_node_service(cluster, node_service, make_namespace, origin):
    """Killed, its pod deleted, upgraded, its container and kubelet started again: the reader sees no error."""
    namespace = make_namespace(labels=pods.ENFORCED)
    with reading(namespace, origin, mode="csi"):
        holder = only(processes(cluster, "mountd"))
        groups = cluster.inside("cat", f"/proc/{holder}/cgroup").stdout.splitlines()
        assert all("/warpdrive-holders/" in line for line in groups), groups

        for _ in range(2):
            before = only(processes(cluster, "csi"))
            cluster.inside("kill", "-9", str(before))
            k8s.until("another service", lambda: [p for p in processes(cluster, "csi") if p != before], 60)
            assert only(processes(cluster, "mountd")) == holder

        name = service_ready(node_service)
        cluster.kubectl("delete", "pod", name, "-n", node_service.namespace, "--timeout=60s")
        name = service_ready(node_service, [name])
        assert only(processes(cluster, "mountd")) == holder

        cluster.kubectl("delete", "pod", name, "-n", node_service.namespace, "--grace-period=0", "--force", "--timeout=60s")
        name = service_ready(node_service, [name])
        assert only(processes(cluster, "mountd")) == holder

        node_service.upgrade({**VALUES, "csi": {"enabled": True, "logLevel": "debug"}})
        service_ready(node_service, [name])
        assert only(processes(cluster, "mountd")) == holder

        # One after the other: a kubelet that finds no runtime when it starts ends, and the cluster with it.
        for component in ("kubelet-1", "containerd-1"):
            cluster.restart(component)
            time.sleep(5)
            k8s.until("the node is ready", lambda: cluster.kubectl(
                "wait", "--for=condition=Ready", "node/wd-node1", "--timeout=1s", check=False).returncode == 0, 60)
            registered(cluster)
            service_ready(node_service)
            assert only(processes(cluster, "mountd")) == holder
        assert metric(node_service, "warpdrive_csi_holders") == 1
    namespace.delete_pod("reader")
    k8s.until("the holder has ended", lambda: not processes(cluster, "mountd"), 20)
    assert origin.whole()


@pytest.mark.timeout(400)
def test_a_pod_goes_when_the_node_service_is_back(cluster, node_service, namespace, origin):
    """Deleted while nobody can unpublish: the pod waits, and goes when kubelet tries again (2 min at most)."""
    namespace.apply(*origin.objects())
    namespace.create(pods.injected(pods.wanted("reader", pods.VERIFY_FOREVER, {"mode": "csi"}))[0])
    namespace.wait_ready("reader", 90)
    node_service.uninstall()
    namespace.kubectl("delete", "pod", "reader", "--wait=false")
    time.sleep(20)
    assert namespace.pod("reader"), "kubelet let a pod go whose volumes it could not unpublish"
    assert only(processes(cluster, "mountd"))
    node_service.install(VALUES)
    namespace.kubectl("wait", "--for=delete", "pod/reader", "--timeout=240s", timeout=250)
    k8s.until("the holder has ended", lambda: not processes(cluster, "mountd"), 20)
    assert origin.whole()


@pytest.mark.timeout(300)
def test_a_holder_is_killed_and_the_container_starts_again(cluster, node_service, namespace, origin):
    """The main container fails visibly; the next start of it has a mount, with the same worker."""
    namespace.apply(*origin.objects())
    pod = pods.injected(pods.wanted("reader", pods.VERIFY_FOREVER, {"mode": "csi"}, restart="OnFailure"))[0]
    namespace.create(pod)
    namespace.wait_ready("reader", 90)
    k8s.until("the first round", lambda: "round 1 " in namespace.logs("reader", "main"), 60, 0.5)
    deaths = metric(node_service, "warpdrive_csi_holder_deaths_total")
    first = only(processes(cluster, "mountd"))
    cluster.inside("kill", "-9", str(first))

    def main():
        return k8s.container_status(namespace.pod("reader"), "main")

    k8s.until(lambda: f"the container has failed and runs again: {main()}",
              lambda: main()["restartCount"] >= 1 and "running" in main()["state"], 120)
    k8s.until("it reads again", lambda: "round 1 " in namespace.logs("reader", "main"), 60, 0.5)
    assert k8s.container_status(namespace.pod("reader"), "warpdrive")["restartCount"] == 0
    assert only(processes(cluster, "mountd")) != first
    assert metric(node_service, "warpdrive_csi_holder_deaths_total") == deaths + 1
    namespace.delete_pod("reader")
    assert origin.whole()


@pytest.mark.timeout(300)
def test_a_dead_mount_of_sidecar_mode_is_swept(cluster, node_service, namespace, origin):
    """Holder and pod die at once: without the sweeper the pod would be Terminating for ever."""
    swept = metric(node_service, "warpdrive_csi_swept_mounts_total")
    namespace.apply(*origin.objects())
    namespace.create(pods.injected(pods.wanted("reader", pods.VERIFY_FOREVER))[0])
    namespace.wait_ready("reader", 90)
    namespace.kubectl("delete", "pod", "reader", "--wait=false", "--grace-period=1")
    # As often as kubelet may still start it.
    end = time.monotonic() + 20
    while time.monotonic() < end and (found := processes(cluster, "mountd")):
        cluster.inside("kill", "-9", *map(str, found), check=False)
        time.sleep(0.1)
    namespace.kubectl("wait", "--for=delete", "pod/reader", "--timeout=180s", timeout=190)
    print("swept", metric(node_service, "warpdrive_csi_swept_mounts_total") - swept)
    assert origin.whole()


def test_a_wrong_volume_is_told_in_the_pods_events(cluster, node_service, namespace):
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "wrong"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": k8s.BOX, "imagePullPolicy": "Never", "command": ["/bin/sleep", "600"],
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "csi": {"driver": "csi.warpdrive.io",
                                                 "volumeAttributes": {"role": "mount", "workerUid": "0"}}}],
        },
    }
    namespace.create(pod)
    events = lambda: namespace.kubectl("get", "events", "-o", "jsonpath={.items[*].message}").stdout
    k8s.until(lambda: f"an event that says why: {events()}", lambda: "--allow-root-worker" in events(), 60)
    namespace.delete_pod("wrong")
