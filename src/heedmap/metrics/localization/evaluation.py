"""Does a map lie on the object? Every map against the user's own annotations, with maps that know nothing beside."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heedmap.data.annotations.annotations import Annotations
from heedmap.data.dataset import ImageDataset
from heedmap.errors import DataError, OptionError
from heedmap.metrics.classification import wilson_interval
from heedmap.metrics.localization.components import DELTAS, LEVELS
from heedmap.metrics.localization.measures import (
    IGNORED,
    OBJECT,
    Measured,
    PreparedMaps,
    Truth,
    iou_by_level,
    measure,
    near,
    pixel_average_precision,
    prepared,
)
from heedmap.metrics.localization.report import (
    CHOOSING,
    METRICS,
    PER_IMAGE,
    YES_NO,
    Bootstrap,
    LocalizationReport,
    ScoreWithInterval,
)
from heedmap.metrics.maps import FIXED_BASELINES, edges, fixed_baselines
from heedmap.progress import Progress
from heedmap.system import cores

CHUNK = 32  # images held as maps at a time; at 224 pixels 6 MB for each copy, of which a processor's cache holds some
THREADS = 4  # at most; each of them may start as many again inside PyTorch

Maps = Tensor | Callable[[Tensor], Tensor]
"""(N, 1, h, w), any scale; or a function from (n,) rows to (n, 1, h, w), for more maps than memory holds."""

Images = ImageDataset | Tensor
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LocalizationOptions:
    """How maps are compared with objects.

    Attributes:
        size: side in pixels at which maps and objects are compared, 8 to 1024.
        tolerance: by how many shares of the image's side ``pointing_near`` may miss, 0 to 0.5.
        draws, seed: of the bootstrap; 0 draws give NaN for its intervals. The seed is also that of halves and noise.

    Raises:
        OptionError: an option out of range.
    """

    size: int = 224
    tolerance: float = 0.04
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 1024:
            raise OptionError(f"size = {self.size} is out of range: 8 to 1024 pixels.")
        if not 0 <= self.tolerance <= 0.5:
            raise OptionError(f"tolerance = {self.tolerance} is out of range: a share of the side from 0 to 0.5.")


DEFAULTS = LocalizationOptions()


def evaluate_localization(
    maps: Mapping[str, Maps],
    annotations: Annotations,
    options: LocalizationOptions = DEFAULTS,
    *,
    images: Images | None = None,
    chosen_on: Tensor | None = None,
    progress: Progress | None = None,
) -> LocalizationReport:
    """Evaluate maps, and the baselines, by where the objects are.

    Args:
        maps, annotations: name -> maps of N images; annotations of the same N images, in the same order.
        images: the images, for the baseline ``edges``: (N, 3, H, W), or images to load. None leaves it out.
        chosen_on: (K,) rows on which the threshold of ``best_iou`` is chosen; these are then not evaluated at all. None
            chooses on each half of the images, drawn with the seed, the threshold for the other half.
        progress: receives which map is being evaluated.

    Raises:
        DataError: no map; numbers that do not fit; no image to evaluate, or fewer than two to choose a threshold on.
        OptionError: a map named like a baseline.
    """
    sources = _sources(maps, annotations, images, options)
    progress = progress or Progress()
    truth = _Truths(annotations, options)
    chooses = _chooses(chosen_on, len(annotations))
    halves = _halves(truth.usable, chooses, chosen_on is not None, options.seed)
    rows = (truth.usable & ~chooses).nonzero().flatten()
    evaluator = _Evaluator(truth, rows, halves, Bootstrap(len(rows), options.draws, options.seed))
    results = {}
    for number, (name, source) in enumerate(sources.items(), 1):
        progress.message(f"Evaluating where maps lie: {name} ({number} of {len(sources)}).")
        results[name] = evaluator.evaluate(source)
    left_out = {**truth.left_out, "chosen on": int((truth.usable & chooses).sum())}
    return LocalizationReport(
        scores={name: result.scores for name, result in results.items()},
        baselines=tuple(name for name in sources if name not in maps),
        thresholds={name: result.thresholds for name, result in results.items()},
        rows=rows,
        per_image={name: result.per_image for name, result in results.items()},
        left_out={reason: count for reason, count in left_out.items() if count},
        unmeasurable={name: result.unmeasurable for name, result in results.items() if result.unmeasurable},
        outlined=int(truth.outlined[rows].sum()),
        covered=int(truth.covered[rows].sum()),
        size=options.size,
        tolerance=options.tolerance,
        draws=options.draws,
        notes=annotations.notes + (() if images is not None else ("No images were given, so no edges beside.",)),
    )


def _chooses(rows: Tensor | None, count: int) -> Tensor:
    """Return (N,) bool: which images choose the threshold and are not evaluated."""
    chooses = torch.zeros(count, dtype=torch.bool)
    if rows is not None:
        rows = torch.as_tensor(rows)
        if rows.dtype == torch.bool or rows.is_floating_point() or rows.dim() != 1:
            raise DataError("chosen_on must be row numbers, a tensor of integers (K,).")
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= count):
            raise DataError(f"chosen_on names a row outside 0 .. {count - 1}.")
        chooses[rows.long()] = True
    return chooses


def _halves(usable: Tensor, chooses: Tensor, is_chosen: bool, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return pairs (rows to choose the threshold on, rows to use it for)."""
    evaluated = (usable & ~chooses).nonzero().flatten()
    if not len(evaluated):
        raise DataError("No image is left to evaluate: none has an object in its square view; check the annotations.")
    if is_chosen:
        other = (usable & chooses).nonzero().flatten()
        if not len(other):
            raise DataError("chosen_on names no image with an object; name some, or leave it out.")
        return [(other, evaluated)]
    if len(evaluated) < 2:
        raise DataError("One image alone leaves none to choose the threshold on; give two or more.")
    order = evaluated[torch.randperm(len(evaluated), generator=torch.Generator().manual_seed(seed))]
    first, second = (half.sort().values for half in order.tensor_split([len(order) // 2]))
    return [(first, second), (second, first)]


class _Truths:
    """The objects of all images, packed to bits: at 224 pixels 19 KB an image."""

    def __init__(self, annotations: Annotations, options: LocalizationOptions) -> None:
        count = len(annotations)
        self.size, self._tolerance = options.size, options.tolerance
        self.outlined = torch.tensor([mask is not None for mask in annotations.masks], dtype=torch.bool)
        self.usable, self.covered = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        self.left_out = {"not annotated": 0, "annotated without object": 0, "object outside the square or too small": 0}
        self._boxes = [box.double().numpy() for box in annotations.boxes]
        self._packed = np.zeros((count, 3, (self.size**2 + 7) // 8), np.uint8)
        for row in range(count):
            if annotations.known[row] and annotations.objects[row]:
                self._add(annotations, row)
            else:
                self.left_out["annotated without object" if annotations.known[row] else "not annotated"] += 1

    def _add(self, annotations: Annotations, row: int) -> None:
        region = annotations.region(row, self.size).numpy()
        if not len(self._boxes[row]) or not (region == OBJECT).any():
            self.left_out["object outside the square or too small"] += 1
            return
        self.usable[row], self.covered[row] = True, not (region == 0).any()
        planes = np.stack([region == OBJECT, region == IGNORED, near(region, self._tolerance)])
        self._packed[row] = np.packbits(planes.reshape(3, -1), axis=1)

    def of(self, rows: Tensor) -> Truth:
        bits = np.unpackbits(self._packed[rows.numpy()], axis=2, count=self.size**2)
        planes = torch.from_numpy(bits).reshape(-1, 3, self.size, self.size)
        regions, boxes = (
            OBJECT * planes[:, 0] + IGNORED * planes[:, 1],
            tuple(self._boxes[row] for row in rows.tolist()),
        )
        return Truth(regions, planes[:, 2].bool(), boxes, self.outlined[rows])


_Source = Callable[[Tensor], Callable[[], PreparedMaps]]
"""From (n,) rows to a function that prepares their maps. The maps are made in the caller's thread, for a network may
run for them, and networks are not for two threads; preparing goes on beside it."""


def _sources(
    maps: Mapping[str, Maps], annotations: Annotations, images: Images | None, options: LocalizationOptions
) -> dict[str, _Source]:
    """Check the maps and images, and return all maps by name, the baselines last."""
    if not maps:
        raise DataError("There are no maps to evaluate; give at least one.")
    if taken := {*FIXED_BASELINES, "edges"} & set(maps):
        raise OptionError(f"A map is named like a baseline: {', '.join(sorted(taken))}; give it another name.")
    if images is not None and len(images) != len(annotations):
        raise DataError(f"{len(images)} images for {len(annotations)} annotations; give the same ones in order.")
    size = options.size
    sources = {name: _source(_maps_of_rows(name, values, len(annotations)), size) for name, values in maps.items()}
    for name, bank in fixed_baselines(size, options.seed).items():
        sources[name] = _repeated(prepared(bank, size))
    if images is not None:
        sources["edges"] = lambda rows: lambda: prepared(edges(_loaded(images, rows, size)), size)
    return sources


def _source(maps_of_rows: Callable[[Tensor], Tensor], size: int) -> _Source:
    return lambda rows: partial(prepared, maps_of_rows(rows), size)


def _repeated(bank: PreparedMaps) -> _Source:
    """Repeat the same few maps, prepared once."""
    return lambda rows: lambda: bank.of(rows % len(bank.maps))


def _loaded(images: Images, rows: Tensor, size: int) -> Tensor:
    if isinstance(images, Tensor):
        return images[rows]
    return torch.stack([images.load(row, size) for row in rows.tolist()])


def _maps_of_rows(name: str, values: Maps, count: int) -> Callable[[Tensor], Tensor]:
    if isinstance(values, Tensor):
        if values.dim() != 4 or values.shape[1] != 1 or 0 in values.shape[2:]:
            raise DataError(f"The maps {name!r} must be (N, 1, h, w), not {tuple(values.shape)}.")
        if len(values) != count:
            raise DataError(f"{len(values)} maps {name!r} for {count} annotated images; give one for each.")
        return lambda rows: values[rows].detach().cpu()

    def called(rows: Tensor) -> Tensor:
        made = values(rows).detach().cpu()
        if made.dim() != 4 or made.shape[:2] != (len(rows), 1) or 0 in made.shape[2:]:
            raise DataError(f"The function for the maps {name!r} gave {tuple(made.shape)} for {len(rows)} rows.")
        return made.clone()  # it is read in another thread, while the function may fill its own memory again

    return called


class _MapResult(NamedTuple):
    scores: dict[str, ScoreWithInterval]
    thresholds: tuple[float, ...]
    per_image: dict[str, Floats]
    unmeasurable: dict[str, int]


class _Evaluator:
    """Evaluates one map after the other on the same images and the same draws."""

    def __init__(self, truth: _Truths, rows: Tensor, halves: list[tuple[Tensor, Tensor]], bootstrap: Bootstrap) -> None:
        self._truth, self._rows, self._halves, self._bootstrap = truth, rows, halves, bootstrap
        self._all = rows if len(halves) == 2 else truth.usable.nonzero().flatten()
        place = torch.full((len(truth.usable),), -1)
        place[self._all] = torch.arange(len(self._all))
        self._place = place.numpy()

    def evaluate(self, source: _Source) -> _MapResult:
        parts = zip(*self._parts(source), strict=True)
        measured = Measured(*(np.concatenate(columns) for columns in parts))
        iou, thresholds = self._best_iou(iou_by_level(measured.inside, measured.outside))
        measured = Measured(*(column[self._place[self._rows.numpy()]] for column in measured))
        per_image = {
            "pointing": measured.pointing,
            "pointing_near": measured.tolerant,
            "energy": measured.energy,
            "otsu_iou": measured.otsu_iou,
            "best_iou": iou,
            "corloc": (measured.otsu_box_iou >= 0.5).astype(np.float64),
        }
        counts = np.stack([measured.inside, measured.outside], axis=1)
        hits = np.stack([measured.largest, measured.every], axis=1)
        is_flat = measured.finite & ~measured.differs
        unmeasurable = {"not finite": int((~measured.finite).sum()), "flat": int(is_flat.sum())}
        scores = self._scores(per_image, counts, hits)
        return _MapResult(scores, thresholds, per_image, {word: count for word, count in unmeasurable.items() if count})

    def _parts(self, source: _Source) -> Iterator[Measured]:
        """Measure each chunk, in order. NumPy lets other threads work while it sorts and gathers."""
        waiting: deque[Future[Measured]] = deque()
        threads = min(cores(), THREADS)
        pool = ThreadPoolExecutor(threads)
        try:
            for rows in self._all.split(CHUNK):
                waiting.append(pool.submit(self._measure, source(rows), rows))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _measure(self, prepare: Callable[[], PreparedMaps], rows: Tensor) -> Measured:
        return measure(prepare(), self._truth.of(rows))

    def _best_iou(self, iou: Floats) -> tuple[Floats, tuple[float, ...]]:
        """Return the IoU of each evaluated image at the level that is best on the other images, and these levels."""
        best, thresholds = np.full(len(self._place), np.nan), []
        for chosen_on, used_for in self._halves:
            level = int(iou[self._place[chosen_on.numpy()]].mean(0).argmax())
            best[used_for.numpy()] = iou[self._place[used_for.numpy()], level]
            thresholds.append(level / (LEVELS - 1))
        return best[self._rows.numpy()], tuple(thresholds)

    def _scores(
        self, per_image: dict[str, Floats], counts: NDArray[np.int64], hits: NDArray[np.bool_]
    ) -> dict[str, ScoreWithInterval]:
        count = len(self._rows)
        single = np.stack(list(per_image.values()), axis=1)
        flat = [single, counts.reshape(count, -1) / counts[0].sum(), hits.reshape(count, -1)]
        ends = np.cumsum([part.shape[1] for part in flat])[:-1]
        drawn = self._bootstrap.means(np.concatenate([part.astype(np.float32) for part in flat], axis=1))
        of_draws = _figures(*(part.astype(np.float64) for part in np.split(drawn, ends, axis=1)))
        of_all = _figures(*(part.mean(0, dtype=np.float64)[None] for part in flat))
        scores = {}
        for metric in METRICS:
            value = float(of_all[metric][0])
            is_yes_no = _is_yes_no(metric, per_image, value)
            interval = wilson_interval(value, count) if is_yes_no else self._bootstrap.interval(of_draws[metric])
            scores[metric] = ScoreWithInterval(value, *interval)
        return scores


def _is_yes_no(metric: str, per_image: Mapping[str, Floats], value: float) -> bool:
    """Whether every image is a yes or a no. Of 0 hits in 6 every draw of a bootstrap has 0, and knows no better."""
    # A threshold chosen on the same images is chosen again in each draw, of which Wilson's interval knows nothing.
    if metric in CHOOSING:
        return value in (0.0, 1.0)
    # Of a map with several hottest places an image counts in part, which Wilson's interval would take for luck.
    return metric in YES_NO and bool(np.isin(per_image.get(metric, 0.0), (0.0, 1.0)).all())


def _figures(single: Floats, counts: Floats, hits: Floats) -> dict[str, Floats]:
    """Return metric -> (draws,) from the means over images of what is known of each."""
    inside, outside = counts.reshape(-1, 2, LEVELS).transpose(1, 0, 2)
    best = hits.reshape(-1, 2, LEVELS, len(DELTAS)).max(2)
    figures = dict(zip(PER_IMAGE, single.T, strict=True))
    figures["pxap"] = pixel_average_precision(inside, outside)
    figures["max_box_acc"] = best[:, 0, DELTAS.index(0.5)]
    figures["max_box_acc_v2"] = best[:, 1].mean(-1)
    return figures
