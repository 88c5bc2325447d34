"""Stream WebDataset shards: tar files that hold samples one after the other.

    python webdataset_shards.py '/data/train/shards/{000000..000099}.tar'
    python webdataset_shards.py 'pipe:aws s3 cp s3://train/shards/{000000..000099}.tar -'

Through the mount a shard is a file: no `pipe:`, no temporary copy. The second form, a process that
downloads for each shard, is what scripts written for a bare bucket do; pointed at the endpoint
(AWS_ENDPOINT_URL_S3) it needs no change and shares the cache with the first. With RANK and
WORLD_SIZE set, as torchrun does, each rank reads shards of its own. Feed the pipeline to
`torch.utils.data.DataLoader` as any iterable data set; this script only counts.
"""

import argparse

import webdataset as wds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="?", default="/data/train/shards/{000000..000099}.tar")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()

    samples = wds.DataPipeline(
        wds.SimpleShardList(options.shards),
        wds.split_by_node,  # each rank its own shards ...
        wds.split_by_worker,  # ... and each worker of a DataLoader its own of those
        wds.tarfile_to_samples(),
        wds.shuffle(1000),
        wds.decode(),
        wds.to_tuple("__key__", "npy", "cls"),
        wds.batched(options.batch, partial=True),
    )
    for epoch in range(1, options.epochs + 1):
        keys, classes, total = set(), set(), 0.0
        for names, features, labels in samples:
            keys.update(names)
            classes.update(int(label) for label in labels)
            total += float(sum(feature.sum() for feature in features))
        print(f"epoch {epoch}: {len(keys)} samples of {len(classes)} classes, sum {total:.0f}", flush=True)


if __name__ == "__main__":
    main()
