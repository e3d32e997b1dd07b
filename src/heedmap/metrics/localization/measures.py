"""What is measured of each map, image by image, so that figures and their intervals are means of rows.

A chunk of maps is cut to 256 levels once; counts of pixels at each level, inside and outside the object, then give
every mask, and :mod:`heedmap.metrics.localization.components` gives every box.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heedmap.metrics.localization.components import Components, components
from heedmap.metrics.localization.iou import BoxHits, box_hits
from heedmap.metrics.localization.thresholds import LEVELS, is_measurable, otsu_levels, quantised, resized, stretched

__all__ = [
    "IGNORED",
    "OBJECT",
    "Measured",
    "PreparedMaps",
    "Truth",
    "iou_by_level",
    "measure",
    "near",
    "pixel_average_precision",
    "prepared",
]

OBJECT, IGNORED = 1, 2
FLAT_GRID = 28  # points at which a map that prefers no place is tried

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Truth(NamedTuple):
    """Where the objects of M images are.

    Attributes:
        regions: (M, S, S) uint8: 1 on an object, 2 where nobody may evaluate, else 0. None is without object.
        near: (M, S, S) bool: at most so far from an object as a point may miss it by.
        boxes: M times (G, 4) float64 left, top, right, bottom in shares of the image, G at least 1.
        outlined: (M,) bool: the region is a mask; else it is what the boxes cover.
    """

    regions: Tensor
    near: Tensor
    boxes: tuple[Floats, ...]
    outlined: Tensor


class Measured(NamedTuple):
    """What came of M maps; see ``METRICS`` in :mod:`heedmap.metrics.localization.localize` for the definitions.

    Attributes:
        pointing, tolerant, energy, otsu_iou, otsu_box_iou: (M,) float64.
        inside, outside: (M, 256) pixels at each level on the object, and off it.
        largest, every: (M, 256, 3) bool, see :class:`heedmap.metrics.localization.iou.BoxHits`.
        finite, differs: (M,) bool: the map is finite; it is, and not the same everywhere.
    """

    pointing: Floats
    tolerant: Floats
    energy: Floats
    otsu_iou: Floats
    otsu_box_iou: Floats
    inside: Counts
    outside: Counts
    largest: NDArray[np.bool_]
    every: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    differs: NDArray[np.bool_]


class PreparedMaps(NamedTuple):
    """What can be told of M maps without the truth, so that maps that come round again are prepared once.

    Attributes:
        maps: (M, 1, h, w), any scale.
        finite, differs: (M,) bool, see :class:`Measured`.
        weights: (M, S, S) from 0 to 1: what is positive, as shares of the largest value; ones where nothing is.
        levels: (M, S, S) uint8.
        components: of these levels.
    """

    maps: Tensor
    finite: Tensor
    differs: Tensor
    weights: Tensor
    levels: Tensor
    components: Components

    def of(self, which: Tensor) -> PreparedMaps:
        """Return maps chosen by their numbers (n,), in that order, repetitions included."""
        maps, finite, differs, weights, levels = (part[which] for part in self[:5])
        return PreparedMaps(maps, finite, differs, weights, levels, self.components.of(which.numpy()))


def prepared(maps: Tensor, size: int) -> PreparedMaps:
    """Prepare maps (M, 1, h, w), any scale, for being evaluated at a size in pixels."""
    finite, differs = is_measurable(maps)
    values = resized(torch.where(finite[:, None, None, None], maps, 0), size)
    positive = values.clamp_min(0)
    positive = torch.where((positive > 0).flatten(1).any(1)[:, None, None], positive, 1.0)
    weights = positive / positive.amax((1, 2), keepdim=True)  # so that no sum overflows
    spread = stretched(torch.where(differs[:, None, None], values, 0.0))
    return PreparedMaps(maps, finite, differs, weights, quantised(spread), components(spread))


def measure(shown: PreparedMaps, truth: Truth) -> Measured:
    """Measure a chunk of maps by the truth of their M images."""
    inside, outside, ignored = _counts(shown.levels, truth.regions)
    otsu = otsu_levels(torch.from_numpy(inside + outside + ignored)).numpy()
    hits: BoxHits = box_hits(shown.components, truth.boxes)
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

    Args:
        inside: (..., 256) pixels at each level on objects, or their shares.
        outside: (..., 256) the same off objects.

    Returns:
        (...) from 0 to 1: the sum over levels, from the top down, of precision times gain in recall.
    """
    right, wrong = (counts[..., ::-1].cumsum(-1) for counts in (inside, outside))
    kept = right + wrong
    precision = right / np.where(kept > 0, kept, 1.0)
    return (precision * inside[..., ::-1]).sum(-1) / inside.sum(-1)


