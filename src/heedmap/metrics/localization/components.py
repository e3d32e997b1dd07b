"""The connected components of a map at every threshold at once, their boxes, and the overlap of these with objects.

Labelling a map again for each of 256 thresholds (``scipy.ndimage.label``) costs a third of a second, 15 times as long
as this. As the threshold falls, components only grow and merge, so one pass from the highest level down sees them all.
First every pixel is sent uphill to the peak it climbs to; the part of a peak's basin above any threshold is connected,
so that only peaks and the passes between them need to be joined, level by level, for many maps in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

LEVELS = 256
DELTAS = (0.3, 0.5, 0.7)
"""The overlaps (IoU) from which a box counts as right, of MaxBoxAccV2."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

_AT_ONCE = 2**19  # gains of basins held together: more do not fit into a processor's cache


@dataclass(frozen=True)
class Components:
    """Every component that some map has at some level; an entry stands for the levels at which it looks the same.

    ``largest`` has for each map and level the entry with most pixels (among equals, the one met first row by row), or
    -1 above the highest level of the map.
    """

    maps: Integers  # (R,) the map it belongs to, ascending
    born: Integers  # (R,) the highest level, 0 to 255, at which it exists as it is
    died: Integers  # (R,) the highest level below at which it has grown, or become part of another; -1 for none
    boxes: Floats  # (R, 4) left, top, right, bottom in shares of the image, the tightest around its pixels
    largest: Integers  # (M, 256)

    def of(self, which: Integers) -> Components:
        """Return the components of maps chosen by their numbers, in that order, repetitions included."""
        first = np.searchsorted(self.maps, np.arange(len(self.largest) + 1))
        counts = first[which + 1] - first[which]
        new_first = np.cumsum(counts) - counts
        rows = np.repeat(first[which] - new_first, counts) + np.arange(counts.sum())
        largest = self.largest[which]
        moved = np.where(largest < 0, -1, largest + (new_first - first[which])[:, None])
        new = np.repeat(np.arange(len(which)), counts)
        return Components(new, self.born[rows], self.died[rows], self.boxes[rows], moved)


def quantised(maps: Tensor) -> Tensor:
    """Cut maps in 0 to 1 to levels: uint8, rounded down, so that only the maximum reaches 255."""
    return (maps * (LEVELS - 1)).to(torch.uint8)


def components(maps: Tensor) -> Components:
    """Find the components of ``{value >= threshold}`` at all thresholds ``k / 255`` of maps (M, H, W) from 0 to 1.

    Maps are float32 and finite. Pixels that touch at a side or a corner are connected, as in the reference code of Choe
    et al. (2020); at level 0 the whole image is one component.
    """
    parts: list[Components] = []
    basins: list[_Basins] = []
    for values, levels in zip(maps, quantised(maps), strict=True):
        peak, count = _peaks(values)
        level = levels.numpy().astype(np.int64)
        basins.append(_Basins(count, _gains(level, peak, count), _passes(level, peak, count)))
        if sum(basin.gains.shape[1] for basin in basins) > _AT_ONCE:
            parts.append(_flooded(basins, *maps.shape[1:]))
            basins = []
    if basins or not parts:
        parts.append(_flooded(basins, *maps.shape[1:]))
    return _joined(parts)


def _flooded(basins: list[_Basins], height: int, width: int) -> Components:
    """Find the components of maps by their basins, whose peaks are numbered on from map to map."""
    peaks = np.array([basin.peaks for basin in basins], np.int64)
    for basin, first in zip(basins, np.cumsum(peaks) - peaks, strict=True):
        basin.gains[1] += first
        basin.passes[1:] += first
    gains, passes = _top_down([basin.gains for basin in basins]), _top_down([basin.passes for basin in basins])
    gained, passed = (np.searchsorted(-columns[0], np.arange(1 - LEVELS, 2)) for columns in (gains, passes))
    flood = _Flood(np.repeat(np.arange(len(basins)), peaks), len(basins), height * width)
    for step in range(LEVELS):
        ends = passes[1:, passed[step] : passed[step + 1]]
        flood.lower(LEVELS - 1 - step, ends, gains[1:, gained[step] : gained[step + 1]])
    return flood.result(width, height)


def _joined(parts: list[Components]) -> Components:
    columns, maps, entries = [], 0, 0
    for part in parts:
        largest = np.where(part.largest < 0, -1, part.largest + entries)
        columns.append((part.maps + maps, part.born, part.died, part.boxes, largest))
        maps, entries = maps + len(part.largest), entries + len(part.maps)
    return Components(*(np.concatenate(column) for column in zip(*columns, strict=True)))


class _Basins(NamedTuple):
    """The basins of one map."""

    peaks: int
    gains: Integers  # (8, G) of each basin at each level: level, peak, left, top, right, bottom, pixels, first pixel
    passes: Integers  # (3, P) pairs of basins that touch, and from which level down they do: level, peak, peak


