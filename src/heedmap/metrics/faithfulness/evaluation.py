"""Do the places that a map calls hot matter to the classifier? Deletion, insertion, ROAD and drop in one table.

None of these figures means much alone. An image with a part removed is unlike any image that the network has learned
from; deletion and insertion reward small maps, average drop rewards large ones (a map of ones drops nothing).
So each map stands beside a random map *of its own grid* (coarse noise removes whole patches, fine noise spoils all
of the image at once) and beside the map that always points to the middle.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.data.loader import generator
from heedmap.errors import OptionError
from heedmap.metrics.faithfulness.deletion import (
    ORDERS,
    ROAD_SHARES,
    MappedImages,
    confidence_change,
    deletion,
    insertion,
    road,
)
from heedmap.metrics.maps import MapFunction, Score, all_logits, all_maps, centre_map, check_images, check_known, score
from heedmap.modules import evaluation_mode
from heedmap.progress import Progress

MEASURES = ("deletion", "insertion", "road", "drop")
# Less is better (-1) or more (+1). Drop and increase are not compared with chance: they follow the area of a map.
SCORED = {"deletion": -1, "insertion": 1, "road": 1}
FEWEST = 20  # images; the spread of fewer is too uncertain for an interval of the normal kind to be believed


@dataclass(frozen=True, kw_only=True, eq=False)
class FaithfulnessOptions:
    """How faithfulness is measured.

    Attributes:
        measures: some of :data:`MEASURES`.
        step: pixels a step of deletion and insertion; None takes the image's width, as RISE does at 224 pixels.
        deletion_baseline, insertion_baseline: see :func:`heedmap.metrics.faithfulness.imputation.stand_in`.
        shares: of the pixels that ROAD imputes, each above 0 and below 1.
        seed: of ties, noise and the random maps.

    Raises:
        OptionError: an unknown measure.
    """

    measures: tuple[str, ...] = MEASURES
    step: int | None = None
    deletion_baseline: str | Tensor = "mean"
    insertion_baseline: str | Tensor = "blur"
    shares: tuple[float, ...] = ROAD_SHARES
    seed: int = 0
    batch_size: int = 128

    def __post_init__(self) -> None:
        for measure in self.measures:
            check_known("measure", measure, MEASURES)

    def as_dict(self) -> dict[str, Any]:
        """Return the options as JSON can hold them, without the batch size."""
        values = {name: getattr(self, name) for name in ("step", "deletion_baseline", "insertion_baseline", "seed")}
        plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
        return {"measures": list(self.measures), "shares": list(self.shares), **plain}


DEFAULTS = FaithfulnessOptions()


@dataclass(frozen=True)
class MapScores:
    """How faithful one map is; every score in [0, 1], except ``road`` in [-0.5, 0.5].

    Attributes:
        grid: its (h, w) before upsampling.
        scores: ``deletion`` (less is better), ``insertion`` (more), ``road_most`` and ``road_least`` (mean probability
            with the most / least relevant pixels imputed), ``road`` = (least - most) / 2 (more; chance is near 0),
            ``average_drop`` (less) and ``increase`` (more).
        chance: name of the random map of the same grid; None for a random map.
        better: of ``deletion``, ``insertion``, ``road`` those measured -> by how much the map is better than that
            random map, image by image; above 0 is better.
    """

    name: str
    grid: tuple[int, int]
    scores: dict[str, Score]
    chance: str | None
    better: dict[str, Score]
    count: int

    @property
    def sentence(self) -> str:
        """One line: in which measures the interval of the gain over chance leaves out zero, given ``FEWEST`` images."""
        if self.better and self.count < FEWEST:
            return f"{self.name}: too few images to tell (n = {self.count}; {FEWEST} are needed)"
        above = [measure for measure, gain in self.better.items() if gain.low > 0]
        below = [measure for measure, gain in self.better.items() if gain.high < 0]
        level = [measure for measure in self.better if measure not in above + below]
        groups = (("better than chance", above), ("not different from chance", level), ("worse than chance", below))
        verdicts = [f"{verdict} in {', '.join(measures)}" for verdict, measures in groups if measures]
        return f"{self.name}: {'; '.join(verdicts) or 'not compared with chance'}"


@dataclass(frozen=True)
class FaithfulnessReport:
    """Maps and baselines on the same images.

    Rows are the maps in their order, then ``centre``, then ``random HxW`` for each grid among the maps; ``settings``
    are measures, step, baselines, shares and seed, for the record.
    """

    count: int
    rows: tuple[MapScores, ...]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and dicts; NaN where a figure is not defined."""
        rows = [asdict(row) | {"grid": list(row.grid), "sentence": row.sentence} for row in self.rows]
        return {"count": self.count, "settings": dict(self.settings), "rows": rows}


