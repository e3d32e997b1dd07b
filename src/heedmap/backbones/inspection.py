"""What a network that we did not write does with an image: its spatial stages, its strides, its classifier.

Nothing is read off the source. The network runs on a made-up image in evaluation mode with hooks on every module;
afterwards the hooks are gone and every train/eval flag is as before. The running statistics, the parameters, their
gradients and the global random state are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from heedmap.errors import ModelError
from heedmap.modules import dummy_image, evaluation_mode
from heedmap.types import Stage

# A network that flattens its features takes one size only; these are the usual ones.
USUAL_SIZES = (224, 32, 64, 28, 96, 128, 256, 299, 384)
LADDER = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192)
# A map with fewer positions to a side than this says little about where.
LEAST_SIDE = 4


@dataclass(frozen=True)
class SpatialModule:
    """A module whose output is spatial.

    Attributes:
        stage: its name, channels and stride.
        side: positions to a side at the probe's size.
        depth: share of the network's layers that have run when it is done, 0 to 1.
    """

    stage: Stage
    side: int
    depth: float


@dataclass(frozen=True)
class Survey:
    """What probing found.

    Attributes:
        size: the image side probed with.
        places: the spatial modules outside the classifier, in the order in which they finish.
        classifier: name of the classifier, or None where the network ends without one.
        answer: the shape of the network's output for one image, or None where that is no tensor.
        fixed_size: the probe's size, where the network failed at another one.
        least_size: the smallest image side tried that works.
    """

    size: int
    places: tuple[SpatialModule, ...]
    classifier: str | None
    answer: tuple[int, ...] | None
    fixed_size: int | None
    least_size: int

    def side(self, place: SpatialModule, size: int) -> int:
        """Positions to a side at a place, for images of another size (exact up to rounding at the borders)."""
        return place.side + (size - self.size) // place.stage.stride


@dataclass
class _Notes:
    """What the hooks of one run write down; the order of the lists is the order of events."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)  # name -> layers done when it finished
    begun: dict[str, int] = field(default_factory=dict)  # name -> number of events before it began
    ended: dict[str, int] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    layers: list[str] = field(default_factory=list)
    events: int = 0


def survey(module: nn.Module, name: str, probe_size: int | None = None, *, image_size: int | None = None) -> Survey:
    """Find the spatial stages and the classifier of any network that takes (B, 3, H, W).

    A stage is a module that runs once in a forward pass and returns one (B, C, H, W) tensor whose square grid grows
    with the image while C stays; that leaves out pooled features, squeeze-and-excitation, NHWC features and
    attention matrices. Its stride is the growth of the image over the growth of the grid between two sizes.

    Args:
        module: the network.
        name: how messages call it.
        probe_size: the image side to try; None tries 224, then the other usual sizes, then ``image_size``.
        image_size: the side of the images to come.

    Raises:
        ModelError: the network ran at none of the sizes, or has no spatial stage.
    """
    usual = USUAL_SIZES if image_size is None else (*USUAL_SIZES, image_size)
    size, notes, answer = _first_that_runs(module, name, (probe_size,) if probe_size else usual)
    other_size = size - 64 if size >= 128 else size + 64
    try:
        other, _ = _watch(module, other_size)
    except Exception:  # the network's own code may raise anything; whatever it is, it takes one size only
        other = None
    classifier = _classifier(module, notes) if answer is not None and len(answer) == 2 else None
    places = tuple(_places(notes, other, (size, other_size), classifier))
    if not places:
        raise ModelError(
            f"{name} has nothing to tap: none of its modules returns features as (B, C, H, W) before the classifier. "
            "Networks that keep them as (B, H, W, C) or as tokens (Swin, ViT) cannot be tapped; take a CNN."
        )
    least = size if other is None else _least_size(module, max(place.stage.stride for place in places), size)
    return Survey(size, places, classifier, answer, size if other is None else None, least)


def choose_taps(found: Survey, image_size: int | None = None) -> tuple[str, ...]:
    """Choose taps: the outermost and last module at each of the two deepest resolutions of at least 4 x 4 positions.

    *Outermost* is the fewest dots in the name, so ``layer3`` before ``layer3.1.conv2``; among those the last to
    finish. A container that holds the other tap is passed over (``features.12``, not ``features``, beside
    ``features.10``).

    Args:
        found: what :func:`survey` found.
        image_size: the side of the images to come; None is the probe's size.

    Returns:
        One or two names, the finer grid first; empty when no grid has 4 x 4 positions.
    """
    sides = {place.stage.name: found.side(place, image_size or found.size) for place in found.places}
    deepest = sorted({side for side in sides.values() if side >= LEAST_SIDE})[:2]
    taps: list[str] = []
    for side in reversed(deepest):
        names = [name for name, its in sides.items() if its == side and not any(_holds(name, tap) for tap in taps)]
        if names:
            fewest = min(name.count(".") for name in names)
            taps.append([name for name in names if name.count(".") == fewest][-1])
    return tuple(taps)


