"""Starts real origins and one `warpdrive run` in front of all of them, for the client tests.

Invariant: whatever is started here is ended by its process id, and mounts are taken away, when the
pytest session ends. Only the standard library is used: the environments of the clients differ.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("WARPDRIVE_BIN", ROOT / "target/debug/warpdrive"))
ORIGINS = Path(os.environ.get("WARPDRIVE_ORIGINS", ROOT / "target/debug/testkit-origins"))
REQUIRED = os.environ.get("WARPDRIVE_REQUIRE_TOOLS") == "1"

# Kinds of origins and the name of the backend (and so of the bucket) in front of each.
KINDS = ["versitygw", "minio", "moto", "azurite", "fake-gcs", "local"]
# Backends whose origin speaks S3 and is a file system below: a key cannot be a directory too.
FILE_LIKE = {"versitygw", "minio", "local"}

ACCESS_KEY = "sidecaraccesskey"
SECRET_KEY = "sidecar-secret-key-0123456789"
READY_WITHIN_SECONDS = 60
# Short, so that a test which changes an object behind the sidecar need not wait long to see it.
STALE_SECONDS = 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent():
    """Runs in the child: the kernel ends it when pytest is killed."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that are the same at every run and differ at every offset a reader could confuse."""
    return random.Random(seed * 1_000_003 + size).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Origins:
    """The real servers, run by the Rust test kit."""

    def __init__(self, kinds, throttle=None):
        arguments = [str(ORIGINS)]
        if throttle:
            arguments += ["--throttle", throttle]
        self.process = subprocess.Popen(
            arguments + [kind for kind in kinds if kind != "local"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"testkit-origins ended with {self.process.wait()}")
        answer = json.loads(line)
        self.control = answer["control"]
        self.origins = answer["origins"]
        self.skipped = answer["skipped"]
        self.local = Path(tempfile.mkdtemp(prefix="warpdrive-local-")) if "local" in kinds else None

    def _ask(self, method, path, body=None):
        request = urllib.request.Request(self.control + path, data=body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _path(self, kind, key):
        return f"/{kind}/bucket/{urllib.parse.quote(key, safe='')}"

    def get(self, kind, key):
        """What the origin holds, read past the sidecar; None when it is absent."""
        if kind == "local":
            path = self.local / key
            return path.read_bytes() if path.is_file() else None
        return self._ask("GET", self._path(kind, key))

    def put(self, kind, key, body: bytes):
        """Writes into the origin, past the sidecar."""
        if kind == "local":
            path = self.local / key
            path.parent.mkdir(parents=True, exist_ok=True)
            # As any careful writer does: a file that is read never changes under its reader.
            temporary = path.with_name(path.name + ".partial-kit")
            temporary.write_bytes(body)
            temporary.rename(path)
            return
        self._ask("PUT", self._path(kind, key), body)

    def delete(self, kind, key):
        if kind == "local":
            (self.local / key).unlink(missing_ok=True)
            return
        self._ask("DELETE", self._path(kind, key))

    def act(self, kind, what):
        """stop, restart, pause or resume."""
        self._ask("POST", f"/{kind}/{what}")

    def traffic(self, kind):
        return json.loads(self._ask("GET", f"/{kind}"))

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        self.process.stdout.close()
        if self.local:
            shutil.rmtree(self.local, ignore_errors=True)


def backend(name, kind, origins: Origins):
    """One entry of `backends` in the YAML (JSON is YAML)."""
    if kind == "local":
        return {"name": name, "type": "local", "config": {"root": str(origins.local)}}
    origin = origins.origins[kind]
    if kind == "azurite":
        return {
            "name": name,
            "type": "azureblob",
            "config": {
                "endpoint": origin["endpoint"],
                "account": origin["access_key"],
                "container": origin["bucket"],
            },
            "auth": {"method": "static", "account_key": "env:KIT_AZURE_KEY"},
        }
    if kind == "fake-gcs":
        return {
            "name": name,
            "type": "gcs",
            "config": {"endpoint": origin["endpoint"], "bucket": origin["bucket"]},
            # The shim asks for no token; a real bucket that is not public would.
            "auth": {"method": "none"},
        }
    return {
        "name": name,
        "type": "s3",
        "config": {
            "endpoint": origin["endpoint"],
            "region": origin["region"],
            "bucket": origin["bucket"],
        },
        "auth": {
            "method": "static",
            "access_key_id": "env:KIT_S3_KEY",
            "secret_access_key": "env:KIT_S3_SECRET",
        },
    }


def can_mount() -> str:
    """Empty when a mount can be made here, else why not."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no /dev/fuse that may be opened"
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        return "neither root nor fusermount3"
    return ""


@dataclass
class Sidecar:
    """A running `warpdrive run` and what a client needs to reach it."""

    process: subprocess.Popen
    folder: Path
    endpoint: str
    admin: str
    mount: Path | None
    config: Path
    environment: dict = field(repr=False)
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = "us-east-1"

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def metrics(self) -> dict:
        """Sums of the series by name, over all labels."""
        with urllib.request.urlopen(self.admin + "/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def stop(self, limit=30) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            raise AssertionError(f"still running {limit} s after SIGTERM\n{self.log()[-3000:]}")
        finally:
            if self.mount and os.path.ismount(self.mount):
                subprocess.run(["umount", "-l", str(self.mount)], check=False)

    def close(self):
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def base_config(folder: Path, backends, access, mount: bool) -> dict:
    config = {
        "mount_point": str(folder / "mnt"),
        "cache": {
            "path": str(folder / "cache"),
            "max_size": "2GiB",
            "memory": "64MiB",
            "block_size": "1MiB",
            "stale_ttl": f"{STALE_SECONDS}s",
            "negative_ttl": f"{STALE_SECONDS}s",
        },
        "backends": backends,
        "s3": {"listen": f"127.0.0.1:{free_port()}", **access},
        "admin": {"listen": f"127.0.0.1:{free_port()}"},
        "metrics": {"enabled": False},
    }
    if not mount:
        config["fuse"] = {"enabled": False}
    return config


STATIC_ACCESS = {
    "access": "static",
    "keys": [
        {
            "access_key_id": "env:KIT_SIDECAR_KEY",
            "secret_access_key": "env:KIT_SIDECAR_SECRET",
        }
    ],
}
ANONYMOUS_ACCESS = {"access": "anonymous"}


def secrets(origins: Origins) -> dict:
    found = {"KIT_SIDECAR_KEY": ACCESS_KEY, "KIT_SIDECAR_SECRET": SECRET_KEY}
    for kind, origin in origins.origins.items():
        if origin["s3"]:
            found["KIT_S3_KEY"], found["KIT_S3_SECRET"] = origin["access_key"], origin["secret_key"]
        elif kind == "azurite":
            found["KIT_AZURE_KEY"] = origin["secret_key"]
    return found


def clean_environment(**more) -> dict:
    """The environment without anybody's cloud settings or proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "AZURE_", "GOOGLE_", "WARPDRIVE_"))
        and name.lower() not in ("http_proxy", "https_proxy", "all_proxy")
    }
    return kept | more


def start_sidecar(origins: Origins, backends, access=None, mount=None, change=None) -> Sidecar:
    """Writes a configuration and starts the program on it; returns once /readyz says 200.

    `change` may alter the configuration before it is written.
    """
    folder = Path(tempfile.mkdtemp(prefix="warpdrive-clients-"))
    (folder / "mnt").mkdir()
    if mount is None:
        mount = not can_mount()
    config = base_config(folder, backends, STATIC_ACCESS if access is None else access, mount)
    if change:
        change(config)
    path = folder / "config.yaml"
    path.write_text(json.dumps(config, indent=2))
    environment = clean_environment(HOME=str(folder), XDG_RUNTIME_DIR=str(folder), **secrets(origins))
    return launch(folder, path, config, environment, mount)


def launch(folder, path, config, environment, mount, arguments=()) -> Sidecar:
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            [str(PROGRAM), "run", "-c", str(path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            preexec_fn=die_with_parent,
        )
    sidecar = Sidecar(
        process,
        folder,
        f"http://{config['s3']['listen']}",
        f"http://{config['admin']['listen']}",
        Path(config["mount_point"]) if mount else None,
        path,
        environment,
    )
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"warpdrive ended with {process.returncode}\n{sidecar.log()[-4000:]}")
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(sidecar.admin + "/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return sidecar
        time.sleep(0.05)
    process.kill()
    process.wait(5)
    raise RuntimeError(f"not ready in {READY_WITHIN_SECONDS} s\n{sidecar.log()[-4000:]}")


def tool(name: str) -> str:
    """A program of this Python environment."""
    return str(Path(sys.executable).parent / name)
