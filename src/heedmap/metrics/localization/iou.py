"""How far boxes overlap, and which levels of a map give a box that overlaps enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heedmap.metrics.localization.components import Components
from heedmap.metrics.localization.thresholds import LEVELS

__all__ = ["DELTAS", "BoxHits", "box_hits", "box_iou"]

DELTAS = (0.3, 0.5, 0.7)
"""The overlaps (IoU) from which a box counts as right, of MaxBoxAccV2."""

Floats = NDArray[np.float64]


def box_iou(ones: Floats, others: Floats) -> Floats:
    """Intersection over union of boxes, pair by pair.

    Args:
        ones, others: (..., 4) left, top, right, bottom; they are broadcast against each other.

    Returns:
        (...) from 0 to 1; 0 where a box holds NaN or has no area. Coordinates are edges, so that a width is right -
        left; the reference code of Choe et al. counts pixels on both ends, which adds one.
    """
    low, high = np.maximum(ones[..., :2], others[..., :2]), np.minimum(ones[..., 2:], others[..., 2:])
    both = (high - low).clip(0).prod(-1)
    either = (ones[..., 2:] - ones[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1) - both
    return np.where(either > 0, both / np.where(either > 0, either, 1.0), 0.0)


class BoxHits(NamedTuple):
    """Which levels of which map give a right box.

    Attributes:
        largest: (M, 256, 3) bool: the box of the largest component overlaps some object by each of ``DELTAS``.
        every: the same where any component may do so.
        iou: (M, 256) the overlap of the largest component's box with the object that it overlaps most.
    """

    largest: NDArray[np.bool_]
    every: NDArray[np.bool_]
    iou: Floats


def box_hits(found: Components, boxes: Sequence[Floats]) -> BoxHits:
    """Hold the components' boxes against the objects of their images.

    Args:
        found: components of M maps.
        boxes: M times (G, 4), G at least 1, in shares of the image.
    """
    most = max(map(len, boxes))
    objects = np.full((len(boxes), most, 4), np.nan)
    for row, box in enumerate(boxes):
        objects[row, : len(box)] = box
    iou = np.zeros(len(found.maps))
    for number in range(most):
        iou = np.maximum(iou, box_iou(found.boxes, objects[found.maps, number]))
    top = np.append(iou, 0.0)[found.largest]
    every = np.stack([_alive(found, iou >= delta, len(boxes)) for delta in DELTAS], axis=-1)
    return BoxHits(np.stack([top >= delta for delta in DELTAS], axis=-1), every, top)


def _alive(found: Components, chosen: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """(M, 256): at which levels some entry that was chosen is there."""
    maps, born, died = found.maps[chosen], found.born[chosen], found.died[chosen]
    ends = died >= 0
    change = np.bincount(maps * LEVELS + born, minlength=count * LEVELS)
    change -= np.bincount(maps[ends] * LEVELS + died[ends], minlength=count * LEVELS)
    return change.reshape(count, LEVELS)[:, ::-1].cumsum(1)[:, ::-1] > 0
