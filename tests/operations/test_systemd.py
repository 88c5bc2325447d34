"""The units of examples/systemd: verified, and run by a real systemd with readers that must not notice."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import conftest
import harness
import machine
import pytest

UNITS = conftest.ROOT / "examples/systemd"
PAIR = ("warpdrive-mountd@.service", "warpdrive@.service")
MIB = 1 << 20
ORIGIN = "versitygw"
WORKER, HOLDER = "warpdrive@train.service", "warpdrive-mountd@train.service"
MOUNT = "/mnt/warpdrive/train"


def units():
    return sorted(path.name for path in UNITS.glob("*.service"))


def verified(tmp_path, name):
    """A copy that names the program that was built, as an instance where it is a template."""
    for unit in units():
        text = (UNITS / unit).read_text().replace("/usr/local/bin/warpdrive", str(harness.PROGRAM))
        (tmp_path / unit.replace("@.", "@train.")).write_text(text)
    return tmp_path / name.replace("@.", "@train.")


@pytest.mark.parametrize("name", units())
def test_systemd_verifies_the_unit(name, tmp_path):
    conftest.need(("systemd-analyze", "systemd"))
    unit = verified(tmp_path, name)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
    )
    # Of our units only: others of this system may have remarks of their own.
    said = [line for line in done.stderr.splitlines() if "warpdrive" in line]
    assert not said and done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name, most", [("warpdrive@.service", 2.0), ("warpdrive-mountd@.service", 4.5), ("warpdrive.service", 5.0)]
)
def test_a_unit_is_not_more_exposed_than_it_has_to_be(name, most, tmp_path):
    conftest.need(("systemd-analyze", "systemd"))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(verified(tmp_path, name))],
        capture_output=True, text=True, timeout=60,
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    if not found:
        pytest.skip(f"this systemd-analyze cannot rate a file: {done.stderr.strip()}")
    assert float(found.group(1)) <= most, done.stdout


class Reader:
    """Reads files through the mount and compares every byte, until told to stop."""

    def __init__(self, folder, bodies):
        self.folder, self.bodies = folder, bodies
        self.errors, self.reads = [], 0
        self.stopping = threading.Event()
        # Open from the beginning to the end: a mount that was made anew would fail it.
        self.kept = open(folder / sorted(bodies)[0], "rb", buffering=0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stopping.is_set():
            for name, body in sorted(self.bodies.items()):
                try:
                    if (self.folder / name).read_bytes() != body:
                        self.errors.append(f"{name}: other bytes")
                    # What the kernel has not cached, too.
                    os.posix_fadvise(self.kept.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    start = self.reads * 4099 % MIB
                    expected = self.bodies[sorted(self.bodies)[0]][start : start + 4096]
                    if os.pread(self.kept.fileno(), 4096, start) != expected:
                        self.errors.append("the open file: other bytes")
                    os.stat(self.folder / name)
                    os.listdir(self.folder)
                    self.reads += 1
                except OSError as error:
                    self.errors.append(f"{name}: {error}")
                    time.sleep(0.05)

    def progress(self, limit=60):
        """Waits until it has read everything once more."""
        wanted, deadline = self.reads + len(self.bodies), time.monotonic() + limit
        while self.reads < wanted:
            assert time.monotonic() < deadline, f"no progress in {limit} s; {self.errors[-3:]}"
            assert not self.errors, self.errors[:5]
            time.sleep(0.02)

    def close(self):
        self.stopping.set()
        self.thread.join(30)
        self.kept.close()


class Caller:
    """Connects to the S3 endpoint again and again, and counts who was refused."""

    def __init__(self, address):
        self.address = address
        self.answers, self.refused = 0, []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stopping.is_set():
            try:
                with socket.create_connection(self.address, timeout=60) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    self.answers += connection.recv(4096).startswith(b"HTTP/1.1 ")
            except ConnectionRefusedError as error:
                self.refused.append(str(error))
            except OSError:
                # Accepted by the worker that stops, which closes what has not asked yet: clients try again.
                pass
            time.sleep(0.005)

    def close(self):
        self.stopping.set()
        self.thread.join(70)


def booted(origins, folder, names, wanted):
    conftest.need(("systemctl", "systemd"))
    for reason in (machine.why_not(), harness.can_mount(), origins.skipped.get(ORIGIN)):
        if reason:
            pytest.skip(reason)
    files = {
        "sysusers.d/warpdrive.conf": ((UNITS / "sysusers.conf").read_text(), 0o644),
        f"warpdrive/{wanted}.yaml": (machine.as_file(machine.config(origins, ORIGIN)), 0o644),
        f"warpdrive/{wanted}.env": (machine.environment_file(origins), 0o600),
    }
    # On a real disk: the kernel reads files of the cache by itself only there.
    cache = folder / "cache"
    cache.mkdir()
    return machine.Machine(folder, [UNITS / name for name in names], files, [f"{cache}:/var/cache"])


@pytest.fixture(scope="module")
def bodies(origins):
    if ORIGIN in origins.skipped:
        return {}
    made = {f"{number}.bin": harness.content(2 * MIB + number, number) for number in range(6)}
    for name, body in made.items():
        origins.put(ORIGIN, f"units/{name}", body)
    return made


@pytest.fixture(scope="module")
def pair(origins, tmp_path_factory, bodies):
    running = booted(origins, tmp_path_factory.mktemp("machine"), PAIR, "train")
    try:
        running.run("systemd-sysusers", check=True)
        running.systemctl("start", WORKER)
        yield running
    finally:
        running.close()


@pytest.fixture
def reader(pair, bodies):
    made = Reader(pair.path(MOUNT) / "train/units", bodies)
    yield made
    made.close()


def main_pid(running, unit):
    return int(running.property(unit, "MainPID"))


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition, limit=30, what="it"):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {limit} s"
        time.sleep(0.05)


def is_mounted(running, path):
    return any(f" {path} " in line for line in running.path("/proc/1/mounts").read_text().splitlines())


def test_the_pair_serves_the_whole_machine(pair, bodies):
    assert is_mounted(pair, MOUNT), "in the mount namespace of the machine, not only of the unit"
    name, body = sorted(bodies.items())[0]
    assert (pair.path(MOUNT) / "train/units" / name).read_bytes() == body
    # As a user who is neither root nor the worker.
    seen = pair.run(
        "setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", "sha256sum",
        f"{MOUNT}/train/units/{name}", check=True,
    )
    assert seen.stdout.split()[0] == harness.sha256(body)


def test_ready_means_that_it_serves(pair):
    assert pair.property(WORKER, "Type") == "notify"
    assert pair.property(WORKER, "ActiveState") == "active"
    done = pair.run("warpdrive", "probe", "--holder", "/run/warpdrive-mountd/train/mount.sock")
    assert done.returncode == 0, done.stderr


def test_s3_is_served_with_the_key_of_the_environment_file(pair, bodies):
    boto3 = pytest.importorskip("boto3")
    import json

    wanted = json.loads(pair.path("/etc/warpdrive/train.yaml").read_text())
    client = boto3.client(
        "s3", endpoint_url=f"http://{wanted['s3']['listen']}", region_name="us-east-1",
        aws_access_key_id=harness.ACCESS_KEY, aws_secret_access_key=harness.SECRET_KEY,
    )
    for name, body in bodies.items():
        assert client.get_object(Bucket="train", Key=f"units/{name}")["Body"].read() == body


def test_the_worker_has_no_privilege_and_the_holder_no_network(pair):
    supervisor = pair.host_pid(main_pid(pair, WORKER))
    for pid in (supervisor, *children(supervisor)):
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), status
        assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE), status
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE), status
        assert re.search(r"^Uid:\s+[1-9]", status, re.MULTILINE), status
        assert not (Path(f"/proc/{pid}") / "root" / "dev/fuse").exists()
    holder = pair.host_pid(main_pid(pair, HOLDER))
    # The filters of system calls are on.
    assert re.search(r"^Seccomp:\s+2$", Path(f"/proc/{holder}/status").read_text(), re.MULTILINE)


def test_files_are_given_to_the_kernel_where_it_can_take_them(pair, bodies):
    """Registering takes CAP_SYS_ADMIN, which only the holder has."""
    import json

    for _ in range(3):
        for name in bodies:
            (pair.path(MOUNT) / "train/units" / name).read_bytes()
    wanted = json.loads(pair.path("/etc/warpdrive/train.yaml").read_text())
    with urllib.request.urlopen(f"http://{wanted['admin']['listen']}/status", timeout=10) as answer:
        status = json.load(answer)
    opens = {(one["mode"], one["reason"]): one["count"] for one in status["opens"]}
    if status["cache"]["files"]["stacked"]:
        pytest.skip(f"temporary files are on {status['cache']['files']['file_system']}, stacked on another")
    assert any(mode == "passthrough" for mode, _ in opens), opens


def test_restarts_of_the_unit_are_a_pause(pair, reader):
    holder = main_pid(pair, HOLDER)
    for _ in range(3):
        reader.progress()
        before = main_pid(pair, WORKER)
        pair.systemctl("restart", WORKER)
        assert main_pid(pair, WORKER) != before
    reader.progress()
    assert reader.errors == []
    assert main_pid(pair, HOLDER) == holder, "the holder was not restarted with it"


def test_clients_of_s3_wait_over_restarts_of_the_unit(pair):
    import json

    host, _, port = json.loads(pair.path("/etc/warpdrive/train.yaml").read_text())["s3"]["listen"].rpartition(":")
    caller = Caller((host, int(port)))
    for _ in range(3):
        wanted = caller.answers + 10
        until(lambda: caller.answers >= wanted, what="answers")
        pair.systemctl("restart", WORKER)
    wanted = caller.answers + 10
    until(lambda: caller.answers >= wanted, what="answers")
    caller.close()
    assert caller.refused == []
    # One socket, however often it was given to it.
    assert pair.property(WORKER, "NFileDescriptorStore") == "1"


def test_kill_9_of_the_worker_is_a_pause(pair, reader):
    supervisor = main_pid(pair, WORKER)
    for _ in range(3):
        reader.progress()
        [worker] = children(pair.host_pid(supervisor))
        os.kill(worker, signal.SIGKILL)
        until(lambda gone=worker: not os.path.exists(f"/proc/{gone}"), what="the worker's end")
    reader.progress()
    assert reader.errors == []
    assert main_pid(pair, WORKER) == supervisor, "its supervisor did that, not systemd"


def test_kill_9_of_everything_but_the_holder_is_a_pause(pair, reader):
    for _ in range(2):
        reader.progress()
        before = main_pid(pair, WORKER)
        pair.systemctl("kill", "--signal=KILL", "--kill-who=all", WORKER)
        until(lambda old=before: main_pid(pair, WORKER) not in (0, old), what="systemd starts it again")
    reader.progress()
    assert reader.errors == []


def test_a_new_program_is_taken_by_a_restart(pair, reader):
    reader.progress()
    new = pair.path("/usr/local/bin/warpdrive.new")
    shutil.copy(harness.PROGRAM, new)
    new.chmod(0o755)
    new.rename(pair.path("/usr/local/bin/warpdrive"))
    pair.systemctl("restart", WORKER)
    reader.progress()
    assert reader.errors == []
    supervisor = pair.host_pid(main_pid(pair, WORKER))
    assert not os.readlink(f"/proc/{supervisor}/exe").endswith("(deleted)")


def test_stopping_the_worker_lets_readers_wait_and_starting_it_lets_them_go_on(pair, reader):
    reader.progress()
    pair.systemctl("stop", WORKER)
    assert pair.property(HOLDER, "ActiveState") == "active"
    assert is_mounted(pair, MOUNT)
    time.sleep(1)
    at_rest = reader.reads
    time.sleep(1)
    assert reader.reads - at_rest <= 1, "somebody answers"
    pair.systemctl("start", WORKER)
    reader.progress()
    assert reader.errors == []


def test_stopping_the_holder_unmounts_and_leaves_nothing(pair, bodies):
    pair.systemctl("stop", HOLDER)
    until(lambda: not is_mounted(pair, MOUNT), what="unmounted")
    assert pair.property(WORKER, "ActiveState") == "inactive", "it needs the holder"
    names = pair.run("ps", "-eo", "comm").stdout.split()
    assert "warpdrive" not in names
    pair.systemctl("start", WORKER)
    name, body = sorted(bodies.items())[0]
    assert (pair.path(MOUNT) / "train/units" / name).read_bytes() == body


def test_nothing_failed_meanwhile(pair):
    failed = pair.systemctl("list-units", "--failed", "--plain", "--no-legend")
    assert failed.strip() == ""


def test_the_single_unit_survives_its_worker_and_unmounts_at_its_end(origins, tmp_path, bodies):
    running = booted(origins, tmp_path, ["warpdrive.service"], "warpdrive")
    try:
        # `mount_point` is /data unless the file names another.
        running.run("mkdir", "/data", check=True)
        running.systemctl("start", "warpdrive.service")
        assert is_mounted(running, "/data")
        reader = Reader(running.path("/data/train/units"), bodies)
        try:
            supervisor = running.host_pid(main_pid(running, "warpdrive.service"))
            for _ in range(2):
                reader.progress()
                workers = [pid for pid in children(supervisor) if b"mountd" not in command_line(pid)]
                os.kill(workers[0], signal.SIGKILL)
                until(lambda gone=workers[0]: not os.path.exists(f"/proc/{gone}"), what="the worker's end")
            reader.progress()
            assert reader.errors == []
        finally:
            reader.close()
        running.systemctl("stop", "warpdrive.service")
        assert not is_mounted(running, "/data")
        assert "warpdrive" not in running.run("ps", "-eo", "comm").stdout.split()
        assert running.property("warpdrive.service", "Result") == "success"
    finally:
        running.close()


def command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
