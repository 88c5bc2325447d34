"""Train an image classifier on a data set with one folder a class, read through the mount.

    python imagefolder.py --data /data/train/imagenet --epochs 3 --workers 8

`ImageFolder` sees folders and files and needs to know nothing else. The first epoch fetches every
image from the origin once; the later ones, shuffled or not, come from the cache.
"""

import argparse
import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="/data/train/imagenet", help="a folder of folders")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=64, help="images are scaled to this square")
    options = parser.parse_args()

    scale = transforms.Compose([transforms.Resize((options.pixels, options.pixels)), transforms.ToTensor()])
    images = datasets.ImageFolder(options.data, transform=scale)
    loader = DataLoader(images, batch_size=options.batch, shuffle=True, num_workers=options.workers)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, len(images.classes)),
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss_of = nn.CrossEntropyLoss()

    for epoch in range(1, options.epochs + 1):
        seen, loss_sum, right, begun = 0, 0.0, 0, time.monotonic()
        for pixels, labels in loader:
            pixels, labels = pixels.to(device), labels.to(device)
            scores = model(pixels)
            loss = loss_of(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(labels)
            loss_sum += loss.item() * len(labels)
            right += (scores.argmax(1) == labels).sum().item()
        seconds = time.monotonic() - begun
        print(f"epoch {epoch}: {seen} images of {len(images.classes)} classes, loss {loss_sum / seen:.4f}, "
              f"{right / seen:.0%} right, {seen / seconds:.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
