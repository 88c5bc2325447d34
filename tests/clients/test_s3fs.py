"""s3fs and fsspec, unchanged, on every origin through the sidecar."""

import harness
import pytest

s3fs = pytest.importorskip("s3fs")
MIB = 1 << 20


@pytest.fixture(scope="session")
def s3(sidecar):
    return s3fs.S3FileSystem(
        key=sidecar.access_key,
        secret=sidecar.secret_key,
        client_kwargs={"endpoint_url": sidecar.endpoint, "region_name": sidecar.region},
        config_kwargs={"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": 1}},
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def test_write_and_read(s3, origins, bucket, prefix):
    path, body = f"{bucket}/{prefix}file", harness.content(11 * MIB + 5, seed=51)
    with s3.open(path, "wb", block_size=5 * MIB) as file:
        file.write(body)
    assert origins.get(bucket, prefix + "file") == body
    with s3.open(path, "rb", block_size=MIB) as file:
        file.seek(7 * MIB)
        assert file.read(1000) == body[7 * MIB : 7 * MIB + 1000]
        file.seek(0)
        assert file.read() == body
    assert s3.cat_file(path, start=10, end=20) == body[10:20]
    assert s3.tail(path, 100) == body[-100:]


def test_small_file_and_pipe(s3, origins, bucket, prefix):
    path = f"{bucket}/{prefix}small"
    s3.pipe(path, b"small body")
    assert origins.get(bucket, prefix + "small") == b"small body"
    assert s3.cat(path) == b"small body"
    with s3.open(path, "r") as file:
        assert file.read() == "small body"


def test_tree(s3, origins, bucket, prefix):
    root = f"{bucket}/{prefix}".rstrip("/")
    sizes = {"a": 1, "sub/b": 22, "sub/c c": 333, "sub/deep/d": 4444}
    for name, size in sizes.items():
        origins.put(bucket, prefix + name, harness.content(size))
    assert sorted(s3.ls(root)) == [f"{root}/a", f"{root}/sub"]
    assert sorted(s3.find(root)) == sorted(f"{root}/{name}" for name in sizes)
    assert s3.du(root) == sum(sizes.values())
    assert s3.isdir(f"{root}/sub") and s3.isfile(f"{root}/sub/b") and not s3.exists(f"{root}/no")
    info = s3.info(f"{root}/sub/c c")
    assert (info["type"], info["size"]) == ("file", 333)
    assert s3.info(f"{root}/sub")["type"] == "directory"
    walked = {top.removeprefix(root): (sorted(folders), sorted(files)) for top, folders, files in s3.walk(root)}
    assert walked == {
        "": (["sub"], ["a"]),
        "/sub": (["deep"], ["b", "c c"]),
        "/sub/deep": ([], ["d"]),
    }
    assert sorted(s3.glob(f"{root}/sub/*")) == [f"{root}/sub/b", f"{root}/sub/c c", f"{root}/sub/deep"]


def test_copy_move_remove(s3, origins, bucket, prefix):
    root = f"{bucket}/{prefix}".rstrip("/")
    s3.pipe(f"{root}/one", b"one")
    s3.copy(f"{root}/one", f"{root}/two")
    assert origins.get(bucket, prefix + "two") == b"one"
    s3.mv(f"{root}/two", f"{root}/three")
    assert origins.get(bucket, prefix + "two") is None
    assert origins.get(bucket, prefix + "three") == b"one"
    s3.rm(root, recursive=True)
    assert origins.get(bucket, prefix + "one") is None
    assert not s3.exists(f"{root}/three")


def test_upload_and_download(s3, bucket, prefix, tmp_path):
    body = harness.content(3 * MIB, seed=52)
    (tmp_path / "up").write_bytes(body)
    s3.put(str(tmp_path / "up"), f"{bucket}/{prefix}file")
    s3.get(f"{bucket}/{prefix}file", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == body


def test_anonymous(anonymous_sidecar, origins, prefix):
    s3 = s3fs.S3FileSystem(
        anon=True,
        client_kwargs={"endpoint_url": anonymous_sidecar.endpoint},
        skip_instance_cache=True,
    )
    s3.pipe(f"local/{prefix}anonymous", b"bytes")
    assert origins.get("local", prefix + "anonymous") == b"bytes"
    assert s3.cat(f"local/{prefix}anonymous") == b"bytes"
