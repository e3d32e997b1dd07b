"""Which layer is read, how its output lies on the image, and the gradient of the scores with respect to it.

The layer found for the user is the last spatial one: the last module to finish whose output is a grid of more than one
position in the image's proportions, and on which the logits depend. Poolings to a fixed size, dropout, placeholders,
and a 1x1 convolution that makes the classes are skipped. It is found by running one image, and cached for as long as
the model lives and keeps its modules.

The activation that is read becomes the leaf of the graph, so a gradient costs the layers behind it and no more. Where
these are a mean over positions and one linear layer, no backward pass runs at all: the gradient of logit k is W[k] / N
everywhere. That this is the whole head is read off the graph between logits and activation, which must hold nothing but
reshaping, one mean and one matrix product, and is checked on the numbers. A learned readout is never of this form, for
its weights depend on the features that they weigh.
"""

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heedmap.attribution.request import Request, precise, scores_of, target_gradients
from heedmap.errors import ModelError, nearest
from heedmap.models.classifier import AttentionClassifier
from heedmap.modules import hooked, logits_of

_SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Softmax, nn.Linear)
_LAST: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], str]] = weakref.WeakKeyDictionary()
_PRODUCTS = ("Addmm", "Mm")
_AVERAGING = ("Mean", "AdaptiveAvgPool2D", "AvgPool2D")
_RESHAPING = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Clone", "Alias", "ToCopy")


class Activation(NamedTuple):
    """A layer's activation in one forward pass.

    Attributes:
        leaf: the activation as the layer gave it, the leaf of the graph that ends in the logits.
        grid: the same as (B, C, h, w), detached, in at least float32.
        logits: (B, K).
        last: the linear layer that made the logits, with its input; None where another layer made them.
    """

    request: Request
    layer: str
    leaf: Tensor
    grid: Tensor
    logits: Tensor
    last: tuple[nn.Linear, Tensor] | None


def run_with_leaf(request: Request) -> Activation:
    """Run the model once, with a leaf in place of the layer's output; its last one where it is used several times.

    Raises:
        ModelError: no such layer; it did not run, or returns no tensor, or no grid.
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
    return Activation(request, name, leaves[-1], _grid(request, name, leaves[-1]), logits, last)


def _grid(request: Request, layer: str, tensor: Tensor) -> Tensor:
    """Return the layer's activation, or its gradient, as (B, C, h, w) in at least float32."""
    grid = as_grid(tensor.detach(), request.images, prefix=getattr(request.model, "num_prefix_tokens", None))
    if grid is None:
        raise ModelError(
            f"Layer {layer!r} returns {tuple(tensor.shape)}, which is no grid of positions over the image; name a "
            "layer that returns (B, C, h, w), (B, h, w, C) or tokens (B, N, C)."
        )
    return grid.to(precise(grid.dtype))


def gradients(activation: Activation, targets: Tensor, score: str) -> Iterator[Tensor]:
    """Yield the gradient (B, C, h, w) of each target's score; a ModelError where one does not depend on the layer."""
    for (gradient,) in target_gradients(scores_of(activation.logits, score), targets, activation.leaf):
        if gradient is None:
            raise ModelError(f"The logits do not depend on layer {activation.layer!r}; name another one.")
        yield _grid(activation.request, activation.layer, gradient)


def pooled_weights(activation: Activation) -> Tensor | None:
    """Return the linear layer's weights (K, C) where the head is a mean over positions and that layer; else None."""
    grid = activation.grid
    if activation.last is None or activation.leaf.shape != grid.shape:
        return None
    linear, given = activation.last
    if given.shape != grid.shape[:2] or not _is_mean_and_linear(activation):
        return None
    rtol = 2e-2 if given.dtype in (torch.bfloat16, torch.float16) else 1e-4
    is_mean = torch.allclose(given.detach().to(grid.dtype), grid.mean((2, 3)), rtol=rtol)
    return linear.weight.detach().to(grid.dtype) if is_mean else None


def _is_mean_and_linear(activation: Activation) -> bool:
    """Whether logits and leaf are joined by one chain of reshaping, one mean and one matrix product."""
    node: Any = activation.logits.grad_fn
    products = means = 0
    while node is not None and getattr(node, "variable", None) is None:
        kind = node.name().partition("Backward")[0]
        products += kind in _PRODUCTS
        means += kind in _AVERAGING
        ways = [way for way, _ in node.next_functions if way is not None]
        if kind not in (*_PRODUCTS, *_AVERAGING, *_RESHAPING) or len(ways) != 1:
            return False
        if kind == "AvgPool2D" and tuple(node._saved_kernel_size) != tuple(activation.leaf.shape[-2:]):
            return False  # uniform features would have the same mean, but another gradient
        node = ways[0]
    return node is not None and node.variable is activation.leaf and products == means == 1


