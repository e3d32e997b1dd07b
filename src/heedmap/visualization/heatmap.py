"""Map and image in, image out; knows no model.

A heatmap is the image of a map. Three rules hold here: the numbers are drawn on the scale that the caller names and
on no other; that scale is printed beside the image; NaN and infinity are refused rather than painted.

Colours are matplotlib's *inferno* (CC0; S. van der Walt and N. Smith, 2015), whose luminance rises all the way, so a
hotter place is also a lighter one and the image survives a grey printer and colour-blind eyes. Between the grid's
cell centres the values are interpolated linearly, as ``torch.nn.functional.interpolate(mode="bilinear",
align_corners=False)`` does; ``smooth=False`` shows the grid's cells as they are.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

    from heedmap.types import AttentionMap

Values: TypeAlias = "Tensor | NDArray[np.floating]"
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour: TypeAlias = tuple[int, int, int]

_INFERNO = (  # every eighth of the 256 colours; the 7 between are interpolated, off by at most 2 of 255
    "0000040403120b0724150b37210c4a2f0a5b3d09654a0c6b57106e64156e71196e7d1e6d8a226a972766a32c61b0315bbc3754"
    "c63d4dd04545da4e3ce35933eb6429f1711ff67e14f98c0afb9b06fcaa0ffbba1ff9c932f5d949f2e865f3f586fcffa4"
)

PAPER: Colour = (247, 247, 245)
INK: Colour = (28, 29, 31)
GREY: Colour = (110, 112, 116)
FAINT: Colour = (222, 222, 218)
RIGHT: Colour = (26, 127, 55)
WRONG: Colour = (192, 38, 28)
FLAT = 1.05  # largest value, in multiples of the mean, below which a map has no hottest cell worth a mark
OTHER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf")


def _colour_table() -> NDArray[np.uint8]:
    anchors = np.frombuffer(bytes.fromhex(_INFERNO), np.uint8).reshape(-1, 3).astype(np.float64)
    places = np.linspace(0, len(anchors) - 1, 256)
    columns = [np.interp(places, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


COLOURS = _colour_table()


@dataclass(frozen=True)
class Caption:
    """The headline of a panel.

    Attributes:
        predicted: the class that the network names.
        probability: its probability, 0 to 1.
        label: the truth where it is known, else None.
        name: where the image came from, printed small.
    """

    predicted: str
    probability: float
    label: str | None = None
    name: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a panel: a square image with its maps.

    Attributes:
        image: RGB, square; lies under every map.
        title: what the first square is, such as ``image``.
        maps: (h, w) each, drawn over the image, each with the ends of its scale.
        features: drawn alone, after the maps: under a photograph their detail would be lost.
        first: shown first in place of ``image``, such as the image that the query came from.
        top: (class, probability) of the likeliest classes, best first; drawn as bars under the first square.
    """

    image: Image.Image
    title: str
    maps: tuple[AttentionMap, ...]
    features: tuple[AttentionMap, ...] = ()
    first: Image.Image | None = None
    top: tuple[tuple[str, float], ...] = ()


def grid_of(values: Values) -> NDArray[np.float64]:
    """Return a map's (h, w) values as float64.

    Raises:
        ValueError: not two axes, empty, or a value that is NaN or infinite.
    """
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
    """Whether a map is about even, its largest value below 1.05 times its mean: its hottest cell says nothing."""
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
        low: the value that gets the first, darkest colour; what is lower gets it too.
        high: the value that gets the last, lightest colour; what is higher gets it too.
        size: side of the square image in pixels; None draws one pixel for each value.
        smooth: interpolate linearly between cell centres; otherwise show the cells.

    Raises:
        ValueError: NaN or infinity in the map, not two axes, or ``high`` not above ``low``.
    """
    heat = _heat(values, low, high, None if size is None else (size, size), smooth)
    return _coloured(heat)


def overlay(
    image: Image.Image, values: Values, low: float, high: float, opacity: float = 0.8, *, smooth: bool = True
) -> Image.Image:
    """Draw a map over its image, each place as opaque as it is hot, so that cold places stay the photograph.

    The photograph under the map is paled to a quarter of its colour: a red saucer must not be taken for heat.

    Args:
        image: RGB of any size; the map covers all of it.
        values: (h, w), finite.
        low: the value drawn fully transparent.
        high: the value drawn in the last colour at ``opacity``.
        opacity: 0 to 1, how much of the image the hottest colour hides.
        smooth: see :func:`heatmap`.

    Raises:
        ValueError: as :func:`heatmap`; ``opacity`` outside 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity lies between 0 and 1, not at {opacity}.")
    return _laid_over(_paled(image), values, low, high, opacity, smooth=smooth)


