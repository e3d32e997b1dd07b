"""From a map to masks and boxes, and what is measured of them image by image; figures are means of these rows.

A map is scaled by its own lowest and highest value to 0 to 1 and cut to whole levels 0 to 255, as the reference code
of Choe et al. (2020) does; the mask of level k holds what reaches k. Counts of pixels at each level, inside and outside
the object, then give every mask, and :mod:`heedmap.metrics.localization.components` gives every box.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from heedmap.errors import OptionError
from heedmap.metrics.localization.components import LEVELS, Components, box_hits, components, padded, quantised
from heedmap.metrics.maps import check_known, unit_range

OBJECT, IGNORED = 1, 2
FLAT_GRID = 28  # points at which a map that prefers no place is tried

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def is_measurable(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return two (M,) bool: which maps (M, ...) hold finite values only, and which of these differ between places."""
    finite, flat = torch.isfinite(maps).flatten(1).all(1), maps.flatten(1)
    return finite, finite & (flat.amax(1) > flat.amin(1))


def scaled(maps: Tensor, size: int) -> Tensor:
    """Resize maps (M, 1, h, w) and scale each to 0 to 1 by its own lowest and highest value: (M, size, size) float32.

    A map that is not finite, or the same everywhere, becomes 0 everywhere: it prefers no place.
    """
    return unit_range(resized(torch.where(is_measurable(maps)[1][:, None, None, None], maps, 0), size))


def resized(maps: Tensor, size: int) -> Tensor:
    """Interpolate maps (M, 1, h, w) linearly between the centres of their cells: (M, size, size) float32.

    Maps that shrink are averaged. The reference code of Choe et al. interpolates with a cubic, which overshoots.
    """
    maps = maps.float()
    if maps.shape[-2:] != (size, size):
        is_larger = max(maps.shape[-2:]) > size
        maps = interpolate(maps, (size, size), mode="bilinear", align_corners=False, antialias=is_larger)
    return maps[:, 0]


def otsu_levels(counts: Tensor) -> Tensor:
    """Choose the level that separates low from high best, by Otsu (IEEE Trans. SMC 9(1), 1979, equation 18).

    Counts are the pixels at each level, (M, 256). The level, (M,) int64, is the lowest of the bright part: the one that
    makes the variance between the two parts largest, the first among equals; 0 where all pixels lie at one level.
    """
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(LEVELS, dtype=torch.float64)
    below, mean_below = share.cumsum(1), (share * levels).cumsum(1)
    mean = mean_below[:, -1:]
    parted = (below > 0) & (below < 1 - 1e-12)
    between = (mean * below - mean_below) ** 2 / torch.where(parted, below * (1 - below), 1.0)
    between = torch.where(parted, between, 0.0)
    # Sums in another order differ in the last bits; what is equal but for them is equal.
    best = (between >= between.amax(1, keepdim=True) * (1 - 1e-12)).to(torch.uint8).argmax(1)
    return torch.where(parted.any(1), best + 1, 0)


def _at_otsu(maps: Tensor, _: float) -> Tensor:
    levels = quantised(maps)
    counts = torch.stack([level.flatten().long().bincount(minlength=LEVELS) for level in levels])
    return levels >= otsu_levels(counts)[:, None, None]


THRESHOLDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "otsu": _at_otsu,
    "fixed": lambda maps, share: maps >= share,
    "percentile": lambda maps, percent: maps >= maps.flatten(1).double().quantile(percent / 100, 1)[:, None, None],
}
"""Way of choosing the threshold -> (maps (M, H, W) in 0 to 1, value) -> masks. ``otsu`` takes no value;
``fixed`` takes what reaches that share of the map's range, ``percentile`` that percentile of its values."""


