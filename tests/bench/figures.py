#!/usr/bin/env python3
"""Measures the figures of docs/benchmarks.md and prints them as a table and as JSON.

Every figure is a ratio to something real in the same run: the origin read directly, nginx serving
the same files, a raw listing. Repetitions are interleaved; what is printed is the median with the
smallest and the largest. It uses loopback only, ends what it started and removes what it wrote.

    tests/bench/run                 all figures (about ten minutes after the build)
    tests/bench/run cold warm       some of them: cold, warm, small, shared, list
    tests/bench/run --json FILE     also write the numbers
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import boto3
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
TICK = os.sysconf("SC_CLK_TCK")
MEMORY_TIER = 768 * MIB
# What the sidecar may hold beyond its memory tier.
MEMORY_GOAL = MEMORY_TIER + 256 * MIB


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, ready, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"{what} was not ready after {seconds} s")


def drop_page_cache():
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        print("page cache not dropped: not root", file=sys.stderr)


def settle(path):
    """Brings a file into the page cache, the same way for every side of a comparison."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(MIB)
        while file.readinto(buffer):
            pass


class Child:
    """A process of ours, ended with the bench."""

    running = []

    def __init__(self, arguments, log, **more):
        Child.running.append(self)
        self.log = log
        self.process = subprocess.Popen(
            arguments, stdout=more.pop("stdout", open(log, "ab")), stderr=open(log, "ab"), **more
        )
        self.pid = self.process.pid

    def cpu_seconds(self):
        return cpu_of(self.pid)

    def memory(self):
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
        )
        return {k: int(status[k].split()[0]) * 1024 for k in ("VmRSS", "VmHWM")}

    def end(self):
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()
        if self.process.poll() is None:
            if not self.process.stdin:
                self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Origin:
    """A real S3 server, with or without a network in front of it."""

    def __init__(self, work, binaries, throttle=None, kind="versitygw"):
        arguments = [str(binaries / "testkit-origins")]
        if throttle:
            arguments += ["--throttle", throttle]
        self.kind = kind
        self.child = Child(
            arguments + [kind], work / "origin.log", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        described = json.loads(self.child.process.stdout.readline())
        if kind in described["skipped"]:
            raise SystemExit(f"{kind}: {described['skipped'][kind]}; run tests/install")
        self.control = described["control"]
        self.described = described["origins"][kind]
        self.s3 = client(
            self.described["endpoint"], self.described["access_key"], self.described["secret_key"]
        )
        self.bucket = self.described["bucket"]

    def bytes_sent(self):
        with urllib.request.urlopen(f"{self.control}/{self.kind}") as answer:
            return json.load(answer)["from_origin"]

    def backend(self, name="data"):
        return {
            "name": name,
            "type": "s3",
            "config": {
                "endpoint": self.described["endpoint"],
                "region": self.described["region"],
                "bucket": self.bucket,
                "path_style": True,
            },
            "auth": {
                "method": "static",
                "access_key_id": "env:BENCH_ACCESS_KEY",
                "secret_access_key": "env:BENCH_SECRET_KEY",
            },
        }

    def environment(self):
        return {
            "BENCH_ACCESS_KEY": self.described["access_key"],
            "BENCH_SECRET_KEY": self.described["secret_key"],
        }

    def url(self, key):
        return self.s3.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=3600
        )

    def end(self):
        self.child.end()


def client(endpoint, access_key, secret_key):
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


class Sidecar:
    """The program under test, with an empty cache unless one is given."""

    def __init__(self, work, binaries, backends, environment=None, mount=True, **cache):
        self.work = Path(tempfile.mkdtemp(dir=work))
        self.port, admin = free_port(), free_port()
        self.mount_point = self.work / "mnt"
        self.mount_point.mkdir()
        config = {
            "mount_point": str(self.mount_point),
            "cache": {
                "path": str(self.work / "cache"),
                "max_size": "8GiB",
                "memory": f"{MEMORY_TIER // MIB}MiB",
                **cache,
            },
            "backends": backends,
            "s3": {"listen": f"127.0.0.1:{self.port}", "access": "anonymous"},
            "admin": {"listen": f"127.0.0.1:{admin}"},
        }
        file = self.work / "config.yaml"
        file.write_text(json.dumps(config))
        arguments = [str(binaries / "warpdrive"), "run", "-c", str(file)]
        arguments += [] if mount else ["--no-mount"]
        self.child = Child(
            arguments, self.work / "log", env={**os.environ, **(environment or {})}
        )

        def ready():
            if self.child.process.poll() is not None:
                raise SystemExit((self.work / "log").read_text())
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz") as answer:
                    return answer.status == 200
            except urllib.error.HTTPError:
                return False

        wait_for("warpdrive", ready)

    def url(self, key, bucket="data"):
        return f"http://127.0.0.1:{self.port}/{bucket}/{urllib.parse.quote(key)}"

    def path(self, key, bucket="data"):
        return self.mount_point / bucket / key

    def end(self):
        memory = self.child.memory()
        self.child.end()
        shutil.rmtree(self.work, ignore_errors=True)
        return memory


