"""Read a text data set with Hugging Face `datasets`, from parquet files below the mount.

    python hf_text.py --data '/data/train/text/*.parquet' --epochs 2

`streaming=True` reads the files where they are. Without it `load_dataset` first writes an Arrow copy
of everything below HF_HOME: a second cache, of the same data, on the same disk.
"""

import argparse
import os

# Everything comes from the mount; nothing is asked of the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import load_dataset  # noqa: E402
from datasets.distributed import split_dataset_by_node  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="/data/train/text/*.parquet")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()

    texts = load_dataset("parquet", data_files={"train": options.data}, split="train", streaming=True)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    texts = split_dataset_by_node(texts, rank=rank, world_size=world)
    texts = texts.shuffle(seed=7, buffer_size=100).map(lambda row: {"words": len(row["text"].split())})

    for epoch in range(1, options.epochs + 1):
        texts.set_epoch(epoch)  # another order each time
        rows = words = 0
        for batch in texts.iter(batch_size=options.batch):
            rows += len(batch["text"])
            words += sum(batch["words"])
        print(f"epoch {epoch}: {rows} texts, {words} words", flush=True)


if __name__ == "__main__":
    main()