def named_layer(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Return the full name and the module of that name; raise a :class:`ModelError` where there is none.

    Wrappers' prefixes may stand before it, and the backbone's prefix of our own classifiers may be left out.
    """
    known = dict(model.named_modules())
    bare = name
    while bare not in known and bare.partition(".")[0] in ("module", "_orig_mod"):
        bare = bare.partition(".")[2]
    prefixes = ("", "backbone.", "backbone.net.") if isinstance(model, AttentionClassifier) else ("",)
    full = next((prefix + bare for prefix in prefixes if bare and prefix + bare in known), None)
    if full is None:
        raise ModelError(
            f"No layer {name!r} in {type(model).__name__}; its parts are "
            f"{', '.join(child for child, _ in model.named_children()) or 'none'}.{nearest(name, known)}"
        )
    return full, known[full]


def last_spatial(model: nn.Module, images: Tensor) -> str:
    """Name the last spatial layer for images of this size; a ModelError for none in the network's deeper half."""
    # The identity of the modules is in the key: a model whose parts were exchanged is examined again.
    key = (*images.shape[1:], *(id(part) for part in model.modules()))
    known = _LAST.setdefault(model, {})
    if key not in known:
        known.clear()
        known[key] = _find(model, images[:1])
    return known[key]


class _Output(NamedTuple):
    """A module whose output lies on the image; ``node`` is the step of the graph that made it."""

    name: str
    node: Any
    is_tokens: bool
    layers_done: int


def _find(model: nn.Module, image: Tensor) -> str:
    outputs: list[_Output] = []
    layers: list[str] = []  # the innermost modules that hold parameters, as they finish
    # What an AttentionClassifier does after its backbone is attention and head; grids there are maps, not features.
    within = "backbone." if isinstance(model, AttentionClassifier) else ""
    names = {part: name for name, part in model.named_modules() if name and name.startswith(within)}

    def record(part: nn.Module, _given: Any, output: Any) -> None:
        if part._parameters and not any(child._parameters for child in part.modules() if child is not part):
            layers.append(names[part])
        if isinstance(output, Tensor) and not isinstance(part, _SKIPPED) and as_grid(output, image) is not None:
            outputs.append(_Output(names[part], output.grad_fn, output.dim() == 3, len(layers)))

    with hooked(dict.fromkeys(names, record)):
        logits = logits_of(model, image.clone().requires_grad_())
    used: set[Any] = set()  # all steps of the graph that the logits depend on
    pending: set[Any] = {logits.grad_fn} - {None}
    while pending:
        used |= pending
        pending = {parent for node in pending for parent, _ in node.next_functions if parent is not None} - used
    # Without a node the model runs that part under no_grad, and its use is unknown.
    outputs = [output for output in outputs if output.node is None or output.node in used]
    last = model.get_submodule(layers[-1]) if layers else None
    # A 1x1 convolution to K channels gives K maps of classes already.
    is_conv = isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1) and last.out_channels == logits.shape[1]
    outputs = [output for output in outputs if output.layers_done <= len(layers) - is_conv]
    return _last(model, outputs, len(layers))


def _last(model: nn.Module, outputs: list[_Output], layers: int) -> str:
    grids = [output for output in outputs if not output.is_tokens]
    if not grids:
        raise ModelError(
            f"{type(model).__name__} has no layer whose output is a grid of positions; name one, or take a method "
            "that reads no layer, such as saliency."
        )
    if outputs[-1].is_tokens and grids[-1].layers_done < layers / 2:
        raise ModelError(
            f"After {grids[-1].name!r} {type(model).__name__} keeps its features as tokens, so no last spatial layer "
            "can be found; name one, such as the first normalisation of the last block, or take attention-rollout or "
            "relevance."
        )
    # A container returns what its last part returned. Where attention taps the part, only the part is on its path.
    same = [output.name for output in grids if output.node is not None and output.node is grids[-1].node]
    taps = {f"backbone.net.{tap}" for tap in model.taps} if isinstance(model, AttentionClassifier) else set()
    return next((name for name in same if name in taps), grids[-1].name)


def as_grid(output: Tensor, images: Tensor, *, prefix: int | None = None) -> Tensor | None:
    """Return a layer's output as (B, C, h, w), a view of it; None where it has no grid in the image's proportions.

    The output is (B, C, h, w), (B, h, w, C) as in Swin, or (B, N, C) tokens as in ViT; ``prefix`` is the number of
    tokens before the grid's where it is known, else it is derived from the proportions of the images (B, 3, H, W).
    """
    height, width = images.shape[-2:]
    if output.dim() == 4:
        for rows, columns, grid in ((*output.shape[2:], output), (*output.shape[1:3], output.permute(0, 3, 1, 2))):
            # One step, the same in both directions, makes this grid of this image, up to rounding at the borders.
            distance = abs(rows / height - columns / width) * min(height, width)
            if rows <= height and columns <= width and distance < 2.5:
                return grid if rows * columns > 1 else None
    if output.dim() == 3 and (split := token_grid(output.shape[1], height, width, prefix)) is not None:
        return output[:, split[0] :].transpose(1, 2).unflatten(2, split[1:])
    return None


def token_grid(count: int, height: int, width: int, prefix: int | None = None) -> tuple[int, int, int] | None:
    """Split N tokens into those before the grid and the grid: (before, rows, columns), or None."""
    for before in range(min(count, 9)) if prefix is None else (prefix,):
        positions = count - before
        rows = round((positions * height / width) ** 0.5)
        if rows > 0 and positions > 1 and positions % rows == 0:
            columns = positions // rows
            if abs(rows * width - columns * height) < max(height, width):
                return before, rows, columns
    return None