def masks_of(maps: Tensor, threshold: str = "otsu", value: float = 0.5, *, size: int = 224) -> Tensor:
    """Turn maps (M, 1, h, w), any scale, into masks (M, size, size); all True for a map that prefers no place.

    Args:
        threshold: a name in ``THRESHOLDS``.
        value: for ``fixed`` a share of the range from 0 to 1, such as one chosen on other images
            (``LocalizationReport.thresholds``); for ``percentile`` from 0 to 100.
        size: side of the masks in pixels.

    Raises:
        OptionError: an unknown threshold or a value out of range.
    """
    check_known("threshold", threshold, THRESHOLDS)
    most = 100 if threshold == "percentile" else 1
    if not 0 <= value <= most:
        raise OptionError(f"The value of the threshold {threshold!r} lies between 0 and {most}, not at {value}.")
    _, differs = is_measurable(maps)
    return THRESHOLDS[threshold](scaled(maps, size), value) | ~differs[:, None, None]


class Truth(NamedTuple):
    """Where the objects of M images are."""

    regions: Tensor  # (M, S, S) uint8: 1 on an object, 2 where pixels are ignored, else 0; none is without object
    near: Tensor  # (M, S, S) bool: within the tolerance of an object
    boxes: tuple[Floats, ...]  # M times (G, 4) left, top, right, bottom in shares of the image, G at least 1
    outlined: Tensor  # (M,) bool: the region is a mask; else it is what the boxes cover


class Measured(NamedTuple):
    """What was measured of M maps; ``METRICS`` in :mod:`heedmap.metrics.localization.report` has the definitions."""

    pointing: Floats  # (M,) like the next four
    tolerant: Floats
    energy: Floats
    otsu_iou: Floats
    otsu_box_iou: Floats
    inside: Counts  # (M, 256) pixels at each level on the object
    outside: Counts  # and off it
    largest: NDArray[np.bool_]  # (M, 256, 3), see :class:`heedmap.metrics.localization.components.BoxHits`
    every: NDArray[np.bool_]
    finite: NDArray[np.bool_]  # (M,): the map is finite
    differs: NDArray[np.bool_]  # (M,): it is finite, and not the same everywhere


class PreparedMaps(NamedTuple):
    """What is known of M maps without the truth, so that maps that repeat are prepared once."""

    maps: Tensor  # (M, 1, h, w), any scale
    finite: Tensor  # (M,) bool, see :class:`Measured`, as the next
    differs: Tensor
    weights: Tensor  # (M, S, S) from 0 to 1: positive values as shares of the largest; ones where there is none
    levels: Tensor  # (M, S, S) uint8
    components: Components  # of these levels

    def of(self, which: Tensor) -> PreparedMaps:
        """Return maps chosen by their numbers (n,), in that order, repetitions included."""
        maps, finite, differs, weights, levels = (part[which] for part in self[:5])
        return PreparedMaps(maps, finite, differs, weights, levels, self.components.of(which.numpy()))


def prepared(maps: Tensor, size: int) -> PreparedMaps:
    """Prepare maps (M, 1, h, w), any scale, for the measures at a size in pixels."""
    finite, differs = is_measurable(maps)
    values = resized(torch.where(finite[:, None, None, None], maps, 0), size)
    positive = values.clamp_min(0)
    positive = torch.where((positive > 0).flatten(1).any(1)[:, None, None], positive, 1.0)
    weights = positive / positive.amax((1, 2), keepdim=True)  # so that no sum overflows
    spread = unit_range(torch.where(differs[:, None, None], values, 0.0))
    return PreparedMaps(maps, finite, differs, weights, quantised(spread), components(spread))


def measure(shown: PreparedMaps, truth: Truth) -> Measured:
    """Compare M maps with the truth of their images."""
    inside, outside, ignored = _counts(shown.levels, truth.regions)
    otsu = otsu_levels(torch.from_numpy(inside + outside + ignored)).numpy()
    hits = box_hits(shown.components, truth.boxes)
    pointing, tolerant = _pointing(shown.maps, shown.differs, truth)
    rows = np.arange(len(shown.maps))
    return Measured(
        pointing=pointing,
        tolerant=tolerant,
        energy=_energy(shown.weights, truth.regions),
        otsu_iou=iou_by_level(inside, outside)[rows, otsu],
        otsu_box_iou=hits.iou[rows, otsu],
        inside=inside,
        outside=outside,
        largest=hits.largest,
        every=hits.every,
        finite=shown.finite.numpy(),
        differs=shown.differs.numpy(),
    )


