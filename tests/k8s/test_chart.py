"""The chart on a real cluster, with real Helm: everything it installs works, and goes away again.

Each test installs a release of its own name and namespace, for the webhook's configuration is the cluster's.
"""

import base64
import json
import re
import subprocess
import time

import cluster as k8s
import pytest
import release as charts
from release import Load, Release, objects, small_pod


# A test that makes namespaces too asks for them first: they are looked at last, when the release is gone.
@pytest.fixture
def make_release(cluster, image, request):
    made = []

    def make(**options):
        made.append(Release(cluster, image, **options))
        return made[-1]

    request.node.releases = made
    yield make
    for one in made:
        one.close()


def dry_run(cluster, pod, check=True):
    """What the API server would store, or its refusal."""
    done = cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod), check=check)
    return done if not check else json.loads(done.stdout)


def names(pod):
    return [c["name"] for c in pod["spec"].get("initContainers", [])]


EVERYTHING = {
    "csi": {"enabled": True},
    "nodeAgent": {"enabled": True, "mountPoint": "/run/wd-agent/data", "cachePath": "/run/wd-agent-cache"},
    "config": {"cache": {"maxSize": "1GB", "memory": "64MiB"}, "backends": [{"name": "own", "type": "local", "config": {"path": "/etc/warpdrive"}}]},
    "configs": {"default": {"backends": [{"name": "own", "type": "local", "config": {"path": "/etc/warpdrive"}}]}},
    "metrics": {"dashboard": {"enabled": True}},
    "networkPolicy": {"enabled": True},
}


def test_install_upgrade_rollback_uninstall_leave_nothing(cluster, make_release):
    # What other tests left to be deleted would be missed below.
    phases = lambda: cluster.kubectl("get", "namespaces", "-o", "jsonpath={.items[*].status.phase}").stdout
    k8s.until("no namespace is going", lambda: "Terminating" not in phases(), 120)
    before_namespaces = objects(cluster)
    release = make_release()
    before = objects(cluster)
    release.install(EVERYTHING).injects()
    assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in release.pods()} == {
        "webhook", "csi", "node-agent", "node-agent-holder",
    }
    bundle = release.bundle()
    assert all(bundle) and len(bundle) == 2
    holders = [pod["metadata"]["uid"] for pod in release.pods("node-agent-holder")]
    old_webhooks = {pod["metadata"]["name"] for pod in release.running("webhook")}

    changed = charts.merged(EVERYTHING, {"injection": {"annotations": {"cache-size": "20Gi"}}, "commonLabels": {"team": "ml"}})
    release.upgrade(changed)
    assert release.bundle() == bundle, "an upgrade took the authority away"
    assert not old_webhooks & {pod["metadata"]["name"] for pod in release.running("webhook")}
    stored = dry_run(cluster, small_pod("a"))
    assert any("20Gi" in json.dumps(v) or "21" in json.dumps(v) for v in stored["spec"]["volumes"] if v["name"] == "warpdrive-cache")
    assert [pod["metadata"]["uid"] for pod in release.pods("node-agent-holder")] == holders, "an upgrade unmounted under readers"

    release.rollback(1)
    assert release.bundle() == bundle
    assert dry_run(cluster, small_pod("a"))["spec"]["volumes"] != stored["spec"]["volumes"]

    release.upgrade({"injection": {"mode": "none"}})
    assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in release.pods() if "deletionTimestamp" not in pod["metadata"]} == set()
    assert names(dry_run(cluster, small_pod("a"))) == []

    release.uninstall()
    k8s.until(lambda: f"nothing is left: {objects(cluster) ^ before}", lambda: objects(cluster) == before, 30)
    release.close()
    k8s.until(lambda: f"as before: {objects(cluster) ^ before_namespaces}", lambda: objects(cluster) == before_namespaces, 30)


def test_helm_test_proves_injection_in_a_restricted_namespace(cluster, make_release):
    release = make_release(name="strict", namespace="strict", labels={"pod-security.kubernetes.io/enforce": "restricted"})
    release.install().injects()
    done = release.test()
    assert "Succeeded" in done.stdout and "verified resident" in done.stdout
    assert not [pod for pod in release.pods("test")], "the test's pod is still there"


def test_helm_test_proves_the_mount(make_release):
    release = make_release(name="loose", namespace="loose")
    release.install({"test": {"mode": "sidecar"}}).injects()
    assert "Succeeded" in release.test().stdout


