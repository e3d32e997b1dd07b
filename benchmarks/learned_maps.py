"""What learned maps cost: the forward pass that gives them, against the same network without attention."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measuring import alternate, ceiling, keep, spread
from heedmap.classifier import Architecture, build_classifier
from heedmap.training.precision import autocast, resolve

NETWORKS = {
    "compact, 144 px": ("compact", 144, 32),
    "whitened, 32 px": ("whitened", 32, 256),
    "paper-vgg, 32 px": ("paper-vgg", 32, 32),
}
PASSES = 4  # a round


def main(rounds: int = 7, device: str = "cpu") -> dict[str, Any]:
    """Measure, keep and return the figures."""
    found = {}
    for title, (name, size, batch) in NETWORKS.items():
        images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        precision = resolve("auto", images.device)
        contenders = {}
        for attention in ("none", "parametrised", "dot", "additive"):
            torch.manual_seed(0)
            architecture = Architecture(name, attention, None, "concat", None, size, tuple("abcdefghij"))
            model = build_classifier(architecture).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

            def forward(
                model: torch.nn.Module = model, images: torch.Tensor = images, precision: str = precision
            ) -> None:
                with torch.inference_mode(), autocast(precision, images.device):
                    for _ in range(PASSES):
                        model(images)

            contenders[attention] = forward
        seconds = alternate(contenders, rounds, device)
        rates = {name: spread([PASSES * batch / value for value in values]) for name, values in seconds.items()}
        plain = rates["none"]["median"]
        found[title] = {
            "images per second": rates,
            "over the plain forward": {name: plain / rate["median"] - 1 for name, rate in rates.items()},
        }
    record = {"ceiling": ceiling(device), "networks": found}
    keep("learned-maps", record)
    return record
