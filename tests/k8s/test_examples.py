"""The manifests of examples/kubernetes and the commands of README.md, applied to the cluster.

What is replaced is said in `on_this_machine`: images that would have to be pulled, sizes that this node
does not have, and the origin. Everything else is applied as it stands.
"""

import json
import re
import shlex
import sys

import cluster as k8s
import origin as origins
import pods
import pytest
import yaml
from release import HELM, Release

FOLDER = k8s.ROOT / "examples/kubernetes"
BUCKET = "acme-ml"
# Images of the manifests, and what stands for them here: a Python with boto3.
IMAGES = ("python:", "acme/trainer:", "pytorch/pytorch:", "rayproject/ray:")
SMALL = {"warpdrive.io/cache-size": "512Mi", "warpdrive.io/memory": "64Mi"}
# Prints how much the sidecar has fetched from the origin so far.
FETCHED = """
import urllib.request
text = urllib.request.urlopen("http://127.0.0.1:9091/metrics").read().decode()
print("fetched", sum(float(line.split()[-1]) for line in text.splitlines()
                     if line.startswith("warpdrive_cache_fetch_bytes_total")), flush=True)
"""


@pytest.fixture(scope="module")
def acme(origin, tmp_path_factory):
    """The bucket that the manifests name, with data below datasets/; sizes by key."""
    folder, sizes = tmp_path_factory.mktemp("acme"), {}
    for key, size in {
        "imagenet/a/0.jpg": 70_000, "imagenet/a/1.jpg": 3_000_000, "imagenet/b/0.jpg": 1,
        **{f"tokens/{number:04}.npy": 100_000 + number for number in range(4)},
    }.items():
        path = folder / "datasets" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number % 251 for number in range(size % 1000)]) + bytes(size - size % 1000))
        sizes[key] = size
    origin.cluster.inside(
        sys.executable, "-c", origins.UPLOAD, folder, BUCKET, origin.endpoint, origins.ACCESS, origins.SECRET, timeout=60,
    )
    yield sizes
    kept = {
        path.relative_to(origin.store / BUCKET / "datasets").as_posix(): path.stat().st_size
        for path in (origin.store / BUCKET / "datasets").rglob("*") if path.is_file()
    }
    assert kept == sizes, "a pod took objects of the origin with it"


def on_this_machine(name, origin) -> list:
    """The objects of a manifest, with what this machine has in the place of what it has not."""
    text = (FOLDER / name).read_text()
    place = f'region: us-east-1, endpoint: "{origin.endpoint}"'
    text = text.replace("region: eu-central-1", place)
    text = text.replace("AWS_ACCESS_KEY_ID: put-yours-here", f"AWS_ACCESS_KEY_ID: {origins.ACCESS}")
    text = text.replace("AWS_SECRET_ACCESS_KEY: put-yours-here", f"AWS_SECRET_ACCESS_KEY: {origins.SECRET}")
    # By way of JSON, so that what one anchor names twice is two things.
    documents = json.loads(json.dumps([document for document in yaml.safe_load_all(text) if document]))
    for template in templates(documents):
        annotations = template["metadata"].setdefault("annotations", {})
        annotations.update({key: value for key, value in SMALL.items() if key in annotations or key.endswith("size")})
        for container in template["spec"]["containers"]:
            assert container["image"].startswith(IMAGES), f"{name}: an image that this test does not know"
            container["image"] = k8s.PYTHON
            container.pop("resources", None)
    return documents


def templates(thing) -> list:
    """Every pod template, however deep."""
    found = []
    if isinstance(thing, dict):
        if isinstance(thing.get("spec"), dict) and "containers" in thing["spec"] and "metadata" in thing:
            found.append(thing)
        for value in thing.values():
            found += templates(value)
    elif isinstance(thing, list):
        for value in thing:
            found += templates(value)
    return found


def main_of(documents):
    (template,) = templates(documents)
    return template["spec"]["containers"][0]


def wait_complete(namespace, job, seconds=120):
    namespace.kubectl("wait", "--for=condition=complete", f"job/{job}", f"--timeout={seconds}s", timeout=seconds + 10)


def logs(namespace, job) -> str:
    # Fails while one of its containers has not started: what the others said is there all the same.
    return namespace.kubectl("logs", "-l", f"job-name={job}", "-c", "main", "--tail=-1", check=False).stdout


def end(namespace, job):
    namespace.kubectl("delete", "job", job, "--timeout=60s", timeout=70)


