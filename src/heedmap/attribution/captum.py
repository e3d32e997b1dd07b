"""Methods computed by captum (BSD-3-Clause), which is imported when one of them is used.

captum sets hooks in a model and draws from the global random state of torch and NumPy. It gets a copy of the model, in
float32 where the model is in half precision, and one image at a time, so that no map depends on its neighbours; the
random states are restored.

DeepLift follows modules, each used once, and passes the plain gradient through whatever it does not know (a functional
ReLU, ReLU6, a softmax over positions, a pooling whose windows overlap), without a warning. Its map has to add up
to the change of the score, so this is checked for each image and class, and for Kernel SHAP too. Expected gradients add
up only in expectation; they are not checked.
"""

import copy
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heedmap.attribution.request import Attribution, Request, check_count, precise, run_plainly
from heedmap.errors import ModelError, OptionError
from heedmap.modules import logits_of

TOLERANCE = 0.01  # of the change of the score; rounding is a thousand times smaller
ROUNDING = 1e-6  # of the sum of absolute values


class _Job(NamedTuple):
    """How captum computes a map, and how that is checked.

    Attributes:
        attribute: network, image (1, C, H, W) and class to an attribution (1, C, H, W).
        baseline: the value of every pixel of the uniform image.
        alternative: what to take where this fails, as the end of an error.
        seed: of torch's and NumPy's global random state inside.
        shares: (H, W) with which the map adds up to the change of the score; None where it does not.
    """

    attribute: Callable[[nn.Module, Tensor, int], Tensor]
    baseline: float
    alternative: str
    seed: int = 0
    shares: Tensor | None = None


def deep_lift(request: Request, *, baseline: float = 0.0) -> Attribution:
    """DeepLift, rescale rule (Shrikumar et al. 2017), against a uniform image; channels summed, signed.

    Raises:
        ModelError: a network that captum cannot follow, so that the map does not add up to the change of the score.
    """
    captum = _captum()

    def attribute(net: nn.Module, image: Tensor, target: int) -> Tensor:
        values: Tensor = captum.DeepLift(net).attribute(image, _uniform(image, baseline), target)
        return values

    alternative = (
        "It follows networks whose every nn.ReLU is a module of its own, used once, and that multiply no features with "
        "weights made of them, as attention does; for others take integrated-gradients."
    )
    ones = torch.ones(request.images.shape[-2:], device=request.images.device)
    return _by_captum(request, _Job(attribute, baseline, alternative, shares=ones))


def gradient_shap(
    request: Request, *, count: int = 20, noise: float = 0.09, baseline: float = 0.0, seed: int = 0
) -> Attribution:
    """Expected gradients (Lundberg and Lee 2017; Erion et al. 2021) against a uniform image; channels summed, signed.

    Args:
        count: noisy copies an image.
        noise: standard deviation, in the image's units.
        baseline: the value of every pixel of the uniform image.
        seed: of the noise.
    """
    check_count("count", count)
    captum = _captum()

    def attribute(net: nn.Module, image: Tensor, target: int) -> Tensor:
        values: Tensor = captum.GradientShap(net).attribute(
            image, _uniform(image, baseline), n_samples=count, stdevs=noise, target=target
        )
        return values

    return _by_captum(request, _Job(attribute, baseline, "Take integrated-gradients.", seed))


def kernel_shap(
    request: Request, *, cells: int = 7, count: int = 200, baseline: float = 0.0, seed: int = 0
) -> Attribution:
    """Kernel SHAP (Lundberg and Lee 2017) over a grid of cells instead of single pixels; signed.

    A pixel's value is that of its cell, so it is the cells that add up to the change of the score.

    Args:
        cells: cells to a side, from 2 on.
        count: images with some cells covered, from 2 on: the first two have none and all of them covered.
        baseline: the value of a covered pixel.
        seed: of the choice of cells.
    """
    check_count("cells", cells, min(request.images.shape[-2:]))
    check_count("count", count)
    if cells == 1 or count == 1:
        raise OptionError(f"cells {cells} and count {count} leave nothing to compare; take 2 or more of both.")
    captum = _captum()
    mask = _cells(request.images, cells)

    def attribute(net: nn.Module, image: Tensor, target: int) -> Tensor:
        values: Tensor = captum.KernelShap(net).attribute(
            image, _uniform(image, baseline), target, feature_mask=mask.expand(1, *image.shape[1:]), n_samples=count
        )
        return values / image.shape[1]  # captum gives the cell's value to each channel

    shares = 1 / mask.flatten().bincount()[mask]
    return _by_captum(request, _Job(attribute, baseline, "Take another count, or occlusion.", seed, shares))


def _cells(images: Tensor, cells: int) -> Tensor:
    """Return (H, W), the number of the cell that each pixel lies in."""
    rows, columns = (torch.arange(side, device=images.device) * cells // side for side in images.shape[-2:])
    return rows[:, None] * cells + columns


class _Logits(nn.Module):
    """A module that returns a tensor, as captum needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model, images)


def _captum() -> types.ModuleType:
    try:
        import captum.attr
    except ImportError as reason:
        raise ModelError(f"This method needs captum: pip install 'heedmap[captum]' ({reason}).") from reason
    return captum.attr


def _by_captum(request: Request, job: _Job) -> Attribution:
    logits, targets = run_plainly(request)
    dtype = precise(request.images.dtype)
    net = _Logits(copy.deepcopy(request.model)).to(dtype)
    rows = []
    for row, classes in enumerate(targets.tolist()):
        image = request.images[row : row + 1].to(dtype)
        with torch.no_grad():
            full, uniform = net(image)[0], net(_uniform(image, job.baseline))[0]
        for target in classes:
            values = _attribute(job, net, image.clone(), target).detach().sum(1)[0]
            if job.shares is not None:
                where = f"image {row}, class {target} of {type(request.model).__name__}"
                _check_sum(where, job.alternative, values * job.shares, full[target].item(), uniform[target].item())
            rows.append(values)
    return Attribution(torch.stack(rows).unflatten(0, tuple(targets.shape)), targets, logits, signed=True)


def _attribute(job: _Job, net: nn.Module, image: Tensor, target: int) -> Tensor:
    try:
        with _seeded(job.seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it sets hooks, for which it got a copy
            return job.attribute(net, image, target)
    except (AssertionError, RuntimeError, TypeError) as reason:
        first = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise ModelError(f"captum cannot explain this network: {first.rstrip('. ')}. {job.alternative}") from reason


def _check_sum(where: str, alternative: str, values: Tensor, full: float, uniform: float) -> None:
    """Check that values add up to the score minus that of the uniform image.

    Raises:
        ModelError: they miss it by more than TOLERANCE and rounding.
    """
    total, change = values.sum().item(), full - uniform
    rounding = ROUNDING * (abs(full) + abs(uniform) + values.abs().sum().item())
    if not abs(total - change) <= TOLERANCE * abs(change) + rounding:
        raise ModelError(
            f"captum's map of {where} adds up to {total:.4g} where the score changes by {change:.4g}; by definition "
            f"the two are equal. {alternative}"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import numpy as np

    before: Any = np.random.get_state()
    torch.manual_seed(seed)  # restored by evaluation_mode, in explain
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def _uniform(image: Tensor, value: float) -> Tensor:
    return torch.full_like(image, value)