def evaluate_faithfulness(
    model: nn.Module,
    images: Tensor,
    methods: Mapping[str, MapFunction],
    targets: Tensor | None = None,
    options: FaithfulnessOptions = DEFAULTS,
    *,
    progress: Progress | None = None,
) -> FaithfulnessReport:
    """Evaluate maps by what the classifier predicts when their hot places are gone; baselines beside.

    Args:
        model: any classifier from RGB in [0, 1]; it is as before afterwards.
        images: (N, 3, H, W) in [0, 1].
        targets: (N,) class that is explained; None takes the predicted ones, as RISE does.
        progress: receives which map is being evaluated.

    Raises:
        DataError, ModelError: images or targets that do not fit; an output without logits, or a map that is no map.
        OptionError: no map, one named like a baseline, or a step, share or baseline out of range.
    """
    check_images(images, targets)
    if not methods:
        raise OptionError("There is no map to evaluate; name at least one.")
    if taken := [name for name in methods if name == "centre" or name.startswith("random ")]:
        raise OptionError(f"A map is named like a baseline: {taken[0]!r}; give it another name.")
    progress, seed, batch_size = progress or Progress(), options.seed, options.batch_size
    with evaluation_mode(model, gradients=True, full_precision=True) as network:
        classes = all_logits(network, images, batch_size).argmax(1) if targets is None else targets.cpu()
        named = {**methods, "centre": centre_map}
        maps = {name: all_maps(name, method, network, images, classes, batch_size) for name, method in named.items()}
        maps |= {_random_name(grid): random_maps(grid, seed) for grid in maps.values()}
        values = {}
        for name, grid in maps.items():
            progress.message(f"Faithfulness: {name}")
            values[name] = _measured(network, MappedImages(images, classes, grid), options)
    rows = tuple(_map_scores(name, maps[name], values) for name in maps)
    settings = options.as_dict() | {"targets": "predicted" if targets is None else "given"}
    settings["step"] = images.shape[-1] if options.step is None else options.step
    return FaithfulnessReport(len(images), rows, settings)


def random_maps(like: Tensor, seed: int) -> Tensor:
    """Return maps of the same shape (N, h, w), uniform in [0, 1); each is a function of seed and place alone."""
    return torch.stack([torch.rand(like.shape[1:], generator=generator(seed, row, 1)) for row in range(len(like))])


def _random_name(maps: Tensor) -> str:
    return f"random {maps.shape[1]}x{maps.shape[2]}"


def _measured(model: nn.Module, mapped: MappedImages, options: FaithfulnessOptions) -> dict[str, Tensor]:
    """Return measure -> one value for each image."""
    common: dict[str, int] = {"seed": options.seed, "batch_size": options.batch_size}
    values: dict[str, Tensor] = {}
    for name, curve, baseline in (
        ("deletion", deletion, options.deletion_baseline),
        ("insertion", insertion, options.insertion_baseline),
    ):
        if name in options.measures:
            values[name] = curve(model, mapped, step=options.step, baseline=baseline, **common).area
    if "road" in options.measures:
        most, least = (road(model, mapped, order=order, shares=options.shares, **common).area for order in ORDERS)
        values |= {"road_most": most, "road_least": least, "road": (least - most) / 2}
    if "drop" in options.measures:
        drop, increase = confidence_change(model, mapped, batch_size=options.batch_size)
        values |= {"average_drop": drop, "increase": increase}
    return values


def _map_scores(name: str, maps: Tensor, values: Mapping[str, Mapping[str, Tensor]]) -> MapScores:
    own, chance = values[name], _random_name(maps)
    scores = {measure: score(value) for measure, value in own.items()}
    count, height, width = maps.shape
    if name == chance:
        return MapScores(name, (height, width), scores, None, {}, count)
    others = values[chance]
    better = {key: score(sign * (own[key] - others[key])) for key, sign in SCORED.items() if key in own}
    return MapScores(name, (height, width), scores, chance, better, count)
