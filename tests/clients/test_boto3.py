"""boto3, unchanged, on every origin through the sidecar."""

import datetime
import hashlib
import io
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import harness
import pytest

boto3 = pytest.importorskip("boto3")
from boto3.s3.transfer import TransferConfig  # noqa: E402
from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402

MIB = 1 << 20


def make_client(sidecar, access=None, secret=None, **config):
    return boto3.client(
        "s3",
        endpoint_url=sidecar.endpoint,
        aws_access_key_id=access or sidecar.access_key,
        aws_secret_access_key=secret or sidecar.secret_key,
        region_name=sidecar.region,
        config=Config(
            s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, **config
        ),
    )


@pytest.fixture(scope="session")
def s3(sidecar):
    return make_client(sidecar)


def refused(code=None, status=None):
    """A `with` block that expects an S3 error."""
    return Refused(code, status)


class Refused:
    def __init__(self, code, status):
        self.code, self.status = code, status

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        assert isinstance(error, ClientError), f"expected an error of S3, got {error!r}"
        actual = error.response["Error"]["Code"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if self.code:
            codes = self.code if isinstance(self.code, tuple) else (self.code,)
            assert actual in codes, f"{actual} ({status}): {error}"
        if self.status:
            assert status == self.status, f"{actual} ({status}): {error}"
        return True


# --- objects -------------------------------------------------------------------------------------


def test_put_get_head_delete(s3, origins, bucket, prefix):
    key, body = prefix + "object", harness.content(3 * MIB + 17)
    put = s3.put_object(Bucket=bucket, Key=key, Body=body)
    assert put["ETag"].startswith('"') and put["ETag"].endswith('"')
    assert origins.get(bucket, key) == body, "the origin has it before the answer"
    head = s3.head_object(Bucket=bucket, Key=key)
    assert head["ContentLength"] == len(body)
    got = s3.get_object(Bucket=bucket, Key=key)
    assert got["Body"].read() == body
    assert head["ETag"] == got["ETag"] == put["ETag"]
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [(entry["Key"], entry["Size"], entry["ETag"]) for entry in listed] == [
        (key, len(body), head["ETag"])
    ]
    s3.delete_object(Bucket=bucket, Key=key)
    assert origins.get(bucket, key) is None
    with refused(status=404):
        s3.head_object(Bucket=bucket, Key=key)
    with refused("NoSuchKey", 404):
        s3.get_object(Bucket=bucket, Key=key)
    # To delete what is not there is no error.
    s3.delete_object(Bucket=bucket, Key=key)


def test_empty_object(s3, origins, bucket, prefix):
    key = prefix + "empty"
    s3.put_object(Bucket=bucket, Key=key, Body=b"")
    assert origins.get(bucket, key) == b""
    assert s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == 0
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b""
    with refused("InvalidRange", 416):
        s3.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")


def test_overwrite_is_seen_at_once(s3, bucket, prefix):
    key = prefix + "changing"
    etags = set()
    for round_number in range(5):
        body = harness.content(100_000 + round_number, seed=round_number)
        etags.add(s3.put_object(Bucket=bucket, Key=key, Body=body)["ETag"])
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
        assert s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(body)
    assert len(etags) == 5


def test_object_made_at_the_origin_is_served(s3, origins, bucket, prefix):
    key, body = prefix + "from-outside", harness.content(2 * MIB + 1)
    origins.put(bucket, key, body)
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body


@pytest.mark.parametrize(
    "text, first, last",
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=1048575-1048576", MIB - 1, MIB),
        ("bytes=2097152-", 2 * MIB, 3 * MIB + 4),
        ("bytes=-5", 3 * MIB, 3 * MIB + 4),
        ("bytes=3145728-99999999", 3 * MIB, 3 * MIB + 4),
        ("bytes=-99999999", 0, 3 * MIB + 4),
    ],
)
def test_ranges(s3, ranged, bucket, text, first, last):
    key, body = ranged(bucket)
    got = s3.get_object(Bucket=bucket, Key=key, Range=text)
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert got["Body"].read() == body[first : last + 1]
    assert got["ContentRange"] == f"bytes {first}-{last}/{len(body)}"
    assert got["ContentLength"] == last - first + 1


