"""Do the places that a map calls hot matter to the classifier? The measures of ``removal`` in one table.

None of these figures means much alone. An image with a part taken away is unlike any image that the network has
learned from; deletion and insertion reward small maps, average drop rewards large ones (a map of ones drops nothing).
So each map stands beside a random map *of its own grid* (coarse noise takes away whole patches, fine noise spoils all
of the image at once) and beside the map that always points to the middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.data.loader import generator
from heedmap.errors import OptionError, nearest
from heedmap.metrics.faithfulness import deletion as removal
from heedmap.metrics.faithfulness.deletion import ROAD_SHARES
from heedmap.metrics.maps import MapFunction, Score, all_logits, all_maps, centre_map, check_images, score
from heedmap.modules import evaluation_mode
from heedmap.progress import Progress

MEASURES = ("deletion", "insertion", "road", "drop")
# Less is better (-1) or more (+1). Drop and increase are not evaluated: they follow the area of a map.
SCORED = {"deletion": -1, "insertion": 1, "road": 1}
FEWEST = 20  # images; the spread of fewer is too uncertain for an interval of the normal kind to be believed


@dataclass(frozen=True)
class MapScores:
    """How faithful one map is; every score in [0, 1], except ``road`` in [-0.5, 0.5].

    Attributes:
        name: of the map.
        grid: its (h, w) before upsampling.
        scores: ``deletion`` (less is better), ``insertion`` (more), ``road_most`` and ``road_least`` (mean probability
            with the most / least relevant pixels imputed), ``road`` = (least - most) / 2 (more; chance is near 0),
            ``average_drop`` (less) and ``increase`` (more).
        chance: name of the random map of the same grid; None for a random map.
        better: of ``deletion``, ``insertion``, ``road`` those measured -> by how much the map is better than that
            random map, image by image; above 0 is better.
        count: images it was evaluated on.
    """

    name: str
    grid: tuple[int, int]
    scores: dict[str, Score]
    chance: str | None
    better: dict[str, Score]
    count: int

    @property
    def sentence(self) -> str:
        """One line: in which measures the interval of the gain over chance leaves out zero, and on which side.

        Below ``FEWEST`` images it says that there are too few.
        """
        if self.better and self.count < FEWEST:
            return f"{self.name}: too few images to tell (n = {self.count}; {FEWEST} are needed)"
        above = [measure for measure, gain in self.better.items() if gain.low > 0]
        below = [measure for measure, gain in self.better.items() if gain.high < 0]
        level = [measure for measure in self.better if measure not in above + below]
        found = (("better than chance", above), ("not told apart from chance", level), ("worse than chance", below))
        verdicts = [f"{verdict} in {', '.join(measures)}" for verdict, measures in found if measures]
        return f"{self.name}: {'; '.join(verdicts) or 'not compared with chance'}"


@dataclass(frozen=True)
class FaithfulnessReport:
    """Maps and baselines on the same images.

    Attributes:
        count: number of images.
        rows: the maps in their order, then ``centre``, then ``random HxW`` for each grid among the maps.
        settings: measures, step, baselines, shares and seed, for the record.
    """

    count: int
    rows: tuple[MapScores, ...]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and dicts; NaN where a figure is not defined."""
        rows = [asdict(row) | {"grid": list(row.grid), "sentence": row.sentence} for row in self.rows]
        return {"count": self.count, "settings": dict(self.settings), "rows": rows}


@dataclass(frozen=True, eq=False)
class _Asked:
    """What all measures share."""

    images: Tensor
    targets: Tensor
    step: int | None
    baselines: tuple[str | Tensor, str | Tensor]
    shares: tuple[float, ...]
    seed: int
    batch_size: int


