"""The image: what is in it, that it is made the same twice, and that it runs as nobody in a read-only root."""

import json
import os
import socket
import subprocess
import tarfile
import time
import urllib.request

import cluster as k8s
import pytest

MOST_BYTES = 60 << 20


class Image:
    """A docker archive: its configuration, and its files with their owners, modes and times."""

    def __init__(self, path):
        self.path = path
        self.names = {}
        with tarfile.open(path) as archive:
            self.manifest = json.load(archive.extractfile("manifest.json"))[0]
            self.config = json.load(archive.extractfile(self.manifest["Config"]))
            for layer in self.manifest["Layers"]:
                with tarfile.open(fileobj=archive.extractfile(layer)) as files:
                    for entry in files:
                        self.names["/" + entry.name.strip("/")] = entry
        self.layers = self.config["rootfs"]["diff_ids"]

    def unpack(self, folder):
        with tarfile.open(self.path) as archive:
            for layer in self.manifest["Layers"]:
                with tarfile.open(fileobj=archive.extractfile(layer)) as files:
                    files.extractall(folder, filter="fully_trusted")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "warpdrive.tar"
    k8s.script("build-image", path, k8s.PROGRAM)
    return path


@pytest.fixture(scope="module")
def built(archive):
    return Image(archive)


def test_it_holds_the_program_and_little_else(built, archive):
    assert archive.stat().st_size <= MOST_BYTES
    files = {name for name, entry in built.names.items() if entry.isfile()}
    libraries = {name for name in files if ".so" in name}
    assert files - libraries == {
        "/etc/passwd", "/etc/group", "/etc/fuse.conf", "/etc/ssl/certs/ca-certificates.crt",
        "/usr/bin/fusermount3", "/usr/local/bin/warpdrive",
    }
    assert len(libraries) <= 8, libraries
    program = built.names["/usr/local/bin/warpdrive"]
    assert (program.uid, program.gid, program.mode & 0o7777) == (0, 0, 0o755)
    assert built.names["/usr/bin/fusermount3"].mode & 0o7777 == 0o4755
    assert built.names["/var/cache/warpdrive"].uid == 65534


def test_it_says_what_it_is(built):
    config = built.config["config"]
    assert config["User"] == "65534:65534"
    assert config["Entrypoint"] == ["/usr/local/bin/warpdrive"]
    assert not config.get("Cmd")
    assert "Healthcheck" not in config and "HealthCheck" not in config
    labels = config["Labels"]
    for name in ("title", "description", "licenses", "version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"], labels
    version = subprocess.run([k8s.PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    assert labels["org.opencontainers.image.version"] == version


def test_the_same_input_gives_the_same_layers(built, tmp_path):
    """Built again later, from other folders, in other storage."""
    time.sleep(1.1)
    again = tmp_path / "again.tar"
    k8s.script("build-image", again, k8s.PROGRAM)
    assert Image(again).layers == built.layers
    other = tmp_path / "other.tar"
    k8s.script("build-image", other, "/bin/true")
    assert Image(other).layers != built.layers


@pytest.fixture
def container(built, tmp_path):
    """Runs the image with runc: nobody, no capabilities, no new privileges, read-only root, the machine's network."""
    bundle = tmp_path / "bundle"
    root = bundle / "rootfs"
    root.mkdir(parents=True)
    built.unpack(root)
    started = []

    def run(*arguments, mounts=(), background=False):
        identity = f"warpdrive-{os.getpid()}-{len(started)}"
        (bundle / "config.json").unlink(missing_ok=True)
        subprocess.run(["runc", "spec"], cwd=bundle, check=True)
        spec = json.loads((bundle / "config.json").read_text())
        user, group = map(int, built.config["config"]["User"].split(":"))
        spec["process"].update(
            terminal=False, args=[*built.config["config"]["Entrypoint"], *arguments], env=built.config["config"]["Env"],
            user={"uid": user, "gid": group}, noNewPrivileges=True,
            capabilities={kind: [] for kind in ("bounding", "effective", "permitted")},
        )
        spec["root"] = {"path": "rootfs", "readonly": True}
        spec["mounts"] += [
            {"destination": at, "type": "bind", "source": str(source), "options": ["bind", how]} for source, at, how in mounts
        ]
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] not in ("network", "cgroup")]
        spec["linux"].pop("resources", None)
        spec["linux"]["cgroupsPath"] = f"/{identity}"
        (bundle / "config.json").write_text(json.dumps(spec))
        command = ["runc", "--root", str(tmp_path / "runc"), "run", "--bundle", str(bundle), identity]
        if not background:
            return subprocess.run(command, capture_output=True, text=True, timeout=60)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append((identity, process))
        return process

    yield run
    for identity, process in started:
        subprocess.run(["runc", "--root", tmp_path / "runc", "delete", "--force", identity], capture_output=True)
        process.wait(10)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_it_runs_as_nobody_in_a_read_only_root(container, tmp_path):
    done = container("--version")
    assert done.returncode == 0 and done.stdout.startswith("warpdrive "), done

    data, cache, config = tmp_path / "data", tmp_path / "cache", tmp_path / "config"
    for folder in (data, cache, config):
        folder.mkdir()
        folder.chmod(0o755)
    (data / "hello.txt").write_text("hello")
    os.chown(cache, 65534, 65534)
    for folder in tmp_path.parents:
        # pytest's own folders are for its user only; bind mounts do not look at them, runc does.
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/pytest"):
            folder.chmod(0o755)
    s3, admin = free_port(), free_port()
    (config / "warpdrive.yaml").write_text(
        json.dumps(
            {
                "fuse": {"enabled": False},
                "state_dir": "/var/cache/warpdrive/state",
                "cache": {"path": "/var/cache/warpdrive/cache", "max_size": "200MB", "memory": "32MiB"},
                "s3": {"listen": f"127.0.0.1:{s3}", "access": "anonymous"},
                "admin": {"listen": f"127.0.0.1:{admin}"},
                "backends": [{"name": "data", "type": "local", "read_only": True, "config": {"path": "/srv"}}],
            }
        )
    )
    mounts = [(data, "/srv", "ro"), (cache, "/var/cache/warpdrive", "rw"), (config, "/etc/warpdrive", "ro")]
    done = container("check", "-c", "/etc/warpdrive/warpdrive.yaml", mounts=mounts)
    assert done.returncode == 0, done

    running = container("run", "--no-mount", "-c", "/etc/warpdrive/warpdrive.yaml", mounts=mounts, background=True)

    def answer():
        if running.poll() is not None:
            raise k8s.Failed(running.stdout.read())
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{s3}/data/hello.txt", timeout=5).read()
        except OSError:
            return None

    assert k8s.until("the object", answer, 30) == b"hello"
    # The first process of the container is the supervisor, and what it started is of the same user.
    status = subprocess.run(
        ["runc", "--root", tmp_path / "runc", "state", f"warpdrive-{os.getpid()}-0"], capture_output=True, text=True, check=True
    )
    status = f"/proc/{json.loads(status.stdout)['pid']}/status"
    text = dict(line.split(":", 1) for line in open(status).read().splitlines() if ":" in line)
    assert text["Uid"].split() == ["65534"] * 4
    assert text["NoNewPrivs"].strip() == "1"
    assert int(text["CapEff"], 16) == 0 and int(text["CapBnd"], 16) == 0