def test_helm_test_fails_where_nothing_is_injected(cluster, make_release):
    """The proof can fail: the test's pod without a worker ends with a sentence."""
    release = make_release(name="blind", namespace="blind")
    release.install({"injection": {"excludedNamespaces": ["blind"]}})
    done = release.test(check=False)
    assert done.returncode != 0 and "no admin endpoint" in (done.stdout + done.stderr).lower() or "9091" in done.stdout + done.stderr


def test_webhook_down_refuses_pods_that_ask_and_no_others(cluster, make_namespace, make_release):
    wanted, other = make_namespace("-on"), make_namespace("-off")
    cluster.kubectl("label", "namespace", wanted.name, "warpdrive.io/inject=true")
    release = make_release()
    release.install().injects()
    assert names(dry_run(cluster, small_pod("a", {}, namespace=wanted.name))) == ["warpdrive-mountd", "warpdrive"]
    cluster.kubectl("scale", "deployment", f"{release.name}-webhook", "-n", release.namespace, "--replicas=0")
    k8s.until("no webhook", lambda: not release.pods("webhook"), 60)

    for pod in (small_pod("a", namespace=other.name), small_pod("a", {}, namespace=wanted.name), small_pod("a", namespace="default")):
        refused = dry_run(cluster, pod, check=False)
        assert refused.returncode != 0, "a pod that asks was created without what it asked for"
        assert ".inject.warpdrive.io" in refused.stderr, refused.stderr
    for pod in (
        small_pod("a", {}, namespace=other.name),
        small_pod("a", {"warpdrive.io/inject": "false"}, namespace=wanted.name),
        small_pod("a", {}, namespace="kube-system"),
        small_pod("a", namespace="kube-system"),
        small_pod("a", {}, namespace=release.namespace),
    ):
        assert names(dry_run(cluster, pod)) == []
    # The webhook itself can always come back: its own pods do not wait for it.
    cluster.kubectl("label", "namespace", release.namespace, "warpdrive.io/inject=true")
    cluster.kubectl("scale", "deployment", f"{release.name}-webhook", "-n", release.namespace, "--replicas=2")
    k8s.until("two webhooks", lambda: len(release.running("webhook")) == 2, 60)
    release.injects()


def test_certificates_are_renewed_under_load(cluster, make_release):
    release = make_release()
    release.install({"webhook": {"certificates": {"own": charts.SHORT_LIVES}}}).injects()
    seen, begun = {release.bundle()[0]}, time.monotonic()
    with Load(cluster) as load:
        # Longer than two lives of the authority.
        while time.monotonic() - begun < 60:
            seen.add(release.bundle()[0])
            time.sleep(1)
    assert load.refused == [], f"{len(load.refused)} of {load.created}, {release.logs('webhook')}\n" + "\n".join(load.refused[:5])
    assert load.created > 200, load.created
    assert len(seen) >= 3, f"the authority was renewed {len(seen) - 1} times"


def test_upgrade_under_load_refuses_nobody(cluster, make_release):
    release = make_release()
    release.install().injects()
    with Load(cluster) as load:
        for size in ("11Gi", "12Gi", "13Gi"):
            release.upgrade({"injection": {"annotations": {"cache-size": size}}})
        release.rollback(1)
        cluster.kubectl("delete", "pod", "-n", release.namespace, release.running("webhook")[0]["metadata"]["name"], "--wait=false")
        k8s.until("two webhooks", lambda: len(release.running("webhook")) == 2, 60)
    assert load.refused == [], f"{len(load.refused)} of {load.created}\n" + "\n".join(load.refused[:5])
    assert load.created > 100, load.created


def test_wrong_defaults_stop_an_upgrade_and_nobody_else(cluster, make_release):
    """A default that no pod could have: the new webhook does not become ready, the old one serves on."""
    release = make_release()
    release.install().injects()
    before = {pod["metadata"]["uid"] for pod in release.running("webhook")}
    failed = release.upgrade({"injection": {"annotations": {"cache-size": "lots"}}}, check=False, seconds=15)
    assert failed.returncode != 0
    assert {pod["metadata"]["uid"] for pod in release.running("webhook")} == before
    assert "cache-size" in release.logs("webhook"), "nobody says what is wrong"
    assert names(dry_run(cluster, small_pod("a"))) == ["warpdrive-mountd", "warpdrive"]
    release.rollback(1)
    release.injects()