def test_ranges_that_cannot_be_satisfied(s3, ranged, bucket):
    key, body = ranged(bucket)
    for text in (f"bytes={len(body)}-", "bytes=99999999-", "bytes=-0"):
        with refused("InvalidRange", 416):
            s3.get_object(Bucket=bucket, Key=key, Range=text)


@pytest.fixture(scope="session")
def ranged(s3):
    made = {}

    def get(bucket):
        if bucket not in made:
            key, body = "ranges/object", harness.content(3 * MIB + 5, seed=7)
            s3.put_object(Bucket=bucket, Key=key, Body=body)
            made[bucket] = (key, body)
        return made[bucket]

    return get


def test_conditional_reads(s3, bucket, prefix):
    key, body = prefix + "conditional", b"conditional body"
    etag = s3.put_object(Bucket=bucket, Key=key, Body=body)["ETag"]
    head = s3.head_object(Bucket=bucket, Key=key)
    modified = head["LastModified"]
    hour = datetime.timedelta(hours=1)

    assert s3.get_object(Bucket=bucket, Key=key, IfMatch=etag)["Body"].read() == body
    with refused("PreconditionFailed", 412):
        s3.get_object(Bucket=bucket, Key=key, IfMatch='"no"')
    with refused(status=304):
        s3.get_object(Bucket=bucket, Key=key, IfNoneMatch=etag)
    assert s3.get_object(Bucket=bucket, Key=key, IfNoneMatch='"no"')["Body"].read() == body
    with refused(status=304):
        s3.get_object(Bucket=bucket, Key=key, IfModifiedSince=modified + hour)
    assert s3.get_object(Bucket=bucket, Key=key, IfModifiedSince=modified - hour)["ETag"] == etag
    with refused("PreconditionFailed", 412):
        s3.get_object(Bucket=bucket, Key=key, IfUnmodifiedSince=modified - hour)
    with refused(status=304):
        s3.head_object(Bucket=bucket, Key=key, IfNoneMatch=etag)
    with refused(status=412):
        s3.head_object(Bucket=bucket, Key=key, IfMatch='"no"')


def test_create_only_if_absent(s3, origins, bucket, prefix):
    key = prefix + "once"
    s3.put_object(Bucket=bucket, Key=key, Body=b"first", IfNoneMatch="*")
    with refused("PreconditionFailed", 412):
        s3.put_object(Bucket=bucket, Key=key, Body=b"second", IfNoneMatch="*")
    assert origins.get(bucket, key) == b"first"


def test_metadata_and_content_headers(s3, bucket, prefix):
    if bucket == "local":
        pytest.skip("a directory keeps no attributes (documented)")
    key = prefix + "described"
    s3.put_object(
        Bucket=bucket,
        Key=key,
        Body=b"described",
        ContentType="application/x-thing",
        CacheControl="max-age=7",
        ContentDisposition='attachment; filename="x"',
        ContentLanguage="de",
        Metadata={"mtime": "1700000000.5", "color": "red"},
    )
    head = s3.head_object(Bucket=bucket, Key=key)
    assert head["ContentType"] == "application/x-thing"
    assert head["CacheControl"] == "max-age=7"
    assert head["ContentDisposition"] == 'attachment; filename="x"'
    assert head["ContentLanguage"] == "de"
    assert head["Metadata"] == {"mtime": "1700000000.5", "color": "red"}
    got = s3.get_object(Bucket=bucket, Key=key)
    assert got["Metadata"] == head["Metadata"]


def test_response_header_overrides(s3, bucket, prefix):
    key = prefix + "overridden"
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    got = s3.get_object(
        Bucket=bucket,
        Key=key,
        ResponseContentType="text/weird",
        ResponseContentDisposition="inline",
        ResponseCacheControl="no-store",
    )
    assert got["ContentType"] == "text/weird"
    assert got["ContentDisposition"] == "inline"
    assert got["CacheControl"] == "no-store"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums(s3, origins, bucket, prefix, algorithm):
    if algorithm in ("CRC32C", "CRC64NVME"):
        pytest.importorskip("awscrt", reason="boto3 computes this checksum only with awscrt")
    key, body = prefix + algorithm, harness.content(200_000)
    s3.put_object(Bucket=bucket, Key=key, Body=body, ChecksumAlgorithm=algorithm)
    assert origins.get(bucket, key) == body


