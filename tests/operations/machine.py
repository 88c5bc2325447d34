"""Boots a real systemd as the first process of namespaces of its own (machine.sh), for the tests.

Invariant: everything that runs in it ends with its first process, and its cgroups are removed.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import harness

HERE = Path(__file__).resolve().parent
# Units that would touch the host's kernel or hardware, or wait for a terminal.
MASKED = """
systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket
systemd-sysctl.service systemd-binfmt.service systemd-modules-load.service dev-hugepages.mount dev-mqueue.mount
sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount
proc-sys-fs-binfmt_misc.automount systemd-timesyncd.service systemd-random-seed.service
systemd-update-utmp.service systemd-firstboot.service systemd-machine-id-commit.service
systemd-hwdb-update.service systemd-pstore.service systemd-journal-flush.service kmod-static-nodes.service
systemd-remount-fs.service systemd-ask-password-console.path systemd-ask-password-wall.path
keyboard-setup.service console-setup.service systemd-resolved.service systemd-networkd.service
""".split()


def why_not() -> str:
    """Empty when a machine can be booted here, else why not."""
    if os.geteuid() != 0:
        return "a service manager of its own needs root"
    if not Path("/usr/lib/systemd/systemd").exists():
        return "no systemd"
    if not (Path("/sys/fs/cgroup/systemd/cgroup.procs").exists() or Path("/sys/fs/cgroup/cgroup.procs").exists()):
        return "no hierarchy of cgroups that systemd can use"
    done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--cgroup", "true"], capture_output=True)
    return "" if done.returncode == 0 else "namespaces cannot be made here"


def killed_with_parent():
    """Runs in the child. Not a signal that can be ignored: unshare does so while it waits."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Machine:
    """A running systemd."""

    def __init__(self, folder, units, files, shared=()):
        """`units` are put into /etc/systemd/system; `files` are contents by path below /etc, with mode."""
        self.folder = Path(folder)
        self.name = f"wd-machine-{os.getpid()}"
        etc = self.folder / "etc"
        system = etc / "systemd/system"
        system.mkdir(parents=True)
        (self.folder / "bin").mkdir()
        shutil.copy(harness.PROGRAM, self.folder / "bin/warpdrive")
        for name in MASKED:
            (system / name).symlink_to("/dev/null")
        for unit in units:
            shutil.copy(unit, system)
        (system / "machine.target").write_text(
            "[Unit]\nDescription=machine\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
        )
        (system / "default.target").symlink_to("machine.target")
        (etc / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        )
        (etc / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        (etc / "machine-id").write_text("")
        shutil.copy("/etc/ld.so.cache", etc)
        for path, (content, mode) in files.items():
            file = etc / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(mode)
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [str(HERE / "machine.sh"), str(self.folder), self.name, *map(str, shared)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=killed_with_parent,
            )
        self.first = None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()
            if self.first is None:
                self.first = self._child()
            if self.first and self.run("systemctl", "is-system-running").stdout.strip() == "running":
                return
            time.sleep(0.2)
        raise AssertionError(f"systemd does not come up\n{self.log()}\n{self.journal()}")

    def _child(self):
        with contextlib.suppress(OSError, IndexError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            child = int(children.read_text().split()[0])
            comm = Path(f"/proc/{child}/comm").read_text().strip()
            return child if comm == "systemd" else None
        return None

    def log(self):
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def run(self, *command, check=False, timeout=90, **more):
        done = subprocess.run(
            ["nsenter", "-t", str(self.first), "-m", "-u", "-i", "-p", "--", *command],
            capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **more,
        )
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}\n{self.journal()}"
        return done

    def systemctl(self, *arguments):
        return self.run("systemctl", "--no-pager", *arguments, check=True).stdout

    def property(self, unit, name):
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def journal(self, *units):
        chosen = [argument for unit in units for argument in ("-u", unit)]
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", "60", *chosen).stdout

    def path(self, path):
        """A path of the machine, as seen from outside."""
        return Path(f"/proc/{self.first}/root{path}")

    def host_pid(self, pid):
        """The number outside of a process of the machine."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                text = status.read_text()
                line = next(line for line in text.splitlines() if line.startswith("NSpid:"))
                numbers = line.split()[1:]
                if len(numbers) > 1 and numbers[-1] == str(pid) and self._is_mine(status.parent):
                    return int(status.parent.name)
        raise AssertionError(f"no process {pid} in the machine")

    def _is_mine(self, process):
        return os.readlink(process / "ns/pid") == os.readlink(f"/proc/{self.first}/ns/pid")

    def close(self):
        with contextlib.suppress(OSError, TypeError):
            # Its death takes everything in its namespace with it.
            os.kill(self.first or self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        for _ in range(50):
            left = [path for path in Path("/sys/fs/cgroup").glob(f"**/{self.name}") if path.is_dir()]
            for top in left:
                for directory, _, _ in os.walk(top, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)
            if not left:
                return
            time.sleep(0.1)


def config(origins, kind, **more):
    """A configuration with one backend, `train`, and secrets from the environment."""
    wanted = {
        "cache": {"max_size": "1GiB", "memory": "64MiB"},
        "backends": [harness.backend("train", kind, origins)],
        "s3": {"listen": f"127.0.0.1:{harness.free_port()}", **harness.STATIC_ACCESS},
        "admin": {"listen": f"127.0.0.1:{harness.free_port()}"},
    }
    return wanted | more


def as_file(wanted):
    return json.dumps(wanted, indent=1)


def environment_file(origins):
    return "".join(f"{name}={value}\n" for name, value in harness.secrets(origins).items())
