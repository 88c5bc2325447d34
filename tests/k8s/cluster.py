"""A Kubernetes of the tests' own (tests/k8s/up), spoken to through kubectl inside its namespaces.

Invariant: what is started here ends with the pytest process, whatever ends that (`OWNER` of up).
Refuses to say "not there" for "not there yet": every wait has a limit and fails with the pods, events
and logs that explain it.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOOLS = Path(
    os.environ.get("WARPDRIVE_TOOLS")
    or subprocess.run([ROOT / "tests/install", "--where"], capture_output=True, text=True, check=True).stdout.strip()
)
PROGRAM = Path(os.environ.get("WARPDRIVE_BIN", ROOT / "target/debug/warpdrive"))
STATE = Path(os.environ.get("STATE", TOOLS / "k8s/state"))
NET = os.environ.get("NET", "10.77")
IMAGE = "localhost/warpdrive:test"
BOX = "localhost/wd-box:1"
PYTHON = "localhost/wd-python:1"


class Failed(AssertionError):
    """A command on the cluster that did not do what was asked."""


def environment():
    return {
        **os.environ,
        "WARPDRIVE_K8S": os.environ.get("WARPDRIVE_K8S", str(TOOLS / "k8s")),
        "STATE": str(STATE),
        "NET": NET,
    }


def script(name, *arguments, timeout=180, check=True, stdin=None, **settings):
    """Runs one of this folder's scripts; its output, both streams together in the error."""
    done = subprocess.run(
        [HERE / name, *map(str, arguments)],
        env={**environment(), **settings},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode:
        raise Failed(f"{name} {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def until(what, question, seconds=60, pause=0.1):
    """Asks until the answer is true, and returns it; an answer that never comes is a failure.

    `what` is text, or a function that makes it when it is needed.
    """
    end = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(pause)


class Cluster:
    def __init__(self, nodes=1, backoff="30s"):
        self.kept = bool(os.environ.get("WARPDRIVE_K8S_REUSE")) and (STATE / "init.pid").exists()
        if not self.kept:
            script("down")
            script("up", nodes, OWNER=str(os.getpid()), CRASH_BACKOFF=backoff)
        self.nodes = len(self.kubectl_json("get", "nodes")["items"])

    def close(self):
        if not self.kept:
            script("down")

    def inside(self, *command, node=1, timeout=60, check=True, stdin=None):
        return script("in", f"-{node}", *command, timeout=timeout, check=check, stdin=stdin)

    def spawn(self, *command, node=1, stdout=subprocess.DEVNULL, **options):
        """A process inside that is ended with `process.terminate()`, or with the cluster."""
        return subprocess.Popen(
            [HERE / "in", f"-{node}", *map(str, command)],
            env={**environment(), **options.pop("env", {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            **options,
        )

    def add_node(self):
        self.nodes += 1
        script("add-node", self.nodes)
        self.kubectl_until("wait", "--for=condition=Ready", f"node/wd-node{self.nodes}", "--timeout=1s")

    def load(self, archive):
        script("load", archive)

    # --- kubectl

    def kubectl(self, *arguments, check=True, stdin=None, timeout=90):
        return self.inside("kubectl", *arguments, check=check, stdin=stdin, timeout=timeout)

    def kubectl_json(self, *arguments):
        return json.loads(self.kubectl(*arguments, "-o", "json").stdout)

    def kubectl_until(self, *arguments, seconds=90):
        until(" ".join(arguments), lambda: self.kubectl(*arguments, check=False).returncode == 0, seconds)

    def restart(self, component, signal_name="KILL"):
        script("restart", component, signal_name)

    # --- the node

    def mounts(self, node=1):
        """Lines of the node's mount table that our pods made below kubelet's folder."""
        table = self.inside("cat", "/proc/self/mountinfo", node=node).stdout.splitlines()
        ours = [line for line in table if " /var/lib/kubelet/" in line]
        return [line for line in ours if " - fuse" in line or "/volumes/kubernetes.io~csi/" in line]

    def pod_folders(self, node=1):
        """Pods that kubelet still keeps something of."""
        return self.inside("ls", "/var/lib/kubelet/pods", node=node, check=False).stdout.split()

    def stuck(self):
        """Processes that no signal reaches, seen twice: a short wait for a disk is none."""

        def now():
            table = self.inside("ps", "-eo", "pid=,stat=,args=").stdout.splitlines()
            return {line.split()[0]: line for line in table if line.split()[1].startswith("D")}

        first = now()
        if first:
            time.sleep(1)
            second = now()
            first = {pid: line for pid, line in first.items() if pid in second}
        return list(first.values())


class Watch:
    """Every change of a namespace's pods with the time at which it was seen, in the background."""

    def __init__(self, cluster, namespace, kind="pods"):
        self.process = cluster.spawn(
            "kubectl", "get", kind, "-n", namespace, "--watch", "--output-watch-events", "-o", "json",
            stdout=subprocess.PIPE, text=True,
        )
        self.seen = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        decoder, text = json.JSONDecoder(), ""
        while chunk := os.read(self.process.stdout.fileno(), 1 << 20):
            now, text = time.time(), text + chunk.decode()
            while text.strip():
                try:
                    event, end = decoder.raw_decode(text.lstrip())
                except ValueError:
                    break
                text = text.lstrip()[end:]
                self.seen.append((now, event["type"], event["object"]))

    def first(self, what, condition, seconds=60):
        """Time at which the first matching (type, object) was seen."""
        return until(what, lambda: next((t for t, kind, o in list(self.seen) if condition(kind, o)), None), seconds, 0.02)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


class Namespace:
    """One test's own part of the cluster."""

    def __init__(self, cluster, name, labels=None):
        self.cluster, self.name = cluster, name
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})
        until(
            "service account",
            lambda: cluster.kubectl("get", "serviceaccount", "default", "-n", name, check=False).returncode == 0,
        )

    def kubectl(self, *arguments, **options):
        return self.cluster.kubectl("-n", self.name, *arguments, **options)

    def json(self, *arguments):
        return json.loads(self.kubectl(*arguments, "-o", "json").stdout)

    def apply(self, *objects, check=True):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        return self.cluster.kubectl("-n", self.name, "apply", "-f", "-", stdin=text, check=check)

    def create(self, *objects, check=True):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        return self.cluster.kubectl("-n", self.name, "create", "-f", "-", stdin=text, check=check)

    def pod(self, name):
        done = self.kubectl("get", "pod", name, "-o", "json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def pods(self, selector=None):
        return self.json("get", "pods", *(["-l", selector] if selector else []))["items"]

    def exec(self, pod, container, *command, check=True, timeout=60):
        return self.kubectl("exec", pod, "-c", container, "--", *command, check=check, timeout=timeout)

    def logs(self, pod, container, previous=False):
        return self.kubectl("logs", pod, "-c", container, *(["--previous"] if previous else []), check=False).stdout

    def wait_ready(self, pod, seconds=60):
        self.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", f"--timeout={seconds}s", timeout=seconds + 10)

    def wait_phase(self, pod, phase, seconds=60):
        def there():
            found = self.pod(pod)
            now = found and found["status"].get("phase")
            if now in ("Succeeded", "Failed") and now != phase:
                raise Failed(f"pod {pod} is {now}, not {phase}")
            return now == phase

        until(f"pod {pod} {phase}", there, seconds)

    def delete_pod(self, pod, seconds=60, grace=None):
        self.kubectl(
            "delete", "pod", pod, f"--timeout={seconds}s",
            *([f"--grace-period={grace}"] if grace is not None else []), timeout=seconds + 10,
        )

    def delete(self, seconds=90):
        """Pods and what makes them are gone when this returns; the rest of the namespace goes by itself."""
        for kind in ("jobs,deployments,replicasets", "pods"):
            self.kubectl("delete", kind, "--all", f"--timeout={seconds}s", timeout=seconds + 10)
        self.cluster.kubectl("delete", "namespace", self.name, "--wait=false")

    def report(self):
        """All that explains a failure, bounded in size and time."""
        end = time.monotonic() + 30

        def ask(*arguments):
            if time.monotonic() > end:
                return ""
            try:
                return self.kubectl(*arguments, check=False, timeout=10).stdout
            except subprocess.TimeoutExpired:
                return ""

        parts = [ask("get", "pods", "-o", "wide")]
        for pod in ask("get", "pods", "-o", "name").split()[:4]:
            parts.append(ask("describe", pod)[-2500:])
            containers = ask("get", pod, "-o", "jsonpath={.spec.initContainers[*].name} {.spec.containers[*].name}")
            for container in containers.split():
                for before in ([], ["--previous"]):
                    text = ask("logs", pod, "-c", container, *before)
                    if text:
                        parts.append(f"--- log of {pod}/{container}{' before' if before else ''}\n{text[-2500:]}")
        parts.append(ask("get", "events", "--sort-by=.lastTimestamp")[-4000:])
        return "\n".join(parts)


def container_status(pod, name):
    for status in pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", []):
        if status["name"] == name:
            return status
    return None
