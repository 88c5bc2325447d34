"""A real S3 origin on the cluster's network: versitygw over a folder, with a data set that is verified by its sums."""

import hashlib
import random
import subprocess
import sys

import cluster as k8s

ACCESS, SECRET = "origin-access", "origin-secret-key"
BUCKET = "training"
PORT = 7070
# Sizes on both sides of what becomes a file in the cache (64 KiB) and of its blocks (1 MiB).
SIZES = [0, 1, 4095, 65536, 200_000, 1 << 20, 3_000_001] * 4 + [24 << 20]

UPLOAD = """
import boto3, pathlib, sys
from botocore.config import Config
folder, bucket, endpoint, access, secret = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=access,
                  aws_secret_access_key=secret, config=Config(retries={"max_attempts": 10}))
s3.create_bucket(Bucket=bucket)
for path in sorted(pathlib.Path(folder).rglob("*")):
    if path.is_file():
        s3.upload_file(str(path), bucket, str(path.relative_to(folder)))
"""


class Origin:
    """Started, filled, and ended with the cluster."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.endpoint = f"http://{k8s.NET}.0.1:{PORT}"
        self.store = folder / "store"
        self.store.mkdir()
        self.log = open(folder / "versitygw.log", "wb")
        self.process = cluster.spawn(
            "env", f"ROOT_ACCESS_KEY={ACCESS}", f"ROOT_SECRET_KEY={SECRET}",
            k8s.TOOLS / "bin/versitygw", "--port", f"{k8s.NET}.0.1:{PORT}", "posix", self.store,
            stdout=self.log,
        )
        k8s.until(
            "versitygw answers",
            lambda: cluster.inside("curl", "-s", "-o", "/dev/null", self.endpoint, check=False).returncode == 0,
        )
        self.sums = {}
        source = folder / "source"
        for number, size in enumerate(SIZES):
            name = f"set/{number % 3}/{number:04}.bin"
            body = random.Random(number).randbytes(size)
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(body)
            self.sums[name] = hashlib.sha256(body).hexdigest()
        cluster.inside(sys.executable, "-c", UPLOAD, source, BUCKET, self.endpoint, ACCESS, SECRET, timeout=120)

    def keys(self):
        """Every object that is there, read past everything."""
        bucket = self.store / BUCKET
        return {
            str(path.relative_to(bucket))
            for path in bucket.rglob("*")
            if path.is_file() and not str(path.relative_to(bucket)).startswith(".sgwtmp")
        }

    def whole(self):
        """No object of the data set is gone or changed."""
        bucket = self.store / BUCKET
        for name, digest in self.sums.items():
            if not (bucket / name).is_file() or hashlib.sha256((bucket / name).read_bytes()).hexdigest() != digest:
                return False
        return True

    def expected(self):
        """What `sha256sum -c` reads, relative to the bucket."""
        return "".join(f"{digest}  {name}\n" for name, digest in sorted(self.sums.items()))

    def objects(self, **more):
        """The ConfigMap, the Secret and the sums that a pod of a test needs in its namespace.

        `more` is added to the configuration's top level.
        """
        import json

        config = {
            "backends": [
                {
                    "name": "train",
                    "type": "s3",
                    "config": {"endpoint": self.endpoint, "bucket": BUCKET, "region": "us-east-1"},
                    "auth": {
                        "method": "static",
                        "access_key_id": "env:ORIGIN_ACCESS",
                        "secret_access_key": "env:ORIGIN_SECRET",
                    },
                }
            ],
            **more,
        }
        return [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "warpdrive"},
             "data": {"warpdrive.yaml": json.dumps(config, indent=1)}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "expected"},
             "data": {"SHA256SUMS": self.expected()}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "origin"},
             "stringData": {"ORIGIN_ACCESS": ACCESS, "ORIGIN_SECRET": SECRET}},
        ]

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
