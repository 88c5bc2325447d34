"""The manifests of examples/kubernetes: valid for Kubernetes from 1.29 on, before and after injection.

That a cluster runs them is tests/k8s/test_examples.py.
"""

import re
import subprocess

import harness
import pytest
from trainer import EXAMPLES

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

FOLDER = EXAMPLES / "kubernetes"
VERSIONS = ["1.29", "1.31", "1.33", "1.35", "1.37"]
LABEL = "warpdrive.io/inject"
# Groups whose schemas are not Kubernetes' own.
OTHERS = ("kubeflow.org/", "ray.io/", "argoproj.io/")
# Init containers that each mode puts in front.
ADDED = {"sidecar": ["warpdrive-mountd", "warpdrive"], "csi": ["warpdrive"], "s3": ["warpdrive"]}


def manifests():
    return sorted(path.name for path in FOLDER.glob("*.yaml"))


def documents(text: str) -> list:
    return [document for document in yaml.safe_load_all(text) if document]


def labelled() -> list[str]:
    return [name for name in manifests() if f"{LABEL}: \"true\"" in (FOLDER / name).read_text()]


def injected(name: str) -> list:
    done = subprocess.run(
        [str(harness.PROGRAM), "inject", "-f", str(FOLDER / name)], capture_output=True, text=True, timeout=20,
    )
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def templates(thing) -> list:
    """Every pod template with the label, however deep."""
    found = []
    if isinstance(thing, dict):
        if isinstance(thing.get("spec"), dict) and "containers" in thing["spec"]:
            labels = (thing.get("metadata") or {}).get("labels") or {}
            if labels.get(LABEL) == "true":
                found.append(thing)
        for value in thing.values():
            found += templates(value)
    elif isinstance(thing, list):
        for value in thing:
            found += templates(value)
    return found


def validate(document: dict):
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", manifests())
def test_valid(name):
    text = (FOLDER / name).read_text()
    assert text.startswith("# "), "a manifest says first what it shows"
    for document in documents(text):
        if not document["apiVersion"].startswith(OTHERS):
            validate(document)
        for number, template in enumerate(templates(document)):
            validate(pod_of(template, number))


def pod_of(template: dict, number=0) -> dict:
    """The pod that a controller makes of a template."""
    return {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": f"pod-{number}"}}


@pytest.mark.parametrize("name", [name for name in labelled() if not name.startswith("argo")])
def test_injected(name):
    before = [template for document in documents((FOLDER / name).read_text()) for template in templates(document)]
    after = [template for document in injected(name) for template in templates(document)]
    assert len(after) == len(before) > 0
    for number, (was, now) in enumerate(zip(before, after)):
        validate(pod_of(now, number))
        annotations = was["metadata"].get("annotations", {})
        expected = list(ADDED[annotations.get("warpdrive.io/mode", "sidecar")])
        if "warpdrive.io/warm" in annotations:
            expected.append("warpdrive-warm")
        assert [container["name"] for container in now["spec"]["initContainers"]] == expected
        # Nothing that the user wrote is gone.
        for mine, made in zip(was["spec"]["containers"], now["spec"]["containers"]):
            for key, value in mine.items():
                if isinstance(value, list):
                    assert made[key][: len(value)] == value
                else:
                    assert made[key] == value
            names = {variable["name"] for variable in made["env"]}
            assert {"AWS_ENDPOINT_URL_S3", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} <= names


def test_injected_argo_workflow():
    """An Argo template is no pod template: the sidecars are its init containers and sidecars."""
    (workflow,) = injected("argo-workflow.yaml")
    (template,) = workflow["spec"]["templates"]
    assert template["container"]["image"] == "python:3.12-slim"
    assert "/data" in [mount["mountPath"] for mount in template["container"]["volumeMounts"]]
    assert [container["name"] for container in template["initContainers"]] == ADDED["sidecar"]
    assert {"warpdrive-mount", "warpdrive-config"} <= {volume["name"] for volume in template["volumes"]}


def test_injecting_twice_changes_nothing(tmp_path):
    for name in labelled():
        once = subprocess.run([str(harness.PROGRAM), "inject", "-f", str(FOLDER / name)], capture_output=True, text=True)
        path = tmp_path / name
        path.write_text(once.stdout)
        twice = subprocess.run([str(harness.PROGRAM), "inject", "-f", str(path)], capture_output=True, text=True)
        assert twice.returncode == 0, twice.stderr
        assert documents(twice.stdout) == documents(once.stdout), name


def test_every_example_is_in_the_table():
    table = (EXAMPLES / "README.md").read_text()
    linked = set(re.findall(r"\]\(([^)#]+)\)", table))
    for path in sorted(EXAMPLES.rglob("*")):
        shown = path.relative_to(EXAMPLES).as_posix()
        if path.is_file() and "__pycache__" not in shown and shown != "README.md":
            folders = {parent.as_posix() for parent in path.relative_to(EXAMPLES).parents if parent.as_posix() != "."}
            assert shown in linked or folders & linked, f"{shown} is not in examples/README.md"