def everything(sizes, below="") -> str:
    chosen = [size for key, size in sizes.items() if key.startswith(below)]
    return f"{len(chosen)} files, {sum(chosen)} bytes"


def test_job_label(namespace, image, origin, acme):
    namespace.apply(*on_this_machine("config.yaml", origin))
    namespace.create(*pods.injected(*on_this_machine("job-label.yaml", origin)))
    wait_complete(namespace, "train")
    assert everything(acme) in logs(namespace, "train")
    end(namespace, "train")


def test_job_prewarm(namespace, image, origin, acme):
    """The main container starts when all is there, and the origin is asked for nothing more."""
    documents = on_this_machine("job-prewarm.yaml", origin)
    command = main_of(documents)["command"]
    command[-1] = FETCHED + command[-1] + FETCHED
    namespace.apply(*on_this_machine("config.yaml", origin))
    namespace.create(*pods.injected(*documents))
    wait_complete(namespace, "train-warm")
    said = logs(namespace, "train-warm")
    assert everything(acme, "imagenet/") in said, said
    before, after = [float(number) for number in re.findall(r"fetched ([\d.e+]+)", said)]
    assert before == after >= sum(size for key, size in acme.items() if key.startswith("imagenet/")), said
    (pod,) = namespace.pods("job-name=train-warm")
    status = k8s.container_status(pod, "warpdrive-warm")["state"]["terminated"]
    main = k8s.container_status(pod, "main")["state"]["terminated"]
    assert status["exitCode"] == 0 and status["finishedAt"] <= main["startedAt"]
    end(namespace, "train-warm")


def test_s3_only_where_restricted_is_enforced(make_namespace, image, origin, acme):
    namespace = make_namespace(labels=pods.ENFORCED)
    namespace.apply(*on_this_machine("config.yaml", origin))
    namespace.create(*pods.injected(*on_this_machine("s3-only.yaml", origin)))
    wait_complete(namespace, "train-s3")
    assert f"{len(acme)} objects, {sum(acme.values())} bytes" in logs(namespace, "train-s3")
    report = origin.store / BUCKET / "runs/train-s3/report.txt"
    assert report.read_text() == f"{sum(acme.values())} bytes\n"
    end(namespace, "train-s3")


# Stands for torchrun, which these images do not have: tells what it was started with and reads its share.
RANK = r"""
import os, pathlib, sys, time
compile(open("/scripts/ddp.py").read(), "ddp.py", "exec")
rank = int(next(word for word in sys.argv if word.startswith("--node-rank=")).partition("=")[2])
folder = next(word for word in sys.argv if word.startswith("--data=")).partition("=")[2]
files = sorted(pathlib.Path(folder).glob("*.npy"))[rank::2]
print("rank", rank, "on", os.uname().nodename, "read", sum(len(path.read_bytes()) for path in files), "of", sys.argv[1:], flush=True)
while not os.path.exists("/data/runs/ddp/seen"):
    time.sleep(0.2)
"""


def test_ddp_in_two_pods(namespace, image, origin, acme):
    """Each rank has its index, its share of the data and a name that the others find it by."""
    documents = on_this_machine("ddp.yaml", origin)
    main = main_of(documents)
    main["command"] = ["python3", "-c", RANK, *main["command"]]
    namespace.apply(*on_this_machine("config.yaml", origin))
    namespace.kubectl("create", "configmap", "scripts", f"--from-file={k8s.ROOT / 'examples/training/ddp.py'}")
    namespace.create(*pods.injected(*documents))

    # What a cluster's DNS serves: ddp-0.ddp and ddp-1.ddp.
    def names():
        slices = namespace.json("get", "endpointslices", "-l", "kubernetes.io/service-name=ddp")["items"]
        return {endpoint.get("hostname") for one in slices for endpoint in one["endpoints"] or []}

    k8s.until(lambda: f"both pods behind the Service: {names()}", lambda: names() == {"ddp-0", "ddp-1"}, 60)
    k8s.until("both ranks read", lambda: logs(namespace, "ddp").count("rank ") == 2, 60)
    # Written past the sidecars: what was not there is asked for again within seconds.
    seen = origin.store / BUCKET / "runs/ddp/seen"
    seen.parent.mkdir(parents=True)
    seen.touch()
    wait_complete(namespace, "ddp")
    tokens = [size for key, size in sorted(acme.items()) if key.startswith("tokens/")]
    said = logs(namespace, "ddp")
    for rank in (0, 1):
        assert f"rank {rank} on ddp-{rank} read {sum(tokens[rank::2])} of" in said, said
    end(namespace, "ddp")