def test_wrong_checksums_are_refused(s3, origins, bucket, prefix):
    key = prefix + "wrong"
    with refused(("BadDigest", "XAmzContentChecksumMismatch"), 400):
        s3.put_object(Bucket=bucket, Key=key, Body=b"abc", ChecksumCRC32="AAAAAA==")
    with refused(("BadDigest", "XAmzContentSHA256Mismatch"), 400):
        s3.put_object(
            Bucket=bucket, Key=key, Body=b"abc", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg=="
        )
    assert origins.get(bucket, key) is None, "nothing of a refused body is stored"


# --- transfer manager ----------------------------------------------------------------------------


def test_transfer_manager_in_parts(s3, origins, bucket, prefix, tmp_path):
    key, body = prefix + "big", harness.content(21 * MIB + 3, seed=3)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(body)
    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)
    s3.upload_file(str(source), bucket, key, Config=parts)
    assert origins.get(bucket, key) == body
    s3.download_file(bucket, key, str(target), Config=parts)
    assert target.read_bytes() == body
    assert s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(body)


def test_transfer_manager_with_its_defaults(s3, origins, bucket, prefix):
    key, body = prefix + "default", harness.content(9 * MIB, seed=4)
    s3.upload_fileobj(io.BytesIO(body), bucket, key)
    read = io.BytesIO()
    s3.download_fileobj(bucket, key, read)
    assert read.getvalue() == body == origins.get(bucket, key)


def test_managed_copy(s3, origins, bucket, prefix):
    body = harness.content(7 * MIB, seed=5)
    s3.put_object(Bucket=bucket, Key=prefix + "from", Body=body)
    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    s3.copy({"Bucket": bucket, "Key": prefix + "from"}, bucket, prefix + "to", Config=parts)
    assert origins.get(bucket, prefix + "to") == body


# --- multipart -----------------------------------------------------------------------------------


def test_multipart_by_hand(s3, origins, bucket, prefix):
    key = prefix + "parts"
    bodies = [harness.content(5 * MIB, seed=10), harness.content(5 * MIB, seed=11), b"tail"]
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    etags = {}
    for number in (3, 1, 2):
        etags[number] = s3.upload_part(
            Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=bodies[number - 1]
        )["ETag"]
    with refused(status=404):
        s3.head_object(Bucket=bucket, Key=key)
    parts = [{"PartNumber": number, "ETag": etags[number]} for number in (1, 2, 3)]
    done = s3.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert origins.get(bucket, key) == b"".join(bodies)
    assert s3.head_object(Bucket=bucket, Key=key)["ETag"] == done["ETag"]


def test_list_parts_and_uploads_and_abort(s3, bucket, prefix):
    key = prefix + "listed"
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    sent = s3.upload_part(
        Bucket=bucket, Key=key, UploadId=upload, PartNumber=2, Body=harness.content(5 * MIB)
    )
    listed = s3.list_parts(Bucket=bucket, Key=key, UploadId=upload)["Parts"]
    assert [(part["PartNumber"], part["Size"], part["ETag"]) for part in listed] == [
        (2, 5 * MIB, sent["ETag"])
    ]
    uploads = s3.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
    assert [(entry["Key"], entry["UploadId"]) for entry in uploads] == [(key, upload)]
    s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    with refused("NoSuchUpload", 404):
        s3.list_parts(Bucket=bucket, Key=key, UploadId=upload)
    assert not s3.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads")
    with refused(status=404):
        s3.head_object(Bucket=bucket, Key=key)


def test_complete_refuses_what_does_not_fit(s3, bucket, prefix):
    key = prefix + "refused"
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    etag = s3.upload_part(
        Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=harness.content(5 * MIB)
    )["ETag"]
    last = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=2, Body=b"x")["ETag"]

    def complete(*parts):
        s3.complete_multipart_upload(
            Bucket=bucket,
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": [{"PartNumber": n, "ETag": e} for n, e in parts]},
        )

    with refused("InvalidPart", 400):
        complete((1, '"00000000000000000000000000000000"'))
    with refused("InvalidPart", 400):
        complete((1, etag), (3, last))
    with refused("InvalidPartOrder", 400):
        complete((2, last), (1, etag))
    complete((1, etag), (2, last))
    # moto answers 500 to a part of an upload that is no more, and 500 says nothing.
    with refused() if bucket == "moto" else refused("NoSuchUpload", 404):
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"late")


