"""The S3 endpoint with plain boto3: list, read a range, download, upload, read back.

    python boto3_objects.py --prefix shards/ --copy-to /tmp/shards

The client takes endpoint, region and credentials from the environment, so the same script runs
against the bare bucket with those variables unset. What was read once through the mount is not
fetched again here, and the reverse.
"""

import argparse
import pathlib

import boto3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bucket", default="train")
    parser.add_argument("--prefix", default="shards/")
    parser.add_argument("--copy-to", type=pathlib.Path, default=pathlib.Path("/tmp/shards"))
    parser.add_argument("--results", default="runs", help="the bucket that is written to")
    options = parser.parse_args()
    s3 = boto3.client("s3")

    found = []
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=options.bucket, Prefix=options.prefix):
        found += page.get("Contents", [])
    print(f"{len(found)} objects, {sum(entry['Size'] for entry in found)} bytes")

    # A part of an object: what a reader of an indexed format asks for.
    first = found[0]
    head = s3.get_object(Bucket=options.bucket, Key=first["Key"], Range="bytes=0-511", IfMatch=first["ETag"])
    print(f"{first['Key']}: the first {len(head['Body'].read())} bytes")

    # Whole objects, each in parallel ranges.
    options.copy_to.mkdir(parents=True, exist_ok=True)
    for entry in found:
        s3.download_file(options.bucket, entry["Key"], str(options.copy_to / pathlib.Path(entry["Key"]).name))

    # Written means written: the answer comes after the origin's.
    report = f"{len(found)} objects were read\n".encode()
    s3.put_object(Bucket=options.results, Key="example/report.txt", Body=report, ContentType="text/plain")
    assert s3.get_object(Bucket=options.results, Key="example/report.txt")["Body"].read() == report
    print(f"wrote s3://{options.results}/example/report.txt")


if __name__ == "__main__":
    main()
