"""Which layer is read, and how its output lies on the image.

The layer found for the user is the last spatial one: the last module to finish whose output is a grid of more than one
position in the image's proportions, and on which the logits depend. Poolings to a fixed size, dropout, placeholders,
and a 1x1 convolution that makes the classes are skipped. It is found by running one image, and cached for as long as
the model lives and keeps its modules.
"""

import weakref
from typing import Any, NamedTuple

from torch import Tensor, nn

from heedmap.errors import ModelError, nearest
from heedmap.models.classifier import AttentionClassifier
from heedmap.modules import hooked, logits_of

_SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Softmax, nn.Linear)
_LAST: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], str]] = weakref.WeakKeyDictionary()


class _Output(NamedTuple):
    """A module whose output lies on the image; ``node`` is the step of the graph that made it."""

    name: str
    node: Any
    is_tokens: bool
    layers_done: int


def named_layer(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Return the full name and the module of that name.

    Wrappers' prefixes may stand before it, and the backbone's prefix of our own classifiers may be left out.

    Raises:
        ModelError: there is none.
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
    """Name the last spatial layer for images of this size.

    Raises:
        ModelError: there is none in the deeper half of the network.
    """
    # The identity of the modules is in the key: a model whose parts were exchanged is examined again.
    key = (*images.shape[1:], *(id(part) for part in model.modules()))
    known = _LAST.setdefault(model, {})
    if key not in known:
        known.clear()
        known[key] = _find(model, images[:1])
    return known[key]


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
    used = _nodes(logits.grad_fn)
    # Without a node the model runs that part under no_grad, and its use is unknown.
    outputs = [output for output in outputs if output.node is None or output.node in used]
    head = len(layers)
    last = model.get_submodule(layers[-1]) if layers else None
    if isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1) and last.out_channels == logits.shape[1]:
        head -= 1  # its output is K maps of classes already
    return _last(model, [output for output in outputs if output.layers_done <= head], len(layers))


def _nodes(node: Any) -> set[Any]:
    """Return all steps of the graph that the node depends on."""
    seen: set[Any] = set()
    pending = [node]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [parent for parent, _ in node.next_functions]
    return seen


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

    Args:
        output: (B, C, h, w), (B, h, w, C) as in Swin, or (B, N, C) tokens as in ViT.
        images: (B, 3, H, W).
        prefix: number of tokens before the grid's, where it is known; else derived from the proportions.
    """
    height, width = images.shape[-2:]
    if output.dim() == 4:
        if _in_proportion(output.shape[2], output.shape[3], height, width):
            return output if output.shape[2] * output.shape[3] > 1 else None
        if _in_proportion(output.shape[1], output.shape[2], height, width) and output.shape[1] * output.shape[2] > 1:
            return output.permute(0, 3, 1, 2)
    if output.dim() == 3:
        found = token_grid(output.shape[1], height, width, prefix)
        if found is not None:
            before, rows, columns = found
            return output[:, before:].transpose(1, 2).unflatten(2, (rows, columns))
    return None


def _in_proportion(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether one step, the same in both directions, makes this grid of this image, up to rounding at the borders."""
    if rows > height or columns > width:
        return False
    return abs(rows / height - columns / width) * min(height, width) < 2.5


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
