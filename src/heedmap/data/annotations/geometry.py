"""The objects of one image, from pixels or shares of the whole of it to shares of the square that is seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from heedmap.data.annotations.formats import Objects, Thing
from heedmap.data.decoding import crop_box
from heedmap.data.masks import Mask, Outline, OutlineMask, RunLengths
from heedmap.errors import DataError

ODD_SHAPE = 0.02  # by how much the shape of an annotation may differ from its image's: sizes are rounded
BEYOND = 0.1  # by how many shares of the image a box may reach over its edge: some programs let it

Box = tuple[float, float, float, float]
Placed = tuple[list[Box], Mask | None, int]
"""Boxes in shares of the square view, the mask, and the number of objects before the image was cropped."""


def placed(found: Objects, image: Path, wanted: str | None) -> Placed:
    """The objects of one image that a file tells of; with ``wanted``, those of that name alone.

    Raises:
        DataError: they are of another shape than the image, or a box is none or lies outside.
    """
    width, height = upright_size(image)
    if found.size is not None:
        check_shape(found.size, (width, height), Path(found.key))
    across, down = (1, 1) if found.is_share else found.size or (width, height)
    things = [thing for thing in found.things if wanted is None or thing.name == wanted]
    solid, crowds = ([thing for thing in things if thing.ignored is ignored] for ignored in (False, True))
    boxes = [_share(thing.box, across, down, found.key) for thing in solid]
    mask = None
    if crowds or any(thing.outline for thing in solid):
        outlines, ignored = (
            tuple(_shape(thing, across, down, found.key) for thing in part) for part in (solid, crowds)
        )
        mask = OutlineMask(outlines, ignored, (width, height))
    return in_square(boxes, width, height), mask, len(solid)


def _shape(thing: Thing, width: int, height: int, key: str) -> Outline:
    """The outline in shares; where there is none, that of the box."""
    if thing.outline is None:
        left, top, right, bottom = _share(thing.box, width, height, key)
        return ((left, top, right, top, right, bottom, left, bottom),)
    if isinstance(thing.outline, RunLengths):
        return thing.outline
    scale = (width, height)
    return tuple(tuple(value / scale[place % 2] for place, value in enumerate(polygon)) for polygon in thing.outline)


def _share(box: Box, width: int, height: int, key: str) -> Box:
    left, top, right, bottom = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    if not (left < right and top < bottom):
        raise DataError(f"{key}: {box} is no box from left to right and top to bottom; mend the annotation.")
    if min(left, top) < -BEYOND or max(right, bottom) > 1 + BEYOND:
        raise DataError(f"{key}: the box {box} lies outside the image; is it meant for another size, or in pixels?")
    return left, top, right, bottom


def in_square(boxes: Sequence[Box], width: int, height: int) -> list[Box]:
    """From shares of the whole image to shares of the square view; boxes wholly outside are left out."""
    left, top, right, _ = crop_box(width, height)
    side = right - left
    kept = []
    for box in boxes:
        x = [min(1.0, max(0.0, (value * width - left) / side)) for value in box[::2]]
        y = [min(1.0, max(0.0, (value * height - top) / side)) for value in box[1::2]]
        if x[0] < x[1] and y[0] < y[1]:
            kept.append((x[0], y[0], x[1], y[1]))
    return kept


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as a person sees it, from its header.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF 2.32: lying on its side
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: the image's size cannot be read ({error}).") from error
    return (height, width) if turned else (width, height)


def check_shape(found: tuple[int, int], image: tuple[int, int], source: Path) -> None:
    """Refuse an annotation (width, height) of another shape than its image.

    Raises:
        DataError: it is.
    """
    ratio = found[0] / found[1] * image[1] / image[0]
    if not 1 - ODD_SHAPE <= ratio <= 1 + ODD_SHAPE:
        raise DataError(
            f"{source}: it is for an image of {found[0]} x {found[1]}, but the image is {image[0]} x {image[1]} "
            "as seen upright; annotate the whole upright image."
        )
