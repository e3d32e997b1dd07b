"""Match annotations to images by path, and turn their coordinates into fractions of the square view."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import ExifTags, Image

from heedmap.data.annotations.formats import AnnotatedImage, Box, BoxedObject
from heedmap.data.decoding import PARTS, crop_box
from heedmap.data.masks import Mask, Outline, OutlineMask, RunLengths
from heedmap.errors import DataError

_ENDINGS = ("_mask", "-mask", "_masks", "_seg", "_segmentation", "_gt", "_label", "_labels")

_Key = tuple[str, ...]

_SHAPE_TOLERANCE = 0.02  # by how much the aspect of an annotation may differ from its image's: sizes are rounded
_BEYOND = 0.1  # fraction of the image by which a box may reach over its edge: some programs let it

SquareObjects = tuple[list[Box], Mask | None, int]
"""Boxes in fractions of the square view, the mask, and the number of objects before the image was cropped."""


@dataclass(frozen=True)
class Matching:
    """Which annotation belongs to which image."""

    annotation_of: tuple[int, ...]  # for each image the index of its annotation, or -1
    unmatched: tuple[str, ...]  # annotations that belong to none of the images
    ambiguous: tuple[str, ...]  # those that fit several images, or of which several fit one; they are used for none

    @property
    def notes(self) -> list[str]:
        """One line on what did not fit; none where everything did."""
        missing = sum(index < 0 for index in self.annotation_of)
        notes = [f"{missing} of {len(self.annotation_of)} images have no annotation"] if missing else []
        for word, names in (("fit none of these images", self.unmatched), ("are ambiguous", self.ambiguous)):
            if names:
                notes.append(f"{len(names)} annotations {word} (such as {names[0]})")
        return ["; ".join(notes) + "."] if notes else []


def match_some(images: Sequence[str], annotations: Sequence[str], source: Path) -> Matching:
    """Match as :func:`match` does, or raise ``DataError`` where no annotation fits."""
    matching = match(images, annotations)
    if max(matching.annotation_of, default=-1) < 0:
        such = f"such as {annotations[0]!r}" if annotations else "there are none"
        raise DataError(f"{source}: no annotation ({such}) fits an image (such as {images[0]!r}) by its path.")
    return matching


def match(images: Sequence[str], annotations: Sequence[str]) -> Matching:
    """Match by relative path without suffix; where that fits nothing, by the end of the path; last, by stem alone.

    By its end, ``cat/7`` fits ``train/cat/7`` and the other way round. By stem, ``labels/7`` fits ``cat/7`` only where
    no other image and no other annotation is called ``7``, and never ``train/7`` a ``test/7``. An annotation may end
    in ``_mask``, ``_seg``, ``_gt`` and the like.
    """
    keys, marks = [_key(name) for name in images], [_key(name) for name in annotations]
    by_end: dict[_Key, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        for length in range(1, len(key) + 1):
            by_end[key[-length:]].append(index)
    stems = Counter(mark[-1] for mark in marks)
    folders = {folder for key in keys for folder in key[-2:-1]}
    claims: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unmatched: list[str] = []
    ambiguous: list[str] = []
    for number, mark in enumerate(marks):
        fitting, strength = _fits(mark, keys, by_end)
        if strength == 1:  # a folder that images lie in too would have fitted better, had it been theirs
            fitting = [] if folders & set(mark[-2:-1]) else fitting * min(2, stems[mark[-1]])
        if len(fitting) == 1:
            claims[fitting[0]].append((strength, number))
        else:
            (ambiguous if fitting else unmatched).append(annotations[number])
    chosen = [-1] * len(keys)
    for index, claim in claims.items():
        strongest = max(claim)[0]
        best = [number for strength, number in claim if strength == strongest]
        if len(best) == 1:
            chosen[index] = best[0]
            unmatched += [annotations[number] for strength, number in claim if strength < strongest]
        else:
            ambiguous += [annotations[number] for _, number in claim]
    return Matching(tuple(chosen), tuple(unmatched), tuple(ambiguous))


def _key(name: str) -> _Key:
    path = PurePosixPath(name.replace("\\", "/"))
    return (*(part for part in path.parent.parts if part not in (".", "/")), path.stem)


def _fits(mark: _Key, keys: list[_Key], by_end: dict[_Key, list[int]]) -> tuple[list[int], int]:
    """Images that an annotation fits, and how well: 3 the same path, 2 the end of it, 1 the stem alone."""
    ending = next((ending for ending in _ENDINGS if mark[-1].lower().endswith(ending)), "")
    bare = (*mark[:-1], mark[-1][: -len(ending)]) if ending else mark
    for key in (mark, bare) if ending else (mark,):
        if same := [index for index in by_end.get(key, []) if keys[index] == key]:
            return same, 3
        of_stem = by_end.get(key[-1:], [])
        if fitting := by_end.get(key) or [index for index in of_stem if key[-len(keys[index]) :] == keys[index]]:
            return fitting, 2
        if fitting := [index for index in of_stem if not _in_other_parts(key, keys[index])]:
            return fitting, 1
    return [], 0


def _in_other_parts(first: _Key, second: _Key) -> bool:
    parts = [{PARTS[word.lower()] for word in path[:-1] if word.lower() in PARTS} for path in (first, second)]
    return bool(parts[0] and parts[1]) and not parts[0] & parts[1]


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
    mask = None
    if crowds or any(thing.outline for thing in solid):
        outlines, ignored = (tuple(_outline(thing, scale, annotated.key) for thing in part) for part in (solid, crowds))
        mask = OutlineMask(outlines, ignored, (width, height))
    boxes = [_normalized(thing.box, scale, annotated.key) for thing in solid]
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
    if min(left, top) < -_BEYOND or max(right, bottom) > 1 + _BEYOND:
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
    """Return width and height of an image as displayed upright, from its header; ``DataError`` without one."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)  # lying on its side
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: the image's size cannot be read ({error}).") from error
    return (height, width) if turned else (width, height)


def check_shape(annotated: tuple[int, int], image: tuple[int, int], source: Path) -> None:
    """Raise ``DataError`` where an annotation (width, height) is of another shape than its image."""
    ratio = annotated[0] / annotated[1] * image[1] / image[0]
    if not 1 - _SHAPE_TOLERANCE <= ratio <= 1 + _SHAPE_TOLERANCE:
        sizes = f"{annotated[0]} x {annotated[1]}, but the image is {image[0]} x {image[1]}"
        raise DataError(f"{source}: it is for an image of {sizes} as seen upright; annotate the whole upright image.")
