"""What learned maps cost: the forward pass that gives them, against the same trunk with pooling and a linear layer.

The control (attention "none") stands beside: it reads every tap, as attention does, and averages it. The aim of 3 % is
smaller than what one pass differs from the next, so there are many short rounds, the cost is taken round by round, and
beside the lowest and the highest stands an interval that holds the median's true place in 95 of 100 cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import AT_ONCE, alternate, ceiling, keep, ratios, repeated, spread
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.training.precision import autocast, resolve

NETWORKS = {
    "compact, 144 px": ("compact", 144, 32),
    "whitened, 32 px": ("whitened", 32, 128),
    "paper-vgg, 32 px": ("paper-vgg", 32, 16),
}
PLAIN = "plain: pooling and a linear layer"
ATTENTIONS = ("none", "parametrised", "dot", "additive")


class Plain(nn.Module):
    """The trunk up to the deepest tap, the mean over all positions, and a linear layer: no tap but that, no map."""

    def __init__(self, classifier: AttentionClassifier) -> None:
        super().__init__()
        self.backbone, self.deepest = classifier.backbone, classifier.taps[-1:]
        self.linear = nn.Linear(self.backbone.stage(self.deepest[0]).channels, len(classifier.classes))
        self.normalised = classifier._normalised

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to logits (B, K)."""
        features = self.backbone(self.normalised(images), self.deepest, False).features[self.deepest[0]]
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def main(rounds: int = 41, device: str = "cpu") -> dict[str, Any]:
    """Measure, keep and return the figures."""
    record = {"ceiling": ceiling(device), "networks": {}}
    for title, (name, size, batch) in NETWORKS.items():
        record["networks"][title] = _costs(name, size, batch, rounds, device)
    keep("learned-maps", record)
    return record


def _costs(name: str, size: int, batch: int, rounds: int, device: str) -> dict[str, Any]:
    models: dict[str, nn.Module] = {}
    for attention in ATTENTIONS:
        torch.manual_seed(0)
        architecture = Architecture(name, attention, None, "concat", None, size, tuple("abcdefghij"))
        models[attention] = build_classifier(architecture)
    models = {PLAIN: Plain(models["none"]), **models}  # type: ignore[arg-type]
    images = torch.rand(batch, 3, size, size, device=device)
    seconds = alternate({name: _forward(model, images) for name, model in models.items()}, rounds, device)
    taken = batch * AT_ONCE[torch.device(device).type]
    return {
        "images per second": {name: spread([taken / value for value in values]) for name, values in seconds.items()},
        "over the plain trunk": _over(seconds, PLAIN),
        "over the plain trunk, interval of the median": {
            name: median_interval(values) for name, values in _more(seconds, PLAIN).items()
        },
        "over the control": _over({name: seconds[name] for name in ATTENTIONS}, "none"),
    }


def _forward(model: nn.Module, images: Tensor) -> Callable[[], None]:
    model.eval().to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=torch.channels_last)
    precision = resolve("auto", images.device)

    def forward() -> None:
        with torch.inference_mode(), autocast(precision, images.device):
            model(images)

    return repeated(forward, str(images.device))


def _more(seconds: dict[str, list[float]], base: str) -> dict[str, list[float]]:
    """What each takes more than ``base``, as a share of it, round by round."""
    others = {name: values for name, values in seconds.items() if name != base}
    return {name: [ratio - 1 for ratio in ratios(values, seconds[base])] for name, values in others.items()}


def _over(seconds: dict[str, list[float]], base: str) -> dict[str, Any]:
    return {name: spread(values) for name, values in _more(seconds, base).items()}


def median_interval(values: Sequence[float]) -> str:
    """From which of the values to which the median lies in at least 95 of 100 cases, whatever their distribution.

    The median lies above the k-th smallest of n but where fewer than k of n fair coins fall one way (Conover,
    "Practical Nonparametric Statistics", 1999, section 3.2). Up to five values cannot say: then it is all of them.
    """
    count, outside, place = len(values), 0.0, 0
    while outside + math.comb(count, place) / 2**count <= 0.025:
        outside += math.comb(count, place) / 2**count
        place += 1
    place = max(place - 1, 0)
    known = sorted(values)
    return f"{known[place]:.4g} to {known[-1 - place]:.4g}"
