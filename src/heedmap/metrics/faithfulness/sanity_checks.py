"""Does a map depend on what the network learned? Throw the learned weights away and look whether the map changes.

After Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018), sections 3 and 4: *cascading* randomization from
the top layer (nearest the logits) down, each stage keeping the ones before it, and *independent* randomization of one
layer at a time. Likeness of the maps before and after is told by Spearman's rank correlation, of absolute and of signed
values, and by SSIM. Their third check, a network trained on shuffled labels, needs a training run and is not here.

A map that stays the same shows the image (edges, say), not what was learned of it. The reverse is not proven by this:
a map may depend on the weights and still point to the wrong place.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.errors import DataError, ModelError, OptionError, nearest
from heedmap.metrics.faithfulness.deletion import upsampled
from heedmap.metrics.maps import MapFunction, all_logits, all_maps, check_images
from heedmap.modules import evaluation_mode
from heedmap.progress import Progress

DEPENDS_BELOW = 0.5  # mean rank correlation with every layer randomized
SAME_FROM = 0.9
_STARTS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
_STATISTICS = {"running_mean", "running_var"}
SSIM_SIDE, SSIM_SIGMA, SSIM_FIRST, SSIM_SECOND = 11, 1.5, 0.01, 0.03


@dataclass(frozen=True)
class RandomizedStage:
    """How alike the maps are before and after some layers were randomized; means over images whose map is not blank.

    A blank map, constant over the image, has no order that could be like another one, so it counts for nothing; the
    means are NaN where no other is left.

    Attributes:
        layers: the layers randomized by this stage.
        absolute: Spearman's correlation of the absolute values, in [-1, 1].
        signed: the same of the values as they are.
        ssim: structural similarity of the maps at the image's size, each brought to [0, 1].
        constant: share of images whose map went blank.
    """

    layers: tuple[str, ...]
    absolute: float
    signed: float
    ssim: float
    constant: float


@dataclass(frozen=True)
class RandomizationReport:
    """What randomizing did to a map.

    Attributes:
        count: images whose map says anything; constant maps are left out.
        left_out: images with a constant map.
        cascading: one stage after another, from the top; the last has every layer randomized.
        independent: each group of layers alone.
        between: mean rank correlation (absolute values) of one image's map with the next image's, before: what
            maps have in common whatever the image, such as a hot middle. NaN for a single image.
        depends: True, False, or None where it cannot be said.
        verdict: the same in a sentence, with its thresholds.
    """

    count: int
    left_out: int
    cascading: tuple[RandomizedStage, ...]
    independent: tuple[RandomizedStage, ...]
    between: float
    depends: bool | None
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and dicts; NaN where a figure is not defined."""
        return asdict(self)


