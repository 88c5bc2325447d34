"""Checkpoints through the S3 endpoint: written whole, pointed to atomically, resumed from.

    python checkpoint.py --run demo --steps 2000 --every 100

Kill it and run it again: it goes on from its last checkpoint, and ends with the weights that an
undisturbed run has. `RUN/step-*.ckpt` are checkpoints and never change; `RUN/latest.json` names the
newest. The pointer is written last, and only if it still is what this process saw last (a
conditional PUT, which the origin decides): a crash leaves the older checkpoint in place, and of two
processes that take themselves for the same run one is told at once, instead of both writing.
"""

import argparse
import hashlib
import io
import json
import pickle

import boto3
import numpy
from botocore.exceptions import ClientError

REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


class Superseded(Exception):
    """Another process has written a checkpoint of this run in the meantime."""


class Checkpoints:
    def __init__(self, s3, bucket: str, run: str, keep: int = 3):
        self.s3, self.bucket, self.run, self.keep = s3, bucket, run, keep
        self.pointer = f"{run}/latest.json"
        self.seen = None  # the ETag of the pointer that this process goes on from

    def load(self):
        """The newest checkpoint as (step, state), or None."""
        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=self.pointer)
        except self.s3.exceptions.NoSuchKey:
            self.seen = None
            return None
        latest = json.load(answer["Body"])
        body = io.BytesIO()
        self.s3.download_fileobj(self.bucket, latest["key"], body)
        if hashlib.sha256(body.getbuffer()).hexdigest() != latest["sha256"]:
            raise ValueError(f"{latest['key']} is not what was written")
        self.seen = answer["ETag"]
        # With PyTorch: torch.load(body).
        return latest["step"], pickle.loads(body.getbuffer())

    def save(self, step: int, state):
        # With PyTorch: torch.save(state, body).
        body = pickle.dumps(state)
        digest = hashlib.sha256(body).hexdigest()
        # The digest in the name keeps two processes that are at the same step apart.
        key = f"{self.run}/step-{step:08}-{digest[:8]}.ckpt"
        # Large bodies go in parts, side by side; the object appears when all of them are there.
        self.s3.upload_fileobj(io.BytesIO(body), self.bucket, key)
        latest = {"step": step, "key": key, "sha256": digest}
        condition = {"IfMatch": self.seen} if self.seen else {"IfNoneMatch": "*"}
        try:
            answer = self.s3.put_object(
                Bucket=self.bucket, Key=self.pointer, Body=json.dumps(latest).encode(), **condition
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in REFUSED:
                raise Superseded(f"{self.pointer} was written by another process") from error
            raise
        self.seen = answer["ETag"]
        self.remove_before(key)

    def remove_before(self, newest: str):
        # Only what is older than the checkpoint that the pointer names: a run that starts over may
        # find later steps of an earlier one.
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.run}/step-").get("Contents", [])
        older = sorted(entry["Key"] for entry in found if entry["Key"] < newest)
        for key in older[: max(0, len(older) + 1 - self.keep)]:
            self.s3.delete_object(Bucket=self.bucket, Key=key)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bucket", default="runs")
    parser.add_argument("--run", default="demo")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=1_500_000, help="12 MB: more than one part")
    options = parser.parse_args()
    checkpoints = Checkpoints(boto3.client("s3"), options.bucket, options.run)

    # What a model, an optimizer and a data loader have: weights, and where the random numbers are.
    random = numpy.random.default_rng(7)
    weights, done = numpy.zeros(options.parameters), 0
    if (found := checkpoints.load()) is not None:
        done, state = found
        weights, random.bit_generator.state = state["weights"], state["random"]
        print(f"resumed at step {done}", flush=True)

    for step in range(done + 1, options.steps + 1):
        gradient = weights - random.standard_normal(64).mean()
        weights = weights - 0.01 * gradient
        if step % options.every == 0 or step == options.steps:
            checkpoints.save(step, {"weights": weights, "random": random.bit_generator.state})
            print(f"step {step}: saved", flush=True)
    print(f"weights {hashlib.sha256(weights.tobytes()).hexdigest()[:16]} after step {options.steps}")


if __name__ == "__main__":
    main()
