"""Probe a network for its spatial stages, their strides and its classifier.

The network runs on a dummy image in eval mode with hooks on every module; afterwards the hooks are gone and every
train/eval flag is as before. Running statistics, parameters, gradients and the global random state are not touched.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor, nn

from heedmap.backbones.registry import first_line
from heedmap.errors import ModelError
from heedmap.modules import dummy_image, evaluation_mode
from heedmap.types import Stage

USUAL_SIZES = (224, 32, 64, 28, 96, 128, 256, 299, 384)  # of networks that flatten their features, which take one only
LADDER = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192)  # tried for the smallest size
LEAST_SIDE = 4  # a map with fewer positions to a side says little about where
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class SpatialModule:
    """A module whose output is spatial."""

    stage: Stage
    side: int  # positions to a side at the probe's size
    depth: float  # share of the network's layers that have run when it is done, 0 to 1


@dataclass(frozen=True)
class Survey:
    """The result of probing a network."""

    size: int  # the image side probed with
    modules: tuple[SpatialModule, ...]  # those outside the classifier, in the order in which they finish
    classifier: str | None  # its name; None where the network ends without one
    output_shape: tuple[int, ...] | None  # of the network for one image; None where that is no tensor
    fixed_size: int | None  # this and the next as in a Backbone, among the sizes tried
    least_size: int


@dataclass
class _Trace:
    """What the hooks of one run record."""

    outputs: dict[str, tuple[_Shape, int, int]] = field(default_factory=dict)  # name -> shape, layers and events before
    begun: dict[str, int] = field(default_factory=dict)  # name -> number of events before it began
    repeated: set[str] = field(default_factory=set)
    layers: list[str] = field(default_factory=list)
    events: int = 0
    result: _Shape | None = None  # the shape of the network's output, where that is a tensor

    def begin(self, name: str) -> None:
        if name in self.begun:
            self.repeated.add(name)
        self.begun[name] = self.events
        self.events += 1

    def end(self, name: str, part: nn.Module, out: object) -> None:
        # A layer is an innermost module with parameters: BatchNorm with its activation inside counts, a block not.
        if part._parameters and not any(True for child in part.children() for _ in child.parameters()):
            self.layers.append(name)
        # An identity is a placeholder; the module before it has the same features under a meaningful name.
        if isinstance(out, Tensor) and not isinstance(part, nn.Identity) and not _is_attention_matrix(out):
            self.outputs[name] = tuple(out.shape), len(self.layers), self.events
        self.events += 1


def survey(module: nn.Module, name: str, probe_size: int | None = None, *, image_size: int | None = None) -> Survey:
    """Find the spatial stages and the classifier of any network that takes (B, 3, H, W).

    A stage is a module that runs once in a forward pass and returns one (B, C, H, W) tensor whose square grid grows
    with the image while C stays; that leaves out pooled features, squeeze-and-excitation, NHWC features and
    attention matrices. Its stride is the growth of the image over the growth of the grid between two sizes.

    Args:
        module, name: the network, and how messages call it.
        probe_size: the image side to try; None tries 224, then the other usual sizes, then ``image_size``.
        image_size: the side of the images to come.

    Raises:
        ModelError: the network ran at none of the sizes, or has no spatial stage.
    """
    usual = USUAL_SIZES if image_size is None else (*USUAL_SIZES, image_size)
    size, trace = _first_that_runs(module, name, (probe_size,) if probe_size else usual)
    output = trace.result
    other_size = size - 64 if size >= 128 else size + 64
    other = _trace_at(module, other_size)  # None where the network takes one size only
    classifier = _classifier(module, trace) if output is not None and len(output) == 2 else None
    modules = tuple(_spatial_modules(trace, other, (size, other_size), classifier))
    if not modules:
        raise ModelError(
            f"{name} has nothing to tap: none of its modules returns features as (B, C, H, W) before the classifier. "
            "Networks that keep them as (B, H, W, C) or as tokens (Swin, ViT) cannot be tapped; take a CNN."
        )
    if other is None:
        return Survey(size, modules, classifier, output, size, size)
    sizes = [side for side in LADDER if max(each.stage.stride for each in modules) <= side < size]
    least = next((side for side in sizes if _trace_at(module, side) is not None), size)
    return Survey(size, modules, classifier, output, None, least)


def choose_taps(probed: Survey, image_size: int | None = None) -> tuple[str, ...]:
    """Return the outermost and last module at each of the two deepest resolutions of at least 4 x 4 positions.

    *Outermost* is the fewest dots in the name, so ``layer3`` before ``layer3.1.conv2``; among those the last to
    finish. A container that holds the other tap is skipped (``features.12``, not ``features``, beside ``features.10``).

    One or two names, the finer grid first; none where no grid has 4 x 4 positions. ``image_size`` is the side of the
    images to come; None is the probe's size.
    """
    growth = (image_size or probed.size) - probed.size
    # Positions to a side; for another size than the probe's exact up to rounding at the borders.
    sides = {each.stage.name: each.side + growth // each.stage.stride for each in probed.modules}
    deepest = sorted({side for side in sides.values() if side >= LEAST_SIDE})[:2]
    taps: list[str] = []
    for side in reversed(deepest):
        alike = [name for name in reversed(sides) if sides[name] == side]
        if names := [name for name in alike if not any(f"{tap}.".startswith(f"{name}.") for tap in taps)]:
            taps.append(min(names, key=lambda name: name.count(".")))
    return tuple(taps)


def _first_that_runs(module: nn.Module, name: str, sizes: tuple[int, ...]) -> tuple[int, _Trace]:
    """Return the first size at which the network runs, and the trace of that run."""
    reasons = []
    for size in sizes:
        try:
            return size, _watch(module, size)
        except Exception as reason:  # the network's own code may raise anything
            reasons.append(f"{size}: {first_line(reason)}")
    if other := re.search(r"to have (\d+) channels, but got 3 channels", reasons[0]):  # torch's words
        raise ModelError(
            f"{name} takes {other[1]} input channel{'s' * (other[1] != '1')}; three are needed (RGB), so wrap it so "
            "that it takes (B, 3, H, W)."
        )
    raise ModelError(
        f"{name} did not run on an image (1, 3, size, size) at any size tried ({reasons[0]}); "
        "give the size it was made for as image_size."
    )


def _trace_at(module: nn.Module, size: int) -> _Trace | None:
    """The trace of a run, or None where the network's own code, which may raise anything, fails at that size."""
    try:
        return _watch(module, size)
    except Exception:
        return None


