"""A layer's activation, and the gradient of the scores with respect to it.

The layers before the one that is read run without a graph, since no parameter and no image requires a gradient there.
The activation itself becomes the leaf, so a gradient costs the layers behind it and no more. Where these are a mean
over positions and one linear layer, no backward pass runs at all: the gradient of logit k is W[k] / N everywhere. That
this is the whole head is read off the graph between logits and activation, which must hold nothing but reshaping, one
mean and one matrix product, and is checked on the numbers. A learned readout is never of this form, for its weights
depend on the features that they weigh. All others get their gradient from autograd, which is exact too.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heedmap.attribution.layers import as_grid, last_spatial, named_layer
from heedmap.attribution.request import Request, precise, scores_of
from heedmap.errors import ModelError
from heedmap.modules import hooked

_RESHAPING = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Clone", "Alias", "ToCopy")
_AVERAGING = ("Mean", "AdaptiveAvgPool2D", "AvgPool2D")


class Activation(NamedTuple):
    """A layer's activation in one forward pass.

    Attributes:
        layer: its name.
        leaf: the activation as the layer gave it, the leaf of the graph that ends in the logits.
        logits: (B, K).
        last: the linear layer that made the logits, with its input; None where another layer made them.
    """

    layer: str
    leaf: Tensor
    logits: Tensor
    last: tuple[nn.Linear, Tensor] | None


def run_with_leaf(request: Request) -> Activation:
    """Run the model once, with a leaf in place of the layer's output; its last one where it is used several times.

    Raises:
        ModelError: no such layer; it did not run, or returns no tensor.
    """
    name, layer = named_layer(request.model, request.layer or last_spatial(request.model, request.images))
    leaves: list[Any] = []
    linears: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def make_leaf(_part: nn.Module, _given: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise ModelError(f"Layer {name!r} returns a {type(output).__name__}, not a tensor; name another one.")
        with torch.enable_grad():  # also where the model runs this part under no_grad
            leaves.append(output.detach().requires_grad_())
            return leaves[-1].clone()  # the next module may work in place, such as a ReLU

    def note(part: nn.Linear, given: tuple[Tensor, ...], output: Tensor) -> None:
        linears.append((part, given[0], output))

    hooks: dict[nn.Module, Any] = {part: note for part in request.model.modules() if type(part) is nn.Linear}
    with hooked(hooks | {layer: make_leaf}):
        logits = request.logits()
    if not leaves:
        raise ModelError(f"Layer {name!r} does not run when {type(request.model).__name__} classifies; name another.")
    if not logits.requires_grad:
        raise ModelError(f"The logits do not depend on layer {name!r}; name another one.")
    last = next(((part, given) for part, given, output in linears if output.grad_fn is logits.grad_fn), None)
    return Activation(name, leaves[-1], logits, last)


def grid_of_layer(request: Request, activation: Activation, tensor: Tensor) -> Tensor:
    """Return the activation, or its gradient, as (B, C, h, w) in at least float32.

    Raises:
        ModelError: the layer's output is no grid.
    """
    prefix = getattr(request.model, "num_prefix_tokens", None)
    grid = as_grid(tensor.detach(), request.images, prefix=prefix)
    if grid is None:
        raise ModelError(
            f"Layer {activation.layer!r} returns {tuple(tensor.shape)}, which is no grid of positions over the image; "
            "name a layer that returns (B, C, h, w), (B, h, w, C) or tokens (B, N, C)."
        )
    return grid.to(precise(grid.dtype))


def gradients(request: Request, activation: Activation, targets: Tensor, score: str) -> Iterator[Tensor]:
    """Yield the gradient (B, C, h, w) of each target's score, one target after the other, from one forward pass.

    Raises:
        ModelError: a score does not depend on the layer.
    """
    scores = scores_of(activation.logits, score)
    for number in range(targets.shape[1]):
        total = scores.gather(1, targets[:, number : number + 1]).sum()  # no image depends on another one
        is_last = number + 1 == targets.shape[1]
        (gradient,) = torch.autograd.grad(total, activation.leaf, retain_graph=not is_last, allow_unused=True)
        if gradient is None:
            raise ModelError(f"The logits do not depend on layer {activation.layer!r}; name another one.")
        yield grid_of_layer(request, activation, gradient)


def pooled_weights(activation: Activation, grid: Tensor) -> Tensor | None:
    """Return the linear layer's weights (K, C) where the head is a mean over positions and that layer; else None."""
    if activation.last is None or activation.leaf.shape != grid.shape:
        return None
    linear, given = activation.last
    weight = linear.weight.detach()
    if given.shape != grid.shape[:2] or not _is_mean_and_linear(activation):
        return None
    rtol = 2e-2 if given.dtype in (torch.bfloat16, torch.float16) else 1e-4
    is_mean = torch.allclose(given.detach().to(grid.dtype), grid.mean((2, 3)), rtol=rtol)
    return weight.to(grid.dtype) if is_mean else None


def _is_mean_and_linear(activation: Activation) -> bool:
    """Whether logits and leaf are joined by one chain of reshaping, one mean and one matrix product."""
    node: Any = activation.logits.grad_fn
    products = means = 0
    while node is not None and getattr(node, "variable", None) is None:
        kind = node.name().partition("Backward")[0]
        products += kind in ("Addmm", "Mm")
        means += kind in _AVERAGING
        if kind not in ("Addmm", "Mm", *_AVERAGING, *_RESHAPING):
            return False
        if kind == "AvgPool2D" and tuple(node._saved_kernel_size) != tuple(activation.leaf.shape[-2:]):
            return False  # uniform features would have the same mean, but another gradient
        ways = [way for way, _ in node.next_functions if way is not None]
        if len(ways) != 1:
            return False
        node = ways[0]
    return node is not None and node.variable is activation.leaf and products == means == 1
