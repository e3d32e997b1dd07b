"""Maps from the gradient with respect to the image, one value for each pixel.

Two ways from three colour channels to one value: ``max``, the largest absolute value, as Simonyan et al. (2014);
``signed``, that value with its sign. Methods that multiply by the image sum the channels instead, so that the map's sum
keeps its meaning.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from heedmap.attribution.request import (
    Attribution,
    Request,
    check_choice,
    check_count,
    check_share,
    precise,
    scores_of,
    target_gradients,
)
from heedmap.errors import ModelError

CHANNELS = ("max", "signed")
# Targets whose colour channels smoothgrad keeps apart at a time, as it must until the mean is taken; the forward passes
# run again for every so many.
AT_A_TIME = 64


def saliency(request: Request, *, channels: str = "max", score: str = "logit") -> Attribution:
    """Compute the gradient of the score with respect to the pixels (Simonyan et al. 2014, section 3.1)."""
    return _merged_gradients(request, channels, score)


def _merged_gradients(
    request: Request, channels: str, score: str, within: AbstractContextManager[object] | None = None
) -> Attribution:
    check_choice("channels", channels, CHANNELS)
    logits, targets, gradients = pixel_gradients(request, request.images, None, score, within)
    values = torch.stack([_merged(gradient, channels) for gradient in gradients], 1)
    return Attribution(values, targets, logits, signed=channels == "signed")


def pixel_gradients(
    request: Request,
    images: Tensor,
    targets: Tensor | None,
    score: str,
    within: AbstractContextManager[object] | None = None,
) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
    """Return logits (B, K), targets (B, T), and the gradients (B, C, H, W) target by target, at least float32.

    The gradients are taken at ``images`` (B, C, H, W), of the request's targets where ``targets`` is None; ``within``
    is entered for the forward pass.

    Raises:
        ModelError: the logits have no gradient at the image.
    """
    leaf = images.detach().clone().requires_grad_()
    with within or nullcontext():
        logits = request.logits(leaf.clone())  # the copy keeps the leaf whole where the first layer works in place
    chosen = request.targets(logits) if targets is None else targets
    scores = scores_of(logits, score)
    missing = ModelError("The logits have no gradient at the image; take a method without gradients, such as rise.")
    if not scores.requires_grad:
        raise missing

    def gradients() -> Iterator[Tensor]:
        for (gradient,) in target_gradients(scores, chosen, leaf):
            if gradient is None:
                raise missing
            yield gradient.to(precise(gradient.dtype))

    return logits.detach(), chosen, gradients()


def _merged(gradient: Tensor, channels: str) -> Tensor:
    """(B, C, H, W) to (B, H, W)."""
    size = gradient.abs()
    return size.amax(1) if channels == "max" else gradient.gather(1, size.argmax(1, keepdim=True))[:, 0]


def input_x_gradient(request: Request, *, score: str = "logit") -> Attribution:
    """Compute pixel times gradient, summed over the channels; signed (Shrikumar et al. 2016)."""
    logits, targets, gradients = pixel_gradients(request, request.images, None, score)
    images = request.images.to(precise(request.images.dtype))
    values = torch.stack([(images * gradient).sum(1) for gradient in gradients], 1)
    return Attribution(values, targets, logits, signed=True)


def smoothgrad(
    request: Request,
    *,
    count: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    channels: str = "max",
    score: str = "logit",
) -> Attribution:
    """Compute the mean gradient over noisy copies of the image (Smilkov et al. 2017).

    Args:
        count: number of noisy copies.
        noise: standard deviation of the noise as a share of the image's largest minus its smallest value.
        seed: of the noise. Every image gets the same draws, so that a map does not depend on its neighbours.
        channels, score: as :func:`saliency`.
    """
    check_choice("channels", channels, CHANNELS)
    check_count(count=count)
    check_share("noise", noise, 10.0)
    images, source = request.images, torch.Generator().manual_seed(seed)
    spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    logits, targets = request.run()
    state, parts = source.get_state(), []
    for some in targets.split(AT_A_TIME, 1):
        source.set_state(state)
        total = images.new_zeros(*some.shape, *images.shape[1:], dtype=precise(images.dtype))
        for _ in range(count):
            draw = torch.randn((1, *images.shape[1:]), generator=source).to(images)
            _, _, gradients = pixel_gradients(request, images + spread * draw, some, score)
            for number, gradient in enumerate(gradients):
                total[:, number] += gradient / count
        parts += [_merged(mean, channels) for mean in total.unbind(1)]
    return Attribution(torch.stack(parts, 1), targets, logits, signed=channels == "signed")


def integrated_gradients(
    request: Request, *, steps: int = 50, baseline: float = 0.0, score: str = "logit"
) -> Attribution:
    """Compute integrated gradients (Sundararajan et al. 2017, eq. 1), summed over the channels; signed.

    The integral is a Gauss-Legendre sum. The map's sum is the score minus that of the baseline, up to its error.

    Args:
        steps: number of points on the path, each one forward and backward pass.
        baseline: the value of every pixel at the start of the path; 0 is black for heedmap's own classifiers.
        score: as :func:`saliency`.
    """
    check_count(steps=steps)
    images = request.images
    logits, targets = request.run()
    way = (images - baseline).to(precise(images.dtype))
    total = way.new_zeros(*targets.shape, *images.shape[-2:])
    for place, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):
        between = baseline + (images - baseline) * (0.5 + 0.5 * float(place))
        _, _, gradients = pixel_gradients(request, between, targets, score)
        for number, gradient in enumerate(gradients):
            total[:, number] += (gradient * way).sum(1) * (0.5 * float(weight))
    return Attribution(total, targets, logits, signed=True)


def guided_backprop(request: Request, *, channels: str = "max", score: str = "logit") -> Attribution:
    """Compute the gradient with negative parts set to zero on its way back through a ReLU (Springenberg et al. 2015).

    ReLU6 counts as one, and so does a clamp from 0 up. Modules and functions are both changed, in this thread and
    during this call only.

    Raises:
        ModelError: the network has no ReLU, so this would be plain saliency.
    """
    guide = _PositiveGradients()
    attribution = _merged_gradients(request, channels, score, within=guide)
    if guide.count == 0:
        raise ModelError(
            f"{type(request.model).__name__} uses no ReLU, so guided-backprop would be plain saliency; take saliency."
        )
    return attribution


_RELUS = {F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_HARDTANHS = {F.hardtanh, F.hardtanh_}  # nn.ReLU6 calls it
_CLAMPS = {torch.clamp, torch.clamp_, torch.clip, torch.clip_, Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_}
_CLAMPS |= {torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_}


class _PositiveGradients(TorchFunctionMode):
    """Lets only the positive part of a gradient pass back through every ReLU; ``count`` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        done = func(*args, **kwargs)
        if _is_relu(func, args, kwargs):
            self.count += 1
            if done.requires_grad:
                done.register_hook(lambda gradient: gradient.clamp_min(0))  # also where it worked in place
        return done


def _is_relu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    def bound(place: int, name: str) -> Any:
        return kwargs.get(name, args[place] if len(args) > place else None)

    def is_number(value: Any, number: int) -> bool:
        return isinstance(value, int | float) and value == number

    if func in _HARDTANHS:
        return is_number(bound(1, "min_val"), 0)
    if func in _CLAMPS:
        high = bound(2, "max")
        # Up to 1 it keeps pixels or weights in their range; up to 6 it is ReLU6 written out.
        return is_number(bound(1, "min"), 0) and (high is None or is_number(high, 6))
    return func in _RELUS
