"""rclone as a client, unchanged, on every origin through the sidecar."""

import subprocess

import harness
import pytest

MIB = 1 << 20


@pytest.fixture
def rclone(sidecar, tmp_path):
    environment = harness.clean_environment(
        HOME=str(tmp_path),
        RCLONE_CONFIG="/dev/null",
        RCLONE_CONFIG_W_TYPE="s3",
        RCLONE_CONFIG_W_PROVIDER="Other",
        RCLONE_CONFIG_W_ENDPOINT=sidecar.endpoint,
        RCLONE_CONFIG_W_ACCESS_KEY_ID=sidecar.access_key,
        RCLONE_CONFIG_W_SECRET_ACCESS_KEY=sidecar.secret_key,
        RCLONE_CONFIG_W_REGION=sidecar.region,
    )

    def run(*arguments):
        done = subprocess.run(
            [harness.tool("rclone"), "--retries", "1", "--low-level-retries", "1", *arguments],
            env=environment, capture_output=True, text=True, timeout=100,
        )
        assert done.returncode == 0, f"rclone {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def test_copy_list_check(rclone, origins, bucket, prefix, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    files = {"one": b"one", "sub/two": harness.content(70_000), "sub/big": harness.content(11 * MIB, 61)}
    for name, body in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(body)
    remote = f"w:{bucket}/{prefix}".rstrip("/")
    rclone("copy", str(source), remote, "--s3-upload-cutoff", "5Mi", "--s3-chunk-size", "5Mi")
    for name, body in files.items():
        assert origins.get(bucket, prefix + name) == body, name
    listed = rclone("lsf", "-R", "--files-only", "--format", "sp", remote).split()
    assert sorted(listed) == sorted(f"{len(body)};{name}" for name, body in files.items())
    rclone("check", "--download", str(source), remote)
    rclone("copy", remote, str(target))
    found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert found == files
    rclone("deletefile", f"{remote}/one")
    assert origins.get(bucket, prefix + "one") is None


def test_cat_ranges(rclone, origins, bucket, prefix):
    origins.put(bucket, prefix + "text", b"0123456789")
    assert rclone("cat", "--offset", "3", "--count", "4", f"w:{bucket}/{prefix}text") == "3456"