def _paled(image: Image.Image) -> Image.Image:
    return ImageEnhance.Color(image.convert("RGB")).enhance(0.25)


def _laid_over(
    ground: Image.Image, values: Values, low: float, high: float, opacity: float = 0.8, *, smooth: bool = True
) -> Image.Image:
    """See :func:`overlay`; ``ground`` is the paled image. Mixed in bytes: in numbers it took three times as long."""
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
    """Say how the largest value compares with an even spread, such as ``peak 0.0547 = 14 x uniform``."""
    grid = grid_of(values)
    peak, mean = float(grid.max()), float(grid.mean())
    if mean <= 0 or grid.min() < 0:  # a mean of values of both signs is nothing to compare with
        return f"peak {peak:.3g}"
    against = "uniform" if abs(grid.sum() - 1) < 1e-3 else "its mean"
    return f"peak {peak:.3g} = {_times(peak / mean)} x {against}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def legend(low: float, high: float, text: str, width: int = 256) -> Image.Image:
    """Draw the colour bar with the numbers at its ends and a line of text under it; (width, 44) pixels."""
    sheet = Image.new("RGB", (width, 44), PAPER)
    pen = ImageDraw.Draw(sheet)
    ramp = Image.fromarray(COLOURS[None]).resize((width, 8), Image.Resampling.BILINEAR)
    sheet.paste(ramp, (0, 0))
    _write(pen, (0, 12), f"{low:.3g}", 12, GREY)
    _write(pen, (width, 12), f"{high:.3g}", 12, GREY, anchor="ra")
    _write(pen, (0, 28), text, 12, INK, width=width)
    return sheet


Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a box, in shares of the square image."""


def panel(
    rows: Sequence[Row],
    caption: Caption,
    note: str = "",
    *,
    boxes: Sequence[Box] = (),
    tile: int = 256,
) -> Image.Image:
    r"""Draw everything about one image: headline, the image, each map with its legend, and what the numbers mean.

    Args:
        rows: at least one; they may differ in their number of maps.
        caption: the headline; a known truth is shown as right or wrong, by colour and by word.
        note: printed at the foot, one line for each ``\n``.
        boxes: outlined on the image and on its maps.
        tile: side of each square in pixels.
    """
    columns = 1 + max(len(row.maps) + len(row.features) for row in rows)
    lines = note.split("\n") if note else []
    width = columns * tile + (columns - 1) * _GAP + 2 * _EDGE
    row_height = _TITLE + tile + _LEGEND
    sheet = Image.new("RGB", (width, _HEAD + len(rows) * row_height + 18 * len(lines) + _EDGE), PAPER)
    _draw_headline(sheet, caption)
    for number, row in enumerate(rows):
        _draw_row(sheet, row, _HEAD + number * row_height, tile, boxes)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        top = _HEAD + len(rows) * row_height + 18 * number
        _write(pen, (_EDGE, top), line, 12, GREY, width=width - 2 * _EDGE)
    return sheet


_EDGE, _GAP, _HEAD, _TITLE, _LEGEND = 22, 16, 68, 24, 66


def _draw_headline(sheet: Image.Image, caption: Caption) -> None:
    pen, right = ImageDraw.Draw(sheet), sheet.width - _EDGE
    end = _write(pen, (_EDGE, 20), caption.predicted, 26, INK, width=sheet.width // 2)
    end = _write(pen, (end + 10, 20), f"{100 * caption.probability:.0f} %", 26, GREY)
    if caption.label is not None:
        is_right = caption.label == caption.predicted
        end = _badge(sheet, (end + 16, 24), "right" if is_right else "wrong", RIGHT if is_right else WRONG)
        if not is_right:
            end = _write(pen, (end + 10, 27), f"truth: {caption.label}", 16, WRONG, width=right - end - 10)
    if caption.name and right - end > 100:
        _write(pen, (right, 31), _fit(caption.name, 12, right - end - 24), 12, GREY, anchor="ra")


def _badge(sheet: Image.Image, place: tuple[int, int], word: str, colour: Colour) -> int:
    """A rounded label with a word on it; returns where it ends."""
    width, height = round(_font(word, 14).getlength(word)) + 18, 25
    large = Image.new("L", (4 * width, 4 * height), 0)  # drawn large and shrunk: Pillow's shapes have rough edges
    ImageDraw.Draw(large).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), radius=4 * height // 2, fill=255)
    mask = large.resize((width, height), Image.Resampling.LANCZOS)
    sheet.paste(Image.new("RGB", mask.size, colour), place, mask)
    middle = (place[0] + width / 2, place[1] + height / 2)
    ImageDraw.Draw(sheet).text(middle, word, (255, 255, 255), _font(word, 14), anchor="mm")
    return place[0] + width


def _draw_row(sheet: Image.Image, row: Row, top: int, tile: int, boxes: Sequence[Box]) -> None:
    pen = ImageDraw.Draw(sheet)
    image, first = _sized(row.image, tile), row.first and _sized(row.first, tile)
    ground = _paled(image)
    _write(pen, (_EDGE, top), row.title, 15, INK, width=tile)
    sheet.paste(first or _outlined(image, boxes), (_EDGE, top + _TITLE))
    _draw_bars(pen, row.top, (_EDGE, top + _TITLE + tile + 7), tile)
    for number, drawn in enumerate(row.maps + row.features):
        left = _EDGE + (number + 1) * (tile + _GAP)
        height, width = drawn.values.shape[-2:]  # grid_of refuses a map with an axis
        end = _write(pen, (left, top), drawn.tap, 15, INK, width=tile - 70)
        _write(pen, (end, top), f",  {height} x {width}", 15, GREY)
        over = number < len(row.maps)
        scale = (drawn.low, drawn.high)
        heated = _laid_over(ground, drawn.values, *scale) if over else heatmap(drawn.values, *scale, tile)
        heated = _outlined(heated, boxes)
        ringed = heated if is_flat(drawn.values) else _marked(heated, hottest(drawn.values))
        sheet.paste(ringed, (left, top + _TITLE))
        sheet.paste(legend(*scale, peak_text(drawn.values), tile), (left, top + _TITLE + tile + 8))


def _sized(image: Image.Image, tile: int) -> Image.Image:
    return image.convert("RGB").resize((tile, tile), Image.Resampling.BICUBIC)


def _draw_bars(pen: ImageDraw.ImageDraw, top: Sequence[tuple[str, float]], place: tuple[int, int], width: int) -> None:
    """The likeliest classes: name, bar, per cent."""
    for number, (name, probability) in enumerate(top[:3]):
        line, start, full = place[1] + 16 * number, place[0] + width // 2, width // 2 - 44
        _write(pen, (place[0], line), name, 12, INK, width=width // 2 - 8)
        pen.rectangle((start, line + 4, start + full, line + 10), fill=FAINT)
        if probability * full >= 1:
            pen.rectangle((start, line + 4, start + round(full * probability), line + 10), fill=GREY)
        _write(pen, (place[0] + width, line), f"{100 * probability:.1f} %", 12, GREY, anchor="ra")


def _outlined(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The image with the boxes' outlines, light inside dark so that they show on any ground."""
    outlined = image.copy() if boxes else image
    pen = ImageDraw.Draw(outlined)
    sides = (image.width - 1, image.height - 1) * 2
    for box in boxes:
        left, top, right, bottom = (round(share * side) for share, side in zip(box, sides, strict=True))
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
        pen.rectangle((left, top, right, bottom), outline=(255, 255, 255))
    return outlined


