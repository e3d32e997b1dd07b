"""From a map to a mask: one scale of 256 levels for every map, and ways to choose the level.

A map is scaled by its own lowest and highest value to 0 to 1 and cut to whole levels 0 to 255, as the reference code
of Choe et al. (2020) does; the mask of level k holds what reaches k. Every measure of
:mod:`heedmap.metrics.localization.localize` works on these levels, so that it can be had from counts for each level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from heedmap.errors import OptionError, nearest

__all__ = [
    "LEVELS",
    "THRESHOLDS",
    "is_measurable",
    "masks_of",
    "otsu_levels",
    "quantised",
    "resized",
    "scaled",
    "stretched",
]

LEVELS = 256


def is_measurable(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return two (M,) bool: which maps (M, ...) hold finite values only, and which of these differ between places."""
    finite = torch.isfinite(maps).flatten(1).all(1)
    low, high = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
    return finite, finite & (high > low)


def scaled(maps: Tensor, size: int) -> Tensor:
    """Bring maps to the size at which they are evaluated, and to 0 to 1 by their own lowest and highest value.

    Args:
        maps: (M, 1, h, w). A map that is not finite, or the same everywhere, becomes 0 everywhere: it prefers no place.
        size: see :func:`resized`.

    Returns:
        (M, size, size) float32.
    """
    return stretched(resized(torch.where(is_measurable(maps)[1][:, None, None, None], maps, 0), size))


def stretched(maps: Tensor) -> Tensor:
    """Bring finite maps (M, H, W) to 0 to 1 by their own lowest and highest value; 0 where these are the same."""
    low, high = maps.flatten(1).amin(1)[:, None, None], maps.flatten(1).amax(1)[:, None, None]
    return (maps - low) / torch.where(high > low, high - low, 1.0)


def resized(maps: Tensor, size: int) -> Tensor:
    """Interpolate maps linearly between the centres of their cells, averaging where they shrink.

    The reference code of Choe et al. interpolates with a cubic, which overshoots; see docs/localization.md for all that
    differs from it.

    Args:
        maps: (M, 1, h, w).
        size: side of the result in pixels.

    Returns:
        (M, size, size) float32.
    """
    maps = maps.float()
    if maps.shape[-2:] != (size, size):
        is_larger = max(maps.shape[-2:]) > size
        maps = interpolate(maps, (size, size), mode="bilinear", align_corners=False, antialias=is_larger)
    return maps[:, 0]


def quantised(maps: Tensor) -> Tensor:
    """Cut maps in 0 to 1 to levels: uint8, rounded down, so that only the maximum reaches 255."""
    return (maps * (LEVELS - 1)).to(torch.uint8)


def otsu_levels(counts: Tensor) -> Tensor:
    """Choose the level that parts low from high best, by Otsu (IEEE Trans. SMC 9(1), 1979, equation 18).

    Args:
        counts: (M, 256) pixels at each level.

    Returns:
        (M,) int64, the lowest level of the bright part: the one that makes the variance between the two parts largest,
        the first among equals; 0, the whole image, where all pixels lie at one level.
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


def _at_percentile(maps: Tensor, percent: float) -> Tensor:
    return torch.quantile(maps.flatten(1).double(), percent / 100, dim=1)[:, None, None] <= maps


def _at_otsu(maps: Tensor, _: float) -> Tensor:
    levels = quantised(maps)
    counts = torch.stack([one.flatten().long().bincount(minlength=LEVELS) for one in levels])
    return levels >= otsu_levels(counts)[:, None, None]


THRESHOLDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "otsu": _at_otsu,
    "fixed": lambda maps, share: maps >= share,
    "percentile": _at_percentile,
}
"""Way of choosing the threshold -> (maps (M, H, W) in 0 to 1, value) -> masks. ``otsu`` takes no value;
``fixed`` keeps what reaches that share of the map's range, ``percentile`` that percentile of its values."""


def masks_of(maps: Tensor, threshold: str = "otsu", value: float = 0.5, *, size: int = 224) -> Tensor:
    """Turn maps into masks.

    Args:
        maps: (M, 1, h, w), any scale.
        threshold: a name in ``THRESHOLDS``.
        value: for ``fixed`` a share of the range from 0 to 1, such as one chosen on other images (the report of
            :func:`heedmap.metrics.localization.localize.localize` names it); for ``percentile`` from 0 to 100.
        size: side of the masks in pixels.

    Returns:
        (M, size, size) bool; all True for a map that prefers no place.

    Raises:
        OptionError: an unknown threshold or a value out of range.
    """
    if threshold not in THRESHOLDS:
        raise OptionError(
            f"Threshold {threshold!r} is unknown; there are {', '.join(THRESHOLDS)}.{nearest(threshold, THRESHOLDS)}"
        )
    most = 100 if threshold == "percentile" else 1
    if not 0 <= value <= most:
        raise OptionError(f"The value of the threshold {threshold!r} lies between 0 and {most}, not at {value}.")
    _, differs = is_measurable(maps)
    return THRESHOLDS[threshold](scaled(maps, size), value) | ~differs[:, None, None]