def test_from_the_own_authority_to_a_secret_under_load(cluster, make_release, tmp_path):
    """Certificates from elsewhere: with a bundle of both authorities no pod is refused; no right and no token is left."""
    release = make_release()
    release.install().injects()
    own = base64.b64decode(release.bundle()[0])
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=theirs",
         "-addext", f"subjectAltName=DNS:{release.name}-webhook.{release.namespace}.svc", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )
    cluster.kubectl("create", "secret", "tls", "mine", "-n", release.namespace, f"--cert={certificate}", f"--key={key}")

    def values(*authorities):
        bundle = base64.b64encode(b"\n".join(authorities)).decode()
        return {"webhook": {"certificates": {"mode": "secret", "secretName": "mine", "caBundle": bundle}}}

    with Load(cluster) as load:
        release.upgrade(values(own, certificate.read_bytes()), force=True)
        k8s.until("the old pods are gone", lambda: len(release.pods("webhook")) == 2, 60)
        release.upgrade(values(certificate.read_bytes()))
    assert load.refused == [], f"{len(load.refused)} of {load.created}\n" + "\n".join(load.refused[:5])
    spec = release.pods("webhook")[0]["spec"]
    assert not [v for v in spec["volumes"] if v["name"].startswith("kube-api-access")], "a token that nobody needs"
    rights = cluster.kubectl("get", "role,rolebinding,clusterrole,clusterrolebinding", "-A", "-l", f"app.kubernetes.io/instance={release.name}", "-o", "name").stdout
    assert rights == ""


def stored(cluster, pods):
    """What the API server would store, without what is another for each pod."""
    found = []
    for pod in pods:
        made = dry_run(cluster, pod)
        for key in ("uid", "creationTimestamp", "resourceVersion", "managedFields"):
            made["metadata"].pop(key, None)
        # The name of the token's volume ends in letters that are drawn.
        found.append(json.loads(re.sub(r"kube-api-access-[a-z0-9]{5}", "kube-api-access", json.dumps(made))))
    return found


def test_policy_makes_the_same_pod_as_the_webhook(cluster, make_release):
    """For each mode, and for pods with containers and settings of their own: not one field differs."""
    rich = small_pod("rich", annotations={"warpdrive.io/config": "secret:mine/other.yaml", "warpdrive.io/cache-size": "3Gi", "warpdrive.io/memory": "512Mi"})
    rich["spec"]["terminationGracePeriodSeconds"] = 77
    rich["spec"]["volumes"] = [{"name": "own", "emptyDir": {}}]
    rich["spec"]["initContainers"] = [{"name": "first", "image": k8s.BOX, "command": ["/bin/true"], "volumeMounts": [{"name": "own", "mountPath": "/own"}]}]
    rich["spec"]["containers"].append({"name": "second", "image": k8s.BOX, "env": [{"name": "AWS_REGION", "value": "eu-west-1"}]})
    pods = [small_pod("plain"), rich]
    release = make_release()

    def by(mode, how):
        values = {"injection": {"mode": how, "annotations": {"mode": mode, "cache-size": "5Gi"}}}
        (release.upgrade if release.installed else release.install)(values)

        def there():
            done = dry_run(cluster, pods[0], check=False)
            status = json.loads(done.stdout)["metadata"].get("annotations", {}).get("warpdrive.io/status", "{}") if done.returncode == 0 else "{}"
            return json.loads(status).get("mode") == mode

        k8s.until(f"{how} injects in mode {mode}", there, 30)
        # S3 alone mounts nothing, and says so to who asks where.
        rich["metadata"]["annotations"].pop("warpdrive.io/mounts", None)
        if mode != "s3":
            rich["metadata"]["annotations"]["warpdrive.io/mounts"] = "/a,/b/c"
        return stored(cluster, pods)

    by_webhook = {mode: by(mode, "webhook") for mode in ("sidecar", "csi", "s3")}
    for mode, expected in by_webhook.items():
        found = by(mode, "policy")
        assert not [p for p in release.pods("webhook") if "deletionTimestamp" not in p["metadata"]]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == theirs, mode

    # What cannot be done is denied with a sentence, as by the webhook.
    refused = dry_run(cluster, small_pod("bad", annotations={"warpdrive.io/cache-size": "lots"}), check=False)
    assert refused.returncode != 0 and "warpdrive.io/cache-size: write a quantity" in refused.stderr
    for pod in (small_pod("off", {}), small_pod("no", {"warpdrive.io/inject": "false"}), small_pod("system", namespace="kube-system")):
        assert names(dry_run(cluster, pod)) == []
    # And a pod that is injected so works: the last mode is s3.
    assert "Succeeded" in release.test().stdout