def _counts(levels: Tensor, regions: Tensor) -> tuple[Counts, Counts, Counts]:
    """(M, 256) each: pixels at each level on the object, off it, and where nobody may evaluate."""
    found = []
    for level, region in zip(levels.flatten(1), regions.flatten(1), strict=True):
        key = region.to(torch.int32) * LEVELS + level
        found.append(key.bincount(minlength=3 * LEVELS))
    counts = torch.stack(found).numpy().reshape(-1, 3, LEVELS)
    return counts[:, OBJECT], counts[:, 0], counts[:, IGNORED]


def _energy(weights: Tensor, regions: Tensor) -> Floats:
    """Share of the map's positive sum that lies on the object; of a map without a positive value, of a map of ones."""
    on, off = ((weights * (regions == kind)).sum((1, 2), dtype=torch.float64) for kind in (OBJECT, 0))
    return (on / torch.where(on + off > 0, on + off, 1.0)).numpy()


def _pointing(maps: Tensor, differs: Tensor, truth: Truth) -> tuple[Floats, Floats]:
    """Share of the hottest cells whose centres lie on the object, and on it or near it."""
    size = truth.regions.shape[-1]
    strict, tolerant = torch.zeros(len(maps), dtype=torch.float64), torch.zeros(len(maps), dtype=torch.float64)
    for rows, grid in (
        (differs, maps),
        (~differs, torch.zeros(1, 1, FLAT_GRID, FLAT_GRID).expand(len(maps), -1, -1, -1)),
    ):
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
    most = max(map(len, truth.boxes))
    boxes = torch.full((len(truth.boxes), most, 4), torch.nan, dtype=torch.float64)
    for row, box in enumerate(truth.boxes):
        boxes[row, : len(box)] = torch.from_numpy(box)
    left, top, right, bottom = boxes[image].unbind(2)
    in_box = (left <= x[:, None]) & (x[:, None] <= right) & (top <= y[:, None]) & (y[:, None] <= bottom)
    return torch.where(truth.outlined[image], on_mask, in_box.any(1))


def near(region: NDArray[np.uint8], distance: float) -> NDArray[np.bool_]:
    """Widen the object by a disc: whether a pixel's centre is at most so far from the centre of one of the object's.

    Args:
        region: (S, S), see :class:`Truth`.
        distance: in shares of the side.

    Returns:
        (S, S) bool.
    """
    size, reach = len(region), distance * len(region)
    wide = np.zeros((size, size), bool)
    # Pixels of the object up to each column, so that one comparison tells whether a stretch of a row holds any.
    edge = int(reach) + 1
    upto = np.pad(np.cumsum(region == OBJECT, axis=1, dtype=np.int32), ((0, 0), (edge + 1, edge)), mode="edge")
    upto[:, : edge + 1] = 0
    for down in range(-int(reach), int(reach) + 1):
        half = int((reach**2 - down**2) ** 0.5 + 1e-9)
        there = slice(max(0, down), size + min(0, down))
        here = slice(max(0, -down), size - max(0, down))
        left, right = edge - half, edge + 1 + half
        wide[here] |= upto[there, right : right + size] > upto[there, left : left + size]
    return wide
