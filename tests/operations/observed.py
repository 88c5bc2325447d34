"""A sidecar under a load that moves every series, and a real Prometheus that scrapes it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import harness

MIB = 1 << 20
ORIGIN = "versitygw"


class Observed:
    """`warpdrive run --supervise` in front of a real S3 origin, with work to do."""

    def __init__(self, origins):
        self.origins = origins
        self.folder = Path(tempfile.mkdtemp(prefix="warpdrive-observed-"))
        (self.folder / "mnt").mkdir()
        config = harness.base_config(
            self.folder, [harness.backend("train", ORIGIN, origins)], harness.STATIC_ACCESS, mount=True
        )
        self.metrics = f"127.0.0.1:{harness.free_port()}"
        config["metrics"] = {"enabled": True, "addr": self.metrics}
        config["state_dir"] = str(self.folder / "state")
        # Smaller than what is read, so that there are evictions and refusals.
        config["cache"] |= {"max_size": "192MiB", "memory": "16MiB", "min_free": "64MiB"}
        config["backends"][0] |= {
            "breaker": {"failures": 3, "cooldown": "1s"},
            "retry": {"max": 1, "backoff": "10ms", "backoff_max": "20ms"},
        }
        self.s3, self.admin = f"http://{config['s3']['listen']}", f"http://{config['admin']['listen']}"
        self.mount = self.folder / "mnt" / "train"
        path = self.folder / "config.yaml"
        path.write_text(json.dumps(config))
        self.environment = harness.clean_environment(
            HOME=str(self.folder), XDG_RUNTIME_DIR=str(self.folder), **harness.secrets(origins)
        )
        for number in range(40):
            origins.put(ORIGIN, f"observed/{number:02}.bin", harness.content(6 * MIB, number))
        for number in range(6):
            origins.put(ORIGIN, f"observed/long-{number}", harness.content(20 * MIB, number))
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [str(harness.PROGRAM), "run", "--supervise", "-c", str(path)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
                cwd=self.folder, preexec_fn=harness.die_with_parent,
            )
        self.stopping = threading.Event()
        self.loader = None
        self.wait_ready()

    def status(self):
        with urllib.request.urlopen(self.admin + "/status", timeout=5) as answer:
            return json.load(answer)

    def wait_ready(self, limit=60, but_not=None):
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(OSError, ValueError):
                status = self.status()
                if status["ready"] and status["pid"] != but_not:
                    return status
            time.sleep(0.05)
        raise AssertionError(f"not ready in {limit} s\n{self.log()}")

    def log(self):
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def exposition(self):
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def client(self, secret=harness.SECRET_KEY):
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3", endpoint_url=self.s3, region_name="us-east-1",
            aws_access_key_id=harness.ACCESS_KEY, aws_secret_access_key=secret,
            config=Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=30),
        )

    def kill_worker(self):
        """Its supervisor starts another one, which goes on with the mount."""
        pid = self.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        self.wait_ready(but_not=pid)

    def read(self, numbers, size=-1):
        for number in numbers:
            with contextlib.suppress(OSError), open(self.mount / f"observed/{number:02}.bin", "rb") as file:
                file.read(size)

    def round(self, number):
        """Some of everything that can be done to a sidecar."""
        with contextlib.suppress(OSError):
            os.listdir(self.mount / "observed")
        # Twice: the second time the kernel may read the cached file by itself.
        self.read([number % 30, number % 30, (number + 1) % 30])
        # Parts of large objects stay blocks.
        for offset in (5 * MIB, 2 * MIB, 3 * MIB + 77):
            with contextlib.suppress(OSError), open(self.mount / "observed/39.bin", "rb") as file:
                file.seek(offset)
                file.read(4096)
        # In sequence from the middle: fetched ahead, and too short to become a file.
        with contextlib.suppress(OSError), open(self.mount / f"observed/long-{number % 6}", "rb") as file:
            file.seek(9 * MIB)
            for _ in range(40):
                file.read(128 << 10)
        with contextlib.suppress(OSError):
            os.stat(self.mount / f"observed/absent-{number}")
        client = self.client()
        for call in (
            lambda: client.put_object(Bucket="train", Key=f"observed/put-{number % 4}", Body=b"x" * MIB),
            lambda: client.get_object(Bucket="train", Key=f"observed/{number % 30:02}.bin")["Body"].read(),
            lambda: client.get_object(Bucket="train", Key="observed/absent"),
            lambda: client.list_objects_v2(Bucket="train", Prefix="observed/"),
            lambda: self.client("wrong").head_object(Bucket="train", Key="observed/00.bin"),
        ):
            with contextlib.suppress(Exception):
                call()

    def start_load(self):
        def work():
            number = 0
            while not self.stopping.is_set():
                self.round(number)
                number += 1

        self.loader = threading.Thread(target=work, daemon=True)
        self.loader.start()

    def outage(self, seconds):
        """The origin is gone; readers ask for what is cached and for what is not."""
        self.origins.act(ORIGIN, "stop")
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                self.read(range(30, 39), 4096)
                with contextlib.suppress(Exception):
                    self.client().get_object(Bucket="train", Key="observed/38.bin")["Body"].read()
                time.sleep(0.2)
        finally:
            self.origins.act(ORIGIN, "restart")

    def close(self):
        self.stopping.set()
        if self.loader:
            self.loader.join(60)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        finally:
            if os.path.ismount(self.folder / "mnt"):
                subprocess.run(["umount", "-l", str(self.folder / "mnt")], check=False)
            if not os.path.ismount(self.folder / "mnt"):
                shutil.rmtree(self.folder, ignore_errors=True)


class Prometheus:
    """Debian's, with a job of each name, on a free port of loopback."""

    def __init__(self, folder, jobs, rules=()):
        self.folder, self.port = Path(folder), harness.free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rule) for rule in rules],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [target]}]} for name, target in jobs
            ],
        }
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        with open(self.folder / "prometheus.log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={self.folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=harness.die_with_parent,
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5)
                return
            assert time.monotonic() < deadline and self.process.poll() is None, self.log()
            time.sleep(0.1)

    def log(self):
        return (self.folder / "prometheus.log").read_text()[-3000:]

    def ask(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def range(self, expression, start):
        found = self.ask("query_range", query=expression, start=start, end=time.time(), step="1")
        return found["result"]

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
