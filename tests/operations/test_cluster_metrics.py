"""Metrics of the webhook and of the node service that alerts and dashboard name, from the running programs."""

import contextlib
import json
import os
import re
import ssl
import subprocess
import time
import urllib.request

import conftest
import harness
import pytest
from observed import Prometheus
from test_metrics import alert_expressions, families, named, queries


@contextlib.contextmanager
def program(folder, *arguments):
    """A subcommand that serves metrics on the port that it is given; its exposition."""
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            [str(harness.PROGRAM), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=harness.clean_environment(HOME=str(folder)), cwd=folder, preexec_fn=harness.die_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def exposition(process, address, log):
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                return answer.read().decode()
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def wanted(prefix):
    expressions = alert_expressions() + [expression for _, expression in queries()]
    return {name for name in set().union(*map(named, expressions)) if name.startswith(prefix)}


def values_in(text, name, label):
    """The values of a label that a family has."""
    return set(re.findall(rf'^{name}\{{[^}}]*\b{label}="([^"]*)"', text, re.MULTILINE))


def selected(prefix, label):
    """The values of a label that alerts and dashboard ask for by equality."""
    expressions = alert_expressions() + [expression for _, expression in queries()]
    found = set()
    for expression in expressions:
        for selector in re.findall(rf"{prefix}\w*\{{([^}}]*)\}}", expression):
            found |= set(re.findall(rf'\b{label}!?="([^"]*)"', selector))
    return found


REVIEW = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "1", "operation": "CREATE", "namespace": "default",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "object": {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "x", "labels": {"warpdrive.io/inject": "true"}},
            "spec": {"containers": [{"name": "main", "image": "image"}]},
        },
    },
}


@pytest.fixture(scope="module")
def webhook(tmp_path_factory):
    conftest.need(("openssl", "openssl"))
    folder = tmp_path_factory.mktemp("webhook")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "crt"),
        ],
        check=True, capture_output=True, timeout=60,
    )
    listen, metrics = (f"127.0.0.1:{harness.free_port()}" for _ in range(2))
    arguments = [
        "webhook", "--listen", listen, "--metrics", metrics,
        "--tls-cert", str(folder / "crt"), "--tls-key", str(folder / "key"), "--shutdown-delay", "0s",
    ]
    with program(folder, *arguments) as process:
        exposition(process, metrics, folder / "log")
        trust = ssl.create_default_context(cafile=str(folder / "crt"))
        request = urllib.request.Request(
            f"https://{listen}/mutate", json.dumps(REVIEW).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
            assert json.load(answer)["response"]["allowed"]
        yield metrics, exposition(process, metrics, folder / "log")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("the node service runs as root")
    folder = tmp_path_factory.mktemp("node")
    (folder / "kubelet").mkdir()
    (folder / "plugin").mkdir()
    metrics = f"127.0.0.1:{harness.free_port()}"
    arguments = [
        "csi", "--kubelet-dir", str(folder / "kubelet"), "--plugin-dir", str(folder / "plugin"),
        "--node-name", "node", "--metrics", metrics,
    ]
    with program(folder, *arguments) as process:
        yield metrics, exposition(process, metrics, folder / "log")


def test_every_metric_of_the_webhook_that_is_named_exists(webhook):
    _, text = webhook
    assert len(wanted("warpdrive_webhook_")) >= 6
    assert wanted("warpdrive_webhook_") - families(text) == set()
    outcomes = values_in(text, "warpdrive_webhook_requests_total", "outcome")
    assert selected("warpdrive_webhook_", "outcome") <= outcomes


def test_every_metric_of_the_node_service_that_is_named_exists(node):
    _, text = node
    assert len(wanted("warpdrive_csi_")) >= 4
    assert wanted("warpdrive_csi_") - families(text) == set()
    assert selected("warpdrive_csi_", "outcome") <= values_in(text, "warpdrive_csi_calls_total", "outcome")


def test_every_query_about_the_cluster_answers(webhook, node, tmp_path):
    conftest.need(("prometheus", "prometheus"))
    prometheus = Prometheus(tmp_path, [("warpdrive-webhook", webhook[0]), ("warpdrive-node", node[0])])
    try:
        begun, silent = time.time(), []
        time.sleep(8)
        for title, expression in queries():
            if not any(name.startswith(("warpdrive_webhook_", "warpdrive_csi_")) for name in named(expression)):
                continue
            # The webhook has a certificate of somebody else, so there is no authority of its own.
            if "authority" in expression:
                continue
            if not prometheus.range(expression, begun):
                silent.append(f"{title}: {expression}")
        assert not silent, silent
    finally:
        prometheus.close()
