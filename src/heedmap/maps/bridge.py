"""The long tail through captum (BSD-3-Clause), which is imported when one of these is asked for.

captum hangs hooks into a model and draws from the global random state of torch and NumPy. It gets a copy of the model,
in float32 where the model is shorter, and one picture at a time, so that no map depends on its neighbours; the random
states are put back.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.errors import ModelError
from heedmap.maps.network import logits_of
from heedmap.maps.question import Found, Question, asked_plainly, check_count, precise


def deep_lift(question: Question, *, baseline: float = 0.0) -> Found:
    """DeepLift, rescale rule (Shrikumar et al. 2017), against an even picture; channels added up, signed."""
    captum = _captum()
    return _by_captum(
        question, lambda net, image, target: captum.DeepLift(net).attribute(image, _even(image, baseline), target)
    )


def gradient_shap(
    question: Question, *, count: int = 20, noise: float = 0.09, baseline: float = 0.0, seed: int = 0
) -> Found:
    """Expected gradients (Lundberg and Lee 2017; Erion et al. 2021) against an even picture; channels added up, signed.

    Args:
        question: see :class:`Question`.
        count: noisy copies a picture.
        noise: standard deviation, in the picture's units.
        baseline: the value of every pixel of the even picture.
        seed: of the noise.
    """
    check_count("count", count)
    captum = _captum()

    def ask(net: nn.Module, image: Tensor, target: int) -> Tensor:
        found: Tensor = captum.GradientShap(net).attribute(
            image, _even(image, baseline), n_samples=count, stdevs=noise, target=target
        )
        return found

    return _by_captum(question, ask, seed)


def kernel_shap(question: Question, *, cells: int = 7, count: int = 200, baseline: float = 0.0, seed: int = 0) -> Found:
    """Kernel SHAP (Lundberg and Lee 2017) over a grid of cells instead of single pixels; signed.

    Args:
        question: see :class:`Question`.
        cells: cells to a side.
        count: pictures with some cells covered.
        baseline: the value of a covered pixel.
        seed: of the choice of cells.
    """
    check_count("cells", cells, min(question.images.shape[-2:]))
    check_count("count", count)
    captum = _captum()
    height, width = question.images.shape[-2:]
    rows = torch.arange(height, device=question.images.device) * cells // height
    columns = torch.arange(width, device=question.images.device) * cells // width
    mask = (rows[:, None] * cells + columns)[None, None]

    def ask(net: nn.Module, image: Tensor, target: int) -> Tensor:
        found: Tensor = captum.KernelShap(net).attribute(
            image, _even(image, baseline), target, feature_mask=mask.expand_as(image), n_samples=count
        )
        return found / image.shape[1]  # captum gives the cell's value to each channel

    return _by_captum(question, ask, seed)


class _Logits(nn.Module):
    """captum wants a module that gives a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model, images)


def _captum() -> types.ModuleType:
    try:
        import captum.attr
    except ImportError as reason:
        raise ModelError(f"This method is captum's: pip install 'heedmap[captum]' ({reason}).") from reason
    return captum.attr


def _by_captum(question: Question, ask: Callable[[nn.Module, Tensor, int], Tensor], seed: int = 0) -> Found:
    logits, targets = asked_plainly(question)
    dtype = precise(question.images.dtype)
    net = _Logits(copy.deepcopy(question.model)).to(dtype)
    rows = []
    for image, asked in zip(question.images, targets.tolist(), strict=True):
        for target in asked:
            with _seeded(seed), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it sets hooks, which is why it got a copy
                found = _asked(ask, net, image[None].to(dtype, copy=True), target)
            rows.append(found.detach().sum(1)[0])
    return Found(torch.stack(rows).unflatten(0, tuple(targets.shape)), targets, logits, signed=True)


def _asked(ask: Callable[[nn.Module, Tensor, int], Tensor], net: nn.Module, image: Tensor, target: int) -> Tensor:
    try:
        return ask(net, image, target)
    except (AssertionError, RuntimeError, TypeError) as reason:
        first = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise ModelError(f"captum cannot explain this network: {first}") from reason


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import numpy as np

    before: Any = np.random.get_state()
    torch.manual_seed(seed)  # put back by whoever called: see network.untouched
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def _even(image: Tensor, value: float) -> Tensor:
    return torch.full_like(image, value)
