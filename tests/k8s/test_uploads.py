"""A pod that is deleted while it uploads through the S3 endpoint: all of it arrives, or what did not is named."""

import hashlib
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
    def __init__(self): self.at, self.passes = 0, 0
    def __len__(self): return size
    def tell(self): return self.at
    def seek(self, to, whence=0):
        # boto3 reads all of it once for the signature, and only then sends it.
        self.passes += to == 0 and whence == 0 and self.at == size
        self.at = to if whence == 0 else (self.at + to if whence == 1 else size + to)
        return self.at
    def read(self, count=-1):
        piece = body[self.at:min(size, self.at + (262144 if count < 0 else min(count, 262144)))]
        self.at += len(piece)
        if self.passes:
            time.sleep(len(piece) / rate)
            print("sent", self.at, flush=True)
        return piece
from botocore.config import Config
s3 = boto3.client("s3", config=Config(retries={"max_attempts": 0}, request_checksum_calculation="when_required"))
s3.put_object(Bucket="train", Key=sys.argv[3], Body=Slow(), ContentLength=size)
print("uploaded", flush=True)
'''
SIZE = 6 << 20


def uploader(key, rate, flush):
    command = ["python3", "-c", UPLOAD, str(SIZE), str(rate), key]
    return pods.injected(pods.wanted("uploader", command, {"mode": "s3", "flush-seconds": str(flush)}, grace=10))[0]


def half_sent(namespace):
    """The third piece is on its way: the endpoint has begun to pass the body on."""
    k8s.until("it uploads", lambda: namespace.logs("uploader", "main").count("sent ") >= 3, 60)


def stored(origin, key):
    path = origin.store / "training" / key
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def test_an_upload_in_flight_arrives_before_the_pod_goes(namespace, image, origin):
    namespace.apply(*origin.objects())
    key = "checkpoints/whole.bin"
    try:
        namespace.create(uploader(key, SIZE / 5, 20))
        half_sent(namespace)
        namespace.kubectl("delete", "pod", "uploader", "--timeout=60s")
        assert stored(origin, key) == hashlib.sha256(random.Random(7).randbytes(SIZE)).hexdigest()
    finally:
        (origin.store / "training" / key).unlink(missing_ok=True)


def test_an_upload_that_ends_with_its_pod_leaves_nothing(namespace, image, origin):
    """It would take a minute and gets seconds: its program is killed, which its status says, and nothing half is stored."""
    namespace.apply(*origin.objects())
    key = "checkpoints/cut.bin"
    namespace.create(uploader(key, SIZE / 60, 3))
    half_sent(namespace)
    with pods.watching(namespace) as watch:
        namespace.kubectl("delete", "pod", "uploader", "--timeout=60s")
        codes = {ended["exitCode"] for ended in terminated(watch, "main")}
    assert codes and 0 not in codes, codes
    assert stored(origin, key) is None


def test_an_upload_that_outlives_its_worker_is_named(namespace, image, next_image, origin):
    """A worker that is replaced and cannot wait says what it cut, in the status that `kubectl describe` shows."""
    namespace.apply(*origin.objects())
    key = "checkpoints/named.bin"
    namespace.create(uploader(key, SIZE / 60, 3))
    half_sent(namespace)
    with pods.watching(namespace) as watch:
        namespace.kubectl("set", "image", "pod/uploader", f"warpdrive={next_image}")
        message = k8s.until(
            lambda: f"the upload is named: {terminated(watch, 'warpdrive')}",
            lambda: next((e["message"] for e in terminated(watch, "warpdrive") if key in e.get("message", "")), None), 60)
    print(message.strip())
    namespace.delete_pod("uploader")
    assert stored(origin, key) is None


def terminated(watch, container):
    """Every end of a container that was seen."""
    found = []
    for _, _, pod in list(watch.seen):
        for kind in ("initContainerStatuses", "containerStatuses"):
            for status in pod["status"].get(kind, []):
                for state in (status.get("state", {}), status.get("lastState", {})):
                    if status["name"] == container and "terminated" in state:
                        found.append(state["terminated"])
    return found
