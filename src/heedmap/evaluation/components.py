"""The connected components of a map at every threshold at once, with their boxes.

Labelling a map anew for each of 256 thresholds costs a third of a second. But as the threshold falls, components only
grow and merge, so one pass from the highest level down sees them all. First every pixel is sent uphill to the peak it
climbs to; the part of a peak's basin above any threshold hangs together, so that only peaks and the passes between
them need to be joined, level by level, for many maps in one go.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import max_pool2d

from heedmap.evaluation.binarise import LEVELS, quantised

__all__ = ["Components", "components"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

_HALF = ((0, 1), (1, 0), (1, 1), (1, -1))  # half of the eight neighbours: each pair of pixels once


@dataclass(frozen=True)
class Components:
    """Every component that some map has at some level; an entry stands for the levels at which it looks the same.

    Attributes:
        maps: (R,) the map it belongs to, ascending.
        born: (R,) the highest level, 0 to 255, at which it exists as it is.
        died: (R,) the highest level below at which it has grown, or become part of another; -1 for none.
        boxes: (R, 4) left, top, right, bottom in shares of the picture, the tightest around its pixels.
        largest: (M, 256) for each map and level the entry with most pixels (among equals, the one met first row by
            row), or -1 above the highest level of the map.
    """

    maps: Integers
    born: Integers
    died: Integers
    boxes: Floats
    largest: Integers

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


def components(maps: Tensor) -> Components:
    """Find the components of ``{value >= threshold}`` at all thresholds ``k / 255`` of min-max scaled maps.

    Pixels that touch at a side or a corner hang together, as in the reference code of Choe et al. (2020); at level 0
    the whole picture is one component.

    Args:
        maps: (M, H, W) float32, finite, each from 0 to 1.
    """
    levels = quantised(maps).numpy().astype(np.int64)
    peaks, peak_maps = _peaks(maps)
    gains = _gains(levels, peaks, len(peak_maps))
    passes = _passes(levels, peaks, len(peak_maps))
    gained, passed = (np.searchsorted(-columns[0], np.arange(1 - LEVELS, 2)) for columns in (gains, passes))
    flood = _Flood(len(maps), peak_maps, levels[0].size)
    for step in range(LEVELS):
        ends = [column[passed[step] : passed[step + 1]] for column in passes[1:]]
        flood.lower(LEVELS - 1 - step, ends, [column[gained[step] : gained[step + 1]] for column in gains[1:]])
    return flood.result(maps.shape[2], maps.shape[1])


def _peaks(maps: Tensor) -> tuple[Integers, Integers]:
    """Send each pixel uphill, always the steepest way, to a peak.

    Order is by value, among equals by place, so that no way runs in a circle.

    Returns:
        For each pixel, flattened over all maps, the number of its peak; for each peak the number of its map.
    """
    count, height, width = maps.shape
    _, steepest = max_pool2d(maps[:, None], 3, 1, 1, return_indices=True)
    way = (steepest.flatten(1) + torch.arange(count)[:, None] * (height * width)).flatten().numpy()
    while not np.array_equal(further := way.take(way), way):
        way = further
    is_peak = way == np.arange(len(way))
    return (np.cumsum(is_peak) - 1).take(way), np.flatnonzero(is_peak) // (height * width)


def _gains(levels: Integers, peaks: Integers, count: int) -> list[Integers]:
    """What each basin gains at each level, from the top down: level, peak, left, top, right, bottom, pixels, first."""
    height, width = levels.shape[1:]
    bits = (height * width - 1).bit_length()
    place = np.broadcast_to(np.arange(height * width), (len(levels), height * width)).ravel()
    # One number to sort by, and to read everything from afterwards: level from the top, peak, place.
    key = np.sort((((LEVELS - 1 - levels.ravel()) * count + peaks) << bits) | place)
    place, key = key & ((1 << bits) - 1), key >> bits
    start = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    row = place // width
    column = place - row * width
    return [
        LEVELS - 1 - key[start] // count,
        key[start] % count,
        np.minimum.reduceat(column, start),
        row[start],
        np.maximum.reduceat(column, start) + 1,
        row[np.append(start[1:], len(key)) - 1] + 1,
        np.diff(start, append=len(key)),
        place[start],
    ]


def _passes(levels: Integers, peaks: Integers, count: int) -> list[Integers]:
    """Pairs of basins that touch, and the highest level at which they do, from the top down: level, peak, peak."""
    basins = peaks.reshape(levels.shape)
    height, width = levels.shape[1:]
    found = []
    for down, right in _HALF:
        here = (slice(None), slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(None), slice(down, None), slice(max(0, right), width + min(0, right)))
        differs = np.flatnonzero(basins[here] != basins[there])
        ends = basins[here].ravel().take(differs), basins[there].ravel().take(differs)
        level = np.minimum(levels[here].ravel().take(differs), levels[there].ravel().take(differs))
        found.append((np.minimum(*ends) * count + np.maximum(*ends)) * LEVELS + (LEVELS - 1 - level))
    key = np.sort(np.concatenate(found))
    pair, depth = key // LEVELS, key % LEVELS
    is_highest = np.diff(pair, prepend=-1) > 0
    pair, depth = pair[is_highest], depth[is_highest]
    order = np.argsort(depth)
    return [LEVELS - 1 - depth[order], pair[order] // count, pair[order] % count]


class _Flood:
    """The components above a level that falls."""

    def __init__(self, count: int, peak_maps: Integers, pixels: int) -> None:
        """Start above all peaks.

        Args:
            count: number of maps.
            peak_maps: for each peak the number of its map.
            pixels: of one map.
        """
        peaks = len(peak_maps)
        self._maps, self._all = peak_maps, pixels
        self._parent = np.arange(peaks)  # of a basin that became part of another; itself for the rest
        self._low = np.full((3, peaks), pixels)  # left, top, first pixel
        self._high = np.zeros((2, peaks), np.int64)  # right, bottom
        self._pixels = np.zeros(peaks, np.int64)
        self._entry = np.full(peaks, -1)  # the component as it is; -1 for none yet
        self._entries: list[NDArray[np.int64]] = []
        self._deaths: list[tuple[Integers, int]] = []
        self._count = 0
        self._largest = np.full((count, LEVELS), -1)
        self._top = np.full((2, count), -1)  # of the largest so far: its rank and its entry

    def lower(self, level: int, ends: list[Integers], gains: list[Integers]) -> None:
        """Lower the level by one.

        Args:
            level: the new one.
            ends: pairs of peaks whose basins touch from this level on.
            gains: what basins gain at this level: peak, left, top, right, bottom, pixels, first pixel.
        """
        # One end of a pass lies at this very level, so that each component that is joined here also grows here.
        if len(ends[0]):
            self._join(self._root(np.concatenate(ends)), level)
        if len(gains[0]):
            self._grow(self._root(gains[0]), gains[1:], level)
        self._largest[:, level] = self._top[1]

    def _root(self, peaks: Integers) -> Integers:
        root = self._parent.take(peaks)
        while not np.array_equal(further := self._parent.take(root), root):
            root = further
        self._parent[peaks] = root  # a shorter way next time
        return root

    def _join(self, ends: Integers, level: int) -> None:
        roots, ends = np.unique(ends, return_inverse=True)
        one, other = ends.reshape(2, -1)
        graph = coo_array((np.ones(len(one), bool), (one, other)), (len(roots), len(roots)))
        _, label = connected_components(graph, directed=False)
        order = np.argsort(label, kind="stable")
        start = np.flatnonzero(np.diff(label[order], prepend=-1))
        joined = roots[order]
        kept = joined[start]
        self._end(roots, level)
        for line in self._low:
            line[kept] = np.minimum.reduceat(line[joined], start)
        for line in self._high:
            line[kept] = np.maximum.reduceat(line[joined], start)
        self._pixels[kept] = np.add.reduceat(self._pixels[joined], start)
        self._parent[joined] = np.repeat(kept, np.diff(start, append=len(joined)))

    def _grow(self, roots: Integers, gains: list[Integers], level: int) -> None:
        left, top, right, bottom, pixels, first = gains
        for line, gain in zip(self._low, (left, top, first), strict=True):
            np.minimum.at(line, roots, gain)
        for line, gain in zip(self._high, (right, bottom), strict=True):
            np.maximum.at(line, roots, gain)
        np.add.at(self._pixels, roots, pixels)
        grown = np.unique(roots)
        self._end(grown, level)
        entry = self._entry[grown] = self._count + np.arange(len(grown))
        self._count += len(grown)
        maps = self._maps[grown]
        rank = self._pixels[grown] * self._all + (self._all - 1 - self._low[2, grown])
        self._entries.append(np.stack([maps, np.full_like(maps, level), *self._low[:2, grown], *self._high[:, grown]]))
        np.maximum.at(self._top[0], maps, rank)
        is_top = rank == self._top[0, maps]
        self._top[1, maps[is_top]] = entry[is_top]

    def _end(self, roots: Integers, level: int) -> None:
        entries = self._entry[roots]
        self._deaths.append((entries[entries >= 0], level))
        self._entry[roots] = -1

    def result(self, width: int, height: int) -> Components:
        """Return what was met on the way down, map by map."""
        died = np.full(self._count, -1)
        for entries, level in self._deaths:
            died[entries] = level
        found = np.concatenate(self._entries, axis=1)
        order = np.argsort(found[0], kind="stable")
        place = np.empty(self._count + 1, np.int64)
        place[order], place[-1] = np.arange(self._count), -1
        boxes = found[2:, order].T / np.array([width, height, width, height])
        return Components(found[0, order], found[1, order], died[order], boxes, place[self._largest])
