"""Names and lists that stand in the chart and somewhere else: they are the same."""

import re

import policies
import yaml

from harness import CHART, EVERYTHING, ROOT, one, pod_templates, render, rust_names

NAMES = rust_names()


def texts():
    for path in sorted(CHART.rglob("*")):
        if path.is_file() and path.suffix in (".yaml", ".tpl", ".txt", ".json"):
            yield path, path.read_text()


def test_names_rs_was_read():
    assert NAMES["INJECT_LABEL"] == "warpdrive.io/inject" and NAMES["WORKER_ID"] == 65534 and len(NAMES) >= 30


def test_labels_and_annotations():
    known = {NAMES["INJECT_LABEL"], NAMES["STATUS_ANNOTATION"]} | {NAMES["ANNOTATION_PREFIX"] + a for a in annotations()}
    known |= {"warpdrive.io/tokens"}
    for path, text in texts():
        if path.name in ("dashboard.json", "values.schema.json") or path.parent.name == "policy":
            continue
        for name in re.findall(r"(?<![\w.])warpdrive\.io/[a-z0-9-]+", text):
            assert name in known, f"{path.name}: {name} is no name of ours"


def annotations():
    table = (ROOT / "cluster" / "src" / "settings" / "annotations.rs").read_text()
    return re.findall(r'^\s+row\(\s*"([a-z0-9-]+)"', table, re.M)


def test_annotations_with_defaults_are_all_annotations():
    import json

    schema = json.loads((CHART / "values.schema.json").read_text())
    ours = schema["properties"]["injection"]["properties"]["annotations"]["properties"]
    assert sorted(ours) == sorted(annotations()) and len(ours) > 10


def test_containers_paths_and_ports():
    objects = render(EVERYTHING)
    for _, spec, _ in pod_templates(objects):
        for c in spec["containers"]:
            assert c["command"][0] == NAMES["PROGRAM"]
    webhook = one(objects, "Deployment")["spec"]["template"]["spec"]
    ports = {p["name"]: p["containerPort"] for p in webhook["containers"][0]["ports"]}
    assert ports["https"] == NAMES["WEBHOOK_PORT"]
    assert webhook["securityContext"]["runAsUser"] == NAMES["WORKER_ID"]
    worker = one(objects, "DaemonSet", component="node-agent")["spec"]["template"]["spec"]["containers"][0]
    holder = one(objects, "DaemonSet", component="node-agent-holder")["spec"]["template"]["spec"]["containers"][0]
    assert (worker["name"], holder["name"]) == (NAMES["WORKER_CONTAINER"], NAMES["MOUNTD_CONTAINER"])
    places = {m["name"]: m["mountPath"] for m in worker["volumeMounts"]}
    assert places == {"config": NAMES["CONFIG_DIRECTORY"], "run": NAMES["RUN_DIRECTORY"], "cache": NAMES["CACHE_DIRECTORY"]}
    socket = f"{NAMES['RUN_DIRECTORY']}/{NAMES['HOLDER_SOCKET']}"
    assert socket in worker["command"] and socket in holder["command"]
    assert worker["ports"][0]["containerPort"] == NAMES["METRICS_PORT"]
    containers = (ROOT / "cluster/src/inject/containers.rs").read_text()
    port_name = re.search(r'METRICS_PORT_NAME: &str = "([a-z-]+)"', containers).group(1)
    assert worker["ports"][0]["name"] == one(objects, "PodMonitor", component="worker")["spec"]["podMetricsEndpoints"][0]["port"] == port_name
    for _, spec, _ in pod_templates(objects):
        for c in spec["containers"]:
            assert all(len(p["name"]) <= 15 for p in c.get("ports", [])), "the API server takes no longer name of a port"
    for o in objects:
        if o["kind"] == "ConfigMap" and o["metadata"]["name"] == "warpdrive":
            assert list(o["data"]) == [NAMES["CONFIG_KEY"]]


def test_driver():
    objects = render(EVERYTHING)
    assert one(objects, "CSIDriver")["metadata"]["name"] == NAMES["CSI_DRIVER"]
    node = one(objects, "DaemonSet", component="csi")["spec"]["template"]["spec"]
    plugin = next(v for v in node["volumes"] if v["name"] == "plugin")
    assert plugin["hostPath"]["path"] == f"/var/lib/kubelet/plugins/{NAMES['CSI_DRIVER']}"


def test_versions_are_the_programs():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    assert chart["appVersion"] == version


def test_webhook_names_are_below_ours():
    for webhook in one(render({}), "MutatingWebhookConfiguration")["webhooks"]:
        assert webhook["name"].endswith(".inject.warpdrive.io")
        assert NAMES["INJECT_LABEL"] in str(webhook["objectSelector"])


def test_policies_are_what_the_program_prints():
    for mode in policies.MODES:
        there = (CHART / "files" / "policy" / f"{mode}.yaml").read_text()
        assert there == policies.marked(mode), "python tests/chart/policies.py writes them"
        # Each mark is where the chart looks for it, and in every place.
        assert there.count("IMAGE") == there.count('image: "IMAGE"') >= 1
        assert there.count("7777Gi") == there.count('"7777Gi"') >= 1 <= there.count('"7777Mi"') == there.count("7777Mi")
        for counted in (7777 << 30, 7777 << 20):
            assert there.count(str(counted)) == there.count(f".asInteger() : {counted}") >= 1


def test_copies_are_copies():
    """What Helm needs inside the chart and others use outside."""
    for name in ("alerts.yaml", "dashboard.json"):
        ours, theirs = CHART / "files" / name, ROOT / "examples" / "monitoring" / name
        assert ours.read_bytes() == theirs.read_bytes(), f"cp {theirs.relative_to(ROOT)} {ours.relative_to(ROOT)}"
    rule = one(render(EVERYTHING), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "examples" / "monitoring" / "alerts.yaml").read_text())