def test_upload_part_copy(s3, origins, bucket, prefix):
    source = harness.content(12 * MIB, seed=12)
    s3.put_object(Bucket=bucket, Key=prefix + "source", Body=source)
    key = prefix + "assembled"
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    first = s3.upload_part_copy(
        Bucket=bucket,
        Key=key,
        UploadId=upload,
        PartNumber=1,
        CopySource={"Bucket": bucket, "Key": prefix + "source"},
        CopySourceRange=f"bytes={MIB}-{7 * MIB - 1}",
    )["CopyPartResult"]["ETag"]
    second = s3.upload_part(
        Bucket=bucket, Key=key, UploadId=upload, PartNumber=2, Body=b"tail"
    )["ETag"]
    s3.complete_multipart_upload(
        Bucket=bucket,
        Key=key,
        UploadId=upload,
        MultipartUpload={
            "Parts": [{"PartNumber": 1, "ETag": first}, {"PartNumber": 2, "ETag": second}]
        },
    )
    assert origins.get(bucket, key) == source[MIB : 7 * MIB] + b"tail"


# --- copy and batch delete -----------------------------------------------------------------------


def test_copy_object(s3, origins, bucket, prefix):
    body = harness.content(100_000, seed=13)
    etag = s3.put_object(Bucket=bucket, Key=prefix + "a b+c", Body=body)["ETag"]
    source = {"Bucket": bucket, "Key": prefix + "a b+c"}
    s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource=source)
    assert origins.get(bucket, prefix + "copy") == body
    assert s3.get_object(Bucket=bucket, Key=prefix + "copy")["Body"].read() == body
    with refused("PreconditionFailed", 412):
        s3.copy_object(
            Bucket=bucket, Key=prefix + "no", CopySource=source, CopySourceIfNoneMatch=etag
        )
    with refused("NoSuchKey", 404):
        absent = {"Bucket": bucket, "Key": prefix + "absent"}
        s3.copy_object(Bucket=bucket, Key=prefix + "no", CopySource=absent)


def test_copy_between_backends(s3, origins, bucket, prefix):
    body = harness.content(100_000, seed=14)
    other = "local" if bucket != "local" else "moto"
    s3.put_object(Bucket=other, Key=prefix + "there", Body=body)
    try:
        s3.copy_object(
            Bucket=bucket, Key=prefix + "here", CopySource={"Bucket": other, "Key": prefix + "there"}
        )
    except ClientError as error:
        assert error.response["Error"]["Code"] == "NotImplemented", error
        assert origins.get(bucket, prefix + "here") is None
    else:
        assert origins.get(bucket, prefix + "here") == body


def test_delete_objects(s3, origins, bucket, prefix):
    keys = [f"{prefix}{number:03} & <x>" for number in range(25)]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    answer = s3.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": key} for key in [*keys[:20], prefix + "absent"]]}
    )
    assert not answer.get("Errors")
    assert {entry["Key"] for entry in answer["Deleted"]} == {*keys[:20], prefix + "absent"}
    left = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [entry["Key"] for entry in left] == keys[20:]
    quiet = s3.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys[20:]], "Quiet": True}
    )
    assert not quiet.get("Deleted") and not quiet.get("Errors")
    assert origins.get(bucket, keys[24]) is None


# --- listings ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tree(s3):
    """A small tree of keys in each bucket, made once."""
    made = {}

    def get(bucket):
        if bucket not in made:
            root = "tree/"
            keys = [f"{root}dir{d}/file{f:02}" for d in range(3) for f in range(12)]
            keys += [f"{root}top{n}" for n in range(5)] + [root + "\u00e9", root + "z"]
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda key: s3.put_object(Bucket=bucket, Key=key, Body=b"x"), keys))
            made[bucket] = (root, sorted(keys, key=lambda key: key.encode()))
        return made[bucket]

    return get


@pytest.mark.parametrize("operation", ["list_objects_v2", "list_objects"])
@pytest.mark.parametrize("page_size", [1000, 7, 1])
def test_flat_listing(s3, tree, bucket, operation, page_size):
    root, keys = tree(bucket)
    pages = s3.get_paginator(operation).paginate(
        Bucket=bucket, Prefix=root, PaginationConfig={"PageSize": page_size}
    )
    seen = []
    for page in pages:
        contents = page.get("Contents", [])
        assert len(contents) <= page_size
        seen += [entry["Key"] for entry in contents]
    assert seen == keys


