"""A MutatingAdmissionPolicy makes the same pods as injection itself.

What `warpdrive inject --policy` prints is applied; pods are created (dry run) in a namespace that asks for
injection, and the same pods, injected by `warpdrive inject -f`, in one that does not. Both pass through
the API server's defaults, and have to be equal.
"""

import json
import subprocess
import time

import pytest

import cluster as k8s

PREFIX = "warpdrive.io/"
WHOLE = {"cpu": "1", "memory": "1Gi"}


def pod(annotations=None, spec=None, labels=None):
    metadata = {"name": "p", "labels": labels or {}}
    if annotations:
        metadata["annotations"] = {PREFIX + name: value for name, value in annotations.items()}
    main = {"containers": [{"name": "main", "image": "i"}], "serviceAccountName": "default"}
    # The token's volume has a random name.
    main["automountServiceAccountToken"] = False
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": main | (spec or {})}


def limits(limits):
    return {"containers": [{"name": "main", "image": "i", "resources": {"limits": limits}}]}


CROWD = {
    "terminationGracePeriodSeconds": 5,
    "volumes": [{"name": "v", "emptyDir": {}}],
    "initContainers": [
        {"name": "istio-init", "image": "i"},
        {"name": "istio-proxy", "image": "i", "restartPolicy": "Always"},
        {"name": "own", "image": "i"},
    ],
    "containers": [
        {"name": "one", "image": "i", "env": [{"name": "AWS_REGION", "value": "x"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
        {"name": "two", "image": "i", "env": [{"name": "AWS_ENDPOINT_URL", "value": "x"}]},
        {"name": "linkerd-proxy", "image": "i"},
        {"name": "three", "image": "i", "env": [
            {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "AWS_DEFAULT_REGION", "value": "us-east-1"},
        ]},
        {"name": "four", "image": "i", "env": [{"name": "AWS_ROLE_ARN", "value": "x"}]},
        {"name": "five", "image": "i", "ports": [{"containerPort": 9000, "protocol": "UDP"}]},
    ],
}
CLAIM = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}
ARGO = {"containers": [{"name": "main", "image": "i"}, {"name": "wait", "image": "i"}], "initContainers": [{"name": "init", "image": "i"}]}

PODS = [
    pod(),
    pod({"memory": "1Gi"}),
    pod({"memory": "300M"}),
    pod({"config": "secret:s/k.yaml"}),
    pod({"config": "other"}),
    pod({"mounts": "/a/, /b/c"}),
    pod({"cache-size": "123Gi"}),
    pod({"cache-size": "1000000007"}),
    pod(spec=CROWD),
    pod(spec=limits(WHOLE)),
    pod(spec=limits(WHOLE | {"ephemeral-storage": "1Gi"})),
    pod(spec=limits({"ephemeral-storage": "1Gi"})),
    pod(spec=CLAIM | {"securityContext": {"fsGroup": 7}}),
    pod(spec=ARGO, labels={"workflows.argoproj.io/workflow": "x"}),
]

SETTINGS = [
    ["mode=sidecar"],
    ["mode=csi"],
    ["mode=s3"],
    ["mode=sidecar", "cache=ephemeral:c", "warm=all", "token-audiences=a"],
    ["mode=csi", "cache=memory", "s3=off", "metrics=off"],
    ["mode=sidecar", "s3=anonymous", "flush-seconds=0"],
]

DENIED = [
    (pod({"mode": "s3"}), "only these are possible"),
    (pod({"memory": "x"}), "warpdrive.io/memory"),
    (pod({"mounts": "data"}), "warpdrive.io/mounts"),
    (pod({"config": "a/b/c"}), "warpdrive.io/config"),
    (pod({"cache-size": "200GB"}), "warpdrive.io/cache-size"),
    (pod(spec={"hostNetwork": True}), "hostNetwork"),
    (pod(spec={"containers": [{"name": "m", "image": "i", "ports": [{"containerPort": 9000}]}]}), "9000"),
    (pod(spec={"initContainers": [{"name": "m", "image": "i", "ports": [{"containerPort": 9000}]}]}), "9000"),
    (pod(spec={"containers": [{"name": "m", "image": "i", "volumeMounts": [{"name": "warpdrive-run", "mountPath": "/x"}]}]}), "volume"),
    (pod(spec={"volumes": [{"name": "warpdrive-run", "emptyDir": {}}]}), "Duplicate value"),
    (pod(spec={"volumes": [{"name": "v", "emptyDir": {}}], "containers": [
        {"name": "m", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/data/x"}]},
    ]}), "warpdrive.io/mounts"),
]


def inject(*arguments, text=None):
    command = [str(k8s.PROGRAM), "inject", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=30).stdout


def created(namespace, manifest):
    """What the API server makes of a pod, or what it says against it."""
    answer = namespace.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=manifest, check=False)
    if answer.returncode != 0:
        return None, answer.stderr
    found = json.loads(answer.stdout)
    for name in ("uid", "creationTimestamp", "namespace", "managedFields"):
        found["metadata"].pop(name, None)
    return {"metadata": found["metadata"], "spec": found["spec"]}, None


@pytest.fixture(params=SETTINGS, ids=lambda settings: ",".join(settings))
def policy(cluster, make_namespace, request):
    """Settings of a policy in force, a namespace that asks for injection and one that does not."""
    arguments = [argument for setting in request.param for argument in ("--set", setting)]
    printed = inject("--policy", *arguments)
    # Names of their own: those of the settings before are still being deleted.
    number = SETTINGS.index(request.param)
    asked = make_namespace(f"-asked-{number}", {"warpdrive.io/inject": "true"})
    plain = make_namespace(f"-plain-{number}")
    cluster.kubectl("apply", "-f", "-", stdin=printed)
    try:
        # The API server looks at its policies about once a second.
        ours = lambda: "initContainers" in ((created(asked, json.dumps(pod()))[0] or {}).get("spec", {}))
        k8s.until(lambda: "a policy in force", ours, 30)
        time.sleep(2)
        yield arguments, asked, plain
    finally:
        cluster.kubectl("delete", "-f", "-", stdin=printed)


def test_policy(policy):
    arguments, asked, plain = policy
    compared = 0
    for one in PODS:
        annotations = one["metadata"].get("annotations", {})
        if "mode=s3" in arguments and PREFIX + "mounts" in annotations:
            continue
        if "cache=memory" in arguments and PREFIX + "cache-size" in annotations:
            continue
        text = json.dumps(one)
        by_policy, denial = created(asked, text)
        assert denial is None, denial
        by_injection, denial = created(plain, inject("-f", "-", *arguments, text=text))
        assert denial is None, denial
        assert by_policy == by_injection
        compared += 1
    assert compared >= 12
    found, denial = created(asked, json.dumps(pod(spec=CLAIM)))
    if "cache=ephemeral:c" in arguments:
        assert found is None and "fsGroup" in denial, denial
    else:
        assert denial is None, denial
    if arguments == ["--set", "mode=sidecar"]:
        for one, words in DENIED:
            found, denial = created(asked, json.dumps(one))
            assert found is None and words in denial, (one, denial)
        unwanted, _ = created(asked, json.dumps(pod(labels={"warpdrive.io/inject": "false"})))
        wanted, _ = created(plain, json.dumps(pod(labels={"warpdrive.io/inject": "true"})))
        assert "initContainers" not in unwanted["spec"] and "initContainers" in wanted["spec"]
