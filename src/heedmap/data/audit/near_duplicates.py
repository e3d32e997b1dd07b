"""Find images that are the same image: resized, recompressed, a little cropped, brighter, grey, or mirrored.

Each image is a 32x32 thumbnail, described by its lowest cosine coefficients (DCT-II), each weighted by its frequency:
that flattens the 1/f spectrum of natural images, so that different images come out nearly uncorrelated, and leaves out
the mean; scaling to unit length takes out the contrast. A crop moves high frequencies far, so each image is described
by ten windows of itself as well.

1. Candidates: products of 8x8-coefficient descriptors, all pairs, in blocks (the windows of one, all of the other).
2. Each candidate is compared closely: 12x12 coefficients over 126 windows, the best correlation counts; in that window
   the two must agree in each of 4x4 tiles too (two horizons agree in one edge only), and in colour, unless one is grey;
   and where an image has many candidates the duplicate must stand out from them.

The thresholds were set on 4,500 scene photographs and measured on the same: of 200 altered copies of each kind, 100 %
are found of half and double size, JPEG quality 10 and 20, brightness x0.6, contrast x0.6, grey, and 97.5 % or more of
brightness x1.4 (it clips) and of crops of 2 to 8 % a side. An image of one colour has no duplicates here. Known limit:
in sets of centred glyphs such as MNIST different strokes agree as well as copies do; read these as candidates.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIDE = 32
COARSE, FINE = 8, 12  # cosine coefficients per axis for candidates and for the closer look
LIKELY, SURE, LOCAL = 0.80, 0.90, 0.85  # correlations: of a candidate, of duplicates, of their tiles on average
SAME = 0.985  # correlation from which two images are duplicates however many others are near
COLOUR = 0.10  # RMS difference of Cb and Cr (0..1) of duplicates; a blue sea and the same waves at sunset differ by 0.3
GREY = 0.02  # RMS of Cb and Cr about the middle below which an image is grey
NEIGHBOURS = 8  # candidates per image; exact copies are taken out beforehand
LEAST_CONTRAST = 0.02  # a descriptor shorter than this holds no image, only noise
TILE_FLOOR = (2 / 255) ** 2  # variance under which a tile is flat; two flat tiles agree
BLOCK = 2**24  # numbers of a similarity block: 64 MB, whatever the number of images
PAIRS = 1024  # candidates compared together

Interval = tuple[float, float]  # of x or y, in fractions of the image
WHOLE: Interval = (0.0, 1.0)


class Thumbnail(NamedTuple):
    """A small image: grey uint8 (32, 32), and colour float32 (2, 4, 4), Cb and Cr about 0."""

    grey: NDArray[np.uint8]
    colour: NDArray[np.float32]

    @property
    def is_grey(self) -> bool:
        """The image has no colour."""
        return bool(np.sqrt(np.square(self.colour).mean()) < GREY)

    @property
    def is_plain(self) -> bool:
        """The image is of one colour."""
        return bool(self.grey.std() < 1.0)


class NearDuplicate(NamedTuple):
    """Two images that show the same; ``mirrored`` where one is the other's mirror image."""

    first: int
    second: int
    likeness: float
    mirrored: bool


def thumbnail(image: Image.Image) -> Thumbnail:
    """Shrink an RGB image; the whole of it, stretched to a square, so that cropping differences stay small."""
    is_large = min(image.size) >= 2 * SIDE
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX if is_large else Image.Resampling.BILINEAR)
    light, *chroma = small.convert("YCbCr").split()
    colour = [np.asarray(part.resize((4, 4), Image.Resampling.BOX), np.float32) / 255 - 128 / 255 for part in chroma]
    return Thumbnail(np.array(light), np.stack(colour))


def _strips(scales: tuple[float, ...], steps: int) -> list[tuple[Interval, tuple[Interval, ...]]]:
    """Return windows as (interval of x, its intervals of y): the whole, and steps x steps of each scale."""
    strips: list[tuple[Interval, tuple[Interval, ...]]] = [(WHOLE, (WHOLE,))]
    for scale in scales:
        starts = [(1 - scale) * step / (steps - 1) for step in range(steps)]
        intervals = tuple((start, start + scale) for start in starts)
        strips += [(interval, intervals) for interval in intervals]
    return strips


