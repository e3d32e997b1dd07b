"""Which layer is read, and how its output lies on the picture.

The layer found for the user is the last spatial one: the last module to finish, before the last linear layer or the
1x1 convolution that makes the classes, whose output is a grid of more than one position in the picture's proportions.
Poolings to a fixed size, dropout and placeholders are passed over. Nothing is read off the source; one picture runs
through once, and the answer is remembered for as long as the model lives and keeps its modules.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.classifier import AttentionClassifier
from heedmap.errors import ModelError, nearest
from heedmap.maps.network import hooked, logits_of

_PASSED_OVER = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Softmax,
    nn.Linear,
)
_FOUND: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], str]] = weakref.WeakKeyDictionary()


@dataclass
class _Watch:
    """What one pass showed, in the order in which modules finished.

    Attributes:
        grids: (name, number of layers done by then) of the modules whose output is a grid.
        layers: names of the innermost modules that hold parameters.
    """

    grids: list[tuple[str, int]] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)


def named_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module of that name; the prefixes of wrappers may stand before it.

    Raises:
        ModelError: there is none; the message names the nearest.
    """
    known = dict(model.named_modules())
    bare = name
    while bare not in known and bare.partition(".")[0] in ("module", "_orig_mod"):
        bare = bare.partition(".")[2]
    if not bare or bare not in known:
        raise ModelError(
            f"No layer {name!r} in {type(model).__name__}; its parts are "
            f"{', '.join(each for each, _ in model.named_children()) or 'none'}.{nearest(name, known)}"
        )
    return known[bare]


def last_spatial(model: nn.Module, images: Tensor) -> str:
    """Name the last spatial layer for pictures of this size.

    Raises:
        ModelError: there is none in the deeper half of the network; the message says what to do.
    """
    # The identity of the modules is in the key: a model whose parts were exchanged is looked at again.
    key = (*images.shape[1:], *(id(part) for part in model.modules()))
    known = _FOUND.setdefault(model, {})
    if key not in known:
        known.clear()
        known[key] = _find(model, images[:1])
    return known[key]


def _find(model: nn.Module, image: Tensor) -> str:
    watch = _Watch()
    # What an AttentionClassifier does after its backbone is attention and head; grids there are maps, not features.
    within = "backbone." if isinstance(model, AttentionClassifier) else ""
    names = {part: name for name, part in model.named_modules() if name and name.startswith(within)}

    def look(part: nn.Module, _given: Any, output: Any) -> None:
        if part._parameters and not any(child._parameters for child in part.modules() if child is not part):
            watch.layers.append(names[part])
        if (
            isinstance(output, Tensor)
            and not isinstance(part, _PASSED_OVER)
            and as_grid(output, image, tokens=False) is not None
        ):
            watch.grids.append((names[part], len(watch.layers)))

    with torch.no_grad(), hooked(dict.fromkeys(names, look)):
        classes = logits_of(model, image).shape[1]
    head = len(watch.layers)
    last = model.get_submodule(watch.layers[-1]) if watch.layers else None
    if isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1) and last.out_channels == classes:
        head -= 1  # its output is K maps of classes already
    return _last(model, [place for place in watch.grids if place[1] <= head], len(watch.layers))


def _last(model: nn.Module, places: list[tuple[str, int]], layers: int) -> str:
    if not places:
        raise ModelError(
            f"{type(model).__name__} has no layer whose output is a grid of positions; name one, or take a method "
            "that reads no layer, such as saliency."
        )
    name, done = places[-1]
    if done < layers / 2:
        raise ModelError(
            f"After {name!r} {type(model).__name__} keeps its features as tokens, so no last spatial layer can be "
            "found; name one, such as the first normalisation of the last block, or take attention-rollout or "
            "relevance."
        )
    return name


def as_grid(output: Tensor, images: Tensor, *, tokens: bool = True, prefix: int | None = None) -> Tensor | None:
    """Return a layer's output as (B, C, h, w), a view of it; None where it has no grid in the picture's proportions.

    Args:
        output: (B, C, h, w), (B, h, w, C) as in Swin, or (B, N, C) tokens as in ViT.
        images: (B, 3, H, W).
        tokens: whether tokens are taken too.
        prefix: number of tokens before the grid's, where it is known; else it is found from the proportions.
    """
    height, width = images.shape[-2:]
    if output.dim() == 4:
        if _in_proportion(output.shape[2], output.shape[3], height, width):
            return output if output.shape[2] * output.shape[3] > 1 else None
        if _in_proportion(output.shape[1], output.shape[2], height, width) and output.shape[1] * output.shape[2] > 1:
            return output.permute(0, 3, 1, 2)
    if output.dim() == 3 and tokens:
        found = token_grid(output.shape[1], height, width, prefix)
        if found is not None:
            before, rows, columns = found
            return output[:, before:].transpose(1, 2).unflatten(2, (rows, columns))
    return None


def _in_proportion(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether one step, the same in both directions, makes this grid of this picture, up to rounding at the borders."""
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
