"""The module that is exported: decoded images of any size in, all outputs of the classifier out."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from heedmap.inference.onnx import FEATURES, MAP
from heedmap.models.classifier import AttentionClassifier, combined_map


class Squared(nn.Module):
    """:func:`heedmap.data.decoding.square` as arithmetic that any runtime can do: two matrix products.

    Pillow's antialiased bilinear resize is separable and linear: pixel i of the result is the mean of the source's
    pixels j, weighted by a triangle as wide as two result pixels (never narrower than two source pixels), and rounded
    to whole levels after the horizontal and again after the vertical pass. The places are computed in whole numbers,
    so an image that has the right size already meets the identity matrix, and comes out bit for bit.

    ONNX's own Resize was not taken: it can do neither the half pixel of an odd margin nor the two roundings. What
    differs from Pillow: a level here and there where the exact value lies at half a level, or where Pillow takes the
    vertical pass first; and from six times ``size`` on its ``reducing_gap``, which averages whole blocks first.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Turn uint8 (B, H, W, 3) into float32 (B, 3, size, size) in [0, 1]."""
        height, width = (torch.full((), images.shape[axis], dtype=torch.int64) for axis in (1, 2))
        side = torch.minimum(height, width)
        levels = images.permute(0, 3, 1, 2).float()
        across = _weights(images.shape[2], width - side, side, self.size)
        down = _weights(images.shape[1], height - side, side, self.size)
        levels = (levels @ across.T + 0.5).floor()
        levels = (down @ levels + 0.5).floor()
        return levels.clamp(0, 255) / 255


def _weights(count: int, margin: Tensor, side: Tensor, size: int) -> Tensor:
    """(size, count): how much each of the source's pixels counts for each of the result's.

    The centre of result pixel i lies at ``margin / 2 + (i + 0.5) * side / size``, that of source pixel j at j + 0.5;
    the distance is kept as a whole number of 1 / (2 * size).
    """
    result, source = torch.arange(size)[:, None], torch.arange(count)[None]
    distance = size * margin + (2 * result + 1) * side - size * (2 * source + 1)
    weights = (1 - distance.abs().float() / (2 * side.clamp_min(size)).float()).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


class NamedOutputs(nn.Module):
    """The classifier with all its outputs as named tensors: the outputs of an exported file.

    The names: ``logits``, ``probabilities``, ``map_TAP`` for each tap, ``map_combined`` where there are several,
    ``features_before`` and ``features_after`` for soft feature attention.
    """

    def __init__(self, classifier: AttentionClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, scaled: Tensor) -> dict[str, Tensor]:
        """Predict images (B, 3, S, S) in [0, 1]."""
        output = self.classifier(scaled)
        outputs = {"logits": output.logits, "probabilities": output.probabilities}
        outputs |= {f"{MAP}{tap}": values for tap, values in output.attention.items()}
        if len(output.attention) > 1:
            outputs[f"{MAP}combined"] = combined_map(output.attention, output.shares)
        return outputs | {f"{FEATURES}{name}": values for name, values in output.features.items()}


class Exportable(nn.Module):
    """Preparation and ``predict``: from images (B, 3, size, size) in [0, 1], and targets (B,), to named tensors."""

    def __init__(self, size: int, predict: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.squared, self.predict = Squared(size), predict

    def forward(self, images: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        """Predict images: uint8 (B, H, W, 3)."""
        scaled = self.squared(images)
        return self.predict(scaled) if target is None else self.predict(scaled, target)