def _watch(module: nn.Module, size: int) -> _Trace:
    """Run once without gradients."""
    trace = _Trace()
    with ExitStack() as hooks, evaluation_mode(module):
        for name, part in list(module.named_modules())[1:]:
            begin = part.register_forward_pre_hook(lambda _part, _inputs, name=name: trace.begin(name))
            end = part.register_forward_hook(lambda part, _inputs, out, name=name: trace.end(name, part, out))
            hooks.callback(begin.remove)
            hooks.callback(end.remove)
        output = module(dummy_image(module, size))
    trace.result = tuple(output.shape) if isinstance(output, Tensor) else None
    return trace


def _classifier(module: nn.Module, trace: _Trace) -> str | None:
    """Return the name of the outermost module around the last layer that holds nothing but what classifiers hold."""
    # The last layer must be linear or a 1x1 convolution; a network that ends in anything else (a normalisation, as
    # after timm's num_classes=0) has no classifier.
    parts = trace.layers[-1].split(".") if trace.layers else []
    for name in accumulate(parts, "{}.{}".format):
        if name in trace.begun:
            inside = [part for part in module.get_submodule(name).modules() if isinstance(part, nn.Linear | nn.Conv2d)]
            if inside and all(isinstance(part, nn.Linear) or part.kernel_size == (1, 1) for part in inside):
                return name
    return None


def _spatial_modules(
    trace: _Trace, other: _Trace | None, sizes: tuple[int, int], classifier: str | None
) -> Iterator[SpatialModule]:
    """Yield the spatial modules in the order in which they finish, except those in the classifier."""
    last = trace.begun[classifier] if classifier else trace.events
    for name, (shape, layers, ended) in trace.outputs.items():
        is_grid = len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3] > 1
        if name not in trace.repeated and ended <= last and is_grid:
            others = None if other is None else other.outputs.get(name, ((), 0, 0))[0]
            if stride := _stride(shape, others, sizes):
                yield SpatialModule(Stage(name, shape[1], stride), shape[2], layers / max(1, len(trace.layers)))


def _is_attention_matrix(out: Tensor) -> bool:
    """Whether every row sums to one: (B, heads, N, N) of a transformer has the shape of features, but is none."""
    return out.dim() == 4 and out.shape[-1] > 1 and bool(((out.float().sum(-1) - 1).abs() < 1e-3).all())


def _stride(shape: _Shape, other: _Shape | None, sizes: tuple[int, int]) -> int:
    """Return the pixels per position; 0 where the grid does not grow from size to size as one of features would."""
    if other is None:  # the network takes one size only
        return round(sizes[0] / shape[2]) if shape[2] <= sizes[0] else 0
    if len(other) != 4 or other[1] != shape[1] or other[2] != other[3]:
        return 0
    growth = (shape[2] - other[2]) / (sizes[0] - sizes[1])
    return round(1 / growth) if 0 < growth <= 1 else 0
