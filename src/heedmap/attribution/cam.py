"""Class activation maps: a layer's channels, weighed for a class and added up.

With A (C, h, w) the activation, g the gradient of the target's score with respect to it, and N = h * w positions:

    CAM          sum_c W[k, c] A_c                        Zhou et al. 2016, only where the head is a mean and W
    Grad-CAM     relu(sum_c mean(g_c) A_c)                Selvaraju et al. 2017, eq. 1 and 2
    Grad-CAM++   relu(sum_c w_c A_c),                     Chattopadhay et al. 2018, eq. 13 and 19
                 w_c = sum_ij g^2 / (2 g^2 + g^3 sum A_c) relu(g)
    HiRes-CAM    relu(sum_c g_c A_c)                      Draelos and Carin 2020
    Layer-CAM    relu(sum_c relu(g_c) A_c)                Jiang et al. 2021, eq. 6 and 7

Grad-CAM++ is written for the score exp(S): its derivatives of g with respect to S are powers of g times exp(S), which
cancels but for one factor an image. That factor is left out, as everywhere; it scales a map and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from heedmap.attribution.activations import Caught, catch, gradients, grid_of_layer, pooled_weights
from heedmap.attribution.request import Attribution, Request
from heedmap.errors import ModelError

Weigh: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Activation (B, C, h, w) and gradient (B, C, h, w) to weights (B, C, h, w) or (B, C, 1, 1)."""


def cam(request: Request) -> Attribution:
    """CAM: the weights of the linear layer themselves; signed."""
    caught = catch(request)
    grid = grid_of_layer(request, caught, caught.leaf)
    weights = pooled_weights(caught, grid)
    if weights is None:
        raise ModelError(
            f"CAM needs a head that is a mean over the positions of {caught.layer!r} and one linear layer; such a head "
            f"could not be recognised in {type(request.model).__name__}. Name the layer that is averaged, or take "
            "grad-cam, which is CAM wherever CAM exists."
        )
    targets = request.targets(caught.logits)
    return Attribution(_added(weights[targets], grid), targets, caught.logits, caught.layer, signed=True)


def grad_cam(request: Request, *, relu: bool = True, score: str = "logit") -> Attribution:
    """Grad-CAM: each channel weighs its mean gradient. ``relu=False`` keeps the sign."""
    return _weighed(request, lambda _, gradient: gradient.mean((2, 3), keepdim=True), relu, score)


def grad_cam_plus_plus(request: Request, *, relu: bool = True, score: str = "logit") -> Attribution:
    """Grad-CAM++: each channel weighs its positive gradients, by their share; see the module's text."""
    return _weighed(request, _plus_plus, relu, score)


def hires_cam(request: Request, *, relu: bool = True, score: str = "logit") -> Attribution:
    """HiRes-CAM: gradient times activation, place by place. ``relu=False`` keeps the sign."""
    return _weighed(request, lambda _, gradient: gradient, relu, score)


def layer_cam(request: Request, *, relu: bool = True, score: str = "logit") -> Attribution:
    """Layer-CAM: positive gradient times activation, place by place."""
    return _weighed(request, lambda _, gradient: gradient.relu(), relu, score)


def _plus_plus(grid: Tensor, gradient: Tensor) -> Tensor:
    # g^2 / (2 g^2 + g^3 sum A) with g^2 cancelled, which small gradients would bring to zero; where g is zero so is
    # the share, and where negative activations bring the whole to zero it is left out.
    whole = torch.where(gradient == 0, 0, 2 + gradient * grid.sum((2, 3), keepdim=True))
    share = torch.where(whole == 0, 0, 1 / whole)
    return (share * gradient.relu()).mean((2, 3), keepdim=True) * (grid.shape[2] * grid.shape[3])


def _weighed(request: Request, weigh: Weigh, relu: bool, score: str) -> Attribution:
    caught = catch(request)
    grid = grid_of_layer(request, caught, caught.leaf)
    targets = request.targets(caught.logits)
    values = _closed(caught, grid, targets, weigh) if score == "logit" else None
    if values is None:
        each = gradients(request, caught, targets, score)
        values = torch.stack([(weigh(grid, gradient) * grid).sum(1) for gradient in each], 1)
    return Attribution(values.relu() if relu else values, targets, caught.logits, caught.layer, signed=not relu)


def _closed(caught: Caught, grid: Tensor, targets: Tensor, weigh: Weigh) -> Tensor | None:
    """The maps without a backward pass, all targets in one product; None where the head is not of that form."""
    weights = pooled_weights(caught, grid)
    if weights is None:
        return None
    even = weights / (grid.shape[2] * grid.shape[3])  # the gradient, the same at every position
    each = [weigh(grid, even[targets[:, number], :, None, None]) for number in range(targets.shape[1])]
    return _added(torch.stack([weight[:, :, 0, 0] for weight in each], 1), grid)


def _added(weights: Tensor, grid: Tensor) -> Tensor:
    """(B, T, h, w): the channels of (B, C, h, w) added up with weights (B, T, C)."""
    return torch.bmm(weights, grid.flatten(2)).unflatten(2, grid.shape[2:])
