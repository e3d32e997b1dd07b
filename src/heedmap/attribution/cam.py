"""Class activation maps: a layer's channels, weighted for a class and summed.

With A (C, h, w) the activation, g the gradient of the target's score with respect to it, and N = h * w positions:

    CAM          sum_c W[k, c] A_c                        Zhou et al. 2016, only where the head is a mean and W
    Grad-CAM     relu(sum_c mean(g_c) A_c)                Selvaraju et al. 2017, eq. 1 and 2
    Grad-CAM++   relu(sum_c w_c A_c),                     Chattopadhay et al. 2018, eq. 13 and 19
                 w_c = sum_ij g^2 / (2 g^2 + g^3 sum A_c) relu(g)
    HiRes-CAM    relu(sum_c g_c A_c)                      Draelos and Carin 2020
    Layer-CAM    relu(sum_c relu(g_c) A_c)                Jiang et al. 2021, eq. 6 and 7

Grad-CAM++ is written for the score exp(S): its derivatives of g with respect to S are powers of g times exp(S), which
cancels but for one factor an image, which is left out, as everywhere: it scales a map and moves nothing.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from heedmap.attribution.layers import Activation, gradients, pooled_weights, run_with_leaf
from heedmap.attribution.request import Attribution, Request
from heedmap.errors import ModelError

WeightRule: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Activation (B, C, h, w) and gradient (B, C, h, w) to weights (B, C, h, w) or (B, C, 1, 1)."""


def cam(request: Request) -> Attribution:
    """Compute CAM (Zhou et al. 2016): the weights of the linear layer themselves; signed."""
    activation = run_with_leaf(request)
    weights = pooled_weights(activation)
    if weights is None:
        raise ModelError(
            f"CAM needs a head that is a mean over the positions of {activation.layer!r} and one linear layer; "
            f"{type(request.model).__name__} was not recognised to have one. Name the layer that is averaged, or take "
            "grad-cam, which is CAM wherever CAM exists."
        )
    targets = request.targets(activation.logits)
    values = _weighted_sum(weights[targets], activation.grid)
    return Attribution(values, targets, activation.logits, activation.layer, signed=True)


def grad_cam(request: Request, *, relu: bool = True, score: str = "logit") -> Attribution:
    """Compute Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2): the weight of a channel is its mean gradient.

    ``relu=False`` keeps the sign.
    """
    return _weighted(request, lambda _, gradient: gradient.mean((2, 3), keepdim=True), relu, score)


def grad_cam_plus_plus(request: Request, *, relu: bool = True, score: str = "logit") -> Attribution:
    """Compute Grad-CAM++ (Chattopadhay et al. 2018, eq. 13 and 19): a channel's positive gradients, by their share."""

    def weights(grid: Tensor, gradient: Tensor) -> Tensor:
        # g^2 / (2 g^2 + g^3 sum A) with g^2 cancelled, which underflows for small gradients; where g or the whole is
        # zero the share is zero.
        whole = torch.where(gradient == 0, 0, 2 + gradient * grid.sum((2, 3), keepdim=True))
        share = torch.where(whole == 0, 0, 1 / whole)
        return (share * gradient.relu()).mean((2, 3), keepdim=True) * (grid.shape[2] * grid.shape[3])

    return _weighted(request, weights, relu, score)


def hires_cam(request: Request, *, relu: bool = True, score: str = "logit") -> Attribution:
    """Compute HiRes-CAM (Draelos and Carin 2020): gradient times activation. ``relu=False`` keeps the sign."""
    return _weighted(request, lambda _, gradient: gradient, relu, score)


def layer_cam(request: Request, *, relu: bool = True, score: str = "logit") -> Attribution:
    """Compute Layer-CAM (Jiang et al. 2021, eq. 6 and 7): positive gradient times activation at each position."""
    return _weighted(request, lambda _, gradient: gradient.relu(), relu, score)


def _weighted(request: Request, weights_of: WeightRule, relu: bool, score: str) -> Attribution:
    activation = run_with_leaf(request)
    grid, targets = activation.grid, request.targets(activation.logits)
    values = _without_backward(activation, targets, weights_of) if score == "logit" else None
    if values is None:
        grads = gradients(activation, targets, score)
        values = torch.stack([(weights_of(grid, gradient) * grid).sum(1) for gradient in grads], 1)
    return Attribution(values.relu() if relu else values, targets, activation.logits, activation.layer, signed=not relu)


def _without_backward(activation: Activation, targets: Tensor, weights_of: WeightRule) -> Tensor | None:
    """The maps without a backward pass, all targets in one product; None where the head is not of that form."""
    weights, grid = pooled_weights(activation), activation.grid
    if weights is None:
        return None
    gradient = weights / (grid.shape[2] * grid.shape[3])  # the gradient, the same at every position
    by_target = [weights_of(grid, gradient[classes, :, None, None]) for classes in targets.T]
    return _weighted_sum(torch.stack([weight[:, :, 0, 0] for weight in by_target], 1), grid)


def _weighted_sum(weights: Tensor, grid: Tensor) -> Tensor:
    """Sum the channels of (B, C, h, w) with weights (B, T, C) into (B, T, h, w)."""
    return torch.bmm(weights, grid.flatten(2)).unflatten(2, grid.shape[2:])