FEW = _strips((0.92,), 3)
MANY = _strips((0.97, 0.94, 0.91, 0.88, 0.85), 5)


@lru_cache(maxsize=256)
def _cosines(count: int, interval: Interval) -> Tensor:
    """Return the (count, 32) matrix from a row of pixels to its cosine coefficients over an interval of the row."""
    sub = 8  # points per pixel, because windows begin between pixels
    place = (torch.arange(SIDE * sub) + 0.5) / (SIDE * sub)
    within = (place - interval[0]) / (interval[1] - interval[0])
    inside = (within >= 0) & (within <= 1)
    waves = torch.cos(torch.pi * torch.arange(count)[:, None] * within) * inside * _norms(count)[:, None]
    return waves.reshape(count, SIDE, sub).sum(2) / inside.sum()


def _norms(count: int) -> Tensor:
    norms = torch.full((count,), 2.0).sqrt()
    norms[0] = 1.0
    return norms


def _coefficients(grey: Tensor, count: int, x: Interval, ys: tuple[Interval, ...]) -> Tensor:
    """Return cosine coefficients of thumbnails (n, 32, 32) in 0..1 over windows that share x: (n, W, count, count).

    The last axes are x, y. Two large products for all windows; a batch of small ones takes many times longer.
    """
    across = (grey.flatten(0, 1) @ _cosines(count, x).T).unflatten(0, grey.shape[:2]).transpose(1, 2)
    both = across.flatten(0, 1) @ torch.cat([_cosines(count, y) for y in ys]).T
    return both.unflatten(0, (len(grey), count)).unflatten(2, (len(ys), count)).transpose(1, 2)


def _frequency(count: int) -> Tensor:
    """Return (count, count) lengths of the frequency vector, 0 from ``count`` on, so that no direction is favoured."""
    axis = torch.arange(count, dtype=torch.float32)
    length = torch.hypot(axis[:, None], axis[None])
    return length * (length < count)


def _described(coefficients: Tensor) -> Tensor:
    """Weight coefficients (n, W, k, k) by frequency and scale to unit length: (n, W, k * k)."""
    weighted = (coefficients * _frequency(coefficients.shape[-1])).flatten(2)
    return weighted / weighted.norm(dim=2, keepdim=True).clamp_min(LEAST_CONTRAST)


