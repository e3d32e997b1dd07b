"""The request to a map method, and its result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.errors import OptionError, nearest
from heedmap.modules import logits_of

Target: TypeAlias = int | str | Tensor | Sequence[int] | Sequence[Sequence[int]] | None
"""None the predicted class, ``"all"`` every class, one class, one an image (B,), or several an image (B, T)."""

SCORES = ("logit", "probability")


@dataclass(frozen=True)
class Explanation:
    """Maps of a batch of images, raw: nothing is rescaled, and nothing is brought to the size of the image.

    Attributes:
        values: (B, T, h, w) float32, on the device of the model.
        targets: (B, T) int64, the classes that the maps explain.
        logits: (B, K) float32.
        method: key of :data:`heedmap.attribution.METHODS`.
        layer: the layer or tap that was read; None for methods that read none.
        signed: whether negative values speak against the class; otherwise all are at least zero.
    """

    values: Tensor
    targets: Tensor
    logits: Tensor
    method: str
    layer: str | None
    signed: bool

    def resized(self, height: int, width: int) -> Tensor:
        """Return the maps (B, T, height, width), bilinear between the centres of the cells."""
        return F.interpolate(self.values, (height, width), mode="bilinear", align_corners=False)


class Attribution(NamedTuple):
    """What a method returns to :func:`heedmap.attribution.explain`; see :class:`Explanation` for the fields."""

    values: Tensor
    targets: Tensor
    logits: Tensor
    layer: str | None = None
    signed: bool = False


@dataclass(frozen=True)
class Request:
    """One call of :func:`heedmap.attribution.explain`, checked.

    Attributes:
        model: unwrapped, in evaluation mode, its parameters frozen.
        images: (B, C, H, W) on the model's device, in its precision.
        target: see :data:`Target`.
        layer: a name that the user gave, or None.
    """

    model: nn.Module
    images: Tensor
    target: Target
    layer: str | None

    def logits(self, images: Tensor | None = None) -> Tensor:
        """Return (B, K) logits of the images, or of others."""
        return logits_of(self.model, self.images if images is None else images)

    def targets(self, logits: Tensor) -> Tensor:
        """Return (B, T) int64 target classes; see :func:`chosen_targets`."""
        return chosen_targets(self.target, logits)


def chosen_targets(target: Target, logits: Tensor) -> Tensor:
    """Turn the user's target into (B, T) int64 class indices, with logits (B, K) at hand.

    Raises:
        OptionError: no such class, or not one (row of) class for each image.
    """
    batch, classes = logits.shape
    if target is None:
        return logits.detach().argmax(1, keepdim=True)
    if isinstance(target, str):
        if target != "all":
            raise OptionError(f"target {target!r} is no class index; give an int, one an image, None, or 'all'.")
        return torch.arange(classes, device=logits.device).expand(batch, classes)
    try:
        chosen = torch.as_tensor(target)
    except (TypeError, ValueError) as reason:
        raise OptionError(f"target {target!r} is no table of class indices: {reason}.") from reason
    if chosen.dtype == torch.bool or chosen.is_floating_point() or chosen.is_complex():
        raise OptionError(f"target holds {chosen.dtype}; class indices are integers.")
    chosen = chosen.to(logits.device, torch.int64)
    if chosen.dim() == 0:
        chosen = chosen.expand(batch)
    if chosen.dim() == 1:
        chosen = chosen[:, None]
    if chosen.dim() != 2 or len(chosen) != batch or chosen.shape[1] == 0:
        raise OptionError(
            f"target has the shape {tuple(torch.as_tensor(target).shape)} for {batch} images; give one class, one a "
            "image (B,), or several an image (B, T)."
        )
    if chosen.min() < 0 or chosen.max() >= classes:
        wrong = int(chosen.max() if chosen.max() >= classes else chosen.min())
        raise OptionError(f"target {wrong} is no class; the model has {classes}, 0 to {classes - 1}.")
    return chosen


def scores_of(logits: Tensor, score: str = "logit") -> Tensor:
    """Return (B, K) what is explained: the logits themselves, or their softmax.

    Raises:
        OptionError: an unknown ``score``.
    """
    if score not in SCORES:
        raise OptionError(f"score {score!r} is unknown; it can be {' or '.join(SCORES)}.{nearest(str(score), SCORES)}")
    return logits if score == "logit" else logits.to(precise(logits.dtype)).softmax(1)


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return ``dtype``, or float32 where that is more precise: maps are computed in at least that."""
    return torch.promote_types(dtype, torch.float32)


def run_plainly(request: Request) -> tuple[Tensor, Tensor]:
    """Return logits (B, K) and targets (B, T) of the unchanged images, without a graph."""
    with torch.no_grad():
        logits = request.logits()
    return logits, request.targets(logits)


def check_count(name: str, value: int, most: int = 1_000_000) -> None:
    """Check that a setting is a whole number from 1 on.

    Raises:
        OptionError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise OptionError(f"{name} is a whole number from 1 to {most:,}, not {value!r}.")


def check_share(name: str, value: float, most: float = 1.0) -> None:
    """Check that a setting is a number above 0 and up to ``most``.

    Raises:
        OptionError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise OptionError(f"{name} is a number above 0, up to {most:g}, not {value!r}.")
