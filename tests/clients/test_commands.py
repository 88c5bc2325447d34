"""The other commands, as a user types them: check, warm, stats, demo, and keys that are generated."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import harness
import pytest

MIB = 1 << 20


def warpdrive(*arguments, environment=None, status=0, timeout=60):
    done = subprocess.run(
        [str(harness.PROGRAM), *arguments],
        env=environment, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_check_prints_a_line_for_each_origin(sidecar, origins, tmp_path):
    kinds = [kind for kind in harness.KINDS if kind not in origins.skipped]
    backends = [harness.backend(kind, kind, origins) for kind in kinds]
    config = harness.base_config(tmp_path, backends, harness.STATIC_ACCESS, mount=False)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    table = warpdrive("check", "-c", str(path), "--write", environment=sidecar.environment)
    for kind in kinds:
        assert any(line.strip().startswith(kind) for line in table.splitlines()), table
    report = warpdrive("check", "-c", str(path), "--json", environment=sidecar.environment)
    json.loads(report)
    assert sidecar.secret_key not in table + report


def test_check_of_a_running_sidecar_is_no_problem(sidecar):
    table = warpdrive("check", "-c", str(sidecar.config), environment=sidecar.environment)
    assert "in use" not in table


def test_check_finds_a_wrong_secret_and_an_origin_that_is_away(origins, tmp_path):
    wrong = harness.backend("minio", "minio", origins)
    away = json.loads(json.dumps(wrong))
    away["name"] = "away"
    away["config"]["endpoint"] = f"http://127.0.0.1:{harness.free_port()}"
    wrong["auth"]["secret_access_key"] = "env:KIT_WRONG"
    path = tmp_path / "config.yaml"
    config = harness.base_config(tmp_path, [wrong, away], harness.ANONYMOUS_ACCESS, mount=False)
    path.write_text(json.dumps(config))
    environment = harness.clean_environment(KIT_WRONG="not-the-secret", **harness.secrets(origins))
    table = warpdrive("check", "-c", str(path), environment=environment, status=1)
    assert "away" in table and "minio" in table
    assert "not-the-secret" not in table


def test_warm_then_nothing_is_asked_of_the_origin(origins, prefix):
    if "versitygw" in origins.skipped:
        pytest.skip(origins.skipped["versitygw"])
    bodies = {f"{prefix}{number}": harness.content(MIB + number, number) for number in range(6)}
    for key, body in bodies.items():
        origins.put("versitygw", key, body)

    def longer(config):
        config["cache"]["stale_ttl"] = "10m"

    backend = harness.backend("warm", "versitygw", origins)
    running = harness.start_sidecar(
        origins, [backend], access=harness.ANONYMOUS_ACCESS, mount=False, change=longer
    )
    try:
        arguments = ["warm", "-c", str(running.config), "--bucket", "warm", "--prefix", prefix]
        report = json.loads(
            warpdrive(*arguments, "--json", environment=running.environment, timeout=100)
        )
        assert report, report
        # What is warm is served when the origin is gone for good.
        origins.act("versitygw", "stop")
        try:
            import urllib.request

            for key, body in bodies.items():
                with urllib.request.urlopen(f"{running.endpoint}/warm/{key}", timeout=30) as answer:
                    assert answer.read() == body, key
        finally:
            origins.act("versitygw", "restart")
        stats = json.loads(
            warpdrive("stats", "-c", str(running.config), "--json", environment=running.environment)
        )
        assert stats
    finally:
        running.close()


def test_warm_says_what_is_absent(sidecar, origins, prefix, tmp_path):
    origins.put("local", prefix + "there", b"x" * 1000)
    keys = tmp_path / "keys"
    keys.write_text(f"{prefix}there\n{prefix}absent\n")
    done = subprocess.run(
        [str(harness.PROGRAM), "warm", "-c", str(sidecar.config), "--bucket", "local", "--list", str(keys)],
        env=sidecar.environment, capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert prefix + "absent" in done.stdout + done.stderr


def exports(log: str) -> dict:
    return dict(re.findall(r"export ([A-Z0-9_]+)=['\"]?([^'\"\s;)]+)", log))


def test_generated_keys_work_as_printed(origins):
    """`run` prints lines to export; with them and nothing else a client finds and signs."""
    pytest.importorskip("boto3")
    backend = harness.backend("local", "local", origins)
    origins.put("local", "generated/file", b"bytes of the file")
    running = harness.start_sidecar(origins, [backend], access={}, mount=False)
    try:
        lines = exports(running.log())
        assert "AWS_ENDPOINT_URL_S3" in lines or "AWS_ENDPOINT_URL" in lines, running.log()
        code = (
            "import boto3; s3 = boto3.client('s3');"
            "print([b['Name'] for b in s3.list_buckets()['Buckets']]);"
            "print(s3.get_object(Bucket='local', Key='generated/file')['Body'].read())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=harness.clean_environment(HOME=str(running.folder), **lines),
            capture_output=True, text=True, timeout=60,
        )
        assert done.stdout.splitlines() == ["['local']", "b'bytes of the file'"], done.stdout + done.stderr
        credentials = lines.get("AWS_SHARED_CREDENTIALS_FILE")
        if credentials:
            assert os.stat(credentials).st_mode & 0o077 == 0, "readable by others"
    finally:
        running.close()


def test_demo_serves_what_it_prints(tmp_path):
    pytest.importorskip("boto3")
    folder = tmp_path / "demo"
    log = tmp_path / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(harness.PROGRAM), "demo", "--dir", str(folder), "--seconds", "90"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=harness.clean_environment(HOME=str(tmp_path)), preexec_fn=harness.die_with_parent,
        )
    try:
        deadline = time.monotonic() + 60
        while "AWS_ENDPOINT_URL" not in log.read_text() and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        time.sleep(0.5)
        lines = exports(log.read_text())
        code = (
            "import boto3; s3 = boto3.client('s3'); total = 0\n"
            "for b in s3.list_buckets()['Buckets']:\n"
            "    for o in s3.list_objects_v2(Bucket=b['Name']).get('Contents', []):\n"
            "        body = s3.get_object(Bucket=b['Name'], Key=o['Key'])['Body'].read()\n"
            "        assert len(body) == o['Size']; total += len(body)\n"
            "print(total)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=harness.clean_environment(HOME=str(tmp_path), **lines),
            capture_output=True, text=True, timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
        assert int(done.stdout) > MIB, done.stdout
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()


def test_help_and_completions():
    assert "warpdrive demo" in warpdrive("--help")
    assert "warpdrive" in warpdrive("completions", "bash")
    assert warpdrive("--version").startswith("warpdrive ")
