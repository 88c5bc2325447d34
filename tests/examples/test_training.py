"""The scripts of examples/training, as they stand, behind a real sidecar in front of a real origin."""

import contextlib
import importlib.util
import io
import json
import re
import signal
import time

import harness
import pytest
from trainer import EXAMPLES, finish, tar

MIB = 1 << 20


def npy(array) -> bytes:
    import numpy

    body = io.BytesIO()
    numpy.save(body, array)
    return body.getvalue()


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


@pytest.fixture(scope="session")
def classes(origins):
    """A data set with one folder a class: flat colours with noise, as PNG, written without torch."""
    image = pytest.importorskip("PIL.Image")
    made = {}
    for label, colour in {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}.items():
        for number in range(12):
            noise = harness.content(48 * 48 * 3, seed=hash(colour) % 97 + number)
            pixels = bytes(min(255, base + byte // 8) for base, byte in zip(colour * (48 * 48), noise))
            body = io.BytesIO()
            image.frombytes("RGB", (48, 48), pixels).save(body, "PNG")
            made[f"datasets/colours/{label}/{number:03}.png"] = body.getvalue()
    for key, body in made.items():
        origins.put("versitygw", key, body)
    return made


def test_imagefolder(pod, classes, torch_python):
    output = pod.run("imagefolder.py", "--data", pod.data / "train/colours", "--epochs", 1, "--batch", 6,
                     "--workers", 2, python=torch_python)
    assert "epoch 1: 36 images of 3 classes" in output
    before = pod.sent_by_origin()
    output = pod.run("imagefolder.py", "--data", pod.data / "train/colours", "--epochs", 6, "--batch", 6,
                     "--workers", 2, python=torch_python)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert pod.sent_by_origin() == before, "an immutable data set that was read once is never asked about again"


@pytest.fixture(scope="session")
def shards(origins):
    """Four WebDataset shards of eight samples: an array and a class each; the sum of all arrays."""
    numpy = pytest.importorskip("numpy")
    total = 0
    for shard in range(4):
        members = {}
        for sample in range(8):
            features = numpy.full(4096, shard * 8 + sample, dtype=numpy.float32)
            total += int(features.sum())
            members[f"{shard}{sample}.npy"] = npy(features)
            members[f"{shard}{sample}.cls"] = str(sample % 4).encode()
        origins.put("versitygw", f"datasets/shards/{shard:06}.tar", tar(members))
    return total


def test_webdataset(pod, shards):
    pytest.importorskip("webdataset")
    expected = f"32 samples of 4 classes, sum {shards}"
    output = pod.run("webdataset_shards.py", f"{pod.data}/train/shards/{{000000..000003}}.tar", "--epochs", 2)
    assert output.count(expected) == 2, output
    before = pod.sent_by_origin()
    output = pod.run("webdataset_shards.py", "pipe:aws s3 cp s3://train/shards/{000000..000003}.tar -")
    assert expected in output
    # Through the other front end, from the same cache.
    assert pod.sent_by_origin() == before


def test_webdataset_by_rank(pod, shards):
    pytest.importorskip("webdataset")
    every, sums = 0, 0
    for rank in range(2):
        output = pod.run("webdataset_shards.py", f"{pod.data}/train/shards/{{000000..000003}}.tar",
                         RANK=str(rank), WORLD_SIZE="2")
        (samples, total), = re.findall(r"(\d+) samples of 4 classes, sum (\d+)", output)
        every, sums = every + int(samples), sums + int(total)
        assert int(samples) == 16
    assert (every, sums) == (32, shards)


def test_parquet(pod, origins):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    expected = {}
    for file in range(3):
        rows = 20_000
        noise, payload = harness.content(rows, seed=file), harness.content(rows * 500, seed=file)
        table = pa.table({
            "label": [byte % 5 for byte in noise],
            "score": [byte / 255 for byte in noise],
            "payload": [payload[row * 500 : row * 500 + 500] for row in range(rows)],
        })
        for byte in noise:
            if byte / 255 >= 0.5:
                count, total = expected.get(byte % 5, (0, 0.0))
                expected[byte % 5] = (count + 1, total + byte / 255)
        body = io.BytesIO()
        parquet.write_table(table, body, row_group_size=5_000, compression="none")
        pod.put(f"datasets/events/{file}.parquet", body.getvalue())
        size = len(body.getvalue())
    outputs = []
    before = pod.sent_by_origin()
    outputs.append(pod.run("parquet_scan.py", "s3://train/events"))
    assert pod.sent_by_origin() - before < 3 * size / 2, "columns that are not wanted were fetched"
    outputs.append(pod.run("parquet_scan.py", pod.data / "train/events"))
    assert outputs[0] == outputs[1]
    found = {int(label): (int(count), total) for label, count, total in re.findall(
        r"label (\d): (\d+) rows, sum ([\d.]+)", outputs[0])}
    assert found == {label: (count, f"{total:.3f}") for label, (count, total) in expected.items()}


def test_hugging_face_datasets(pod):
    pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    for file in range(2):
        body = io.BytesIO()
        texts = [f"{file} {number} " + "word " * (number % 7) for number in range(100)]
        parquet.write_table(pa.table({"text": texts}), body)
        pod.put(f"datasets/text/{file}.parquet", body.getvalue())
    words = 2 * sum(2 + number % 7 for number in range(100))
    output = pod.run("hf_text.py", "--data", pod.data / "train/text/*.parquet")
    assert f"epoch 1: 200 texts, {words} words" in output, output
    # Each of two ranks its own file.
    output = pod.run("hf_text.py", "--data", pod.data / "train/text/*.parquet", RANK="1", WORLD_SIZE="2")
    assert "epoch 1: 100 texts" in output, output


def test_safetensors(pod):
    numpy = pytest.importorskip("numpy")
    save = pytest.importorskip("safetensors.numpy").save
    layers = {f"layers.{layer}.weight": numpy.full((1024, 512), layer, dtype=numpy.float32) for layer in range(8)}
    body = save(layers)
    pod.put("datasets/models/tiny/model.safetensors", body)
    pod.put("datasets/models/tiny/more.safetensors", save({"head": numpy.ones(1000, dtype=numpy.float32)}))
    before = pod.sent_by_origin()
    output = pod.run("safetensors_weights.py", "--model", pod.data / "train/models/tiny", "--framework", "np",
                     "--only", "head")
    assert "1 tensors, 1000 numbers, sum 1000.0" in output
    assert pod.sent_by_origin() - before < len(body), "one small tensor does not fetch the whole model"
    output = pod.run("safetensors_weights.py", "--model", pod.data / "train/models/tiny", "--framework", "np")
    assert f"9 tensors, {8 * 1024 * 512 + 1000} numbers, sum {28 * 1024 * 512 + 1000:.1f}" in output


def test_boto3(pod, tmp_path):
    pytest.importorskip("boto3")
    bodies = {f"objects/{number}.bin": harness.content(9 * MIB + number, seed=number) for number in range(2)}
    for key, body in bodies.items():
        pod.put("datasets/" + key, body)
    output = pod.run("boto3_objects.py", "--prefix", "objects/", "--copy-to", tmp_path)
    assert f"2 objects, {sum(map(len, bodies.values()))} bytes" in output
    for key, body in bodies.items():
        assert (tmp_path / key.removeprefix("objects/")).read_bytes() == body
        if pod.sidecar.mount:
            assert (pod.data / "train" / key).read_bytes() == body
    assert pod.get("runs/example/report.txt") == b"2 objects were read\n"


@pytest.mark.parametrize("kind", ["versitygw", "minio"])
def test_a_checkpoint_survives_its_process(pods, kind):
    """Killed at any moment and started again, a run ends with the weights of an undisturbed one."""
    pytest.importorskip("boto3"), pytest.importorskip("numpy")
    pod = pods(kind)
    process = pod.start("checkpoint.py", "--run", "killed", "--steps", "100000", "--every", "5")
    deadline, step = time.monotonic() + 60, 0
    while step < 15:
        assert time.monotonic() < deadline and process.poll() is None, process.stdout.read()
        latest = pod.get("runs/killed/latest.json")
        step = json.loads(latest)["step"] if latest else 0
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    step = json.loads(pod.get("runs/killed/latest.json"))["step"]
    killed = pod.run("checkpoint.py", "--run", "killed", "--steps", step + 7, "--every", 5)
    assert f"resumed at step {step}\n" in killed
    whole = pod.run("checkpoint.py", "--run", "whole", "--steps", step + 7, "--every", 1000)
    assert "resumed" not in whole
    assert killed.splitlines()[-1] == whole.splitlines()[-1]
    # What the pointer names is there, at the origin.
    latest = json.loads(pod.get("runs/killed/latest.json"))
    assert latest["step"] == step + 7
    assert harness.sha256(pod.get("runs/" + latest["key"])) == latest["sha256"]


@contextlib.contextmanager
def checkpoints(pod):
    """The example as a module, and a client of this pod's S3 endpoint."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("numpy")
    spec = importlib.util.spec_from_file_location("checkpoint", EXAMPLES / "training/checkpoint.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pod.environment.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        # A session of its own: the default one remembers the credentials of another sidecar.
        yield example, boto3.session.Session().client("s3")


@pytest.mark.parametrize("kind", ["versitygw", "minio"])
def test_one_of_two_writers_of_a_checkpoint_is_told(pods, kind):
    with checkpoints(pods(kind)) as (example, s3):
        one, two = (example.Checkpoints(s3, "runs", "twins") for _ in range(2))
        assert one.load() is None and two.load() is None
        one.save(1, "one")
        with pytest.raises(example.Superseded):
            two.save(1, "two")
        assert two.load() == (1, "one")
        two.save(2, "two")
        with pytest.raises(example.Superseded):
            one.save(2, "one")
        assert one.load() == (2, "two")


@pytest.mark.parametrize("keep", [1, 3])
def test_what_a_checkpoint_points_to_is_kept(pod, keep):
    """A run that starts over finds later steps of an earlier one there: they are not its own to count."""
    with checkpoints(pod) as (example, s3):
        run = f"again-{keep}"
        left = [f"{run}/step-{step:08}-00000000.ckpt" for step in (1800, 1900, 2000)]
        for key in left:
            pod.put("runs/" + key, b"of an earlier run")
        writer = example.Checkpoints(s3, "runs", run, keep=keep)
        assert writer.load() is None
        for step in range(100, 600, 100):
            writer.save(step, f"state {step}")
            assert example.Checkpoints(s3, "runs", run).load() == (step, f"state {step}")
        found = s3.list_objects_v2(Bucket="runs", Prefix=f"{run}/step-")["Contents"]
        steps = [int(entry["Key"].split("-")[-2]) for entry in found]
        assert steps == [*range(600 - 100 * keep, 600, 100), 1800, 1900, 2000]


def test_ddp_with_two_processes(pod, torch_python):
    """Two ranks, one cache: together they read everything, and the origin sends it once."""
    numpy = pytest.importorskip("numpy")
    size, tokens_in_shard, window = 0, 80_000, 1024
    for shard in range(4):
        tokens = numpy.frombuffer(harness.content(tokens_in_shard, seed=shard), dtype=numpy.uint8)
        body = npy(tokens.astype(numpy.uint16))
        size += len(body)
        pod.put(f"datasets/tokens/{shard:04}.npy", body)
    windows = 4 * len(range(0, tokens_in_shard - window, window))
    before = pod.sent_by_origin()
    # What torchrun does. (That of Debian's torch 1.13 does not start with its Python 3.11.)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(harness.free_port()), "WORLD_SIZE": "2"}
    ranks = [
        pod.start("ddp.py", "--data", pod.data / "train/tokens", "--epochs", 2, "--batch", 8, "--window", window,
                  python=torch_python, OMP_NUM_THREADS="1", RANK=str(rank), LOCAL_RANK=str(rank), **rendezvous)
        for rank in range(2)
    ]
    output = "".join(finish(process) for process in ranks)
    sent = pod.sent_by_origin() - before
    for epoch in (1, 2):
        read = {rank: int(count) for rank, count in re.findall(rf"epoch {epoch}: rank (\d) read (\d+)", output)}
        assert read == {"0": windows // 2, "1": windows // 2}, output
    assert "2 of 2 ranks hold the same weights" in output
    assert 0.9 * size < sent < 1.2 * size, f"{sent} bytes were sent for {size}"