def _first_that_runs(
    module: nn.Module, name: str, sizes: tuple[int, ...]
) -> tuple[int, _Notes, tuple[int, ...] | None]:
    """The first size at which the network runs, with the notes of that run and the shape of its answer."""
    reasons = []
    for size in sizes:
        try:
            return size, *_watch(module, size)
        except Exception as reason:  # the network's own code may raise anything
            reasons.append(f"{size}: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}")
    if other := re.search(r"to have (\d+) channels, but got 3 channels", reasons[0]):  # torch's words
        raise ModelError(
            f"{name} takes {other[1]} input channel{'s' * (other[1] != '1')}; three are needed (RGB), so wrap it so "
            "that it takes (B, 3, H, W)."
        )
    raise ModelError(
        f"{name} did not run on an image (1, 3, size, size) at any size tried ({reasons[0]}); "
        "give the size it was made for as image_size."
    )


def _watch(module: nn.Module, size: int) -> tuple[_Notes, tuple[int, ...] | None]:
    """Run once without gradients; return what every submodule put out and the shape of the answer."""
    notes, hooks = _Notes(), []
    try:
        for name, part in module.named_modules():
            if name:
                hooks += [
                    part.register_forward_pre_hook(lambda _part, _given, name=name: _begin(notes, name)),
                    part.register_forward_hook(lambda part, _given, out, name=name: _end(notes, name, part, out)),
                ]
        with evaluation_mode(module):
            answer = module(dummy_image(module, size))
    finally:
        for hook in hooks:
            hook.remove()
    return notes, tuple(answer.shape) if isinstance(answer, Tensor) else None


def _begin(notes: _Notes, name: str) -> None:
    if name in notes.begun:
        notes.repeated.add(name)
    notes.begun[name] = notes.events
    notes.events += 1


def _end(notes: _Notes, name: str, part: nn.Module, out: object) -> None:
    # A layer is the innermost module that holds parameters: BatchNorm with its activation inside counts, a block not.
    if part._parameters and not any(True for child in part.children() for _ in child.parameters()):
        notes.layers.append(name)
    # An identity is a place-holder; the module before it has the same features under a name that says what they are.
    if isinstance(out, Tensor) and not isinstance(part, nn.Identity) and not _is_attention_matrix(out):
        notes.shapes[name] = tuple(out.shape)
        notes.finished[name] = len(notes.layers)
    notes.ended[name] = notes.events
    notes.events += 1


def _classifier(module: nn.Module, notes: _Notes) -> str | None:
    """Name the classifier: the outermost module around the last layer that holds nothing but what classifiers hold.

    The last layer must be linear or a 1x1 convolution; a network that ends in anything else (a normalisation, as
    after timm's ``num_classes=0``) has no classifier.
    """
    if not notes.layers:
        return None
    parts = notes.layers[-1].split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        if name not in notes.begun or not _only_pointwise(module.get_submodule(name)):
            continue
        return name if _has_weights(module.get_submodule(name)) else None
    return None


def _only_pointwise(module: nn.Module) -> bool:
    """Whether all convolutions inside are 1x1, and the last layer is a convolution or linear."""
    layers = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    return bool(layers) and all(isinstance(part, nn.Linear) or part.kernel_size == (1, 1) for part in layers)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _places(
    notes: _Notes, other: _Notes | None, sizes: tuple[int, int], classifier: str | None
) -> Iterator[SpatialModule]:
    """The spatial modules in the order in which they finish, those that begin or end in the classifier left out."""
    last = notes.begun[classifier] if classifier else notes.events
    for name, shape in sorted(notes.shapes.items(), key=lambda item: notes.ended[item[0]]):
        if name in notes.repeated or notes.ended[name] > last or not _is_grid(shape):
            continue
        stride = _stride(shape, other.shapes.get(name) if other else None, sizes, fixed=other is None)
        if stride is not None:
            depth = notes.finished[name] / max(1, len(notes.layers))
            yield SpatialModule(Stage(name, shape[1], stride), shape[2], depth)


def _is_grid(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3] > 1


def _is_attention_matrix(out: Tensor) -> bool:
    """Whether every row sums to one: (B, heads, N, N) of a transformer has the shape of features, but is none."""
    return out.dim() == 4 and out.shape[-1] > 1 and bool(((out.float().sum(-1) - 1).abs() < 1e-3).all())


def _stride(
    shape: tuple[int, ...], other: tuple[int, ...] | None, sizes: tuple[int, int], *, fixed: bool
) -> int | None:
    """Pixels per position, or None where the grid does not grow with the image as one of features would."""
    if fixed:
        return round(sizes[0] / shape[2]) if shape[2] <= sizes[0] else None
    if other is None or len(other) != 4 or other[1] != shape[1] or other[2] != other[3]:
        return None
    growth = (shape[2] - other[2]) / (sizes[0] - sizes[1])
    return round(1 / growth) if 0 < growth <= 1 else None


def _least_size(module: nn.Module, stride: int, largest: int) -> int:
    """The first size on the ladder, from the deepest stride on, at which the network runs."""
    for size in LADDER:
        if stride <= size < largest:
            try:
                _watch(module, size)
            except Exception:  # the network's own way of saying that the image is too small
                continue
            return size
    return largest


def _holds(name: str, other: str) -> bool:
    return other == name or other.startswith(name + ".")