def faithfulness(
    model: nn.Module,
    images: Tensor,
    methods: Mapping[str, MapFunction],
    targets: Tensor | None = None,
    *,
    measures: Sequence[str] = MEASURES,
    step: int | None = None,
    deletion_baseline: str | Tensor = "mean",
    insertion_baseline: str | Tensor = "blur",
    shares: Sequence[float] = ROAD_SHARES,
    seed: int = 0,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> FaithfulnessReport:
    """Evaluate maps by what the classifier says when their hot places are gone; baselines beside.

    Args:
        model: any classifier from RGB in [0, 1]; it is as before afterwards.
        images: (N, 3, H, W) in [0, 1].
        methods: name -> map function.
        targets: (N,) class asked about; None takes the predicted ones, as RISE does.
        measures: some of :data:`MEASURES`.
        step: pixels a step of deletion and insertion; None takes the image's width, as RISE does at 224 pixels.
        deletion_baseline, insertion_baseline: see :func:`heedmap.metrics.faithfulness.imputation.stand_in`.
        shares: of the pixels that ROAD imputes, each above 0 and below 1.
        seed: of ties, noise and the random maps.
        batch_size: images a forward pass.
        progress: is told which map is at work.

    Raises:
        DataError: images or targets that do not fit.
        ModelError: an answer without logits, or a map that is no map.
        OptionError: an unknown measure or baseline, a step or share out of range, no map, or one named like a
            baseline.
    """
    check_images(images, targets)
    _check(measures, methods)
    with evaluation_mode(model, gradients=True, full_precision=True) as lent:
        aims = all_logits(lent, images, batch_size).argmax(1) if targets is None else targets.cpu()
        asked = _Asked(images, aims, step, (deletion_baseline, insertion_baseline), tuple(shares), seed, batch_size)
        named = {**methods, "centre": centre_map}
        maps = {name: all_maps(name, method, lent, images, aims, batch_size) for name, method in named.items()}
        maps |= {_random_name(grid): random_maps(grid, seed) for grid in maps.values()}
        values = {}
        for name, grid in maps.items():
            if progress is not None:
                progress.message(f"Faithfulness: {name}")
            values[name] = _measured(lent, asked, grid, measures)
    rows = tuple(_row(name, maps[name], values) for name in maps)
    settings = {
        "measures": list(measures),
        "step": images.shape[-1] if step is None else step,
        "deletion_baseline": _plain(deletion_baseline),
        "insertion_baseline": _plain(insertion_baseline),
        "shares": list(shares),
        "seed": seed,
        "targets": "predicted" if targets is None else "given",
    }
    return FaithfulnessReport(len(images), rows, settings)


def random_maps(like: Tensor, seed: int) -> Tensor:
    """Return maps of the same shape (N, h, w), each value drawn evenly from [0, 1): they know nothing.

    The map of an image is a function of seed and place, so a batch more or less changes none.
    """
    rows = (torch.rand(like.shape[1:], generator=generator(seed, row, 1)) for row in range(len(like)))
    return torch.stack(list(rows))


def _random_name(maps: Tensor) -> str:
    return f"random {maps.shape[1]}x{maps.shape[2]}"


def _measured(model: nn.Module, asked: _Asked, maps: Tensor, measures: Sequence[str]) -> dict[str, Tensor]:
    """One value for each image, by measure."""
    images = (model, asked.images, asked.targets, maps)
    seed, batch_size = asked.seed, asked.batch_size
    found: dict[str, Tensor] = {}
    for name, curve, baseline in zip(MEASURES[:2], (removal.deletion, removal.insertion), asked.baselines, strict=True):
        if name in measures:
            found[name] = curve(*images, step=asked.step, baseline=baseline, seed=seed, batch_size=batch_size).area
    if "road" in measures:
        most, least = (
            removal.road(*images, order=order, shares=asked.shares, seed=seed, batch_size=batch_size).area
            for order in removal.ORDERS
        )
        found |= {"road_most": most, "road_least": least, "road": (least - most) / 2}
    if "drop" in measures:
        drop, increase = removal.confidence_change(*images, batch_size=batch_size)
        found |= {"average_drop": drop, "increase": increase}
    return found


def _row(name: str, maps: Tensor, values: Mapping[str, Mapping[str, Tensor]]) -> MapScores:
    own, chance = values[name], _random_name(maps)
    scores = {measure: score(each) for measure, each in own.items()}
    height, width = maps.shape[1:]
    if name == chance:
        return MapScores(name, (height, width), scores, None, {}, len(maps))
    better = {
        measure: score(sign * (own[measure] - values[chance][measure]))
        for measure, sign in SCORED.items()
        if measure in own
    }
    return MapScores(name, (height, width), scores, chance, better, len(maps))


def _plain(baseline: str | Tensor) -> str | list[float]:
    return baseline if isinstance(baseline, str) else [float(value) for value in baseline.flatten()]


def _check(measures: Sequence[str], methods: Mapping[str, MapFunction]) -> None:
    for measure in measures:
        if measure not in MEASURES:
            raise OptionError(
                f"Unknown measure {measure!r}; it can be {', '.join(MEASURES)}.{nearest(measure, MEASURES)}"
            )
    if not methods:
        raise OptionError("There is no map to evaluate; name at least one.")
    for name in methods:
        if name == "centre" or name.startswith("random "):
            raise OptionError(f"A map is named like a baseline: {name!r}; give it another name.")