def read_ranges(url, size, part=8 * MIB, threads=8):
    """Seconds to read an object with parallel ranged GETs over kept connections."""
    parts = urllib.parse.urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    offsets = iter(range(0, size, part))
    lock, problems = threading.Lock(), []

    def work():
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
        buffer = memoryview(bytearray(MIB))
        while True:
            with lock:
                start = next(offsets, None)
            if start is None:
                return
            end = min(start + part, size)
            connection.request("GET", target, headers={"Range": f"bytes={start}-{end - 1}"})
            answer = connection.getresponse()
            got = 0
            while count := answer.readinto(buffer):
                got += count
            if answer.status != 206 or got != end - start:
                problems.append(f"{answer.status} with {got} bytes of {end - start}")
                return

    begun = time.monotonic()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    if problems:
        raise SystemExit(f"{url}: {problems[0]}")
    return time.monotonic() - begun


def read_file(path, size):
    """Seconds to read a file from its beginning to its end in pieces of 1 MiB."""
    buffer = bytearray(MIB)
    got, begun = 0, time.monotonic()
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            got += count
    if got != size:
        raise SystemExit(f"{path}: {got} bytes of {size}")
    return time.monotonic() - begun


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def upload(origin, key, size, seed=1):
    import random

    with tempfile.NamedTemporaryFile() as file:
        source = random.Random(seed)
        for _ in range(0, size, MIB):
            file.write(source.randbytes(MIB))
        file.flush()
        origin.s3.upload_file(file.name, origin.bucket, key)


