"""Ordinary programs on the mount, over every origin."""

import errno
import mmap
import os
import subprocess
import time

import harness
import pytest

MIB = 1 << 20


@pytest.fixture(scope="session")
def mount(sidecar):
    reason = harness.can_mount()
    if reason:
        pytest.skip(reason)
    assert os.path.ismount(sidecar.mount), sidecar.log()[-3000:]
    return sidecar.mount


def run(*command, timeout=60):
    done = subprocess.run(command, capture_output=True, timeout=timeout)
    assert done.returncode == 0, f"{command}: {done.returncode} {done.stderr.decode(errors='replace')}"
    return done.stdout


def appear(path):
    """What is made behind the sidecar is seen within the time to live of a listing."""
    deadline = time.monotonic() + harness.STALE_SECONDS + 10
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.1)
    return path


@pytest.fixture
def folder(mount, origins, bucket, prefix):
    """A folder at the origin with known files, and its place in the mount."""
    files = {
        "empty": b"",
        "small": b"small file\n",
        "exact": harness.content(MIB, seed=71),
        "sub/big": harness.content(5 * MIB + 123, seed=72),
        "sub/deep/with space \u00fc": harness.content(70_001, seed=73),
    }
    for name, body in files.items():
        origins.put(bucket, prefix + name, body)
    path = mount / bucket / prefix.rstrip("/")
    for name in files:
        appear(path / name)
    return path, files


def test_top_of_the_mount(mount, origins):
    names = set(run("ls", str(mount)).decode().split())
    assert names == {kind for kind in harness.KINDS if kind not in origins.skipped}


def test_ls_and_find(folder):
    path, files = folder
    assert run("ls", str(path)).decode().split() == ["empty", "exact", "small", "sub"]
    found = run("find", str(path), "-type", "f", "-printf", "%P\t%s\n").decode().splitlines()
    assert sorted(found) == sorted(f"{name}\t{len(body)}" for name, body in files.items())
    directories = run("find", str(path), "-mindepth", "1", "-type", "d", "-printf", "%P\n").decode()
    assert sorted(directories.split()) == ["sub", "sub/deep"]
    run("ls", "-lR", str(path))


def test_cat_cp_sha256sum(folder, tmp_path):
    path, files = folder
    for name, body in files.items():
        assert run("cat", str(path / name)) == body, name
        assert run("sha256sum", str(path / name)).decode().split()[0].lstrip("\\") == harness.sha256(body)
    run("cp", "-r", str(path), str(tmp_path / "copy"))
    for name, body in files.items():
        assert (tmp_path / "copy" / name).read_bytes() == body, name


@pytest.mark.parametrize("skip, count, size", [(0, 1, 4096), (1, 3, 100_003), (1000, 7, 4099), (4, 2, MIB)])
def test_dd_with_offsets(folder, skip, count, size):
    path, files = folder
    read = run("dd", f"if={path}/sub/big", f"bs={size}", f"skip={skip}", f"count={count}", "status=none")
    assert read == files["sub/big"][skip * size : (skip + count) * size]


def test_random_reads(folder):
    path, files = folder
    body = files["sub/big"]
    with open(path / "sub/big", "rb", buffering=0) as file:
        for offset in (0, 1, MIB - 1, MIB, 3 * MIB + 17, len(body) - 1, len(body), len(body) + 100):
            for size in (1, 4096, 200_000):
                assert os.pread(file.fileno(), size, offset) == body[offset : offset + size]


def test_mmap(folder):
    path, files = folder
    body = files["sub/big"]
    with open(path / "sub/big", "rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == body
            assert mapped[2 * MIB - 3 : 2 * MIB + 3] == body[2 * MIB - 3 : 2 * MIB + 3]


def test_stat(folder):
    path, files = folder
    status = os.stat(path / "sub/big")
    assert status.st_size == len(files["sub/big"])
    assert abs(status.st_mtime - time.time()) < 300
    assert status.st_blocks * 512 >= status.st_size
    assert os.path.isdir(path / "sub")
    with pytest.raises(FileNotFoundError):
        os.stat(path / "absent")
    with pytest.raises(NotADirectoryError):
        os.stat(path / "small" / "below")


def test_it_is_read_only(folder):
    path, _ = folder
    for attempt in (
        lambda: open(path / "new", "wb"),
        lambda: open(path / "small", "ab"),
        lambda: os.unlink(path / "small"),
        lambda: os.mkdir(path / "directory"),
        lambda: os.rename(path / "small", path / "other"),
        lambda: os.truncate(path / "small", 0),
    ):
        with pytest.raises(OSError) as error:
            attempt()
        assert error.value.errno == errno.EROFS


def test_etag_attribute(folder):
    path, _ = folder
    names = os.listxattr(path / "small")
    assert "user.warpdrive.etag" in names
    assert os.getxattr(path / "small", "user.warpdrive.etag")


def test_written_through_s3_is_seen_at_once(mount, sidecar, origins, bucket, prefix):
    boto3 = pytest.importorskip("boto3")
    s3 = boto3.client(
        "s3", endpoint_url=sidecar.endpoint, aws_access_key_id=sidecar.access_key,
        aws_secret_access_key=sidecar.secret_key, region_name=sidecar.region,
    )
    path = mount / bucket / prefix / "file"
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    for seed in range(3):
        body = harness.content(100_000 + seed, seed=seed)
        s3.put_object(Bucket=bucket, Key=prefix + "file", Body=body)
        assert path.read_bytes() == body
        assert path.stat().st_size == len(body)


def test_an_open_file_is_one_version(mount, origins, bucket, prefix):
    """After a change at the origin an open file gives the old bytes or ESTALE, never a mixture."""
    old, new = harness.content(3 * MIB, seed=81), harness.content(3 * MIB, seed=82)
    origins.put(bucket, prefix + "file", old)
    path = appear(mount / bucket / prefix / "file")
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 1000, 0) == old[:1000]
        # A directory tells versions apart by its clock.
        time.sleep(0.05)
        origins.put(bucket, prefix + "file", new)
        try:
            for offset in range(0, len(old), 500_000):
                assert os.pread(file.fileno(), 1000, offset) == old[offset : offset + 1000]
        except OSError as error:
            assert error.errno == errno.ESTALE
    deadline = time.monotonic() + harness.STALE_SECONDS + 5
    while path.read_bytes() != new:
        assert time.monotonic() < deadline, "a new open sees the new version within the time to live"
        time.sleep(0.2)


def test_many_files(mount, origins, bucket, prefix):
    """Listing a folder and reading all of it gives every byte."""
    files = {f"{number:04}": harness.content(100 + number) for number in range(200)}
    for name, body in files.items():
        origins.put(bucket, prefix + name, body)
    path = appear(mount / bucket / prefix)
    assert sorted(os.listdir(path)) == sorted(files)
    for name, body in files.items():
        assert (path / name).read_bytes() == body
