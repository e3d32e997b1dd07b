"""Methods computed by captum (BSD-3-Clause), which is imported when one of them is used.

captum sets hooks in a model and draws from the global random state of torch and NumPy. It gets a copy of the model, in
float32 where the model is in half precision, and one image at a time, so that no map depends on its neighbours; the
random states are restored.

DeepLift follows modules, each used once, and passes the plain gradient through whatever it does not know (a functional
ReLU, ReLU6, a softmax over positions, a pooling whose windows overlap), without a warning. Its map has to add up to the
change of the score; this is checked for each image and class, for Kernel SHAP too. Expected gradients need not add up.
"""

import copy
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heedmap.attribution.request import Attribution, Request, check_count, precise
from heedmap.errors import ModelError, OptionError
from heedmap.modules import logits_of

TOLERANCE = 0.01  # of the change of the score; rounding is a thousand times smaller
ROUNDING = 1e-6  # of the sum of absolute values


class _Job(NamedTuple):
    """How captum computes a map, and how that is checked."""

    explainer: str  # class of captum.attr
    baseline: float  # the value of every pixel of the uniform image
    alternative: str  # what to take where this fails, as the end of an error
    options: dict[str, Any] = {}  # noqa: RUF012  of the explainer's `attribute`; nothing changes the default
    seed: int = 0  # of torch's and NumPy's global random state inside
    shares: Tensor | None = None  # (H, W) with which the map adds up to the change of the score; None: it does not
    divisor: int = 1  # of all values, before the channels are summed


def deep_lift(request: Request, *, baseline: float = 0.0) -> Attribution:
    """DeepLift, rescale rule (Shrikumar et al. 2017), against a uniform image; channels summed, signed.

    Raises:
        ModelError: a network that captum cannot follow, so that the map does not add up to the change of the score.
    """
    alternative = (
        "It follows networks whose every nn.ReLU is a module of its own, used once, and that multiply no features with "
        "weights made of them, as attention does; for others take integrated-gradients."
    )
    ones = torch.ones(request.images.shape[-2:], device=request.images.device)
    return _by_captum(request, _Job("DeepLift", baseline, alternative, shares=ones))


def gradient_shap(
    request: Request, *, count: int = 20, noise: float = 0.09, baseline: float = 0.0, seed: int = 0
) -> Attribution:
    """Expected gradients (Lundberg and Lee 2017; Erion et al. 2021) against a uniform image; channels summed, signed.

    Args:
        count, noise, seed: number of noisy copies, their standard deviation in the image's units, and their seed.
        baseline: the value of every pixel of the uniform image.
    """
    check_count(count=count)
    options = {"n_samples": count, "stdevs": noise}
    return _by_captum(request, _Job("GradientShap", baseline, "Take integrated-gradients.", options, seed))


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
    check_count(min(request.images.shape[-2:]), cells=cells)
    check_count(count=count)
    if cells == 1 or count == 1:
        raise OptionError(f"cells {cells} and count {count} leave nothing to compare; take 2 or more of both.")
    sides, device = request.images.shape[-2:], request.images.device
    rows, columns = (torch.arange(side, device=device) * cells // side for side in sides)
    mask = rows[:, None] * cells + columns  # (H, W), the number of the cell that each pixel lies in
    shares = 1 / mask.flatten().bincount()[mask]
    options = {"feature_mask": mask.expand(1, *request.images.shape[1:]), "n_samples": count}
    channels = request.images.shape[1]  # captum gives the cell's value to each of them
    job = _Job("KernelShap", baseline, "Take another count, or occlusion.", options, seed, shares, channels)
    return _by_captum(request, job)


class _Logits(nn.Module):
    """A module that returns a tensor, as captum needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model, images)


def _by_captum(request: Request, job: _Job) -> Attribution:
    logits, targets = request.run()
    dtype = precise(request.images.dtype)
    net = _Logits(copy.deepcopy(request.model)).to(dtype)
    rows = []
    for row, classes in enumerate(targets.tolist()):
        image = request.images[row : row + 1].to(dtype)
        uniform = torch.full_like(image, job.baseline)
        with torch.no_grad():
            of_image, of_uniform = net(image)[0], net(uniform)[0]
        for target in classes:
            values = _attribute(job, net, (image.clone(), uniform.clone()), target).detach().sum(1)[0]
            if job.shares is not None:
                where = f"image {row}, class {target} of {type(request.model).__name__}"
                scores = of_image[target].item(), of_uniform[target].item()
                _check_sum(where, job.alternative, values * job.shares, *scores)
            rows.append(values)
    return Attribution(torch.stack(rows).unflatten(0, tuple(targets.shape)), targets, logits, signed=True)


def _attribute(job: _Job, net: nn.Module, images: tuple[Tensor, Tensor], target: int) -> Tensor:
    """Return (1, C, H, W) for an image and its uniform baseline."""
    try:
        import captum.attr
    except ImportError as reason:
        raise ModelError(f"This method needs captum: pip install 'heedmap[captum]' ({reason}).") from reason
    before: Any = np.random.get_state()
    torch.manual_seed(job.seed)  # restored by evaluation_mode, in explain
    np.random.seed(job.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it sets hooks, for which it got a copy
            explainer = getattr(captum.attr, job.explainer)(net)
            values: Tensor = explainer.attribute(*images, target=target, **job.options)
            return values / job.divisor
    except (AssertionError, RuntimeError, TypeError) as reason:
        first = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise ModelError(f"captum cannot explain this network: {first.rstrip('. ')}. {job.alternative}") from reason
    finally:
        np.random.set_state(before)


def _check_sum(where: str, alternative: str, values: Tensor, full: float, uniform: float) -> None:
    """Raise a ModelError where values miss the score minus that of the uniform image by more than rounding."""
    total, change = values.sum().item(), full - uniform
    rounding = ROUNDING * (abs(full) + abs(uniform) + values.abs().sum().item())
    if not abs(total - change) <= TOLERANCE * abs(change) + rounding:
        raise ModelError(
            f"captum's map of {where} adds up to {total:.4g} where the score changes by {change:.4g}; by definition "
            f"the two are equal. {alternative}"
        )