def _marked(image: Image.Image, place: tuple[float, float]) -> Image.Image:
    """The image with a small ring round the hottest place; the ring's inside shows the heat itself."""
    marked, ring = image.copy(), _ring()
    x, y = (round(share * side - ring.width / 2) for share, side in zip(place, image.size, strict=True))
    marked.paste(ring, (x, y), ring)
    return marked


@functools.cache
def _ring(side: int = 19) -> Image.Image:
    large = Image.new("RGBA", (side * 4, side * 4), (255, 255, 255, 0))
    pen = ImageDraw.Draw(large)
    pen.ellipse((2, 2, side * 4 - 3, side * 4 - 3), outline=(0, 0, 0, 200), width=12)
    pen.ellipse((6, 6, side * 4 - 7, side * 4 - 7), outline=(255, 255, 255, 255), width=5)
    return large.resize((side, side), Image.Resampling.LANCZOS)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: Colour,
    *,
    anchor: str = "la",
    width: int | None = None,
) -> int:
    """Write a line, shortened to ``width`` pixels; returns the x at which it ends."""
    text = text if width is None else _fit(text, size, width)
    text = _drawable(text)
    ink, left, top = _inked(text, size, anchor)
    pen.bitmap((place[0] + left, place[1] + top), ink, colour)
    return place[0] + round(_length(text, size))


