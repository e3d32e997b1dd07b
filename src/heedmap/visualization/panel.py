"""Panels: an image with its maps, their legends and what the numbers mean, drawn with Pillow."""

import contextlib
import functools
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import COLOURS, blended, heatmap, hottest, is_flat, paled, peak_text

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour: TypeAlias = tuple[int, int, int]
Scale: TypeAlias = Literal["image", "range", "set"] | tuple[float, float]

PAPER: Colour = (247, 247, 245)
INK: Colour = (28, 29, 31)
GREY: Colour = (110, 112, 116)
FAINT: Colour = (222, 222, 218)
RIGHT: Colour = (26, 127, 55)
WRONG: Colour = (192, 38, 28)
OTHER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf")


@dataclass(frozen=True)
class Caption:
    """The headline of a panel: the predicted class, its probability, the truth if known, the image's name."""

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
        maps: drawn over the image, each with the ends of its scale.
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


def legend(low: float, high: float, text: str, width: int = 256) -> Image.Image:
    """Draw the colour bar with the numbers at its ends and a line of text under it; (width, 44) pixels."""
    sheet = Image.new("RGB", (width, 44), PAPER)
    pen = ImageDraw.Draw(sheet)
    sheet.paste(Image.fromarray(COLOURS[None]).resize((width, 8), Image.Resampling.BILINEAR))
    _write(pen, (0, 12), f"{low:.3g}", 12, GREY)
    _write(pen, (width, 12), f"{high:.3g}", 12, GREY, anchor="ra")
    _write(pen, (0, 28), text, 12, INK, width=width)
    return sheet


Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a box, in shares of the square image."""


def draw_panel(
    rows: Sequence[Row], caption: Caption, note: str = "", *, boxes: Sequence[Box] = (), tile: int = 256
) -> Image.Image:
    r"""Draw everything about one image: headline, the image, each map with its legend, and what the numbers mean.

    Args:
        rows: at least one; they may differ in their number of maps.
        caption: the headline; a known truth is shown as right or wrong, by colour and by word.
        note: printed at the foot, one line for each ``\n``.
        boxes, tile: outlined on the image and on its maps; side of each square in pixels.
    """
    columns = 1 + max(len(row.maps) + len(row.features) for row in rows)
    lines = note.split("\n") if note else []
    width, row_height = columns * (tile + _GAP) - _GAP + 2 * _EDGE, _TITLE + tile + _LEGEND
    foot = _HEAD + len(rows) * row_height
    sheet = Image.new("RGB", (width, foot + 18 * len(lines) + _EDGE), PAPER)
    _draw_headline(sheet, caption)
    for number, row in enumerate(rows):
        _draw_row(sheet, row, _HEAD + number * row_height, tile, boxes)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        _write(pen, (_EDGE, foot + 18 * number), line, 12, GREY, width=width - 2 * _EDGE)
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
    """Draw a rounded label with a word on it; return where it ends."""
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
    image = row.image.convert("RGB").resize((tile, tile), Image.Resampling.BICUBIC)
    first = row.first and row.first.convert("RGB").resize((tile, tile), Image.Resampling.BICUBIC)
    ground = paled(image)
    _write(pen, (_EDGE, top), row.title, 15, INK, width=tile)
    sheet.paste(first or _outlined(image, boxes), (_EDGE, top + _TITLE))
    _draw_bars(pen, row.top, (_EDGE, top + _TITLE + tile + 7), tile)
    for number, drawn in enumerate(row.maps + row.features):
        left = _EDGE + (number + 1) * (tile + _GAP)
        height, width = drawn.values.shape[-2:]  # grid_of refuses a map with an axis
        end = _write(pen, (left, top), drawn.tap, 15, INK, width=tile - 70)
        _write(pen, (end, top), f",  {height} x {width}", 15, GREY)
        values, scale = drawn.values, (drawn.low, drawn.high)
        heated = blended(ground, values, *scale) if number < len(row.maps) else heatmap(values, *scale, tile)
        heated = _outlined(heated, boxes)
        sheet.paste(heated if is_flat(values) else _marked(heated, hottest(values)), (left, top + _TITLE))
        sheet.paste(legend(*scale, peak_text(values), tile), (left, top + _TITLE + tile + 8))


def _draw_bars(pen: ImageDraw.ImageDraw, top: Sequence[tuple[str, float]], place: tuple[int, int], width: int) -> None:
    """Draw the likeliest classes: name, bar, per cent."""
    for number, (name, probability) in enumerate(top[:3]):
        line, start, full = place[1] + 16 * number, place[0] + width // 2, width // 2 - 44
        _write(pen, (place[0], line), name, 12, INK, width=width // 2 - 8)
        pen.rectangle((start, line + 4, start + full, line + 10), fill=FAINT)
        if probability * full >= 1:
            pen.rectangle((start, line + 4, start + round(full * probability), line + 10), fill=GREY)
        _write(pen, (place[0] + width, line), f"{100 * probability:.1f} %", 12, GREY, anchor="ra")


def _outlined(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Return the image with the boxes' outlines, light inside dark so that they show on any ground."""
    outlined = image.copy() if boxes else image
    pen = ImageDraw.Draw(outlined)
    sides = (image.width - 1, image.height - 1) * 2
    for box in boxes:
        left, top, right, bottom = (round(share * side) for share, side in zip(box, sides, strict=True))
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
        pen.rectangle((left, top, right, bottom), outline=(255, 255, 255))
    return outlined


