"""Draw a map as a heatmap, alone or over its image.

Three rules hold here: the numbers are drawn on the scale that the caller names and on no other; that scale is printed
beside the image; NaN and infinity are refused rather than painted.

Colours are matplotlib's *inferno* (CC0; S. van der Walt and N. Smith, 2015), whose luminance rises all the way, so a
hotter place is also a lighter one, in grey and for colour-blind eyes too. Between the cells' centres the values are
interpolated linearly, as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

if TYPE_CHECKING:
    from torch import Tensor

Values: TypeAlias = "Tensor | NDArray[np.floating]"

_INFERNO = (  # every eighth of the 256 colours; the 7 between are interpolated, off by at most 2 of 255
    "0000040403120b0724150b37210c4a2f0a5b3d09654a0c6b57106e64156e71196e7d1e6d8a226a972766a32c61b0315bbc3754"
    "c63d4dd04545da4e3ce35933eb6429f1711ff67e14f98c0afb9b06fcaa0ffbba1ff9c932f5d949f2e865f3f586fcffa4"
)

FLAT = 1.05  # largest value, in multiples of the mean, below which a map has no hottest cell worth a mark


_ANCHORS = np.frombuffer(bytes.fromhex(_INFERNO), np.uint8).reshape(-1, 3)
_PLACES = np.linspace(0, len(_ANCHORS) - 1, 256)
COLOURS: NDArray[np.uint8] = (  # (256, 3)
    np.stack([np.interp(_PLACES, np.arange(len(_ANCHORS)), channel) for channel in _ANCHORS.T], 1)
    .round()
    .astype(np.uint8)
)


def grid_of(values: Values) -> NDArray[np.float64]:
    """Return a map's (h, w) values as float64; a ValueError for another shape, or for NaN or infinity."""
    grid = (values if isinstance(values, np.ndarray) else values.detach().double().cpu().numpy()).astype(float)
    if grid.ndim != 2 or grid.size == 0:
        raise ValueError(f"A map has the shape (h, w), not {tuple(grid.shape)}.")
    if not np.isfinite(grid).all():
        raise ValueError("The map holds NaN or infinity; it cannot be drawn.")
    return grid


def scale_of(values: Values) -> tuple[float, float]:
    """Return the scale a map is drawn on when none is named: zero (or its smallest value, if negative) to its largest.

    A map that is zero everywhere gets (0, 1): it is drawn cold.
    """
    grid = grid_of(values)
    low, high = min(0.0, float(grid.min())), float(grid.max())
    return (low, high) if high > low else (low, low + 1.0)


def hottest(values: Values) -> tuple[float, float]:
    """Return the centre of the hottest cell as (x, y) shares of the image; the first in raster order among equals."""
    grid = grid_of(values)
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    return (float(column) + 0.5) / grid.shape[1], (float(row) + 0.5) / grid.shape[0]


def is_flat(values: Values) -> bool:
    """Whether a map is about uniform, its largest value below 1.05 times its mean: its hottest cell is chance."""
    grid = grid_of(values)
    peak, mean = float(grid.max()), float(grid.mean())
    return peak < FLAT * mean if mean > 0 else peak == float(grid.min())


def _heat(values: Values, low: float, high: float, size: tuple[int, int] | None, smooth: bool) -> NDArray[np.float32]:
    """Heat in [0, 1] on the image's pixels: 0 at ``low`` and below, 1 at ``high`` and above."""
    grid = grid_of(values)
    if not high > low:
        raise ValueError(f"A scale runs from low to high, not from {low} to {high}.")
    if size is not None:
        way = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        grid = np.asarray(Image.fromarray(grid.astype(np.float32)).resize(size, way))
    return ((grid - low) / (high - low)).clip(0, 1).astype(np.float32)


def heatmap(values: Values, low: float, high: float, size: int | None = None, *, smooth: bool = True) -> Image.Image:
    """Draw a map by itself.

    Args:
        values: (h, w), finite.
        low, high: the values that get the darkest and the lightest colour; what is lower or higher gets it too.
        size: side of the square image in pixels; None draws one pixel for each value.
        smooth: interpolate linearly between cell centres; otherwise show the cells.

    Raises:
        ValueError: NaN or infinity in the map, not two axes, or ``high`` not above ``low``.
    """
    return _coloured(_heat(values, low, high, None if size is None else (size, size), smooth))


def overlay(
    image: Image.Image, values: Values, low: float, high: float, opacity: float = 0.8, *, smooth: bool = True
) -> Image.Image:
    """Draw a map over its image, each place as opaque as it is hot, so that cold places stay the photograph.

    The photograph under the map is paled, see :func:`paled`.

    Args:
        image: RGB of any size; the map covers all of it.
        values, smooth: see :func:`heatmap`, and for errors.
        low, high: the values drawn fully transparent, and in the last colour at ``opacity``.
        opacity: 0 to 1, how much of the image the hottest colour hides.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity lies between 0 and 1, not at {opacity}.")
    return blended(paled(image), values, low, high, opacity, smooth=smooth)


def paled(image: Image.Image) -> Image.Image:
    """Return the image at a quarter of its colour: a red saucer must not be taken for heat."""
    return ImageEnhance.Color(image.convert("RGB")).enhance(0.25)


def blended(
    ground: Image.Image, values: Values, low: float, high: float, opacity: float = 0.8, *, smooth: bool = True
) -> Image.Image:
    """Draw as :func:`overlay` over an image paled before. Mixed in bytes: in numbers it took three times as long."""
    heat = _heat(values, low, high, ground.size, smooth)
    # The root lifts the middle, which would drown in a bright image.
    opaque = Image.fromarray((np.sqrt(heat) * (255 * opacity)).round().astype(np.uint8))
    return Image.composite(_coloured(heat), ground, opaque)


def _coloured(heat: NDArray[np.float32]) -> Image.Image:
    """Heat (h, w) from 0 to 1 in colours."""
    drawn = Image.fromarray((heat * 255).round().astype(np.uint8))
    drawn.putpalette(COLOURS.tobytes())
    return drawn.convert("RGB")


def peak_text(values: Values) -> str:
    """Compare the largest value with a uniform map, such as ``peak 0.0547 = 14 x uniform``."""
    grid = grid_of(values)
    peak, mean = float(grid.max()), float(grid.mean())
    if mean <= 0 or grid.min() < 0:  # a mean of values of both signs is nothing to compare with
        return f"peak {peak:.3g}"
    against, ratio = "uniform" if abs(grid.sum() - 1) < 1e-3 else "its mean", peak / mean
    return f"peak {peak:.3g} = {ratio:.{0 if ratio >= 9.95 else 1}f} x {against}"
