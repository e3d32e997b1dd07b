"""The two small saliency nets of MachineCurve's posts, on MNIST and CIFAR-10, with their saliency and Grad-CAM drawn.

    python experiments/small_nets.py mnist --out runs/small-mnist
    python experiments/small_nets.py cifar10 --out runs/small-cifar10

The network is the posts' (25 and 28 November 2019): two 3x3 convolutions of 32 and 64 channels without padding, each
with ReLU, pooling and dropout 0.25, then 256 hidden units. 431,242 parameters on MNIST, 612,042 on CIFAR-10. Published,
single runs of 25 epochs: 99.12 % and 71.84 % (Adam, batches of 250, a fifth of train kept apart). Here the rate follows
one cycle, so that fewer epochs do, a tenth is kept apart to choose the epoch by, and the test part is evaluated once.
Images of CIFAR-10 are mirrored at random; --no-flip leaves that out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn

import heedmap as hm
from heedmap.data import ImageDataset, load_many, open_data, split_by_class
from heedmap.metrics.classification import wilson_interval
from heedmap.training.precision import autocast, resolve
from heedmap.visualization.heatmap import heatmap, overlay, scale_of

PUBLISHED = {"mnist": 0.9912, "cifar10": 0.7184}
SIDES = {"mnist": (1, 28), "cifar10": (3, 32)}  # channels and side
BATCH, SCORED = 250, 1000
TILE, SHOWN = 168, 7
MAPS = (
    ("image", ""),
    ("saliency of the true class", "saliency"),
    ("Grad-CAM", "grad-cam"),
    ("over the image", "grad-cam"),
)


def small_net(channels: int, side: int) -> nn.Sequential:
    """The posts' network, from images (B, channels, side, side) in [0, 1] to 10 logits."""
    left = ((side - 2) // 2 - 2) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(64 * left * left, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def tensors(dataset: ImageDataset, channels: int, side: int) -> tuple[Tensor, Tensor]:
    """Images (N, channels, side, side) uint8, and labels."""
    images, failed = load_many(dataset, range(len(dataset)), side, 2)
    assert not failed, failed[0]
    return images[:, :channels], dataset.labels


def train(net: nn.Module, images: Tensor, labels: Tensor, told: argparse.Namespace) -> dict[str, Tensor]:
    """Train, and return the weights of the epoch that was best on the tenth kept apart."""
    learned, kept = split_by_class(labels, 0.1, told.seed)
    steps = len(learned) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=told.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, told.rate, told.epochs * steps)
    best, weights = -1.0, {}
    for epoch in range(told.epochs):
        net.train()
        began = time.perf_counter()
        for rows in learned[torch.randperm(len(learned))][: steps * BATCH].split(BATCH):
            batch = images[rows].float() / 255
            if told.flip:
                batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
            with autocast(told.precision, batch.device):
                logits = net(batch.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found = accuracy(net, images[kept], labels[kept])
        if found > best:
            best, weights = found, {name: value.clone() for name, value in net.state_dict().items()}
        print(
            f"epoch {epoch + 1}/{told.epochs}: kept apart {found:.2%}, {time.perf_counter() - began:.0f} s", flush=True
        )
    return weights


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    net.eval()
    parts = zip(images.split(SCORED), labels.split(SCORED), strict=True)
    return sum(int((net(some.float() / 255).argmax(1) == true).sum()) for some, true in parts) / len(labels)


def sheet(net: nn.Module, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Image.Image:
    """Seven images, a line each: the image, its saliency, its Grad-CAM at the last pooling, and that over it."""
    batch = images.float() / 255
    found = {
        "saliency": hm.explain(net, batch, "saliency", labels.tolist()).values,
        "grad-cam": hm.explain(net, batch, "grad-cam", labels.tolist(), "6").values,
    }
    answers = net(batch).argmax(1).tolist()
    edge, line = 10, TILE + 26
    drawn = Image.new("RGB", (len(MAPS) * (TILE + edge) + edge, len(images) * line + 30), "white")
    pen = ImageDraw.Draw(drawn)
    for column, (title, method) in enumerate(MAPS):
        left = edge + column * (TILE + edge)
        pen.text((left, 10), title, fill="black")
        for row, image in enumerate(images):
            colours = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
            tile = Image.fromarray(colours).resize((TILE, TILE), Image.Resampling.NEAREST)
            if method:
                values = found[method][row, 0]
                low, high = scale_of(values)
                is_fine = method == "saliency"
                is_over = title.startswith("over")
                tile = (
                    overlay(tile, values, low, high)
                    if is_over
                    else heatmap(values, low, high, TILE, smooth=not is_fine)
                )
            drawn.paste(tile, (left, 28 + row * line))
            if not column:
                said = "" if answers[row] == int(labels[row]) else f", answered {classes[answers[row]]}"
                pen.text((left, 30 + row * line + TILE), f"{classes[int(labels[row])]}{said}", fill="black")
    return drawn


def main() -> None:
    """Train, evaluate once, draw, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(PUBLISHED))
    parser.add_argument("--data", help="a folder, or where torchvision is to put the named set; default: data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None)
    told = parser.parse_args()
    told.precision = resolve("auto", torch.device("cpu"))
    told.flip = told.name == "cifar10" if told.flip is None else told.flip
    splits = (
        open_data(told.data)
        if told.data and Path(told.data, "train").is_dir()
        else open_data(told.name, root=told.data or "data")
    )
    torch.manual_seed(told.seed)
    channels, side = SIDES[told.name]
    net = small_net(channels, side).to(memory_format=torch.channels_last)
    net.load_state_dict(train(net, *tensors(splits.train, channels, side), told))
    assert splits.test is not None
    images, labels = tensors(splits.test, channels, side)
    found = accuracy(net, images, labels)
    low, high = wilson_interval(found, len(labels))
    told.out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, told.out / "model.safetensors")
    rows = [int((labels == kind).nonzero()[3]) for kind in torch.linspace(0, 9, SHOWN).long()]
    sheet(net.eval(), images[rows], labels[rows], splits.classes).save(told.out / "maps.png")
    count = sum(each.numel() for each in net.parameters())
    line = {"data": told.name, "parameters": count, "epochs": told.epochs, "seed": told.seed, "accuracy": found}
    (told.out / "result.json").write_text(
        json.dumps({**line, "low": low, "high": high, "published": PUBLISHED[told.name]}, indent=1)
    )
    print(f"| {told.name} | {count:,} | {PUBLISHED[told.name]:.2%} | {found:.2%} ({low:.2%} - {high:.2%}) |")


if __name__ == "__main__":
    main()
