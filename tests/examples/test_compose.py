"""examples/compose under a real container engine: the mount passes from container to container."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import harness
import pytest

HERE = Path(__file__).resolve().parent
K8S = harness.ROOT / "tests/k8s"
TOOLS = Path(
    os.environ.get("WARPDRIVE_TOOLS")
    or subprocess.run([harness.ROOT / "tests/install", "--where"], capture_output=True, text=True, check=True).stdout.strip()
)


def missing() -> str:
    """Why the containers cannot run here; empty when they can."""
    if os.geteuid() != 0:
        return "containers that mount take root"
    for program in ("podman", "runc", "buildah", "busybox", "unshare"):
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            return f"{program} is not installed"
    if not Path(harness.tool("podman-compose")).exists():
        return "podman-compose is not installed"
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "namespaces may not be made here"
    return harness.can_mount()


# More than the limits inside together, so that what takes too long is named; a machine that has no
# image yet builds two first.
@pytest.mark.timeout(360)
def test_compose(tmp_path):
    if reason := missing():
        pytest.skip(reason)
    image, python = tmp_path / "warpdrive.tar", TOOLS / "k8s/images/python.tar"
    subprocess.run([K8S / "build-image", image, harness.PROGRAM], check=True, capture_output=True, timeout=100)
    if not python.exists():
        subprocess.run([K8S / "images"], check=True, capture_output=True, timeout=100)
    environment = harness.clean_environment(
        PODMAN_COMPOSE=harness.tool("podman-compose"), VERSITYGW=str(TOOLS / "bin/versitygw"),
    )
    folder = tmp_path / "machine"
    folder.mkdir()
    done = subprocess.run(
        [HERE / "compose.sh", folder, image, python], env=environment, capture_output=True, text=True, timeout=140,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert "trainer: 0\n2 files, 3001000 bytes\n" in said, said[-6000:]
    # A killed worker is a pause for a reader, and for S3 in its network.
    assert "reader: 1 version, True" in said, said[-6000:]
    assert "worker: restarted beside the same supervisor: yes" in said, said[-6000:]
    # `down` unmounts, and takes nothing of the origin with it.
    assert re.search(r"^mounts left: 0$", said, re.MULTILINE), said[-6000:]
    assert re.search(r"^objects left: 2$", said, re.MULTILINE), said[-6000:]
    shutil.rmtree(folder, ignore_errors=True)
