"""Shared by the tests of examples/systemd, examples/slurm and examples/monitoring.

The origins and the configuration come from tests/clients/harness.py.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import harness  # noqa: E402


def pytest_configure(config):
    """A time limit's SIGTERM ends the session as Ctrl-C does: what fixtures have started is ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def need(*wanted):
    """Skips the test where a program of a system package is absent: pairs of program and package.

    A failure instead where tests/install could have installed it: it is required, this is root, and
    the machine's packages can be had.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/lib/systemd"
    absent = [package for program, package in wanted if not shutil.which(program, path=path)]
    if not absent:
        return
    reason = f"not installed: {', '.join(sorted(set(absent)))}"
    # What it does not install, such as systemd, is the machine's own.
    listed = (ROOT / "tests/install").read_text()
    could = all(f" {package} " in listed for package in absent)
    tools = os.environ.get("WARPDRIVE_TOOLS")
    no_packages = tools and any((Path(tools) / "stamps").glob("apt-failed*"))
    if could and harness.REQUIRED and os.geteuid() == 0 and shutil.which("apt-get") and not no_packages:
        pytest.fail(f"required but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def origins():
    """One real S3 origin and a local directory."""
    started = harness.Origins(["versitygw", "local"])
    yield started
    started.close()