@pytest.mark.parametrize("operation", ["list_objects_v2", "list_objects"])
@pytest.mark.parametrize("page_size", [1000, 3, 1])
def test_listing_with_a_delimiter(s3, tree, bucket, operation, page_size):
    root, keys = tree(bucket)
    pages = s3.get_paginator(operation).paginate(
        Bucket=bucket, Prefix=root, Delimiter="/", PaginationConfig={"PageSize": page_size}
    )
    files, folders = [], []
    for page in pages:
        contents, common = page.get("Contents", []), page.get("CommonPrefixes", [])
        assert len(contents) + len(common) <= page_size
        files += [entry["Key"] for entry in contents]
        folders += [entry["Prefix"] for entry in common]
    assert folders == [f"{root}dir{d}/" for d in range(3)]
    assert files == [key for key in keys if "/" not in key[len(root) :]]


def test_listing_with_another_delimiter(s3, tree, bucket):
    root, keys = tree(bucket)
    page = s3.list_objects_v2(Bucket=bucket, Prefix=root + "dir0/", Delimiter="e0")
    assert [entry["Prefix"] for entry in page["CommonPrefixes"]] == [root + "dir0/file0"]
    assert [entry["Key"] for entry in page["Contents"]] == [root + "dir0/file10", root + "dir0/file11"]


def test_listing_with_an_empty_delimiter(s3, tree, bucket):
    root, keys = tree(bucket)
    page = s3.list_objects_v2(Bucket=bucket, Prefix=root, Delimiter="")
    assert [entry["Key"] for entry in page["Contents"]] == keys


def test_listing_starts_after(s3, tree, bucket):
    root, keys = tree(bucket)
    page = s3.list_objects_v2(Bucket=bucket, Prefix=root, StartAfter=keys[10])
    assert [entry["Key"] for entry in page["Contents"]] == keys[11:]
    page = s3.list_objects(Bucket=bucket, Prefix=root, Marker=keys[10])
    assert [entry["Key"] for entry in page["Contents"]] == keys[11:]


def test_listing_of_nothing(s3, bucket, prefix):
    page = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)
    assert page["KeyCount"] == 0 and not page["IsTruncated"] and "Contents" not in page


ODD_KEYS = [
    "with space",
    "plus+plus",
    "percent%25%2F",
    "amp&eq=question?hash#",
    "quote\"apostrophe'",
    "<xml>&amp;",
    "\u00fcml\u00e4ut/\u65e5\u672c\u8a9e/\U0001f600",
    "back`tick^caret~tilde{brace}[bracket]|pipe",
    "semi;colon:comma,at@dollar$bang!star*paren()",
    "deep/" * 40 + "file",
    "...three-dots/..name/.hidden",
]


@pytest.mark.parametrize("odd", ODD_KEYS, ids=range(len(ODD_KEYS)))
def test_odd_keys(s3, origins, bucket, prefix, odd):
    key, body = prefix + odd, harness.content(5000, seed=len(odd))
    s3.put_object(Bucket=bucket, Key=key, Body=body)
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [entry["Key"] for entry in listed] == [key]
    listed = s3.list_objects(Bucket=bucket, Prefix=key)["Contents"]
    assert [entry["Key"] for entry in listed] == [key]
    s3.delete_object(Bucket=bucket, Key=key)
    assert not s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents")


def test_keys_that_an_origin_cannot_hold_are_kept_or_refused(s3, origins, bucket, prefix):
    """Never another key: what was stored is listed under its own name, or the error is clear."""
    for odd in ("a//b", "dir/", "./x", "a/../b"):
        key = prefix + odd
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=b"")
        except ClientError as error:
            assert 400 <= error.response["ResponseMetadata"]["HTTPStatusCode"] < 502, error
            status = error.response["Error"]["Code"]
            assert status not in ("InternalError", "SlowDown", "ServiceUnavailable"), error
            continue
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        assert [entry["Key"] for entry in listed] == [key]
        s3.delete_object(Bucket=bucket, Key=key)


# --- buckets -------------------------------------------------------------------------------------


def test_buckets(s3, origins, bucket):
    names = {entry["Name"] for entry in s3.list_buckets()["Buckets"]}
    assert names == {kind for kind in harness.KINDS if kind not in origins.skipped}
    s3.head_bucket(Bucket=bucket)
    s3.get_bucket_location(Bucket=bucket)
    # To make a bucket that is configured changes nothing and is no error.
    s3.create_bucket(Bucket=bucket)


