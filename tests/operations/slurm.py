"""A real Slurm with one node, on loopback, in a directory of its own: munged, slurmctld, slurmd.

Invariant: what is started here is ended here, with every job; nothing listens beyond loopback.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import conftest
import harness

SCRIPTS = conftest.ROOT / "examples/slurm"
# Users that Debian has everywhere: of the jobs, and of the worker.
JOB_USER, WORKER_USER = "nobody", "daemon"

CONFIGURATION = """
ClusterName=warpdrive
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=2
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=plain Nodes=ALL MaxTime=INFINITE State=UP
Prolog={scripts}/prolog.sh
Epilog={scripts}/epilog.sh
TaskProlog={scripts}/task-prolog.sh
PrologFlags=Alloc
PrologEpilogTimeout=60
"""


def why_not() -> str:
    """Empty when it can run here, else why not."""
    if os.geteuid() != 0:
        return "prolog and epilog of Slurm run as root"
    return harness.can_mount()


class Slurm:
    """One node that accepts jobs."""

    def __init__(self, configuration, secrets, **settings):
        # Not below pytest's directory, which only root can enter.
        self.folder = Path(tempfile.mkdtemp(prefix="warpdrive-slurm-"))
        self.folder.chmod(0o711)
        self.scripts = self.folder / "scripts"
        shutil.copytree(SCRIPTS, self.scripts)
        self.scripts.chmod(0o755)
        self.program = self.folder / "warpdrive"
        shutil.copy(harness.PROGRAM, self.program)
        self.run = self.folder / "run"
        self.cache = self.folder / "cache"
        self.configuration = self.folder / "warpdrive.yaml"
        self.configuration.write_text(configuration)
        secret_file = self.folder / "secrets.env"
        secret_file.write_text(secrets)
        secret_file.chmod(0o600)
        self.settings(
            WARPDRIVE_PROGRAM=self.program, WARPDRIVE_CONFIG=self.configuration, WARPDRIVE_SECRETS=secret_file,
            WARPDRIVE_USER=WORKER_USER, WARPDRIVE_PARTITIONS="main", WARPDRIVE_RUN=self.run,
            WARPDRIVE_CACHE=self.cache, WARPDRIVE_CACHE_SIZE="1GiB", WARPDRIVE_MEMORY="64MiB",
            WARPDRIVE_START_SECONDS=30, WARPDRIVE_ORIGIN_SECONDS=4, WARPDRIVE_STOP_SECONDS=15, **settings,
        )
        self.output = self.folder / "output"
        self.output.mkdir()
        self.output.chmod(0o1777)
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o755)
        host = socket.gethostname().split(".")[0]
        self.host = host
        file = self.folder / "slurm.conf"
        file.write_text(
            CONFIGURATION.format(
                host=host, folder=self.folder, scripts=self.scripts,
                controller=harness.free_port(), node=harness.free_port(),
            )
        )
        self.environment = harness.clean_environment(
            SLURM_CONF=str(file), PATH=os.environ["PATH"] + ":/usr/sbin:/sbin"
        )
        (self.folder / "munge/key").write_bytes(os.urandom(128))
        (self.folder / "munge/key").chmod(0o600)
        self.processes = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        munge = self.folder / "munge"
        self.daemon(
            "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )
        self.wait(lambda: (munge / "socket").exists(), "munged")
        self.daemon("slurmctld", "-D", "-i")
        self.daemon("slurmd", "-D", "-N", self.host)
        self.wait(lambda: self.node_state().startswith("IDLE"), "a node that is idle")

    def settings(self, **changed):
        """Changes scripts/settings, as an operator would."""
        file = self.scripts / "settings"
        lines = file.read_text().splitlines()
        for name, value in changed.items():
            assert any(line.startswith(f"{name}=") for line in lines), f"{name} is no setting"
            lines = [f"{name}='{value}'" if line.startswith(f"{name}=") else line for line in lines]
        file.write_text("\n".join(lines) + "\n")

    @contextlib.contextmanager
    def with_shell(self, text):
        """Shell functions that the scripts call in place of programs: something happens at that moment."""
        file = self.scripts / "settings"
        before = file.read_text()
        file.write_text(before + text)
        try:
            yield
        finally:
            file.write_text(before)

    def daemon(self, *command):
        with open(self.folder / f"{command[0]}.out", "ab") as out:
            self.processes.append(
                subprocess.Popen(
                    command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    cwd=self.folder, preexec_fn=harness.die_with_parent,
                    # Not reached by Ctrl-C: `close` needs them to end the jobs.
                    start_new_session=True,
                )
            )

    def wait(self, condition, what, limit=60):
        deadline = time.monotonic() + limit
        while True:
            with contextlib.suppress(subprocess.SubprocessError):
                found = condition()
                if found:
                    return found
            assert time.monotonic() < deadline, f"{what}: not within {limit} s\n{self.logs()}"
            time.sleep(0.1)

    def logs(self):
        found = []
        for name in ("slurmctld.log", "slurmd.log", "munged.out", "slurmctld.out"):
            with contextlib.suppress(OSError):
                found.append(f"-- {name}\n{(self.folder / name).read_text(errors='replace')[-2500:]}")
        return "\n".join(found)

    def command(self, *command, check=True):
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def _show(self, kind, name):
        text = self.command("scontrol", "--oneliner", "show", kind, name, check=False)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def node_state(self):
        return self._show("node", self.host).get("State", "")

    def job(self, number):
        return self._show("job", str(number))

    def state(self, number):
        return self.job(number).get("JobState", "")

    def submit(self, script, *options, partition="main"):
        file = self.output / f"script-{time.monotonic_ns()}"
        file.write_text("#!/bin/bash\n" + script)
        file.chmod(0o755)
        answer = self.command(
            "sbatch", "--parsable", f"--uid={JOB_USER}", f"--chdir={self.output}", f"--partition={partition}",
            f"--output={self.output}/%j.out", *options, str(file),
        )
        return int(answer.split(";")[0])

    def release(self, number):
        """Lets a held job go. Slurm would wait two minutes with one that was put back.

        Some of that is needed: the node refuses credentials as old as the ones that were revoked.
        """
        time.sleep(3)
        self.command("scontrol", "release", str(number))
        self.command("scontrol", "update", f"jobid={number}", "starttime=now")

    def ended(self, number, limit=90):
        """The job's last state, when its epilog has run as well."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.state(number) in over, f"the end of job {number}", limit)
        self.wait(lambda: "COMPLETING" not in self.node_state(), "the epilog", limit)
        return self.state(number)

    def said(self, number):
        with contextlib.suppress(OSError):
            return (self.output / f"{number}.out").read_text(errors="replace")
        return ""

    def directory(self, number):
        return self.run / "jobs" / str(number)

    def log(self, number):
        return self.cache / "logs" / f"{number}.log"

    def left(self, number=None):
        """Processes and mounts that jobs, or one job, have left."""
        found = []
        mark = f"{self.run}/jobs/{'' if number is None else f'{number}/'}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes()
                if mark in line:
                    found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        return found + [line for line in mounts if mark.decode() in line]

    def processes_of(self, number, command):
        """Ids of the processes of a job's sidecar: `run` or `mountd`."""
        mark = f"{self.directory(number)}/holder/mount.sock".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if mark in words and words[1] == command.encode():
                    found.append(int(process.name))
        return found

    def close(self):
        with contextlib.suppress(Exception):
            self.command("scancel", f"--user={JOB_USER}", check=False)
            time.sleep(1)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        # A test that failed half way must not leave a sidecar behind.
        for directory in self.run.glob("jobs/*"):
            subprocess.run(
                [str(self.scripts / "epilog.sh")], env={**self.environment, "SLURM_JOB_ID": directory.name},
                timeout=60, check=False,
            )
        shutil.rmtree(self.folder, ignore_errors=True)