def _marked(image: Image.Image, place: tuple[float, float]) -> Image.Image:
    """Return the image with a small ring around the hottest place."""
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
    """Write a line, shortened to ``width`` pixels; return the x at which it ends."""
    text = _drawable(text if width is None else _fit(text, size, width))
    ink, left, top = _inked(text, size, anchor)
    pen.bitmap((place[0] + left, place[1] + top), ink, colour)
    return place[0] + round(_length(text, size))


@functools.lru_cache(1024)  # most words of a panel return in the next one
def _inked(text: str, size: int, anchor: str) -> tuple[Image.Image, int, int]:
    """Return the ink of a line as a mask, and the offset of its left upper corner from the anchor."""
    font = _font(text, size)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text, anchor=anchor))
    mask = Image.new("L", (max(right - left, 1), max(bottom - top, 1)), 0)
    ImageDraw.Draw(mask).text((-left, -top), text, 255, font, anchor=anchor)
    return mask, left, top


def _fit(text: str, size: int, width: int) -> str:
    """Return the text, cut in its middle where it is wider than ``width`` pixels; both ends of a path matter."""
    keep, shown = len(text), text
    while keep > 4 and _length(_drawable(shown), size) > width:
        keep -= 1
        shown = text[: keep - keep // 2] + "..." + text[len(text) - keep // 2 :]
    return shown


@functools.lru_cache(4096)
def _length(text: str, size: int) -> float:
    return _font(text, size).getlength(text)


_default_font = functools.cache(ImageFont.load_default)


@functools.cache
def _other_font(size: int) -> Font | None:
    for name in OTHER_FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return None


def _font(text: str, size: int) -> Font:
    """Pillow's own font, which has ASCII only; for other writing a font of the system where one of the usual is."""
    return _default_font(size) if text.isascii() else _other_font(size) or _default_font(size)


def _drawable(text: str) -> str:
    r"""Return the text where a font for it is at hand; else without accents, and ``?`` for what then is not ASCII.

    What ends a line is a space: a file's name may hold it, and no font can measure it. Bytes of a name
    that are no letters are written as ``\udcff``.
    """
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    no_letters = ("Cc", "Zl", "Zp")  # control characters, separators of lines and of paragraphs
    text = "".join(" " if unicodedata.category(letter) in no_letters else letter for letter in text)
    if text.isascii() or _other_font(12) is not None:
        return text
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode("ascii")


_MEANINGS = {
    "softmax": "share of the attention that each position gets (a map sums to 1)",
    "sigmoid": "gate of each position, between 0 and 1",
    "feature": "gate, mean over channels; a uniform gate is 0.5 with sigmoid, 1 with softmax",
    "none": "every position weighs the same (no attention)",
}


def footnotes(maps: Sequence[AttentionMap], features: Sequence[AttentionMap], scale: Scale, rows: int) -> list[str]:
    """Explain the colours of a panel of so many rows: the quantity, the scale, and how it is drawn."""
    name, _, weights = maps[0].method.partition(", ")
    kind = "feature" if name.startswith("feature") else "none" if name == "none" else weights
    meaning = _MEANINGS.get(kind, "weight of each position")
    first = f"Colour ({maps[0].method}): {meaning}. {_scale_note(maps, scale, rows)}"
    second = "Drawn bilinearly between the centres of the grid's cells"
    uniform = all(is_flat(drawn.values) for drawn in (*maps, *features))
    second += "." if uniform else "; the ring marks the hottest cell, where the map is not flat."
    if any(drawn.tap == "combined" for drawn in maps):
        second += " combined: (weighted) geometric mean of the taps on the finest grid."
    if features:
        second += " features: the largest channel at each position, before and after the gate on one scale."
    return [first, second]


def _scale_note(maps: Sequence[AttentionMap], scale: Scale, rows: int) -> str:
    where = " in the two rows" if rows > 1 else ""
    if isinstance(scale, tuple):
        return f"Scale: {scale[0]:g} to {scale[1]:g}, as requested."
    if scale == "set":
        return "Scale: one for all images of this folder, up to the largest value among them."
    if scale == "image" and all(drawn.high == 1.0 for drawn in maps):
        return "Scale: 0 to 1 for every map."
    if scale == "range":
        return f"Scale: each map from its smallest to its largest value{where}, which makes small differences large."
    return f"Scale: each map from 0 to its largest value{where}."


def png(image: Image.Image) -> bytes:
    """Encode an RGB image without loss (PNG specification, third edition, 5 and 9).

    Every line is filtered by the line above. Pillow tries all five filters on each line, which took longer than all
    else about a panel of paper, text and photographs, for files a tenth smaller.
    """
    pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    lines = pixels.reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = 2  # the filter that stores what differs from the pixel above
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    encoded = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(filtered.data, 1), b"IEND"):
        encoded += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return encoded