def _candidates(grey: Tensor, mirrored: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs (i, j): some window of image i (of its mirror image) looks like the whole of image j."""
    source = grey.flip(2) if mirrored else grey
    whole = _described(_coefficients(grey, COARSE, WHOLE, (WHOLE,)))[:, 0].T.contiguous()
    rows = max(1, BLOCK // len(grey))
    for start in range(0, len(grey), rows):
        part = source[start : start + rows]
        alike = torch.full((len(part), len(grey)), -1.0)
        for x, ys in FEW:
            for described in _described(_coefficients(part, COARSE, x, ys)).unbind(1):
                torch.maximum(alike, described @ whole, out=alike)
        alike[torch.arange(len(part)), torch.arange(start, start + len(part))] = -1.0
        best = alike.topk(min(NEIGHBOURS, len(grey)), dim=1)
        row, place = torch.nonzero(best.values > LIKELY, as_tuple=True)
        yield row + start, best.indices[row, place]


def _compare(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Compare thumbnails (n, 32, 32) by pairs: correlation (n,) in the best window of ``first``, and of its tiles."""
    target = _coefficients(second, FINE, WHOLE, (WHOLE,))
    descriptor = _described(target).transpose(1, 2)  # (n, k * k, 1)
    best, window = torch.full((len(first),), -2.0), torch.zeros_like(target[:, 0])
    for x, ys in MANY:
        coefficients = _coefficients(first, FINE, x, ys)
        likeness, place = (_described(coefficients) @ descriptor)[:, :, 0].max(1)
        better = torch.nonzero(likeness > best)[:, 0]
        best[better] = likeness[better]
        window[better] = coefficients[better, place[better]]
    return best, _tile_agreement(window, target[:, 0])


def _tile_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean over 4x4 tiles of the correlation inside each, of images as coefficients (n, k, k): (n,)."""
    tiles = []
    for coefficients in (first, second):
        pixels = _waves().T @ (coefficients * (_frequency(FINE) > 0)) @ _waves()
        tile = pixels.unflatten(2, (4, 6)).unflatten(1, (4, 6)).transpose(2, 3).flatten(3).flatten(1, 2)
        tiles.append(tile - tile.mean(2, keepdim=True))
    a, b = tiles
    energy = (a.square().mean(2) + TILE_FLOOR) * (b.square().mean(2) + TILE_FLOOR)
    return (((a * b).mean(2) + TILE_FLOOR) / energy.sqrt()).mean(1)


@lru_cache(maxsize=1)
def _waves() -> Tensor:
    """Return (12, 24) cosine waves: the way back from coefficients to a row of 24 smooth pixels."""
    place = (torch.arange(24) + 0.5) / 24
    return torch.cos(torch.pi * torch.arange(FINE)[:, None] * place) * _norms(FINE)[:, None]


def find_near_duplicates(thumbnails: list[Thumbnail], *, mirrored: bool = True) -> list[NearDuplicate]:
    """Find all pairs that show the same image, mirror images too where ``mirrored``; see the module for how.

    Return pairs with ``first < second``, the most alike first. Memory: 4 KB per image and 64 MB; time grows with the
    square of the number of images: a second for 4,500, some minutes for 100,000.
    """
    if len(thumbnails) < 2:
        return []
    grey = torch.from_numpy(np.stack([thumb.grey for thumb in thumbnails])).float() / 255
    colour = torch.from_numpy(np.stack([thumb.colour for thumb in thumbnails]))
    pairs: dict[tuple[int, int], NearDuplicate] = {}
    for flip in (False, True) if mirrored else (False,):
        for rows, columns in _candidates(grey, flip):
            for duplicate in _confirmed(grey, colour, rows, columns, flip):
                key = (duplicate.first, duplicate.second)
                if key not in pairs or pairs[key].likeness < duplicate.likeness:
                    pairs[key] = duplicate
    return sorted(pairs.values(), key=lambda pair: (-pair.likeness, pair.first, pair.second))


def _confirmed(grey: Tensor, colour: Tensor, rows: Tensor, columns: Tensor, flip: bool) -> Iterator[NearDuplicate]:
    """Yield those candidates of some images (all candidates of each) that pass the close comparison."""
    if not len(rows):
        return
    chunks = zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)
    compared = [_compare(grey[i].flip(2) if flip else grey[i], grey[j]) for i, j in chunks]
    whole, local = (torch.cat(parts) for parts in zip(*compared, strict=True))
    tints = (colour[rows].flip(3) if flip else colour[rows]), colour[columns]
    gap, first, second = (tint.square().mean((1, 2, 3)) for tint in (tints[0] - tints[1], *tints))
    sure = (whole > SURE) & (local > LOCAL) & ((gap < COLOUR**2) | (first < GREY**2) | (second < GREY**2))
    sure &= _stands_out(rows, whole, len(grey)) | (whole > SAME)
    for a, b, likeness in zip(rows[sure].tolist(), columns[sure].tolist(), whole[sure].tolist(), strict=True):
        yield NearDuplicate(min(a, b), max(a, b), likeness, flip)


def _stands_out(rows: Tensor, likeness: Tensor, images: int) -> Tensor:
    """Return (n,) whether a candidate is at least twice as near as the last of the eight that its image has.

    After the ratio test of Lowe (2004, section 7.1): where eight images are about equally near, the set is uniform and
    none of them a copy. Fewer candidates: no rival.
    """
    rival = torch.ones(images).scatter_reduce(0, rows, likeness, "amin")
    rival[rows.bincount(minlength=images) < NEIGHBOURS] = -1.0
    return 1 - likeness < 0.5 * (1 - rival[rows])
