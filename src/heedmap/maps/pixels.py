"""Maps from the gradient with respect to the picture, one value a pixel.

Two ways from three colour channels to one value. ``max``: the largest absolute value, as Simonyan et al. (2014) and the
classic tutorials do. ``signed``: the value of the channel that is largest in absolute value, with its sign. Methods
that multiply by the picture add the channels up instead, so that the map's sum keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from heedmap.errors import ModelError, OptionError, nearest
from heedmap.maps.question import Found, Question, precise, scores_of

CHANNELS = ("max", "signed")


def saliency(question: Question, *, channels: str = "max", score: str = "logit") -> Found:
    """The gradient of the score with respect to the pixels (Simonyan et al. 2014, section 3.1)."""
    _check(channels)
    logits, targets, gradients = pixel_gradients(question, question.images, None, score)
    values = torch.stack([_merged(each, channels) for each in gradients], 1)
    return Found(values, targets, logits, signed=channels == "signed")


def pixel_gradients(
    question: Question,
    images: Tensor,
    targets: Tensor | None,
    score: str,
    within: AbstractContextManager[object] | None = None,
) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
    """Logits (B, K), targets (B, T), and the gradients (B, C, H, W) one target after the other, at least float32.

    Args:
        question: asks for the targets where ``targets`` is None.
        images: (B, C, H, W) where the gradient is taken.
        targets: (B, T) or None.
        score: see :func:`heedmap.maps.question.scores_of`.
        within: entered for the forward pass.
    """
    leaf = images.detach().clone().requires_grad_()
    with within or nullcontext():
        # The copy keeps the leaf whole where the first layer works in place.
        logits = question.logits(leaf.clone())
    asked = question.targets(logits) if targets is None else targets
    return logits.detach(), asked, _each(leaf, scores_of(logits, score), asked)


def _each(leaf: Tensor, scores: Tensor, targets: Tensor) -> Iterator[Tensor]:
    if not scores.requires_grad:
        raise ModelError("The logits do not depend on the picture by a gradient; take a method without, such as rise.")
    for number in range(targets.shape[1]):
        asked = scores.gather(1, targets[:, number : number + 1]).sum()
        (found,) = torch.autograd.grad(asked, leaf, retain_graph=number + 1 < targets.shape[1])
        yield found.to(precise(found.dtype))


def _merged(gradient: Tensor, channels: str) -> Tensor:
    """(B, C, H, W) to (B, H, W)."""
    if channels == "max":
        return gradient.abs().amax(1)
    return gradient.gather(1, gradient.abs().argmax(1, keepdim=True))[:, 0]


def _check(channels: str) -> None:
    if channels not in CHANNELS:
        known = " or ".join(CHANNELS)
        raise OptionError(f"channels {channels!r} is unknown; it can be {known}.{nearest(str(channels), CHANNELS)}")
