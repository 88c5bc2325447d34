"""A sidecar that runs examples/warpdrive.yaml, and the containers of its pod: what the tests here share.

Invariant: a script runs as it stands, with the environment that injection gives to a container and
nothing of the origin's own credentials.
"""

import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import pytest

EXAMPLES = harness.ROOT / "examples"
SECONDS_FOR_ONE_SCRIPT = 100


def finish(process: subprocess.Popen, status=0) -> str:
    """The output of a process that must end in time and with this status."""
    with process:
        try:
            output, _ = process.communicate(timeout=SECONDS_FOR_ONE_SCRIPT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == status, f"{process.args} ended with {process.returncode}\n{output[-4000:]}"
    return output


@dataclass
class Pod:
    """A sidecar, and the environment that the containers beside it have."""

    sidecar: harness.Sidecar
    origins: harness.Origins
    kind: str
    environment: dict

    @property
    def data(self) -> Path:
        """What is /data in a pod."""
        if self.sidecar.mount is None:
            pytest.skip(harness.can_mount())
        return self.sidecar.mount

    def put(self, key: str, body: bytes):
        """Writes an object into the origin, past the sidecar."""
        self.origins.put(self.kind, key, body)

    def get(self, key: str):
        return self.origins.get(self.kind, key)

    def sent_by_origin(self) -> int:
        """Bytes that the origin has sent to the sidecar so far, counted outside of both."""
        return self.origins.traffic(self.kind)["from_origin"]

    def start(self, script, *arguments, python=sys.executable, **environment) -> subprocess.Popen:
        return subprocess.Popen(
            [python, str(EXAMPLES / "training" / script), *map(str, arguments)],
            env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.sidecar.folder, preexec_fn=harness.die_with_parent,
        )

    def run(self, script, *arguments, python=sys.executable, status=0, **environment) -> str:
        """Runs a script of examples/training as a container of this pod would; its output."""
        return finish(self.start(script, *arguments, python=python, **environment), status)


def start_pod(origins, kind) -> Pod:
    """`warpdrive run` on examples/warpdrive.yaml as it is; paths and ports of this machine are set over it."""
    origin = origins.origins[kind]
    folder = Path(tempfile.mkdtemp(prefix="warpdrive-examples-"))
    for name in ("mnt", "cache", "home"):
        (folder / name).mkdir()
    mount = not harness.can_mount()
    listens = {name: f"127.0.0.1:{harness.free_port()}" for name in ("s3", "admin")}
    changes = {
        "mount_point": folder / "mnt", "cache.path": folder / "cache", "cache.max_size": "2GiB",
        "cache.memory": "64MiB", "fuse.enabled": str(mount).lower(),
    } | {f"{name}.listen": address for name, address in listens.items()}
    own = harness.clean_environment(
        HOME=str(folder), XDG_RUNTIME_DIR=str(folder), ORIGIN_ENDPOINT=origin["endpoint"],
        ORIGIN_BUCKET=origin["bucket"], ORIGIN_REGION=origin["region"],
        AWS_ACCESS_KEY_ID=origin["access_key"], AWS_SECRET_ACCESS_KEY=origin["secret_key"],
    )
    sidecar = harness.launch(
        folder, EXAMPLES / "warpdrive.yaml",
        {"mount_point": changes["mount_point"]} | {name: {"listen": address} for name, address in listens.items()},
        own, mount, [word for key, value in changes.items() for word in ("--set", f"{key}={value}")],
    )
    # What the sidecar prints for its clients is what injection puts into a pod's containers; the
    # origin's own credentials stay on the sidecar's side.
    printed = dict(re.findall(r"(AWS_[A-Z0-9_]+)=(\S+)", sidecar.log()))
    printed.pop("AWS_SHARED_CREDENTIALS_FILE", None)
    assert {"AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} <= printed.keys()
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    clients = harness.clean_environment(HOME=str(folder / "home"), PATH=programs, **printed)
    return Pod(sidecar, origins, kind, clients)


def tar(members: dict) -> bytes:
    """A tar file with these members, in this order."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return body.getvalue()
