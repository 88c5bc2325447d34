"""Fixtures: real origins, and a sidecar in front of each that is wanted."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))

import harness  # noqa: E402
import pytest  # noqa: E402
from trainer import start_pod  # noqa: E402

# Debian's PyTorch: the wheels of the package index bring 3 GB of CUDA with them.
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="session")
def origins():
    # A throttle without a limit: it only counts.
    started = harness.Origins(["versitygw", "minio"], throttle="0:0")
    yield started
    started.close()


@pytest.fixture(scope="session")
def pods(origins):
    """Sidecars by the kind of their origin, started when first wanted."""
    started = {}

    def of(kind):
        if kind in origins.skipped:
            (pytest.fail if harness.REQUIRED else pytest.skip)(origins.skipped[kind])
        if kind not in started:
            started[kind] = start_pod(origins, kind)
        return started[kind]

    yield of
    for pod in started.values():
        pod.sidecar.close()


@pytest.fixture
def pod(pods):
    return pods("versitygw")


@pytest.fixture(scope="session")
def torch_python():
    """An interpreter that has torch and torchvision."""
    for python in (sys.executable, SYSTEM_PYTHON):
        if os.path.exists(python):
            asked = [python, "-c", "import torch, torchvision"]
            if subprocess.run(asked, capture_output=True, timeout=60).returncode == 0:
                return python
    pytest.skip("no PyTorch: install Debian's python3-torchvision")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what the sidecar said last."""
    report = yield
    if report.failed and (running := item.funcargs.get("pod")):
        report.sections.append(("the end of the sidecar's log", running.sidecar.log()[-3000:]))
    return report