@pytest.mark.parametrize("name", ["pytorchjob.yaml", "rayjob.yaml"])
def test_pods_of_other_controllers(make_namespace, image, origin, acme, name):
    """Their operators are not here: a pod of each template is made as they would make it, and reads."""
    namespace = make_namespace("-" + name.partition(".")[0])
    look = 'import pathlib; print(sum(1 for p in pathlib.Path("/data/train").rglob("*") if p.is_file()), "files")'
    namespace.apply(*on_this_machine("config.yaml", origin))
    namespace.kubectl("create", "configmap", "scripts", f"--from-file={k8s.ROOT / 'examples/training/ddp.py'}")
    documents = on_this_machine(name, origin)
    made = pods.injected(*documents)
    for document in made:
        if document["kind"] == "ConfigMap":
            namespace.apply(document)
    found = templates(made)
    assert len(found) == 2
    for number, template in enumerate(found):
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": f"replica-{number}"}}
        pod["spec"]["restartPolicy"] = "Never"
        pod["spec"]["containers"][0]["command"] = ["python3", "-c", look]
        namespace.create(pod)
    for number in range(2):
        namespace.wait_phase(f"replica-{number}", "Succeeded", 90)
        assert f"{len(acme)} files" in namespace.logs(f"replica-{number}", found[number]["spec"]["containers"][0]["name"])
        namespace.delete_pod(f"replica-{number}")


@pytest.fixture
def release(cluster, image, make_namespace, request):
    """A release that is not installed yet; pods of the test are gone before it is."""
    made = Release(cluster, image)
    yield made
    for namespace in request.node.namespaces:
        namespace.kubectl("delete", "jobs,pods", "--all", "--timeout=60s", check=False, timeout=70)
    made.close()


def readme_commands() -> list[list[str]]:
    """The commands of README.md's section on Kubernetes."""
    text = (k8s.ROOT / "README.md").read_text()
    section = text.split("## On Kubernetes\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_the_commands_of_the_readme(release, make_namespace, origin, acme, tmp_path):
    """Install the chart, label the pod, see it work."""
    namespace = make_namespace()
    commands = readme_commands()
    assert [words[0] for words in commands] == ["helm", "kubectl", "kubectl"]
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"image": {"tag": k8s.IMAGE.rpartition(":")[2], "pullPolicy": "Never"}}))
    output = ""
    for program, *words in commands:
        if program == "helm":
            words = [str(k8s.ROOT / word) if word.startswith("charts/") else word for word in words]
            words = [word.replace("registry.example", k8s.IMAGE.partition("/")[0]) for word in words]
            homes = [f"HELM_{kind}_HOME={tmp_path}" for kind in ("CACHE", "CONFIG", "DATA")]
            release.installed = True
            release.cluster.inside("env", *homes, HELM, *words, "-f", values, timeout=150)
            continue
        for number, word in enumerate(words):
            if word.startswith("examples/"):
                file = tmp_path / word.rpartition("/")[2]
                objects = on_this_machine(file.name, origin)
                file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
                words[number] = str(file)
        output = namespace.kubectl(*words, timeout=150).stdout
    assert everything(acme) in output, output
    wait_complete(namespace, "train")
    (pod,) = namespace.pods("job-name=train")
    assert [container["name"] for container in pod["spec"]["initContainers"]] == ["warpdrive-mountd", "warpdrive"]
    with_token = [
        container["name"] for kind in ("initContainers", "containers") for container in pod["spec"][kind]
        if any(mount["name"].startswith("kube-api-access") for mount in container["volumeMounts"])
    ]
    assert with_token == [container["name"] for container in pod["spec"]["containers"]], "the pod's own token is not for us"
    end(namespace, "train")


def test_csi_where_restricted_is_enforced(release, make_namespace, origin, acme):
    """The mount of an unprivileged pod, by label, webhook and node service."""
    release.install({"csi": {"enabled": True}}).injects()
    namespace = make_namespace(labels=pods.ENFORCED)
    namespace.apply(*on_this_machine("config.yaml", origin))
    namespace.create(*on_this_machine("csi.yaml", origin))
    wait_complete(namespace, "train-csi")
    assert everything(acme) in logs(namespace, "train-csi")
    (pod,) = namespace.pods("job-name=train-csi")
    assert [container["name"] for container in pod["spec"]["initContainers"]] == ["warpdrive"]
    end(namespace, "train-csi")
