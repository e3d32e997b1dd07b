"""Does a map depend on what the network learned? Randomize the weights and see whether the map changes.

After Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018), sections 3 and 4: *cascading* randomization from
the top layer (nearest the logits) down, each stage keeping the ones before it, and *independent* randomization of one
layer at a time. The similarity of the maps before and after is Spearman's rank correlation, of absolute and of signed
values, and SSIM. Their third check, a network trained on shuffled labels, needs a training run and is not here.

A map that stays the same shows the image (edges, say), not what was learned of it. This does not prove the reverse:
a map may depend on the weights and still point to the wrong place.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.errors import DataError, ModelError, OptionError, nearest
from heedmap.metrics.faithfulness.deletion import upsampled
from heedmap.metrics.maps import MapFunction, PlainReport, all_logits, all_maps, check_images, unit_range
from heedmap.modules import evaluation_mode
from heedmap.progress import Progress

DEPENDS_BELOW = 0.5  # mean rank correlation with every layer randomized
SAME_FROM = 0.9
_STARTS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
_STATISTICS = {"running_mean", "running_var"}
SSIM_SIDE, SSIM_SIGMA, SSIM_FIRST, SSIM_SECOND = 11, 1.5, 0.01, 0.03


@dataclass(frozen=True)
class RandomizedStage:
    """How similar the maps are before and after some layers were randomized; means over images whose map is not blank.

    A blank map, constant over the image, has no order to compare; the means are NaN where no other is left.

    Attributes:
        absolute, signed: Spearman's correlation of the absolute values and of the values as they are, in [-1, 1].
        ssim: structural similarity of the maps at the image's size, each scaled to [0, 1].
        constant: share of images whose map became blank.
    """

    layers: tuple[str, ...]
    absolute: float
    signed: float
    ssim: float
    constant: float


@dataclass(frozen=True)
class RandomizationReport(PlainReport):
    """How randomizing changed a map.

    Attributes:
        count, left_out: images whose map is not constant, and whose map is.
        cascading: one stage after another, from the top; the last has every layer randomized.
        independent: each group of layers alone.
        between: mean rank correlation (absolute values) of one image's map with the next image's, before: what
            maps have in common whatever the image, such as a hot middle. NaN for a single image.
        depends: True, False, or None where it is undecided.
        verdict: the same in a sentence, with its thresholds.
    """

    count: int
    left_out: int
    cascading: tuple[RandomizedStage, ...]
    independent: tuple[RandomizedStage, ...]
    between: float
    depends: bool | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class RandomizationOptions:
    """How weights are randomized.

    Attributes:
        layers: names of modules from the input to the top; None takes all that own weights, in order of definition.
        most: more layers than this are joined with their neighbours into so many groups.
        independent: make the independent check too.
        seed: of the new weights. The global random state is not touched.

    Raises:
        OptionError: ``most`` below 1.
    """

    layers: tuple[str, ...] | None = None
    most: int = 12
    independent: bool = True
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.most < 1:
            raise OptionError(f"most = {self.most} leaves no group of layers; it must be 1 or more.")


DEFAULTS = RandomizationOptions()


def randomization_check(
    model: nn.Module,
    images: Tensor,
    method: MapFunction,
    targets: Tensor | None = None,
    options: RandomizationOptions = DEFAULTS,
    *,
    progress: Progress | None = None,
) -> RandomizationReport:
    """Randomize a network's layers and compare the maps; the weights are put back bit by bit, also after an error.

    Args:
        model, images: any classifier from RGB in [0, 1]; (N, 3, H, W) in [0, 1], at least 11 x 11.
        targets: (N,) class that is explained, before and after; None takes those that the learned weights predict.
        progress: receives which layers were randomized.

    Raises:
        DataError: images or targets that do not fit, or images too small for SSIM.
        ModelError: no weights, a layer that does not exist, or a map that is no map.
    """
    check_images(images, targets)
    if min(images.shape[2:]) < SSIM_SIDE:
        raise DataError(f"Images of {tuple(images.shape[2:])} are too small for SSIM; {SSIM_SIDE} pixels are needed.")
    progress, batch_size = progress or Progress(), options.batch_size
    with evaluation_mode(model, gradients=True, full_precision=True) as network:
        groups = _groups(network, options)
        classes = all_logits(network, images, batch_size).argmax(1) if targets is None else targets.cpu()
        before = all_maps("before randomizing", method, network, images, classes, batch_size)

        def after(number: int, names: tuple[str, ...]) -> RandomizedStage:
            randomize(network, names, options.seed + number)
            progress.message(f"Randomized: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
            maps = all_maps(f"after randomizing {names[0]}", method, network, images, classes, batch_size)
            return _stage(names, before, maps, images)

        with restored(network):
            cascading = [after(number, names) for number, names in enumerate(groups)]
        alone = []
        for number, names in enumerate(groups if options.independent else ()):
            with restored(network):
                alone.append(after(number, names))
    varied = before[~is_constant(before)].abs()
    between = spearman(varied, varied.roll(1, 0)).mean().item() if len(varied) > 1 else float("nan")
    count, left_out = len(varied), len(before) - len(varied)
    verdict = _verdict(cascading[-1], count, len(before))
    return RandomizationReport(count, left_out, tuple(cascading), tuple(alone), between, *verdict)


def _verdict(last: RandomizedStage, varied: int, count: int) -> tuple[bool | None, str]:
    """Decide by the last stage of the cascade, where nothing learned is left."""
    question = "Does this map depend on what the network learned?"
    if 2 * varied < count:
        return None, f"{question} Undecided: {count - varied} of {count} maps are constant."
    blank = round(last.constant * varied)
    if 2 * blank > varied:
        return None, f"{question} Undecided: with all weights randomized {blank} of {varied} maps are constant."
    rest = f" ({blank} of {varied} maps, constant then, left out)" if blank else ""
    measured = f"with all weights randomized its rank correlation with itself is {last.absolute:.2f}{rest}"
    rule = f"(nearer to zero than {DEPENDS_BELOW}: yes; from {SAME_FROM} on, of either sign: no)"
    # A map of the opposite sign is as similar as one that stayed.
    if abs(last.absolute) >= SAME_FROM:
        return False, f"{question} No: {measured} {rule}. A network that learned nothing gives it too."
    if abs(last.absolute) < DEPENDS_BELOW:
        return True, f"{question} Yes: {measured} {rule}."
    return None, f"{question} Only in part: {measured} {rule}."


def _stage(names: tuple[str, ...], before: Tensor, after: Tensor, images: Tensor) -> RandomizedStage:
    if after.shape != before.shape:
        raise ModelError(f"The map changes its size when randomized: {tuple(before.shape)}, {tuple(after.shape)}.")
    varied = ~is_constant(before)
    blank = is_constant(after)[varied]
    before, after = before[varied][~blank], after[varied][~blank]
    similar = [torch.tensor(float("nan"))] * 3
    if len(before):
        sized = (unit_range(upsampled(maps, *images.shape[2:]).double()) for maps in (before, after))
        similar = [spearman(before.abs(), after.abs()), spearman(before, after), ssim(*sized)]
    absolute, signed, structural = (values.mean().item() for values in similar)
    return RandomizedStage(names, absolute, signed, structural, blank.double().mean().item())


def _groups(model: nn.Module, options: RandomizationOptions) -> list[tuple[str, ...]]:
    """Return the names of the layers to randomize, top first, in at most ``most`` groups of neighbours."""
    known = dict(model.named_modules())
    for name in options.layers or ():
        if name not in known:
            raise ModelError(f"There is no layer {name!r} in the model.{nearest(name, known)}")
    own = [name for name, module in known.items() if _learned(module)]
    chosen = list(own if options.layers is None else options.layers)[::-1]
    if not chosen:
        raise ModelError("The model has no weights, so there is nothing to randomize.")
    count = min(options.most, len(chosen))
    edges = [round(part * len(chosen) / count) for part in range(count + 1)]
    return [tuple(chosen[start:end]) for start, end in itertools.pairwise(edges)]


@torch.no_grad()
def randomize(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Draw new weights for the named modules, and all inside them, in place.

    Modules of torch, and those that inherit their ``reset_parameters``, draw as when they are built. What that leaves
    constant although training had changed it (a layer that starts at zero), and the weights of all other modules, are
    drawn from the normal distribution with the mean and the spread of the learned values. Running statistics are
    reset, in whatever module.
    """
    modules = dict(model.named_modules())
    devices = {value.device for value in model.parameters() if value.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        for name in names:
            for module in modules[name].modules():
                _redraw(module)


def _learned(module: nn.Module) -> list[Tensor]:
    """Return the module's own parameters, and the buffers of a normalisation: a frozen one has its weights there."""
    buffers = dict(module.named_buffers(recurse=False))
    is_norm = bool(_STATISTICS & set(buffers))
    return [*module.parameters(recurse=False), *(b for b in buffers.values() if is_norm and b.is_floating_point())]


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
        if id(value) not in statistics and (
            not standard or (value.amax() == value.amin() and before.amax() != before.amin())
        ):
            spread = before.std().item() if before.numel() > 1 else abs(before.item())
            value.normal_(before.mean().item(), spread)


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put every weight and buffer back bit by bit afterwards, also after an exception."""
    saved = {value: value.detach().clone() for part in (model.parameters(), model.buffers()) for value in part}
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in saved.items():
                value.copy_(old)


def is_constant(maps: Tensor) -> Tensor:
    """Return (N,) bool: whether a map (N, h, w) has one value only."""
    flat = maps.flatten(1)
    return flat.amax(1) == flat.amin(1)


def ranks(flat: Tensor) -> Tensor:
    """Rank each row of (N, P) from 1 up; equal values share the mean of their ranks. float64."""
    flat = flat.contiguous()
    ordered = flat.sort(1).values
    return (torch.searchsorted(ordered, flat) + torch.searchsorted(ordered, flat, right=True) + 1).double() / 2


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Return the rank correlation of each pair of maps (N, h, w): (N,) float64 in [-1, 1]; 0 where one is constant."""
    places = (ranks(maps.flatten(1)) for maps in (first, second))
    one, two = (place - place.mean(1, keepdim=True) for place in places)
    size = (one.square().sum(1) * two.square().sum(1)).sqrt()
    return torch.where(size > 0, (one * two).sum(1) / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity of each pair of maps (N, H, W) in [0, 1]: (N,) in [-1, 1], 1 where equal.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment" (2004), equation 13, with its window (Gaussian, 11 x 11,
    sigma 1.5) and constants (0.01, 0.03, range 1), averaged over the places where the window lies inside the map.
    """
    axis = torch.arange(SSIM_SIDE, dtype=torch.float64) - SSIM_SIDE // 2
    bell = torch.exp(-axis.square() / (2 * SSIM_SIGMA**2))
    window = (bell[:, None] * bell / bell.sum() ** 2)[None, None]

    def local(values: Tensor) -> Tensor:
        return F.conv2d(values[:, None], window.to(values.device))

    first, second = first.double(), second.double()
    one, two, low, mid = local(first), local(second), SSIM_FIRST**2, SSIM_SECOND**2
    spread_one, spread_two = local(first.square()) - one.square(), local(second.square()) - two.square()
    top = (2 * one * two + low) * (2 * (local(first * second) - one * two) + mid)
    return (top / ((one.square() + two.square() + low) * (spread_one + spread_two + mid))).mean((1, 2, 3))
