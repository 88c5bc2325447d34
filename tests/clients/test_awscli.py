"""The aws command line, unchanged, on every origin through the sidecar."""

import json
import subprocess

import harness
import pytest

pytest.importorskip("awscli")
MIB = 1 << 20


@pytest.fixture
def aws(sidecar, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = harness.clean_environment(
        HOME=str(home),
        AWS_ACCESS_KEY_ID=sidecar.access_key,
        AWS_SECRET_ACCESS_KEY=sidecar.secret_key,
        AWS_DEFAULT_REGION=sidecar.region,
        AWS_ENDPOINT_URL=sidecar.endpoint,
        AWS_EC2_METADATA_DISABLED="true",
        AWS_MAX_ATTEMPTS="1",
    )

    def run(*arguments, status=0):
        done = subprocess.run(
            [harness.tool("aws"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == status, f"aws {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def test_cp_ls_rm(aws, origins, bucket, prefix, tmp_path):
    body = harness.content(9 * MIB + 1, seed=31)  # above the multipart threshold of 8 MiB
    (tmp_path / "up").write_bytes(body)
    aws("s3", "cp", str(tmp_path / "up"), f"s3://{bucket}/{prefix}file one", "--only-show-errors")
    assert origins.get(bucket, prefix + "file one") == body
    aws("s3", "cp", f"s3://{bucket}/{prefix}file one", str(tmp_path / "down"), "--only-show-errors")
    assert (tmp_path / "down").read_bytes() == body
    listed = aws("s3", "ls", f"s3://{bucket}/{prefix}")
    assert listed.split()[2:] == [str(len(body)), "file", "one"]
    assert f"PRE {prefix}" in aws("s3", "ls", f"s3://{bucket}/")
    aws("s3", "rm", f"s3://{bucket}/{prefix}file one")
    assert origins.get(bucket, prefix + "file one") is None
    aws("s3", "ls", f"s3://{bucket}/{prefix}", status=1)


def test_sync_both_ways(aws, origins, bucket, prefix, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    files = {f"{folder}/{name}.bin": harness.content(1000 + n, seed=n) for n, (folder, name) in enumerate(
        (folder, name) for folder in ("a", "b/c") for name in ("one", "two", "three")
    )}
    for name, body in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    url = f"s3://{bucket}/{prefix.rstrip('/')}"
    aws("s3", "sync", str(source), url, "--only-show-errors")
    for name, body in files.items():
        assert origins.get(bucket, prefix + name) == body, name
    aws("s3", "sync", url, str(target), "--only-show-errors")
    found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*.bin")}
    assert found == files
    # Nothing changed: nothing is copied.
    assert aws("s3", "sync", url, str(target)) == ""
    (source / "a/one.bin").unlink()
    aws("s3", "sync", str(source), url, "--delete", "--only-show-errors")
    assert origins.get(bucket, prefix + "a/one.bin") is None
    assert origins.get(bucket, prefix + "a/two.bin") == files["a/two.bin"]


def test_s3api(aws, bucket, prefix, tmp_path):
    (tmp_path / "body").write_bytes(b"0123456789")
    key = ["--bucket", bucket, "--key", prefix + "api"]
    put = json.loads(aws("s3api", "put-object", *key, "--body", str(tmp_path / "body")))
    head = json.loads(aws("s3api", "head-object", *key))
    assert head["ETag"] == put["ETag"] and head["ContentLength"] == 10
    aws("s3api", "get-object", *key, "--range", "bytes=2-4", str(tmp_path / "part"))
    assert (tmp_path / "part").read_bytes() == b"234"


def test_stream_from_and_to_pipes(aws, sidecar, origins, bucket, prefix, tmp_path):
    origins.put(bucket, prefix + "text", b"one\ntwo\n")
    assert aws("s3", "cp", f"s3://{bucket}/{prefix}text", "-") == "one\ntwo\n"


def test_list_buckets(aws, origins):
    names = {line.split()[-1] for line in aws("s3", "ls").splitlines()}
    assert names == {kind for kind in harness.KINDS if kind not in origins.skipped}
