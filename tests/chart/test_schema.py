"""values.schema.json: a slip is refused with its place, and what is allowed is described."""

import json

import pytest
import yaml

from harness import BACKEND, CHART, refusal, render

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())

SLIPS = {
    "/webhook": {"webhook": {"replica": 2}},
    "/webhook/certificates/mode": {"webhook": {"certificates": {"mode": "self-signed"}}},
    "/webhook/failurePolicy": {"webhook": {"failurePolicy": "fail"}},
    "/webhook/timeoutSeconds": {"webhook": {"timeoutSeconds": 31}},
    "/webhook/replicas": {"webhook": {"replicas": "2"}},
    "/injection/mode": {"injection": {"mode": "sidecar"}},
    "/injection/annotations": {"injection": {"annotations": {"cachesize": "1Gi"}}},
    "/injection/excludedNamespaces/0": {"injection": {"excludedNamespaces": ["Kube_System"]}},
    "/image/digest": {"image": {"digest": "0123"}},
    "/image/pullPolicy": {"image": {"pullPolicy": "always"}},
    "/csi/kubeletDir": {"csi": {"kubeletDir": "var/lib/kubelet"}},
    "/csi/maxUnavailable": {"csi": {"maxUnavailable": "a few"}},
    "/nodeAgent/mountPoint": {"nodeAgent": {"mountPoint": "/"}},
    "/agent": {"agent": {"mountpoint": "/data"}},
    "/config/cache": {"config": {"cache": {"max_size": "1TB"}}},
    "/config/backends/0/type": {"config": {"backends": [{"name": "a", "type": "s4"}]}},
    "/configs/ml": {"configs": {"ml": {"backend": []}}},
    "/metrics/podMonitor/interval": {"metrics": {"podMonitor": {"interval": "30"}}},
    "/networkPolicy/apiServerPorts": {"networkPolicy": {"apiServerPorts": []}},
    "/webhook/certificates/secretName": {"webhook": {"certificates": {"mode": "secret", "caBundle": "QUJD"}}},
    "/webhook/certificates/caBundle": {"webhook": {"certificates": {"mode": "secret", "secretName": "tls"}}},
    "''": {"injections": {}},
}


@pytest.mark.parametrize("place", SLIPS)
def test_a_slip_is_refused_with_its_place(place):
    said = refusal(SLIPS[place])
    assert place in said and "schema" in said


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"controlPlane": {"enabled": True}}, "there is no control plane"),
        ({"nodeAgent": {"enabled": True}}, "config.backends: the node agent needs at least one origin"),
        ({"nodeAgent": {"enabled": True, "cachePath": "/data/cache"}, "config": {"backends": [BACKEND]}}, "the cache cannot lie below"),
        ({"pdb": {"minAvailable": 2}}, "no node could ever be drained"),
        ({"pdb": {"minAvailable": "100%"}}, "no node could ever be drained"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(values, sentence):
    assert sentence in refusal(values)


def test_the_control_plane_of_the_go_project_may_be_off():
    assert render({"controlPlane": {"enabled": False, "image": {"tag": "1"}, "replicas": 2}})


def resolve(schema):
    for part in schema.get("allOf", []):
        if "$ref" in part:
            return SCHEMA["definitions"][part["$ref"].rsplit("/", 1)[1]]
    return schema


def nodes(schema, path=""):
    """Each value that has a name, with its path, its schema and what that leads to."""
    for name, sub in resolve(schema).get("properties", {}).items():
        where = f"{path}.{name}".lstrip(".")
        yield where, sub, resolve(sub)
        yield from nodes(sub, where)


def test_every_value_is_described():
    for path, schema, _ in nodes(SCHEMA):
        assert schema.get("description"), f"{path} has no description"


def test_every_section_is_strict():
    open_ones = {path for path, _, s in nodes(SCHEMA) if s.get("type") == "object" and s.get("additionalProperties", True) is True}
    # Passed through to Kubernetes or to the program, which check them.
    leaves = {"affinity", "valueFrom", "extra", "claims"}
    assert {path for path in open_ones if path.rsplit(".", 1)[-1] not in leaves} == {"global", "controlPlane"}


def test_every_default_is_known_and_everything_known_has_a_default():
    known = {path for path, _, _ in nodes(SCHEMA)}

    def walk(values, path=""):
        for key, value in values.items():
            where = f"{path}.{key}".lstrip(".")
            yield where
            if isinstance(value, dict):
                yield from walk(value, where)

    defaults = set(walk(VALUES))
    free = ("nodeSelector.", "dashboard.labels.", "resources.", "holderResources.")
    assert {path for path in defaults - known if not any(part in path for part in free)} == set()
    parents_empty = ("agent.", "injection.annotations.", "injection.resources.", "config.cache.", "issuerRef.", "resources.", "holderResources.", "metrics.serviceMonitor.")
    missing = {path for path in known - defaults if not any(part in path for part in parents_empty)}
    assert missing == {"global"}
