"""pyarrow's S3FileSystem, unchanged, on every origin through the sidecar."""

import harness
import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.dataset as dataset  # noqa: E402
import pyarrow.fs as fs  # noqa: E402
import pyarrow.parquet as parquet  # noqa: E402

MIB = 1 << 20


def filesystem(sidecar, **keys):
    host = sidecar.endpoint.removeprefix("http://")
    return fs.S3FileSystem(
        endpoint_override=host, scheme="http", region=sidecar.region, connect_timeout=10,
        request_timeout=30, **keys
    )


@pytest.fixture(scope="session")
def s3(sidecar):
    return filesystem(sidecar, access_key=sidecar.access_key, secret_key=sidecar.secret_key)


def test_write_and_read(s3, origins, bucket, prefix):
    path, body = f"{bucket}/{prefix}file", harness.content(6 * MIB + 1, seed=41)
    with s3.open_output_stream(path) as stream:
        for start in range(0, len(body), MIB):
            stream.write(body[start : start + MIB])
    assert origins.get(bucket, prefix + "file") == body
    with s3.open_input_stream(path) as stream:
        assert stream.read() == body
    with s3.open_input_file(path) as file:
        assert file.size() == len(body)
        assert file.read_at(100, 5 * MIB) == body[5 * MIB : 5 * MIB + 100]
        file.seek(len(body) - 3)
        assert file.read() == body[-3:]
    info = s3.get_file_info(path)
    assert (info.type, info.size) == (fs.FileType.File, len(body))


def test_directories(s3, origins, bucket, prefix):
    root = f"{bucket}/{prefix}".rstrip("/")
    for name in ("one", "sub/two", "sub/deep/three"):
        origins.put(bucket, prefix + name, b"x")
    found = s3.get_file_info(fs.FileSelector(root, recursive=True))
    assert {info.path.removeprefix(root + "/") for info in found if info.is_file} == {
        "one", "sub/two", "sub/deep/three",
    }
    assert s3.get_file_info(f"{root}/sub").type == fs.FileType.Directory
    assert s3.get_file_info(f"{root}/absent").type == fs.FileType.NotFound
    # pyarrow puts an empty object `sub/deep/` where the last file of a folder was.
    s3.delete_file(f"{root}/sub/deep/three")
    assert origins.get(bucket, prefix + "sub/deep/three") is None
    assert s3.get_file_info(f"{root}/sub/deep").type == fs.FileType.Directory
    s3.create_dir(f"{root}/made/deep")
    assert s3.get_file_info(f"{root}/made/deep").type == fs.FileType.Directory
    s3.delete_dir(f"{root}/made/deep")
    assert s3.get_file_info(f"{root}/made/deep").type == fs.FileType.NotFound


def table(rows=50_000):
    return pa.table(
        {
            "id": pa.array(range(rows)),
            "group": pa.array([number % 5 for number in range(rows)]),
            "text": pa.array([f"row {number}" for number in range(rows)]),
        }
    )


def test_parquet_file(s3, bucket, prefix):
    written = table()
    path = f"{bucket}/{prefix}table.parquet"
    parquet.write_table(written, path, filesystem=s3, row_group_size=10_000)
    assert parquet.read_table(path, filesystem=s3).equals(written)
    with s3.open_input_file(path) as source:
        file = parquet.ParquetFile(source)
        assert file.metadata.num_row_groups == 5
        assert file.read_row_group(3, columns=["id"])["id"].to_pylist() == list(range(30_000, 40_000))


def test_partitioned_dataset(s3, origins, bucket, prefix):
    root = f"{bucket}/{prefix}dataset"
    try:
        dataset.write_dataset(
            table(), root, filesystem=s3, format="parquet", partitioning=["group"],
            partitioning_flavor="hive", create_dir=False,
        )
    except OSError as error:
        raise AssertionError(f"writing the data set: {error}") from error
    read = dataset.dataset(root, filesystem=s3, format="parquet", partitioning="hive")
    assert read.count_rows() == 50_000
    only = read.to_table(filter=dataset.field("group") == 3, columns=["id"])
    assert sorted(only["id"].to_pylist()) == list(range(3, 50_000, 5))


def test_anonymous(anonymous_sidecar, origins, prefix):
    """Anonymous clients send aws-chunked bodies: what is stored must be the decoded bytes."""
    s3 = filesystem(anonymous_sidecar, anonymous=True)
    with s3.open_output_stream(f"local/{prefix}anonymous") as stream:
        stream.write(b"hello world")
    assert origins.get("local", prefix + "anonymous") == b"hello world"
    with s3.open_input_stream(f"local/{prefix}anonymous") as stream:
        assert stream.read() == b"hello world"
    parquet.write_table(table(), f"local/{prefix}table.parquet", filesystem=s3)
    assert parquet.read_table(f"local/{prefix}table.parquet", filesystem=s3).equals(table())
