"""Data-parallel training on token shards, with any number of processes and pods.

    torchrun --nproc-per-node 8 ddp.py --data /data/train/tokens            one pod, 8 GPUs
    ../kubernetes/ddp.yaml                                                  two pods

Shards are plain arrays of 16-bit tokens that are mapped into memory; windows of them are drawn in a
new random order in each epoch, and each rank reads its share. All ranks of a pod read through one
mount and one cache, so the origin sends every byte once a pod, not once a rank.
"""

import argparse
import pathlib

import numpy
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


class Windows(Dataset):
    """All windows of a folder of shards; item N is the same on every rank."""

    def __init__(self, folder, length):
        self.length = length
        files = sorted(pathlib.Path(folder).glob("*.npy"))
        self.shards = [numpy.load(file, mmap_mode="r") for file in files]
        self.index = [
            (shard, start)
            for shard, tokens in enumerate(self.shards)
            for start in range(0, len(tokens) - length, length)
        ]

    def __len__(self):
        return len(self.index)

    def __getitem__(self, item):
        shard, start = self.index[item]
        window = self.shards[shard][start : start + self.length + 1].astype(numpy.int64)
        return torch.from_numpy(window)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="/data/train/tokens")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=1024, help="tokens")
    parser.add_argument("--vocabulary", type=int, default=256)
    options = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")  # address and rank: torchrun's environment
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")

    windows = Windows(options.data, options.window)
    sampler = DistributedSampler(windows, shuffle=True, drop_last=True)
    loader = DataLoader(windows, batch_size=options.batch, sampler=sampler)
    torch.manual_seed(7)
    model = nn.Sequential(nn.Embedding(options.vocabulary, 32), nn.Linear(32, options.vocabulary)).to(device)
    model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    for epoch in range(1, options.epochs + 1):
        sampler.set_epoch(epoch)
        read, loss_sum = 0, 0.0
        for tokens in loader:
            tokens = tokens.to(device)
            scores = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            read += len(tokens)
            loss_sum += loss.item() * len(tokens)
        print(f"epoch {epoch}: rank {rank} read {read} windows, loss {loss_sum / read:.4f}", flush=True)

    # Gradients were averaged after every step, so all ranks hold one model.
    mine = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    theirs = mine.clone()
    dist.broadcast(theirs, src=0)
    same = torch.tensor([int(torch.equal(mine, theirs))], device=device)
    dist.all_reduce(same)
    if rank == 0:
        print(f"{same.item()} of {world} ranks hold the same weights", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
