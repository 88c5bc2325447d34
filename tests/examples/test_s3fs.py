"""The script of examples/training that needs s3fs, which has an environment of its own."""

import json

import harness
import pytest

pytest.importorskip("s3fs")


def test_s3fs(pod):
    bodies = {f"{number}.log": b"".join(b"%d %d\n" % (number, line) for line in range(1000 + number))
              for number in range(3)}
    for name, body in bodies.items():
        pod.put(f"datasets/logs/{name}", body)
    size = sum(map(len, bodies.values()))
    output = pod.run("s3fs_files.py", "s3://train/logs")
    assert f"3003 lines in {size} bytes" in output
    assert json.loads(pod.get("runs/example/summary.json")) == {"lines": 3003, "bytes": size}
    before = pod.sent_by_origin()
    pod.run("s3fs_files.py", "s3://train/logs", "--write", "s3://runs/example/again.json")
    assert pod.sent_by_origin() - before < size, "the second pass reads from the cache"
