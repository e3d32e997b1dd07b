"""The request to a map method, its result, and what several methods need for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.errors import OptionError, nearest
from heedmap.modules import logits_of

Target: TypeAlias = int | str | Tensor | Sequence[int] | Sequence[Sequence[int]] | None
"""None the predicted class, ``"all"`` every class, one class, one an image (B,), or several an image (B, T)."""


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
        """Return (B, T) int64 target classes for logits (B, K); an OptionError for no class, or not one an image."""
        batch, classes = logits.shape
        if self.target is None:
            return logits.detach().argmax(1, keepdim=True)
        if isinstance(self.target, str):
            if self.target != "all":
                raise OptionError(f"target {self.target!r} is no class; give an int, one an image, None, or 'all'.")
            return torch.arange(classes, device=logits.device).expand(batch, classes)
        try:
            given = torch.as_tensor(self.target)
        except (TypeError, ValueError) as reason:
            raise OptionError(f"target {self.target!r} is no table of class indices: {reason}.") from reason
        if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
            raise OptionError(f"target holds {given.dtype}; class indices are integers.")
        chosen = given.to(logits.device, torch.int64)
        if chosen.dim() < 2:
            chosen = chosen.expand(batch)[:, None] if chosen.dim() == 0 else chosen[:, None]
        if chosen.dim() != 2 or len(chosen) != batch or chosen.shape[1] == 0:
            raise OptionError(
                f"target has the shape {tuple(given.shape)} for {batch} images; give one class, one an image (B,), or "
                "several an image (B, T)."
            )
        if chosen.min() < 0 or chosen.max() >= classes:
            wrong = int(chosen.max() if chosen.max() >= classes else chosen.min())
            raise OptionError(f"target {wrong} is no class; the model has {classes}, 0 to {classes - 1}.")
        return chosen

    def run(self) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and targets (B, T) of the unchanged images, without a graph."""
        with torch.no_grad():
            logits = self.logits()
        return logits, self.targets(logits)


def scores_of(logits: Tensor, score: str = "logit") -> Tensor:
    """Return (B, K) what is explained: the logits themselves, or their softmax for ``probability``."""
    check_choice("score", score, ("logit", "probability"))
    return logits if score == "logit" else logits.to(precise(logits.dtype)).softmax(1)


def target_gradients(
    scores: Tensor, targets: Tensor, inputs: Tensor | Sequence[Tensor]
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the gradients of each target's score, target by target; None for an input that it does not depend on."""
    for number in range(targets.shape[1]):
        total = scores.gather(1, targets[:, number : number + 1]).sum()  # no image depends on another one
        is_last = number + 1 == targets.shape[1]
        yield torch.autograd.grad(total, inputs, retain_graph=not is_last, allow_unused=True)


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return ``dtype``, or float32 where that is more precise: maps are computed in at least that."""
    return torch.promote_types(dtype, torch.float32)


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise an :class:`OptionError` for a setting that is not one of the known words."""
    if value not in known:
        raise OptionError(f"{name} {value!r} is unknown; it can be {', '.join(known)}.{nearest(str(value), known)}")


def check_count(most: int = 1_000_000, **settings: int) -> None:
    """Raise an :class:`OptionError` for a setting that is no whole number from 1 to ``most``."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise OptionError(f"{name} is a whole number from 1 to {most:,}, not {value!r}.")


def check_share(name: str, value: float, most: float = 1.0) -> None:
    """Raise an :class:`OptionError` for a setting that is no number above 0, up to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise OptionError(f"{name} is a number above 0, up to {most:g}, not {value!r}.")
