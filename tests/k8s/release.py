"""The project's chart on the tests' cluster, through real Helm.

Invariant: a release that is made here is taken away by `close`, whatever became of it.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import cluster as k8s
import yaml

CHART = k8s.ROOT / "charts/warpdrive"
HELM = k8s.TOOLS / "k8s/bin/helm"
# Certificates that live for seconds, so that a test sees several of them.
SHORT_LIVES = {"authorityLifetime": "30s", "certificateLifetime": "6s", "settle": "3s", "resync": "1s"}
# What the cluster itself makes and changes all the time, and the records of what happened.
RESTLESS = {"events", "events.events.k8s.io", "leases.coordination.k8s.io", "endpointslices.discovery.k8s.io", "endpoints"}


def merged(*parts):
    """Values over values, as Helm does it: sections are merged, everything else is replaced."""
    result = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


class Release:
    """One release of the chart."""

    def __init__(self, cluster, image, name="warpdrive", namespace="warpdrive", labels=None):
        self.cluster, self.name, self.namespace = cluster, name, namespace
        repository, tag = image.rsplit(":", 1)
        self.base = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "nodeAgent": {"nodeSelector": {"nvidia.com/gpu": None}},
            # A webhook that is told to end does so after this; the default is for slower clusters.
            "webhook": {"shutdownDelaySeconds": 2},
        }
        self.folder = tempfile.TemporaryDirectory(prefix="warpdrive-helm-")
        self.installed = False
        existing = cluster.kubectl("get", "namespace", namespace, check=False).returncode == 0
        self.owns_namespace = not existing
        if not existing:
            document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels or {}}}
            cluster.kubectl("create", "-f", "-", stdin=json.dumps(document))

    def helm(self, *arguments, values=None, timeout=180, check=True):
        home = self.folder.name
        command = ["env", *(f"HELM_{kind}_HOME={home}" for kind in ("CACHE", "CONFIG", "DATA")), HELM, *arguments, "-n", self.namespace]
        if values is not None:
            file = Path(home) / "values.yaml"
            file.write_text(yaml.safe_dump(merged(self.base, values)))
            command += ["-f", file]
        return self.cluster.inside(*command, timeout=timeout, check=check)

    def install(self, values=None):
        self.installed = True
        try:
            self.helm("install", self.name, CHART, "--wait", "--timeout", "120s", values=values or {})
        except k8s.Failed as failed:
            described = self.cluster.kubectl("describe", "pods", "-n", self.namespace, check=False).stdout
            logs = "".join(self.logs(component) for component in ("webhook", "csi", "node-agent", "node-agent-holder"))
            raise k8s.Failed(f"{failed}\n{described[-3000:]}\n{logs[-3000:]}") from None
        return self

    def upgrade(self, values=None, check=True, seconds=120, force=False):
        options = ["--force-conflicts"] if force else []
        return self.helm("upgrade", self.name, CHART, "--wait", "--timeout", f"{seconds}s", *options, values=values or {}, check=check)

    def rollback(self, revision):
        self.helm("rollback", self.name, str(revision), "--wait", "--timeout", "120s")

    def test(self, check=True):
        return self.helm("test", self.name, "--logs", "--timeout", "120s", check=check)

    def uninstall(self):
        self.helm("uninstall", self.name, "--wait", "--timeout", "120s", check=False)
        self.installed = False
        k8s.until(
            lambda: f"no pod of the release: {self.pods()}",
            lambda: not self.pods(),
        )

    def pods(self, component=None):
        selector = f"app.kubernetes.io/instance={self.name}" + (f",app.kubernetes.io/component={component}" if component else "")
        return self.cluster.kubectl_json("get", "pods", "-n", self.namespace, "-l", selector)["items"]

    def running(self, component):
        """Its pods that are ready and not told to end."""
        def ready(pod):
            conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
            return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]

        return [pod for pod in self.pods(component) if ready(pod)]

    def logs(self, component):
        return self.cluster.kubectl(
            "logs", "-n", self.namespace, "-l", f"app.kubernetes.io/component={component}", "--tail=80", "--prefix", check=False
        ).stdout

    def bundle(self):
        """The authorities that the API server believes of the webhook, one text for each entry."""
        found = self.cluster.kubectl_json("get", "mutatingwebhookconfiguration", self.name)
        return [webhook["clientConfig"].get("caBundle", "") for webhook in found["webhooks"]]

    def injects(self):
        """Until the API server asks the webhook: it reads a new configuration a moment after it was made."""
        def asked():
            done = self.cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(small_pod("probe")), check=False)
            return done.returncode == 0 and "initContainers" in json.loads(done.stdout)["spec"]

        k8s.until("a labelled pod is injected", asked, 30)
        return self

    def close(self):
        if self.installed:
            self.uninstall()
        if self.owns_namespace:
            self.cluster.kubectl("delete", "namespace", self.namespace, "--timeout=60s", check=False, timeout=90)
        self.folder.cleanup()


def small_pod(name, labels=None, annotations=None, namespace="default"):
    """A labelled pod of nothing much."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"warpdrive.io/inject": "true"} if labels is None else labels,
            "annotations": annotations or {},
        },
        "spec": {"containers": [{"name": "main", "image": k8s.BOX, "imagePullPolicy": "Never", "command": ["/bin/sleep", "600"]}]},
    }


