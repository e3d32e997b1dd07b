"""One training step of the paper's three-tap VGG (VGG-att3, 32 x 32, batch 128): ours against the definition.

The reference is the network as the paper and the public ports have it: float32, NCHW, the feature map of the first tap
projected up to the query's width, the query added to every local feature before the score, five-dimensional softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import alternate, ceiling, keep, spread
from heedmap.classifier import Architecture, build_classifier
from heedmap.options import TrainOptions
from heedmap.training.optimizer import make_optimizer
from heedmap.training.precision import autocast, resolve

BATCH, CLASSES = 128, 10
CONVS = (64, 64, 128, 128, 256, 256, 256, "tap", 512, 512, 512, "tap", 512, 512, 512, "tap")
MULTIPLY_ADDS = 3.739e9  # a picture, forward: conv 1 to 13, which is all that ours runs

OPTIONS = TrainOptions(optimizer="sgd", learning_rate=0.01, weight_decay=5e-4)


class Reference(nn.Module):
    """VGG-att3-concat-pc, straight from the definition."""

    def __init__(self) -> None:
        super().__init__()
        blocks, layers, channels = [], [], 3
        for width in CONVS:
            if width == "tap":
                blocks.append(nn.Sequential(*layers))
                layers = [nn.MaxPool2d(2)]
                continue
            assert isinstance(width, int)
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.blocks = nn.ModuleList(blocks)
        last = [nn.MaxPool2d(2), nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU(), nn.MaxPool2d(2)]
        last += [nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU(), nn.MaxPool2d(2)]
        self.deep, self.dense = nn.Sequential(*last), nn.Linear(512, 512)
        self.projector = nn.Conv2d(256, 512, 1, bias=False)
        self.scores = nn.ModuleList(nn.Conv2d(512, 1, 1, bias=False) for _ in range(3))
        self.head = nn.Linear(3 * 512, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) to logits (B, 10)."""
        taps, x = [], images
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        query = F.relu(self.dense(self.deep(x).flatten(1)))[:, :, None, None]
        taps[0] = self.projector(taps[0])
        read = []
        for local, score in zip(taps, self.scores, strict=True):
            weights = score(local + query).flatten(2).softmax(2).view(len(images), 1, *local.shape[2:])
            read.append((weights.expand_as(local) * local).sum((2, 3)))
        return self.head(torch.cat(read, 1))


def main(rounds: int = 3, device: str = "cpu", batch: int = BATCH, *, save: bool = True) -> dict[str, Any]:
    """Measure, keep (unless ``save`` is off) and return the figures."""
    images = torch.rand(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, CLASSES, (batch,), device=device)
    architecture = Architecture(
        "paper-vgg", "parametrised", "softmax", "concat", None, 32, tuple(map(str, range(CLASSES)))
    )
    ours = build_classifier(architecture).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    plain = build_classifier(Architecture(**{**vars(architecture), "attention": "none", "weights": None})).to(device)
    plain = plain.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    reference = Reference().to(device).train()
    contenders = {
        "reference (float32, NCHW)": _reference_step(reference, images, labels),
        "heedmap": our_step(ours, images, labels),
        "heedmap, no attention": our_step(plain, images, labels),
    }
    before = ceiling(device)
    seconds = alternate(contenders, rounds, device)
    after = ceiling(device)
    product = max(before["bf16 product TFLOP/s"], after["bf16 product TFLOP/s"])
    rates = {name: spread([batch / value for value in values]) for name, values in seconds.items()}
    used = rates["heedmap"]["median"] * MULTIPLY_ADDS * 2 * 3 / 1e12
    record = {
        "batch": batch,
        "ceiling before": before,
        "ceiling after": after,
        "images per second": rates,
        "heedmap / reference": rates["heedmap"]["median"] / rates["reference (float32, NCHW)"]["median"],
        "heedmap TFLOP/s": used,
        "share of the bf16 product": used / product,
    }
    if save:
        keep("training-step", record)
    return record


def _reference_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def our_step(model: nn.Module, images: Tensor, labels: Tensor, options: TrainOptions = OPTIONS) -> Callable[[], None]:
    """A bare step as ``heedmap train`` takes it, of a model in channels_last."""
    optimizer = make_optimizer(model, options, fused=True)
    precision = resolve("auto", images.device)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(precision, images.device):
            logits = model(images).logits
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