def _top_down(parts: list[Integers]) -> Integers:
    """Put columns together, the highest level first."""
    columns = np.concatenate(parts, axis=1)
    return columns.take(np.argsort(LEVELS - 1 - columns[0].astype(np.uint8), kind="stable"), axis=1)


def _peaks(values: Tensor) -> tuple[Integers, int]:
    """Send each pixel the steepest way up to a peak; return the peak's number for each, and how many there are."""
    # Order is by value, among equals by place, so that no way runs in a circle.
    _, steepest = max_pool2d(values[None], 3, 1, 1, return_indices=True)
    way = steepest.flatten().numpy()
    while ((further := way.take(way)) != way).any():
        way = further
    is_peak = way == np.arange(len(way))
    number = np.cumsum(is_peak) - 1
    return number.take(way), int(number[-1]) + 1


def _gains(level: Integers, peak: Integers, count: int) -> Integers:
    bits = (level.size - 1).bit_length()
    # One number to sort by, and to read everything from afterwards: level from the top, peak, place.
    key = np.sort((((LEVELS - 1 - level.ravel()) * count + peak) << bits) | np.arange(level.size))
    place, key = key & ((1 << bits) - 1), key >> bits
    start = np.flatnonzero(np.diff(key, prepend=-1))
    row = place // level.shape[1]
    column = place - row * level.shape[1]
    last = np.append(start[1:], len(key))
    left, right = np.minimum.reduceat(column, start), np.maximum.reduceat(column, start) + 1
    depth, peaks = np.divmod(key[start], count)
    return np.stack([LEVELS - 1 - depth, peaks, left, row[start], right, row[last - 1] + 1, last - start, place[start]])


def _passes(level: Integers, peak: Integers, count: int) -> Integers:
    # A column below all levels, so that no pixel has the first one of the next row as its neighbour.
    height, width = level.shape
    levels, peaks = np.full((height, width + 1), -1, np.int16), np.zeros((height, width + 1), np.int32)
    levels[:, :width], peaks[:, :width] = level, peak.reshape(level.shape)
    levels, peaks = levels.ravel(), peaks.ravel()
    is_pixel, keys = levels >= 0, []
    for step in (1, width, width + 1, width + 2):  # half of the eight neighbours: each pair of pixels once
        place = np.flatnonzero((peaks[:-step] != peaks[step:]) & is_pixel[:-step] & is_pixel[step:])
        one, other = peaks.take(place), peaks.take(place + step)
        reached = np.minimum(levels.take(place), levels.take(place + step))
        pair = np.minimum(one, other).astype(np.int64) * count + np.maximum(one, other)
        keys.append(pair * LEVELS + (LEVELS - 1 - reached))
    pair, depth = np.divmod(np.sort(np.concatenate(keys)), LEVELS)
    is_highest = np.diff(pair, prepend=-1) > 0
    one, other = np.divmod(pair[is_highest], count)
    return np.stack([LEVELS - 1 - depth[is_highest], one, other])