def objects(cluster):
    """Every object of the cluster but what never rests: `kind/namespace/name`."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()
    wanted = ",".join(sorted(set(kinds) - RESTLESS))
    lines = cluster.kubectl(
        "get", wanted, "-A", "--ignore-not-found", "-o",
        'jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{"\\n"}{end}',
    ).stdout.splitlines()
    return set(lines)


class Load:
    """Labelled pods, created without end (and without being stored) by as many processes as asked."""

    SOURCE = r"""
import http.client, json, os, ssl, sys, time, urllib.parse, yaml, base64, tempfile
config = yaml.safe_load(open(os.environ["KUBECONFIG"]))
def file(part, name):
    if name in part: return part[name]
    out = tempfile.NamedTemporaryFile(delete=False); out.write(base64.b64decode(part[name + "-data"])); out.close(); return out.name
server, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
context = ssl.create_default_context(cafile=file(server, "certificate-authority"))
context.load_cert_chain(file(user, "client-certificate"), file(user, "client-key"))
where = urllib.parse.urlparse(server["server"])
pod = json.loads(sys.argv[1]); path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods?dryRun=All"
done = 0
connection = http.client.HTTPSConnection(where.hostname, where.port, context=context, timeout=30)
while not os.path.exists(sys.argv[2]):
    pod["metadata"]["name"] = f"load-{os.getpid()}-{done}"
    connection.request("POST", path, json.dumps(pod), {"Content-Type": "application/json"})
    answer = connection.getresponse(); body = json.loads(answer.read())
    if answer.status != 201 or "initContainers" not in body["spec"]:
        print("REFUSED", time.strftime("%H:%M:%S"), answer.status, json.dumps(body)[:600], flush=True)
    done += 1
print("created", done, flush=True)
"""

    def __init__(self, cluster, processes=2, pod=None):
        self.cluster, self.folder = cluster, tempfile.TemporaryDirectory(prefix="warpdrive-load-")
        self.stop = Path(self.folder.name) / "stop"
        import sys

        self.running = [
            cluster.spawn(sys.executable, "-c", self.SOURCE, json.dumps(pod or small_pod("load")), self.stop, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.touch()
        self.output = "".join(process.communicate(timeout=60)[0] for process in self.running)
        self.created = sum(int(line.split()[1]) for line in self.output.splitlines() if line.startswith("created"))
        self.refused = [line for line in self.output.splitlines() if not line.startswith("created")]
        self.folder.cleanup()
