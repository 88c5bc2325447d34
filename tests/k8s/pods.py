"""Pods of the tests: what a user writes, and what its main container does to verify every byte."""

import contextlib
import copy
import json

import cluster as k8s
import yaml

# Run by the Python image as `python3 -c SOURCE MODE`: sums are of the origin's own files, from a ConfigMap.
READER = r'''
import hashlib, os, sys, time
sums = dict(reversed(line.split()) for line in open("/expected/SHA256SUMS"))
ROOT = os.environ.get("DATA", "/data/train")

def file(name):
    digest = hashlib.sha256()
    with open(os.path.join(ROOT, name), "rb", buffering=0) as f:
        # The kernel's pages would answer without the mount.
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

def files():
    found = {os.path.relpath(os.path.join(at, f), ROOT) for at, _, names in os.walk(ROOT) for f in names}
    assert found == set(sums), (sorted(found ^ set(sums)))
    for name, digest in sums.items():
        assert file(name) == digest, name
    print("verified", len(sums), "files", flush=True)

def objects():
    import boto3
    s3 = boto3.client("s3")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="train")
    found = {o["Key"] for page in pages for o in page.get("Contents", [])}
    assert found == set(sums), sorted(found ^ set(sums))
    for name, digest in sums.items():
        assert hashlib.sha256(s3.get_object(Bucket="train", Key=name)["Body"].read()).hexdigest() == digest, name
    print("verified", len(sums), "objects", flush=True)

def forever():
    """Reads on until it is told to end; any error ends it at once, with a status of its own."""
    import signal
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    rounds = reads = 0
    longest = 0.0
    while not stop:
        for name, digest in sums.items():
            begun = time.monotonic()
            assert file(name) == digest, name
            longest = max(longest, time.monotonic() - begun)
            reads += 1
            if stop:
                break
        rounds += 1
        if rounds == 1 or rounds % 20 == 0:
            print("round", rounds, "reads", reads, f"longest {longest:.2f} s", flush=True)
    print("end: reads", reads, f"longest {longest:.2f} s, errors 0", flush=True)

for what in sys.argv[1:]:
    {"files": files, "objects": objects, "forever": forever}[what]()
print("ended", time.time(), flush=True)
'''
VERIFY_ONCE = ["python3", "-c", READER, "files", "objects"]
VERIFY_FILES = ["python3", "-c", READER, "files"]
VERIFY_OBJECTS = ["python3", "-c", READER, "objects"]
VERIFY_FOREVER = ["python3", "-c", READER, "forever"]
EXPECTED = {"name": "expected", "configMap": {"name": "expected"}}
EXPECTED_AT = {"name": "expected", "mountPath": "/expected"}
# A namespace's labels: the strictest level, and what breaks it is refused.
ENFORCED = {"pod-security.kubernetes.io/enforce": "restricted"}
RESTRICTED = {
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def ended(log):
    """When the reader said its last word, as the machine's clock has it."""
    return float(log.rsplit("ended ", 1)[1].split()[0])


@contextlib.contextmanager
def watching(namespace, kind="pods"):
    watch = k8s.Watch(namespace.cluster, namespace.name, kind)
    try:
        yield watch
    finally:
        watch.close()


def by_hand(name="training", command=VERIFY_ONCE):
    """The pod of the example with this machine's images, and a main container that verifies."""
    text = (k8s.ROOT / "examples/kubernetes/pod.yaml").read_text()
    pod = next(found for found in yaml.safe_load_all(text) if found["kind"] == "Pod")
    pod["metadata"]["name"] = name
    for container in pod["spec"]["initContainers"]:
        container["image"] = k8s.IMAGE
    main = pod["spec"]["containers"][0]
    main["image"], main["command"] = k8s.PYTHON, command
    main["volumeMounts"].append(EXPECTED_AT)
    pod["spec"]["volumes"].append(EXPECTED)
    return copy.deepcopy(pod)


def wanted(name, command=VERIFY_ONCE, annotations=None, grace=10, restart="Never", spec=None, **main):
    """A pod as a user writes it: a label, annotations, nothing of ours in its spec."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"warpdrive.io/inject": "true"},
            "annotations": {
                f"warpdrive.io/{key}": value
                for key, value in {"env-from": "secret:origin", "cache-size": "1Gi", "memory": "64Mi", **(annotations or {})}.items()
                if value is not None
            },
        },
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": grace,
            "containers": [
                {
                    "name": "main", "image": k8s.PYTHON, "imagePullPolicy": "Never", "command": command,
                    "securityContext": RESTRICTED, "volumeMounts": [EXPECTED_AT], **main,
                }
            ],
            "volumes": [EXPECTED],
            **(spec or {}),
        },
    }


def as_job(pod, name, **more):
    """The same as a Job's template."""
    template = {"metadata": {k: v for k, v in pod["metadata"].items() if k != "name"}, "spec": pod["spec"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template, **more},
    }


def show(thing):
    return json.dumps(thing, indent=1)


def injected(*objects):
    """The same with WarpDrive in every pod, by `warpdrive inject`: for tests that need no webhook."""
    import subprocess

    text = yaml.safe_dump_all(objects)
    done = subprocess.run(
        [k8s.PROGRAM, "inject", "-f", "-", "--image", k8s.IMAGE], input=text, capture_output=True, text=True, timeout=30
    )
    if done.returncode:
        raise k8s.Failed(f"inject: {done.stderr}")
    return [found for found in yaml.safe_load_all(done.stdout) if found]