class _Flood:
    """The components above a level that falls, of ``count`` maps; ``peak_maps`` has the number of each peak's map."""

    def __init__(self, peak_maps: Integers, count: int, pixels: int) -> None:
        peaks = len(peak_maps)
        self._maps, self._all = peak_maps, pixels
        self._parent = np.arange(peaks)  # of a basin that became part of another; itself for the rest
        self._low = np.full((3, peaks), pixels)  # left, top, first pixel
        self._high = np.zeros((2, peaks), np.int64)  # right, bottom
        self._pixels = np.zeros(peaks, np.int64)
        self._slot = np.zeros(peaks, np.int64)
        self._entry = np.full(peaks, -1)  # the component as it is; -1 for none yet
        self._entries: list[NDArray[np.int64]] = []
        self._deaths: list[tuple[Integers, int]] = []
        self._count = 0
        self._largest = np.full((count, LEVELS), -1)
        self._top = np.full((2, count), -1)  # of the largest so far: its rank and its entry

    def lower(self, level: int, ends: Integers, gains: Integers) -> None:
        """Go down to a level, at which pairs of peaks (2, P) touch, and basins gain (7, G), see :class:`_Basins`."""
        # One end of a pass lies at this very level, so that each component that is joined here also grows here.
        if len(ends[0]):
            self._join(self._root(ends.ravel()), level)
        if len(gains[0]):
            self._grow(self._root(gains[0]), gains[1:], level)
        self._largest[:, level] = self._top[1]

    def _root(self, peaks: Integers) -> Integers:
        root = self._parent.take(peaks)
        while ((further := self._parent.take(root)) != root).any():
            root = further
        self._parent[peaks] = root  # a shorter way next time
        return root

    def _join(self, ends: Integers, level: int) -> None:
        roots = ends[self._lasts(ends)]
        self._end(roots, level)
        one, other = ends.reshape(2, -1)
        while len(one):
            # Of several passes of one component the last one is taken now, and the others in the next round.
            self._parent[np.maximum(one, other)] = np.minimum(one, other)
            one, other = self._root(one), self._root(other)
            apart = one != other
            one, other = one[apart], other[apart]
        heirs = self._root(roots)
        joined, heirs = roots[heirs != roots], heirs[heirs != roots]
        self._widen(heirs, self._low[:, joined], self._high[:, joined], self._pixels[joined])

    def _widen(self, roots: Integers, low: Integers, high: Integers, pixels: Integers) -> None:
        for line, gain in zip(self._low, low, strict=True):
            np.minimum.at(line, roots, gain)
        for line, gain in zip(self._high, high, strict=True):
            np.maximum.at(line, roots, gain)
        np.add.at(self._pixels, roots, pixels)

    def _grow(self, roots: Integers, gains: Integers, level: int) -> None:
        left, top, right, bottom, pixels, first = gains
        self._widen(roots, np.stack([left, top, first]), np.stack([right, bottom]), pixels)
        grown = roots[self._lasts(roots)]
        self._end(grown, level)
        entry = self._entry[grown] = self._count + np.arange(len(grown))
        self._count += len(grown)
        maps = self._maps[grown]
        rank = self._pixels[grown] * self._all + (self._all - 1 - self._low[2, grown])
        self._entries.append(np.stack([maps, np.full_like(maps, level), *self._low[:2, grown], *self._high[:, grown]]))
        np.maximum.at(self._top[0], maps, rank)
        is_top = rank == self._top[0, maps]
        self._top[1, maps[is_top]] = entry[is_top]

    def _lasts(self, roots: Integers) -> NDArray[np.bool_]:
        """Mark one place at which each root stands, the last one; without sorting."""
        self._slot[roots] = places = np.arange(len(roots))
        return np.equal(self._slot.take(roots), places)

    def _end(self, roots: Integers, level: int) -> None:
        entries = self._entry[roots]
        self._deaths.append((entries[entries >= 0], level))
        self._entry[roots] = -1

    def result(self, width: int, height: int) -> Components:
        """Return all components, map by map."""
        died = np.full(self._count, -1)
        for entries, level in self._deaths:
            died[entries] = level
        entry_of = np.concatenate(self._entries, axis=1)
        order = np.argsort(entry_of[0], kind="stable")
        place = np.empty(self._count + 1, np.int64)
        place[order], place[-1] = np.arange(self._count), -1
        maps, born, *edges = entry_of[:, order]
        boxes = np.stack(edges, axis=1) / np.array([width, height, width, height])
        return Components(maps, born, died[order], boxes, place[self._largest])


def box_iou(ones: Floats, others: Floats) -> Floats:
    """Return the intersection over union (...) of boxes (..., 4) left, top, right, bottom, which are broadcast.

    It is 0 where a box holds NaN or has no area. Coordinates are edges, so that a width is right - left; the reference
    code of Choe et al. counts pixels on both ends, which adds one.
    """
    low, high = np.maximum(ones[..., :2], others[..., :2]), np.minimum(ones[..., 2:], others[..., 2:])
    both = (high - low).clip(0).prod(-1)
    either = (ones[..., 2:] - ones[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1) - both
    return np.where(either > 0, both / np.where(either > 0, either, 1.0), 0.0)


class BoxHits(NamedTuple):
    """The levels at which a map gives a right box."""

    largest: NDArray[np.bool_]  # (M, 256, 3): the box of the largest component overlaps some object by each of DELTAS
    every: NDArray[np.bool_]  # the same where any component may do so
    iou: Floats  # (M, 256) the overlap of the largest component's box with the object that it overlaps most


def padded(boxes: Sequence[Floats]) -> Floats:
    """Return M times (G, 4) boxes as one (M, largest G, 4), filled up with NaN."""
    most = max(map(len, boxes))
    return np.stack([np.pad(box, ((0, most - len(box)), (0, 0)), constant_values=np.nan) for box in boxes])


def box_hits(found: Components, boxes: Sequence[Floats]) -> BoxHits:
    """Compare the boxes of the components of M maps with those of their objects: M times (G, 4), G at least 1."""
    objects, iou = padded(boxes), np.zeros(len(found.maps))
    for number in range(objects.shape[1]):
        iou = np.maximum(iou, box_iou(found.boxes, objects[found.maps, number]))
    top = np.append(iou, 0.0)[found.largest]
    every = np.stack([_alive(found, iou >= delta, len(boxes)) for delta in DELTAS], axis=-1)
    return BoxHits(np.stack([top >= delta for delta in DELTAS], axis=-1), every, top)


def _alive(found: Components, chosen: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Return (M, 256) bool: at which levels some chosen entry exists."""
    maps, born, died = found.maps[chosen], found.born[chosen], found.died[chosen]
    ends = died >= 0
    change = np.bincount(maps * LEVELS + born, minlength=count * LEVELS)
    change -= np.bincount(maps[ends] * LEVELS + died[ends], minlength=count * LEVELS)
    return change.reshape(count, LEVELS)[:, ::-1].cumsum(1)[:, ::-1] > 0
