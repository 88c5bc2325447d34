"""README.md, run as it stands: its commands, its Python, its YAML."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import pytest

README = (harness.ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def train():
    """A sidecar over a directory with the object of the examples, started from `warpdrive.yaml`."""
    folder = Path(tempfile.mkdtemp(prefix="warpdrive-readme-"))
    (folder / "mnt").mkdir()
    (folder / "origin/shards").mkdir(parents=True)
    (folder / "origin/shards/000.tar").write_bytes(harness.content(3_000_000))
    backend = {"name": "train", "type": "local", "config": {"path": str(folder / "origin")}}
    mount = not harness.can_mount()
    config = harness.base_config(folder, [backend], harness.STATIC_ACCESS, mount)
    path = folder / "warpdrive.yaml"
    path.write_text(json.dumps(config))
    keys = {"KIT_SIDECAR_KEY": harness.ACCESS_KEY, "KIT_SIDECAR_SECRET": harness.SECRET_KEY}
    environment = harness.clean_environment(HOME=str(folder), **keys)
    running = harness.launch(folder, path, config, environment, mount)
    yield running
    running.close()


def test_the_first_two_commands_are_the_two_promised():
    first, second = blocks("sh")[:2]
    assert first.split() == ["cargo", "run", "--bin", "warpdrive", "--", "demo"]
    assert os.access(harness.ROOT / second.strip(), os.X_OK)


def test_every_block_of_commands_is_run_by_a_test():
    """Here, or on a cluster: tests/k8s/test_examples.py takes those of its section."""
    for block in blocks("sh")[2:]:
        lines = [line for line in block.splitlines() if line.strip()]
        here = all("warpdrive.yaml" in line for line in lines)
        cluster = block in README.partition("## On Kubernetes\n")[2].partition("\n## ")[0]
        assert here or cluster, block


def test_commands(train):
    commands = [line for block in blocks("sh") for line in block.splitlines() if "warpdrive.yaml" in line]
    assert [line.split()[1] for line in commands] == ["check", "run", "warm", "stats"]
    for line in commands:
        words = line.partition("#")[0].split()
        if words[1] == "run":
            continue  # The fixture is this command.
        done = subprocess.run(
            [str(harness.PROGRAM), *words[1:]], cwd=train.folder, env=train.environment,
            capture_output=True, text=True, timeout=60,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_python(train):
    pytest.importorskip("boto3")
    if train.mount is None:
        pytest.skip(harness.can_mount())
    (code,) = blocks("python")
    code = code.replace("/data/", f"{train.mount}/").replace("/tmp/000.tar", f"{train.folder}/copy.tar")
    code += "\nassert open(" + repr(f"{train.folder}/copy.tar") + ", 'rb').read() == open(" + repr(
        f"{train.mount}/train/shards/000.tar"
    ) + ", 'rb').read()\n"
    exported = {
        "AWS_ENDPOINT_URL_S3": train.endpoint,
        "AWS_REGION": train.region,
        "AWS_DEFAULT_REGION": train.region,
        "AWS_ACCESS_KEY_ID": train.access_key,
        "AWS_SECRET_ACCESS_KEY": train.secret_key,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=train.environment | exported,
        capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_yaml_is_valid(tmp_path):
    """Every key of the example is accepted. Its origins are not there, so the origins must fail, and
    only they."""
    (example,) = blocks("yaml")
    for path in ["/data", "/var/cache/warpdrive", "/mnt/nfs/scratch"]:
        (tmp_path / path.strip("/")).mkdir(parents=True)
        example = example.replace(f": {path}\n", f": {tmp_path}{path}\n").replace(
            f"path: {path}}}", f"path: {tmp_path}{path}}}"
        )
    service_account = {
        "type": "service_account", "client_email": "a@example.org", "private_key_id": "1",
        "private_key": "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
        "token_uri": "http://127.0.0.1:1/token",
    }
    for name, text in [("azure-key", "c2VjcmV0"), ("gcs.json", json.dumps(service_account))]:
        (tmp_path / name).write_text(text)
        example = example.replace(f"/run/secrets/{name}", str(tmp_path / name))
    path = tmp_path / "warpdrive.yaml"
    path.write_text(example)
    environment = harness.clean_environment(TRAIN_KEY_ID="id", TRAIN_SECRET="secret")
    done = subprocess.run(
        [str(harness.PROGRAM), "check", "-c", str(path)], env=environment,
        capture_output=True, text=True, timeout=110,
    )
    # 2 is a configuration that cannot be used; 1 says that an origin did not answer.
    assert done.returncode == 1, done.stdout + done.stderr
    for name in ["train", "labels", "eval", "scratch"]:
        assert name in done.stdout, done.stdout