def iou_by_level(inside: Counts, outside: Counts) -> Floats:
    """(M, 256) IoU of the mask at each level with the object, from the counts of pixels at each level."""
    both, wrong = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in (inside, outside))
    return both / (inside.sum(1, keepdims=True) + wrong)


def pixel_average_precision(inside: Floats, outside: Floats) -> Floats:
    """PxAP (Choe et al. 2020, section 4.1): the area under precision against recall, all pixels of all images pooled.

    ``inside`` and ``outside`` are (..., 256) pixels at each level on and off objects, or their shares; the area, (...),
    is the sum over levels, from the top down, of precision times gain in recall.
    """
    right, wrong = (counts[..., ::-1].cumsum(-1) for counts in (inside, outside))
    marked = right + wrong
    precision = right / np.where(marked > 0, marked, 1.0)
    return (precision * inside[..., ::-1]).sum(-1) / inside.sum(-1)


def _counts(levels: Tensor, regions: Tensor) -> tuple[Counts, Counts, Counts]:
    """Return (M, 256) each: pixels at each level on the object, off it, and ignored."""
    keys = regions.flatten(1).to(torch.int32) * LEVELS + levels.flatten(1)
    counts = torch.stack([key.bincount(minlength=3 * LEVELS) for key in keys]).numpy().reshape(-1, 3, LEVELS)
    return counts[:, OBJECT], counts[:, 0], counts[:, IGNORED]


def _energy(weights: Tensor, regions: Tensor) -> Floats:
    """Return the share of each map's positive sum on the object; without a positive value, that of a map of ones."""
    on, off = ((weights * (regions == kind)).sum((1, 2), dtype=torch.float64) for kind in (OBJECT, 0))
    return (on / torch.where(on + off > 0, on + off, 1.0)).numpy()


def _pointing(maps: Tensor, differs: Tensor, truth: Truth) -> tuple[Floats, Floats]:
    """Return the share of the hottest cells whose centres lie on the object, and on it or near it."""
    size = truth.regions.shape[-1]
    strict, tolerant = torch.zeros(2, len(maps), dtype=torch.float64)
    flat = torch.zeros(1, 1, FLAT_GRID, FLAT_GRID).expand(len(maps), -1, -1, -1)
    for rows, grid in ((differs, maps), (~differs, flat)):
        chosen = grid[rows][:, 0]
        if not len(chosen):
            continue
        image, row, column = (chosen == chosen.flatten(1).amax(1)[:, None, None]).nonzero().unbind(1)
        image = rows.nonzero().flatten()[image]
        x, y = (column.double() + 0.5) / grid.shape[3], (row.double() + 0.5) / grid.shape[2]
        count = image.bincount(minlength=len(maps)).clamp_min(1)
        hit = _on_object(image, x, y, truth)
        strict += image[hit].bincount(minlength=len(maps)) / count
        hit = hit | truth.near[image, (y * size).long(), (x * size).long()]
        tolerant += image[hit].bincount(minlength=len(maps)) / count
    return strict.numpy(), tolerant.numpy()


def _on_object(image: Tensor, x: Tensor, y: Tensor, truth: Truth) -> Tensor:
    size = truth.regions.shape[-1]
    on_mask = truth.regions[image, (y * size).long(), (x * size).long()] == OBJECT
    if truth.outlined.all():
        return on_mask
    left, top, right, bottom = torch.from_numpy(padded(truth.boxes))[image].unbind(2)
    in_box = (left <= x[:, None]) & (x[:, None] <= right) & (top <= y[:, None]) & (y[:, None] <= bottom)
    return torch.where(truth.outlined[image], on_mask, in_box.any(1))


def near(region: NDArray[np.uint8], distance: float) -> NDArray[np.bool_]:
    """Return (S, S) bool: which pixels of a region (S, S) lie within a distance of its object, which it must have.

    The distance is from centre to centre, in shares of the side.
    """
    from scipy.ndimage import distance_transform_edt  # late: it takes a tenth of a second of the start

    return np.less_equal(distance_transform_edt(region != OBJECT), distance * len(region) + 1e-9)
