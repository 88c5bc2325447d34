"""A pod that is deleted while it uploads through the S3 endpoint: all of it arrives, or what did not is named."""

import hashlib
import json
import random

import cluster as k8s
import pods

# The body is sent slowly; SIGTERM comes in the middle of it, and a trainer that saves a checkpoint does not end at once.
UPLOAD = r'''
import boto3, random, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("told to end", flush=True))
size, rate = int(sys.argv[1]), float(sys.argv[2])
body = random.Random(7).randbytes(size)
class Slow:
    """A body at `rate` bytes a second."""
    def __init__(self): self.at = 0
    def __len__(self): return size
    def tell(self): return self.at
    def seek(self, to, whence=0):
        self.at = to if whence == 0 else (self.at + to if whence == 1 else size + to)
        return self.at
    def read(self, count=-1):
        piece = body[self.at:min(size, self.at + (262144 if count < 0 else min(count, 262144)))]
        if self.at: time.sleep(len(piece) / rate)
        self.at += len(piece)
        return piece
from botocore.config import Config
s3 = boto3.client("s3", config=Config(retries={"max_attempts": 0}, request_checksum_calculation="when_required"))
print("uploading", flush=True)
s3.put_object(Bucket="train", Key=sys.argv[3], Body=Slow(), ContentLength=size)
print("uploaded", flush=True)
'''
SIZE = 6 << 20


def uploader(key, rate, flush):
    command = ["python3", "-c", UPLOAD, str(SIZE), str(rate), key]
    return pods.injected(pods.wanted("uploader", command, {"mode": "s3", "flush-seconds": str(flush)}, grace=10))[0]


def stored(origin, key):
    path = origin.store / "training" / key
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def test_an_upload_in_flight_arrives_before_the_pod_goes(namespace, image, origin):
    namespace.apply(*origin.objects())
    key = "checkpoints/whole.bin"
    try:
        namespace.create(uploader(key, SIZE / 5, 20))
        k8s.until("it uploads", lambda: "uploading" in namespace.logs("uploader", "main"), 60)
        namespace.kubectl("delete", "pod", "uploader", "--timeout=60s")
        assert stored(origin, key) == hashlib.sha256(random.Random(7).randbytes(SIZE)).hexdigest()
    finally:
        (origin.store / "training" / key).unlink(missing_ok=True)


def test_what_could_not_be_finished_is_named(namespace, image, origin):
    """It would take a minute and gets seconds: nothing half is at the origin, and the pod's last status names it."""
    namespace.apply(*origin.objects())
    key = "checkpoints/cut.bin"
    namespace.create(uploader(key, SIZE / 60, 3))
    k8s.until("it uploads", lambda: "uploading" in namespace.logs("uploader", "main"), 60)
    with pods.watching(namespace) as watch:
        namespace.kubectl("delete", "pod", "uploader", "--timeout=60s")
        messages = []
        for _, _, found in watch.seen:
            for status in found["status"].get("initContainerStatuses", []):
                for state in (status.get("state", {}), status.get("lastState", {})):
                    messages.append(state.get("terminated", {}).get("message", ""))
    assert stored(origin, key) is None
    assert any(key in message for message in messages), json.dumps(messages)
    print(next(message for message in messages if key in message))