def randomization(
    model: nn.Module,
    images: Tensor,
    method: MapFunction,
    targets: Tensor | None = None,
    *,
    layers: Sequence[str] | None = None,
    most: int = 12,
    independent: bool = True,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> RandomizationReport:
    """Randomize a network's layers and compare the maps; the weights are put back bit by bit, also after an error.

    Args:
        model: any classifier from RGB in [0, 1].
        images: (N, 3, H, W) in [0, 1], at least 11 x 11.
        method: the map function.
        targets: (N,) class asked about, the same before and after; None takes those that the learned weights predict.
        layers: names of modules from the input to the top; None takes all that own weights, in order of definition.
        most: more layers than this are joined with their neighbours into so many groups.
        independent: make the independent check too.
        seed: of the new weights. The global random state is not touched.
        batch_size: images a forward pass.
        progress: is told which layers are at work.

    Raises:
        DataError: images or targets that do not fit, or images too small for SSIM.
        ModelError: no weights, a layer that does not exist, or a map that is no map.
        OptionError: ``most`` below 1.
    """
    check_images(images, targets)
    if min(images.shape[2:]) < SSIM_SIDE:
        raise DataError(f"Images of {tuple(images.shape[2:])} are too small for SSIM; {SSIM_SIDE} pixels are needed.")
    with evaluation_mode(model, gradients=True, full_precision=True) as lent:
        groups = _groups(lent, layers, most)
        aims = all_logits(lent, images, batch_size).argmax(1) if targets is None else targets.cpu()
        before = all_maps("before randomizing", method, lent, images, aims, batch_size)

        def after(names: tuple[str, ...]) -> RandomizedStage:
            if progress is not None:
                progress.message(f"Randomized: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
            maps = all_maps(f"after randomizing {names[0]}", method, lent, images, aims, batch_size)
            return _stage(names, before, maps, images)

        with restored(lent):
            cascading = []
            for number, names in enumerate(groups):
                randomize(lent, names, seed + number)
                cascading.append(after(names))
        alone = []
        for number, names in enumerate(groups if independent else ()):
            with restored(lent):
                randomize(lent, names, seed + number)
                alone.append(after(names))
    return _report(before, tuple(cascading), tuple(alone))


def _report(
    before: Tensor, cascading: tuple[RandomizedStage, ...], independent: tuple[RandomizedStage, ...]
) -> RandomizationReport:
    telling = before[~is_constant(before)]
    between = spearman(telling.abs(), telling.abs().roll(1, 0)).mean().item() if len(telling) > 1 else float("nan")
    depends, verdict = _verdict(cascading[-1], len(telling), len(before))
    left_out = len(before) - len(telling)
    return RandomizationReport(len(telling), left_out, cascading, independent, between, depends, verdict)


def _verdict(last: RandomizedStage, telling: int, count: int) -> tuple[bool | None, str]:
    """Evaluate by the last stage of the cascade, where nothing learned is left."""
    ask = "Does this map depend on what the network learned?"
    if 2 * telling < count:
        return None, f"{ask} It cannot be said: {count - telling} of {count} maps are constant."
    blank = round(last.constant * telling)
    if 2 * blank > telling:
        return None, f"{ask} It cannot be said: with all weights randomized {blank} of {telling} maps are constant."
    rest = f" ({blank} of {telling} maps, constant then, left out)" if blank else ""
    found = f"with all weights randomized its rank correlation with itself is {last.absolute:.2f}{rest}"
    rule = f"(nearer to zero than {DEPENDS_BELOW}: yes; from {SAME_FROM} on, of either sign: no)"
    # A map turned upside down is as alike as one that stayed.
    if abs(last.absolute) >= SAME_FROM:
        return False, f"{ask} No: {found} {rule}. A network that learned nothing gives it too."
    if abs(last.absolute) < DEPENDS_BELOW:
        return True, f"{ask} Yes: {found} {rule}."
    return None, f"{ask} Only in part: {found} {rule}."


def _stage(names: tuple[str, ...], before: Tensor, after: Tensor, images: Tensor) -> RandomizedStage:
    if after.shape != before.shape:
        raise ModelError(
            f"The map changes its size from {tuple(before.shape)} to {tuple(after.shape)} when randomized."
        )
    telling = ~is_constant(before)
    blank = is_constant(after)[telling]
    before, after = before[telling][~blank], after[telling][~blank]
    if not len(before):
        return RandomizedStage(names, *(float("nan"),) * 3, blank.double().mean().item())
    height, width = images.shape[2:]
    likeness = ssim(unit(upsampled(before, height, width)), unit(upsampled(after, height, width)))
    return RandomizedStage(
        names,
        spearman(before.abs(), after.abs()).mean().item(),
        spearman(before, after).mean().item(),
        likeness.mean().item(),
        blank.double().mean().item(),
    )


# ---- weights


def _groups(model: nn.Module, layers: Sequence[str] | None, most: int) -> list[tuple[str, ...]]:
    """Names of the layers to randomize, top first, in at most ``most`` groups of neighbours."""
    if most < 1:
        raise OptionError(f"most = {most} leaves no group of layers; it must be 1 or more.")
    own = [name for name, module in model.named_modules() if _learned(module)]
    known = dict(model.named_modules())
    for name in layers or ():
        if name not in known:
            raise ModelError(f"There is no layer {name!r} in the model.{nearest(name, known)}")
    chosen = list(own if layers is None else layers)[::-1]
    if not chosen:
        raise ModelError("The model has no weights, so there is nothing to randomize.")
    edges = [round(part * len(chosen) / min(most, len(chosen))) for part in range(min(most, len(chosen)) + 1)]
    return [tuple(chosen[start:end]) for start, end in itertools.pairwise(edges)]


@torch.no_grad()
def randomize(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Draw the weights of the named modules, and of all inside them, anew; in place.

    Modules of torch, and those that draw as these do because they are made of them, draw as when they are made. What
    that leaves constant although training had moved it (a layer that starts at zero), and the weights of all other
    modules, are drawn from the normal distribution with the mean and the spread of the learned values. Running
    statistics are forgotten, whoever keeps them.
    """
    modules = dict(model.named_modules())
    devices = {value.device for value in model.parameters() if value.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        for name in names:
            for module in modules[name].modules():
                _redraw(module)


def _learned(module: nn.Module) -> list[Tensor]:
    """The module's own parameters, and the buffers of a normalisation: a frozen one keeps its weights there too."""
    buffers = dict(module.named_buffers(recurse=False))
    kept = [value for value in buffers.values() if value.is_floating_point()] if _STATISTICS & set(buffers) else []
    return [*module.parameters(recurse=False), *kept]


def _redraw(module: nn.Module) -> None:
    own = _learned(module)
    old = [value.detach().clone() for value in own]
    reset = getattr(type(module), "reset_parameters", None)
    standard = reset is not None and reset.__module__.startswith("torch.nn.")
    if standard:
        module.reset_parameters()  # type: ignore[operator]  # checked on the lines above
    buffers = dict(module.named_buffers(recurse=False))
    for name, start in _STARTS.items():
        if name in buffers:
            buffers[name].fill_(start)
    statistics = {id(buffers[name]) for name in _STARTS if name in buffers}
    for value, before in zip(own, old, strict=True):
        if id(value) not in statistics and (not standard or (_is_even(value) and not _is_even(before))):
            spread = before.std().item() if before.numel() > 1 else abs(before.item())
            value.normal_(before.mean().item(), spread)


def _is_even(value: Tensor) -> bool:
    return bool((value == value.flatten()[:1]).all())


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put every weight and buffer back bit by bit afterwards, also after an exception."""
    kept = {value: value.detach().clone() for part in (model.parameters(), model.buffers()) for value in part}
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in kept.items():
                value.copy_(old)


# ---- likeness of maps


def is_constant(maps: Tensor) -> Tensor:
    """Whether a map (N, h, w) has one value only: (N,) bool."""
    flat = maps.flatten(1)
    return flat.amax(1) == flat.amin(1)


def ranks(flat: Tensor) -> Tensor:
    """Rank each row of (N, P) from 1 up; equal values share the mean of their ranks. float64."""
    flat = flat.contiguous()
    ordered = flat.sort(1).values
    below = torch.searchsorted(ordered, flat)
    upto = torch.searchsorted(ordered, flat, right=True)
    return (below + upto + 1).double() / 2


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation of each pair of maps (N, h, w): (N,) float64 in [-1, 1]; 0 where a map is constant."""
    one, two = (ranks(maps.flatten(1)) for maps in (first, second))
    one, two = one - one.mean(1, keepdim=True), two - two.mean(1, keepdim=True)
    size = (one.square().sum(1) * two.square().sum(1)).sqrt()
    return torch.where(size > 0, (one * two).sum(1) / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)


def unit(maps: Tensor) -> Tensor:
    """Bring each map (N, h, w) to [0, 1] by its own smallest and largest value, in float64; a constant map to 0."""
    maps = maps.double()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair of maps (N, H, W) in [0, 1]: (N,) in [-1, 1], 1 where they are equal.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment" (2004), equation 13, with its window (Gaussian, 11 x 11,
    sigma 1.5) and constants (0.01, 0.03, range 1), averaged over the places where the window lies inside the map.
    """
    axis = torch.arange(SSIM_SIDE, dtype=torch.float64) - SSIM_SIDE // 2
    bell = torch.exp(-axis.square() / (2 * SSIM_SIGMA**2))
    window = (bell[:, None] * bell / bell.sum() ** 2)[None, None]

    def local(values: Tensor) -> Tensor:
        return F.conv2d(values[:, None], window.to(values.device))

    first, second = first.double(), second.double()
    one, two = local(first), local(second)
    spread_one, spread_two = local(first.square()) - one.square(), local(second.square()) - two.square()
    shared = local(first * second) - one * two
    low, mid = SSIM_FIRST**2, SSIM_SECOND**2
    top = (2 * one * two + low) * (2 * shared + mid)
    bottom = (one.square() + two.square() + low) * (spread_one + spread_two + mid)
    return (top / bottom).mean((1, 2, 3))