def test_csi_mode_in_a_restricted_namespace(cluster, make_namespace, make_release, origin):
    import pods

    release = make_release()
    release.install({"csi": {"enabled": True}}).injects()
    namespace = make_namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    namespace.apply(*origin.objects())
    namespace.apply(pods.wanted("training", annotations={"mode": "csi"}))
    namespace.wait_phase("training", "Succeeded", 90)
    assert "objects" in namespace.logs("training", "main")
    namespace.delete_pod("training")
    assert origin.whole()


def test_node_agent_outlives_its_pods_and_deletes_nothing(cluster, make_namespace, make_release, tmp_path):
    """One mount a node: a worker that is replaced is a pause, a holder that is deleted deletes no object."""
    folder = tmp_path / "origin/train"
    folder.mkdir(parents=True)
    wanted = {f"d{n % 3}/f{n}": str(n) * 1000 for n in range(60)}
    for name, text in wanted.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for path in [*tmp_path.parents, tmp_path]:
        if path.stat().st_uid == 0 and str(path).startswith("/tmp/"):
            path.chmod(0o755)
    there = lambda: {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()} == wanted
    above = tmp_path / "mnt"
    release = make_release()
    values = {
        "injection": {"mode": "none"},
        "nodeAgent": {
            "enabled": True, "mountPoint": f"{above}/data", "cachePath": f"{tmp_path}/cache",
            "extraVolumes": [{"name": "origin", "hostPath": {"path": str(folder), "type": "Directory"}}],
            "extraVolumeMounts": [{"name": "origin", "mountPath": "/origin"}],
        },
        "config": {"cache": {"maxSize": "1GB", "memory": "64MiB"}, "backends": [{"name": "train", "type": "local", "config": {"path": "/origin"}}]},
    }
    release.install(values)
    namespace = make_namespace()
    reader = small_pod("reader", {}, namespace=namespace.name)
    reader["spec"]["terminationGracePeriodSeconds"] = 0
    script = "n=0; while :; do for f in $(find /mnt/data/train -type f); do cat $f >/dev/null || echo FAILED $f; done; n=$((n+1)); echo round $n; sleep 0.1; done"
    reader["spec"]["containers"][0] |= {
        "command": ["/bin/sh", "-c", script],
        "volumeMounts": [{"name": "above", "mountPath": "/mnt", "mountPropagation": "HostToContainer", "readOnly": True}],
    }
    reader["spec"]["volumes"] = [{"name": "above", "hostPath": {"path": str(above)}}]
    namespace.apply(reader)
    rounds = lambda: namespace.logs("reader", "main").count("round")
    k8s.until("the reader reads", lambda: rounds() >= 3, 30)

    # An upgrade that changes the worker's configuration: its pods are replaced, the holder's stay.
    holder = release.running("node-agent-holder")[0]["metadata"]["uid"]
    worker = release.running("node-agent")[0]["metadata"]["uid"]
    release.upgrade(charts.merged(values, {"config": {"cache": {"readaheadBlocks": 8}}}))
    assert release.running("node-agent")[0]["metadata"]["uid"] != worker
    assert release.running("node-agent-holder")[0]["metadata"]["uid"] == holder
    now = rounds()
    k8s.until("the reader reads on", lambda: rounds() >= now + 3, 30)
    assert "FAILED" not in namespace.logs("reader", "main"), "an upgrade failed a reader"

    # What would unmount under a reader must be asked for.
    refused = release.upgrade(charts.merged(values, {"nodeAgent": {"patience": "7m"}}), check=False)
    assert refused.returncode != 0 and "nodeAgent.replaceHolders=true" in refused.stderr
    release.upgrade(charts.merged(values, {"nodeAgent": {"patience": "7m", "replaceHolders": True}}))
    assert release.running("node-agent-holder")[0]["metadata"]["uid"] != holder
    assert there()

    # Both pods, at once and without grace: what was mounted goes, what lies at the origin stays.
    cluster.kubectl("delete", "pod", "-n", release.namespace, "-l", f"app.kubernetes.io/instance={release.name}", "--grace-period=0", "--force")
    k8s.until("both are back", lambda: release.running("node-agent") and release.running("node-agent-holder"), 60)
    assert there(), "objects of the origin are gone"
    now = rounds()
    k8s.until("the reader sees the new mount", lambda: rounds() >= now + 3, 30)
    end = namespace.logs("reader", "main").splitlines()[-2:]
    assert not any("FAILED" in line for line in end), end

    namespace.delete_pod("reader")
    release.uninstall()
    table = lambda: [line for line in cluster.inside("cat", "/proc/self/mountinfo").stdout.splitlines() if str(above) in line]
    k8s.until(lambda: f"no mount is left: {table()}", lambda: not table(), 30)
    assert there()
