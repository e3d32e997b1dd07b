"""The paper's three-tap VGG (VGG-att3, 32 x 32, batch 128), trained and asked for maps: ours against the definition.

The reference is the network as the paper and the public ports have it: float32, NCHW, the feature map of the first tap
projected up to the query's width, the query added to every local feature before the score, five-dimensional softmax. It
computes what ours does, which a test holds, but leaves out dropout in training, which makes it quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import AT_ONCE, alternate, ceiling, keep, product, ratios, repeated, spread, those_that_fit
from heedmap.config import TrainOptions
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.learn_to_pay_attention import paper_vgg_att
from heedmap.training.optimizers import make_optimizer
from heedmap.training.precision import autocast, resolve

BATCH, CLASSES = 128, 10
CONVS = (64, 64, 128, 128, 256, 256, 256, "tap", 512, 512, 512, "tap", 512, 512, 512, "tap")
MULTIPLY_ADDS = 3.739e9  # an image, forward: conv 1 to 13, which is all that ours runs
EPS = 1e-3  # of the batch norms behind convs

OPTIONS = TrainOptions(optimizer="sgd", learning_rate=0.01, weight_decay=5e-4)
REFERENCE, OURS, CONTROL = "reference (float32, NCHW)", "heedmap", "heedmap, no attention"
Work = Callable[[], None]


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
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width, EPS), nn.ReLU()]
            channels = width
        self.blocks = nn.ModuleList(blocks)
        last: list[nn.Module] = [nn.MaxPool2d(2)]
        for _ in range(2):
            last += [nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512, EPS), nn.ReLU(), nn.MaxPool2d(2)]
        self.deep, self.dense = nn.Sequential(*last), nn.Linear(512, 512)
        self.projector = nn.Conv2d(256, 512, 1)
        self.scores = nn.ModuleList(nn.Conv2d(512, 1, 1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(512), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(3 * 512, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Normalised (B, 3, 32, 32) to logits (B, 10) and the maps (B, 1, h, w) of the three taps."""
        taps, x = [], images
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        query = self.dense(self.deep(x).flatten(1))[:, :, None, None]
        taps[0] = self.projector(taps[0])
        read, maps = [], []
        for local, score, norm in zip(taps, self.scores, self.norms, strict=True):
            weights = score(local + query).flatten(2).softmax(2).view(len(images), 1, *local.shape[2:])
            read.append(norm((weights.expand_as(local) * local).sum((2, 3))))
            maps.append(weights)
        return self.head(torch.cat(read, 1)), maps


def our_network(attention: str = "parametrised") -> AttentionClassifier:
    """paper-vgg in the same form: the features of the first tap are lifted to the query's width."""
    return paper_vgg_att(CLASSES, score=attention, project="features")


def main(rounds: int = 5, device: str = "cpu", batch: int = BATCH, *, save: bool = True) -> dict[str, Any]:
    """Measure, keep (unless ``save`` is off) and return the figures; a contender too large for the GPU is noted."""
    torch.manual_seed(0)
    images = torch.rand(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, CLASSES, (batch,), device=device)
    ours, plain = (
        our_network(attention).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for attention in ("parametrised", "none")
    )
    reference = Reference().to(device)
    steps = {
        REFERENCE: _reference_step(reference, images, labels),
        OURS: our_step(ours, images, labels),
        CONTROL: our_step(plain, images, labels),
    }
    for model in (reference, ours, plain):
        model.train()
    record = {"batch": batch, "ceiling": ceiling(device), **_table(steps, rounds, device, batch, 3 * MULTIPLY_ADDS)}
    asked = {
        REFERENCE: _reference_answer(reference, images),
        OURS: _answer(ours, images),
        CONTROL: _answer(plain, images),
    }
    for model in (reference, ours, plain):
        model.eval().requires_grad_(False)
    record["inference with maps"] = _table(asked, rounds, device, batch, MULTIPLY_ADDS)
    if save:
        keep("training-step", record)
    return record


def _table(contenders: Mapping[str, Work], rounds: int, device: str, batch: int, work: float) -> dict[str, Any]:
    """Rates of the contenders and, round by round, ours by the others' and by the ceiling of that round.

    Args:
        contenders: one batch of each.
        rounds: how many.
        device: where.
        batch: images in it.
        work: multiply-adds of ours an image.
    """
    several = {name: repeated(once, device) for name, once in contenders.items()}
    images = batch * AT_ONCE[torch.device(device).type]
    fit, notes = those_that_fit(several)
    products: list[float] = []
    turns = {**fit, "ceiling": lambda: products.append(product(torch.bfloat16, device))}
    seconds = alternate(turns, rounds, device, warm=True)
    rates = {name: [images / value for value in seconds[name]] for name in fit}
    told: dict[str, Any] = {name: spread(rates[name]) if name in rates else notes[name] for name in contenders}
    record: dict[str, Any] = {"bf16 product TFLOP/s": spread(products), "images per second": told}
    if OURS not in rates:
        return record
    for name, title in {REFERENCE: "heedmap / reference", CONTROL: "heedmap / no attention"}.items():
        if name in rates:
            record[title] = spread(ratios(rates[OURS], rates[name]))
    used = [rate * 2 * work / 1e12 for rate in rates[OURS]]
    return {
        **record,
        "heedmap TFLOP/s": spread(used),
        "share of the bf16 product": spread(ratios(used, products)),
    }


def _reference_step(model: nn.Module, images: Tensor, labels: Tensor) -> Work:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images)[0], labels).backward()
        optimizer.step()

    return step


def _reference_answer(model: nn.Module, images: Tensor) -> Work:
    def answer() -> None:
        with torch.inference_mode():
            model(images)

    return answer


def our_step(model: nn.Module, images: Tensor, labels: Tensor, options: TrainOptions = OPTIONS) -> Work:
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


def _answer(model: nn.Module, images: Tensor) -> Work:
    """Logits and maps, as ``heedmap predict`` and ``visualize`` ask for them."""
    precision = resolve("auto", images.device)
    images = images.contiguous(memory_format=torch.channels_last)

    def answer() -> None:
        with torch.inference_mode(), autocast(precision, images.device):
            model(images)

    return answer
