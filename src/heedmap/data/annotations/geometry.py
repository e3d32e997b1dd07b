"""The objects of one image, from pixels or fractions of the whole image to fractions of the square view."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from heedmap.data.annotations.formats import AnnotatedImage, Box, BoxedObject
from heedmap.data.decoding import crop_box
from heedmap.data.masks import Mask, Outline, OutlineMask, RunLengths
from heedmap.errors import DataError

SHAPE_TOLERANCE = 0.02  # by how much the aspect of an annotation may differ from its image's: sizes are rounded
BEYOND = 0.1  # fraction of the image by which a box may reach over its edge: some programs let it

SquareObjects = tuple[list[Box], Mask | None, int]
"""Boxes in fractions of the square view, the mask, and the number of objects before the image was cropped."""


def to_square(annotated: AnnotatedImage, image: Path, class_name: str | None) -> SquareObjects:
    """Return the objects of one image in its square view; with ``class_name``, those of that name alone.

    Raises:
        DataError: they are of another shape than the image, or a box is none or lies outside.
    """
    width, height = upright_size(image)
    if annotated.size is not None:
        check_shape(annotated.size, (width, height), Path(annotated.key))
    scale = (1, 1) if annotated.is_normalized else annotated.size or (width, height)
    objects = [thing for thing in annotated.objects if class_name is None or thing.name == class_name]
    solid, crowds = ([thing for thing in objects if thing.ignored is ignored] for ignored in (False, True))
    boxes = [_normalized(thing.box, scale, annotated.key) for thing in solid]
    mask = None
    if crowds or any(thing.outline for thing in solid):
        outlines, ignored = (tuple(_outline(thing, scale, annotated.key) for thing in part) for part in (solid, crowds))
        mask = OutlineMask(outlines, ignored, (width, height))
    return boxes_in_square(boxes, width, height), mask, len(solid)


def _outline(thing: BoxedObject, scale: tuple[int, int], key: str) -> Outline:
    """Return the outline in fractions; where there is none, that of the box."""
    if thing.outline is None:
        left, top, right, bottom = _normalized(thing.box, scale, key)
        return ((left, top, right, top, right, bottom, left, bottom),)
    if isinstance(thing.outline, RunLengths):
        return thing.outline
    return tuple(tuple(value / scale[place % 2] for place, value in enumerate(polygon)) for polygon in thing.outline)


def _normalized(box: Box, scale: tuple[int, int], key: str) -> Box:
    left, top, right, bottom = box[0] / scale[0], box[1] / scale[1], box[2] / scale[0], box[3] / scale[1]
    if not (left < right and top < bottom):
        raise DataError(f"{key}: {box} is no box from left to right and top to bottom; mend the annotation.")
    if min(left, top) < -BEYOND or max(right, bottom) > 1 + BEYOND:
        raise DataError(f"{key}: the box {box} lies outside the image; is it meant for another size, or in pixels?")
    return left, top, right, bottom


def boxes_in_square(boxes: Sequence[Box], width: int, height: int) -> list[Box]:
    """Turn fractions of the whole image into fractions of the square view, without boxes wholly outside."""
    left, top, right, _ = crop_box(width, height)
    side = right - left
    inside = []
    for box in boxes:
        x = [min(1.0, max(0.0, (value * width - left) / side)) for value in box[::2]]
        y = [min(1.0, max(0.0, (value * height - top) / side)) for value in box[1::2]]
        if x[0] < x[1] and y[0] < y[1]:
            inside.append((x[0], y[0], x[1], y[1]))
    return inside


def upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as displayed upright, from its header.

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


def check_shape(annotated: tuple[int, int], image: tuple[int, int], source: Path) -> None:
    """Refuse an annotation (width, height) of another shape than its image.

    Raises:
        DataError: the shapes differ.
    """
    ratio = annotated[0] / annotated[1] * image[1] / image[0]
    if not 1 - SHAPE_TOLERANCE <= ratio <= 1 + SHAPE_TOLERANCE:
        raise DataError(
            f"{source}: it is for an image of {annotated[0]} x {annotated[1]}, but the image is {image[0]} x "
            f"{image[1]} as seen upright; annotate the whole upright image."
        )