@functools.lru_cache(1024)  # most words of a panel, and the long lines at its foot, come again in the next one
def _inked(text: str, size: int, anchor: str) -> tuple[Image.Image, int, int]:
    """The ink of a line as a mask, and where its left upper corner lies from the place that the anchor is put at."""
    font = _font(text, size)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text, anchor=anchor))
    mask = Image.new("L", (max(right - left, 1), max(bottom - top, 1)), 0)
    ImageDraw.Draw(mask).text((-left, -top), text, 255, font, anchor=anchor)
    return mask, left, top


def _fit(text: str, size: int, width: int) -> str:
    """The text, cut in its middle where it is wider than ``width`` pixels; both ends of a path tell something."""
    keep = len(text)
    shown = text
    while keep > 4 and _length(_drawable(shown), size) > width:
        keep -= 1
        shown = text[: keep - keep // 2] + "..." + text[len(text) - keep // 2 :]
    return shown


@functools.lru_cache(4096)
def _length(text: str, size: int) -> float:
    return _font(text, size).getlength(text)


@functools.cache
def _default_font(size: int) -> Font:
    return ImageFont.load_default(size)


@functools.cache
def _other_font(size: int) -> Font | None:
    for name in OTHER_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


def _font(text: str, size: int) -> Font:
    """Pillow's own font, which has ASCII only; for other writing a font of the system where one of the usual is."""
    return _default_font(size) if text.isascii() else _other_font(size) or _default_font(size)


_NO_LETTERS = ("Cc", "Zl", "Zp")  # control characters, separators of lines and of paragraphs


def _drawable(text: str) -> str:
    """The text itself where a font for it is at hand; else without accents, and ``?`` for what then is not ASCII.

    What ends a line is a space: a file's name may hold it, and no font can be asked how long that is.
    """
    text = "".join(" " if unicodedata.category(letter) in _NO_LETTERS else letter for letter in text)
    if text.isascii() or _other_font(12) is not None:
        return text
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode("ascii")