def test_unknown_bucket(s3):
    with refused(status=404):
        s3.head_bucket(Bucket="nowhere")
    with refused("NoSuchBucket", 404):
        s3.list_objects_v2(Bucket="nowhere")
    with refused("NoSuchBucket", 404):
        s3.get_object(Bucket="nowhere", Key="x")


def test_truthful_stubs(s3, bucket, prefix):
    assert s3.get_bucket_versioning(Bucket=bucket).get("Status") in (None, "Suspended")
    s3.put_object(Bucket=bucket, Key=prefix + "x", Body=b"x")
    assert s3.get_object_tagging(Bucket=bucket, Key=prefix + "x")["TagSet"] == []
    assert s3.get_object_acl(Bucket=bucket, Key=prefix + "x")["Owner"]
    with refused("NotImplemented", 501):
        s3.put_bucket_policy(Bucket=bucket, Policy="{}")


# --- who may ask ---------------------------------------------------------------------------------


def test_wrong_keys(sidecar, bucket):
    with refused("SignatureDoesNotMatch", 403):
        make_client(sidecar, secret="wrong-secret").list_objects_v2(Bucket=bucket)
    with refused("InvalidAccessKeyId", 403):
        make_client(sidecar, access="NOBODY").list_objects_v2(Bucket=bucket)


def test_clock_skew(sidecar, bucket, monkeypatch):
    import botocore.auth
    import botocore.crt.auth

    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=2)

    def two_hours_ago(remove_tzinfo=True):
        return past.replace(tzinfo=None) if remove_tzinfo else past

    # Which of the two signs depends on whether awscrt is installed.
    for module in (botocore.auth, botocore.crt.auth):
        monkeypatch.setattr(module, "get_current_datetime", two_hours_ago)
    with refused("RequestTimeTooSkewed", 403):
        make_client(sidecar).list_objects_v2(Bucket=bucket)


def test_no_signature(sidecar, bucket):
    from botocore import UNSIGNED

    client = boto3.client(
        "s3",
        endpoint_url=sidecar.endpoint,
        region_name="us-east-1",
        config=Config(signature_version=UNSIGNED, s3={"addressing_style": "path"}),
    )
    with refused("AccessDenied", 403):
        client.list_objects_v2(Bucket=bucket)


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_presigned_urls(sidecar, origins, bucket, prefix, version):
    client = make_client(sidecar, signature_version=version)
    key, body = prefix + "presigned +%ü", harness.content(70_000)
    put = client.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key})
    get = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key})
    assert ("X-Amz-Signature" in put) == (version == "s3v4")
    urllib.request.urlopen(urllib.request.Request(put, data=body, method="PUT", headers={"Content-Type": ""}))
    assert origins.get(bucket, key) == body
    assert urllib.request.urlopen(get).read() == body
    ranged = urllib.request.Request(get, headers={"Range": "bytes=10-19"})
    assert urllib.request.urlopen(ranged).read() == body[10:20]
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(get.replace("presigned", "other"))
    assert error.value.code == 403
    expired = client.generate_presigned_url(
        "get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=1
    )
    time.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(expired)
    assert error.value.code == 403


def test_anonymous(anonymous_sidecar, origins, prefix):
    from botocore import UNSIGNED

    client = boto3.client(
        "s3",
        endpoint_url=anonymous_sidecar.endpoint,
        region_name="us-east-1",
        config=Config(signature_version=UNSIGNED, s3={"addressing_style": "path"}),
    )
    body = harness.content(9 * MIB)
    client.upload_fileobj(io.BytesIO(body), "local", prefix + "anonymous")
    assert origins.get("local", prefix + "anonymous") == body
    assert client.get_object(Bucket="local", Key=prefix + "anonymous")["Body"].read() == body


# --- many at once --------------------------------------------------------------------------------


def test_many_readers_of_one_object(s3, origins, bucket, prefix):
    key, body = prefix + "shared", harness.content(6 * MIB + 11, seed=21)
    origins.put(bucket, key, body)
    wanted = hashlib.sha256(body).hexdigest()
    start = threading.Barrier(8)

    def read(_):
        start.wait(30)
        return hashlib.sha256(s3.get_object(Bucket=bucket, Key=key)["Body"].read()).hexdigest()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {wanted}