class Figures:
    def __init__(self, work, binaries, repetitions):
        self.work, self.binaries, self.repetitions = work, binaries, repetitions
        self.rows, self.memory = [], {}

    def row(self, name, goal, holds, values, note=""):
        found = spread(values)
        self.rows.append({"figure": name, "goal": goal, "held": holds(found["median"]), **found, "note": note})
        text = f"{found['median']:.3g} ({found['min']:.3g} to {found['max']:.3g})"
        print(f"{'ok  ' if holds(found['median']) else 'MISS'}  {name}: {text}, goal {goal}  {note}", flush=True)

    def remember(self, name, memory):
        self.memory[name] = memory
        peak = memory["VmHWM"]
        self.row(
            f"peak resident memory after {name} / (memory tier + 256 MiB)",
            "<= 1",
            lambda ratio: ratio <= 1,
            [peak / MEMORY_GOAL],
            f"{peak // MIB} MiB",
        )

    def cold(self):
        size = 1024 * MIB
        for name, throttle, goal in [
            ("behind 20 ms and 500 MiB/s", "20:500", 0.9),
            ("unthrottled on the same cores", None, 0.5),
        ]:
            origin = Origin(self.work, self.binaries, throttle)
            upload(origin, "big.bin", size)
            direct, mount, gateway = [], [], []
            read_ranges(origin.url("big.bin"), size)
            memory = {}
            for _ in range(self.repetitions):
                direct.append(read_ranges(origin.url("big.bin"), size))
                for found, read in [
                    (mount, lambda s: read_file(s.path("big.bin"), size)),
                    (gateway, lambda s: read_ranges(s.url("big.bin"), size)),
                ]:
                    sidecar = Sidecar(
                        self.work, self.binaries, [origin.backend()], origin.environment()
                    )
                    found.append(read(sidecar))
                    memory = sidecar.end()
            rate = f"direct {size / MIB / statistics.median(direct):.0f} MiB/s"
            for what, found in [("mount", mount), ("S3", gateway)]:
                ratios = [d / f for d, f in zip(direct, found)]
                self.row(
                    f"cold sequential read of 1 GiB, {what} / direct parallel ranges, {name}",
                    f">= {goal}",
                    lambda ratio, goal=goal: ratio >= goal,
                    ratios,
                    rate,
                )
            self.remember(f"a cold read {name}", memory)
            origin.end()

    def local_objects(self, folder, count, size):
        folder.mkdir(parents=True)
        import random

        source = random.Random(7)
        for number in range(count):
            (folder / f"o{number:05}").write_bytes(source.randbytes(size))
        return {"name": "data", "type": "local", "config": {"path": str(folder)}}

    def wrk(self, port, prefix, count, connections, seconds):
        script = self.work / "wrk.lua"
        script.write_text(
            "local n = 0\n"
            "function init(args) n = math.random(1, 1000000) end\n"
            f"function request() n = n + 7919; return wrk.format('GET', string.format('{prefix}o%05d', n % {count})) end\n"
            "function done(s, l, r) io.write(string.format('RESULT %d %d %d %d\\n', s.requests, s.bytes, s.duration,"
            " s.errors.status + s.errors.connect + s.errors.read + s.errors.timeout)) end\n"
        )
        arguments = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
        output = subprocess.run(
            arguments + [f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True
        ).stdout
        line = next(line for line in output.splitlines() if line.startswith("RESULT"))
        requests, total, micros, errors = map(int, line.split()[1:])
        if errors:
            raise SystemExit(f"wrk saw {errors} errors:\n{output}")
        return requests, total / (micros / 1e6)

    def nginx(self, folder, sendfile):
        port = free_port()
        work = Path(tempfile.mkdtemp(dir=self.work))
        buffers = "sendfile on;" if sendfile else "sendfile off; output_buffers 2 1m;"
        (work / "nginx.conf").write_text(
            f"daemon off; pid {work}/pid; error_log {work}/error.log;\n"
            "worker_processes 1; events { worker_connections 256; }\n"
            f"http {{ access_log off; {buffers} keepalive_requests 1000000; tcp_nopush on;\n"
            + "".join(
                f"{name}_temp_path {work}/{name};\n"
                for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            )
            + f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
        )
        if os.geteuid() == 0:
            (work / "nginx.conf").write_text("user root;\n" + (work / "nginx.conf").read_text())
        child = Child(["nginx", "-e", str(work / "early.log"), "-c", str(work / "nginx.conf"), "-p", str(work)], work / "log")
        wait_for("nginx", lambda: socket.create_connection(("127.0.0.1", port)).close() or True)
        return child, port

    def warm(self):
        folder, count, size = self.work / "warm", 64, 8 * MIB
        backend = self.local_objects(folder, count, size)
        for file in folder.iterdir():
            settle(file)
        sidecar = Sidecar(self.work, self.binaries, [backend], mount=False)
        for file in sorted(folder.iterdir()):
            read_ranges(sidecar.url(file.name), size, threads=1)
        with_sendfile, port_with = self.nginx(folder, True)
        without, port_without = self.nginx(folder, False)
        ratios, cpu = [], []
        for _ in range(self.repetitions):
            rates, costs = {}, {}
            for name, child, port, prefix in [
                ("warpdrive", sidecar.child, sidecar.port, "/data/"),
                ("nginx, sendfile on", with_sendfile, port_with, "/"),
                ("nginx, sendfile off", without, port_without, "/"),
            ]:
                pids = [child.pid] + [
                    int(p)
                    for p in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
                ]
                before = sum(cpu_of(p) for p in pids)
                requests, rate = self.wrk(port, prefix, count, 16, 6)
                rates[name] = rate
                costs[name] = (sum(cpu_of(p) for p in pids) - before) / (requests * size)
            best = max(rates["nginx, sendfile on"], rates["nginx, sendfile off"])
            cheapest = min(costs["nginx, sendfile on"], costs["nginx, sendfile off"])
            ratios.append(rates["warpdrive"] / best)
            cpu.append(costs["warpdrive"] / cheapest)
            print("      " + ", ".join(f"{n} {r / 1e9:.2f} GB/s" for n, r in rates.items()))
        name = "warm GET of 8 MiB over 16 connections"
        self.row(f"{name} / the better nginx", ">= 1.0", lambda r: r >= 1.0, ratios)
        self.row(f"{name}, CPU per byte / the cheaper nginx", "<= 1.5", lambda r: r <= 1.5, cpu)
        with_sendfile.end()
        without.end()
        self.remember("warm GETs of 8 MiB", sidecar.end())

    def small(self):
        folder, count = self.work / "small", 1000
        backend = self.local_objects(folder, count, 1024)
        sidecar = Sidecar(self.work, self.binaries, [backend], mount=False)
        self.wrk(sidecar.port, "/data/", count, 16, 3)
        nginx, port = self.nginx(folder, True)
        worker = int(Path(f"/proc/{nginx.pid}/task/{nginx.pid}/children").read_text().split()[0])
        micros, ratios = [], []
        for _ in range(self.repetitions):
            before = sidecar.child.cpu_seconds()
            requests, _ = self.wrk(sidecar.port, "/data/", count, 16, 4)
            micros.append((sidecar.child.cpu_seconds() - before) / requests * 1e6)
            before = cpu_of(worker)
            others, _ = self.wrk(port, "/", count, 16, 4)
            ratios.append(micros[-1] / ((cpu_of(worker) - before) / others * 1e6))
        self.row("CPU per warm GET of 1 KiB without signature, us", "<= 20", lambda v: v <= 20, micros)
        self.row("CPU per warm GET of 1 KiB / nginx", "(none)", lambda v: True, ratios)
        nginx.end()
        self.remember("warm GETs of 1 KiB", sidecar.end())

    def shared(self):
        size = 256 * MIB
        origin = Origin(self.work, self.binaries, "5:0")
        upload(origin, "shared.bin", size)
        ratios = []
        for _ in range(self.repetitions):
            sidecar = Sidecar(self.work, self.binaries, [origin.backend()], origin.environment())
            before = origin.bytes_sent()
            readers = [
                threading.Thread(target=read_file, args=(sidecar.path("shared.bin"), size))
                for _ in range(4)
            ] + [
                threading.Thread(target=read_ranges, args=(sidecar.url("shared.bin"), size, 8 * MIB, 2))
                for _ in range(4)
            ]
            [r.start() for r in readers]
            [r.join() for r in readers]
            ratios.append((origin.bytes_sent() - before) / size)
            memory = sidecar.end()
        self.row(
            "bytes asked of the origin / unique bytes, 8 readers of both kinds of one cold object",
            "<= 1.02",
            lambda r: r <= 1.02,
            ratios,
        )
        self.remember("8 readers of one object", memory)
        origin.end()

    def list(self):
        origin = Origin(self.work, self.binaries)
        folders, each = 100, 1000
        origin.s3.put_object(Bucket=origin.bucket, Key="tree/d000/f0000", Body=b"x")
        # The files are made where the server keeps them: 100,000 PUTs would say nothing more.
        found = Path(tempfile.gettempdir()).glob(f"testkit-*/*/{origin.bucket}/tree/d000/f0000")
        tree = max(found, key=lambda path: path.stat().st_mtime).parents[1]
        for folder in range(folders):
            (tree / f"d{folder:03}").mkdir(exist_ok=True)
            for number in range(each):
                file = tree / f"d{folder:03}" / f"f{number:04}"
                file.write_bytes(b"x")
                # What the server itself keeps with a file that it wrote.
                os.setxattr(file, "user.etag", b"9dd4e461268c8034f5c8564e155c67a6")

        def pages(**request):
            token, keys = None, 0
            prefixes = []
            while True:
                more = {"ContinuationToken": token} if token else {}
                url = origin.s3.generate_presigned_url(
                    "list_objects_v2", Params={"Bucket": origin.bucket, **request, **more}
                )
                text = urllib.request.urlopen(url).read().decode()
                keys += text.count("<Key>")
                prefixes += [p.split("<")[0] for p in text.split("<CommonPrefixes><Prefix>")[1:]]
                if "<NextContinuationToken>" not in text:
                    return keys, prefixes
                token = text.split("<NextContinuationToken>")[1].split("<")[0]

        def raw():
            begun, keys, todo = time.monotonic(), 0, ["tree/"]
            while todo:
                count, below = pages(Prefix=todo.pop(), Delimiter="/")
                keys += count
                todo += below
            if keys != folders * each:
                raise SystemExit(f"raw listing found {keys} keys")
            return time.monotonic() - begun

        def walk(sidecar):
            begun = time.monotonic()
            output = subprocess.run(
                ["ls", "-lR", str(sidecar.path("tree"))], capture_output=True, check=True
            ).stdout
            taken = time.monotonic() - begun
            lines = output.count(b"\n-")
            if lines != folders * each:
                raise SystemExit(f"ls -lR found {lines} files")
            return taken

        raw()
        ratios, notes = [], []
        for _ in range(self.repetitions):
            direct = raw()
            sidecar = Sidecar(self.work, self.binaries, [origin.backend()], origin.environment())
            taken = walk(sidecar)
            ratios.append(taken / direct)
            notes.append(f"{taken:.2f} s / {direct:.2f} s")
            memory = sidecar.end()
        self.row(
            "ls -lR of 100,000 keys / a raw listing, directory by directory",
            "<= 1.3",
            lambda r: r <= 1.3,
            ratios,
            notes[-1],
        )
        self.remember("ls -lR of 100,000 keys", memory)
        origin.end()


def cpu_of(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def main():
    names = ["cold", "warm", "small", "shared", "list"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", choices=[*names, []], help="which (default: all)")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="warpdrive-bench-"))
    figures = Figures(work, chosen.binaries, chosen.repetitions)
    try:
        for name in chosen.figures or names:
            getattr(figures, name)()
    finally:
        for child in reversed(Child.running):
            child.end()
        if chosen.json:
            chosen.json.write_text(json.dumps({"rows": figures.rows, "memory": figures.memory}, indent=1))
        shutil.rmtree(work, ignore_errors=True)
    missed = sum(not row["held"] for row in figures.rows)
    print(f"{len(figures.rows) - missed} goals held, {missed} missed")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
