"""What the chart's tests share: where things are, rendering with real Helm, and the names that Rust has.

Nothing here knows what the chart should look like; that is in the tests.
"""

import functools
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "warpdrive"
# What the chart promises (kubeVersion), up to the newest that the schemas know.
VERSIONS = [f"1.{minor}.0" for minor in range(29, 38)]

# Values that make everything appear, on top of the defaults.
BACKEND = {"name": "train", "type": "s3", "config": {"bucket": "b", "endpoint": "http://10.0.0.1:9000"}}
EVERYTHING = {
    "imagePullSecrets": [{"name": "registry"}],
    "commonLabels": {"team": "platform"},
    "commonAnnotations": {"example.org/owner": "platform"},
    "csi": {"enabled": True, "podLabels": {"a": "b"}},
    "nodeAgent": {"enabled": True, "envFrom": [{"secretRef": {"name": "keys"}}]},
    "config": {"cache": {"maxSize": "2TB", "readaheadBlocks": 8}, "backends": [BACKEND]},
    "configs": {"ml": {"backends": [BACKEND]}, "research": "backends: []\n"},
    "metrics": {
        "serviceMonitor": {"enabled": True},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "networkPolicy": {"enabled": True},
}


def tools():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("WARPDRIVE_TOOLS") or f"{cache}/warpdrive-tools")


@functools.cache
def helm():
    for folder in (os.environ.get("WARPDRIVE_K8S"), tools() / "k8s", tools()):
        if folder and os.access(pathlib.Path(folder) / "bin" / "helm", os.X_OK):
            return str(pathlib.Path(folder) / "bin" / "helm")
    found = shutil.which("helm")
    if found:
        return found
    if os.environ.get("WARPDRIVE_REQUIRE_TOOLS"):
        pytest.fail("there is no helm: tests/install")
    pytest.skip("there is no helm: tests/install")


def run_helm(*arguments, text=""):
    """Helm with nothing of the machine's own: no repositories, no plugins, no cluster."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HELM_") and k != "KUBECONFIG"}
    environment |= {"HELM_CACHE_HOME": "/nonexistent", "HELM_CONFIG_HOME": "/nonexistent", "HELM_DATA_HOME": "/nonexistent"}
    return subprocess.run(
        [helm(), *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60, env=environment
    )


@functools.cache
def _rendered(values, version, release, namespace, notes):
    arguments = ["template", release, CHART, "-n", namespace, "--kube-version", version, "-f", "-"]
    if notes:
        arguments = ["install", release, CHART, "-n", namespace, "--dry-run=client", "-f", "-"]
    return run_helm(*arguments, text=values)


def rendering(values=None, version=VERSIONS[-1], release="warpdrive", namespace="warpdrive"):
    """What Helm says to these values: a CompletedProcess."""
    return _rendered(yaml.safe_dump(values or {}), version, release, namespace, False)


def render(values=None, **where):
    """The objects of these values."""
    result = rendering(values, **where)
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def refusal(values, **where):
    """What Helm says when it refuses these values."""
    result = rendering(values, **where)
    assert result.returncode != 0, "these values were taken"
    return result.stderr


def one(objects, kind, name=None, component=None):
    """The only object of a kind (and name, and component)."""
    found = [
        o
        for o in objects
        if o["kind"] == kind
        and (name is None or o["metadata"]["name"] == name)
        and (component is None or o["metadata"]["labels"].get("app.kubernetes.io/component") == component)
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name or component or ''}"
    return found[0]


def pod_templates(objects):
    """(object, pod spec, pod metadata) of everything that makes a pod, hooks included."""
    for o in objects:
        if o["kind"] in ("Deployment", "DaemonSet"):
            yield o, o["spec"]["template"]["spec"], o["spec"]["template"]["metadata"]
        elif o["kind"] == "Pod":
            yield o, o["spec"], o["metadata"]


@functools.cache
def rust_names():
    """The constants of cluster/src/names.rs."""
    text = (ROOT / "cluster" / "src" / "names.rs").read_text()
    names = {}
    for name, quoted, number in re.findall(r'pub const (\w+): &?\w+ = (?:"([^"]*)"|(\d+));', text):
        names[name] = int(number) if number else quoted
    return names
