"""Where the objects are, as people have it: masks, COCO, VOC, YOLO, a table of boxes, matched to pictures.

Everything is turned to shares of the square view that the classifier sees (:func:`heedmap.data.decoding.crop_box`):
what lies outside the square is cut off, and an object wholly outside is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from heedmap.data.annotation_files import FORMATS, MASKS, Found, Thing, find_format, mask_files, read_found
from heedmap.data.annotation_matching import match
from heedmap.data.decoding import crop_box
from heedmap.data.object_masks import (
    KINDS,
    FileMask,
    Mask,
    Outline,
    OutlineMask,
    RunLengths,
    TensorMask,
    box_regions,
    boxes_of_parts,
    distinct,
    kind_of,
    mask_values,
)
from heedmap.data.pictures import FolderPictures, Pictures
from heedmap.errors import DataError, OptionError, nearest
from heedmap.options import class_values

__all__ = [
    "AnnotationOptions",
    "Annotations",
    "annotations_for",
    "annotations_of",
    "as_told",
    "read_annotations",
    "refuse_unread",
]

LOOKED_AT = 64  # masks from which it is told how all are to be read
_MOST_COLOURS = 256  # in one mask
ODD_SHAPE = 0.02  # by how much the shape of an annotation may differ from its picture's: sizes are rounded
BEYOND = 0.1  # by how many shares of the picture a box may reach over its edge: some programs let it

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotations:
    """Objects of N pictures, in the square view.

    Attributes:
        names: the pictures.
        boxes: N times (G, 4) float64 left, top, right, bottom in shares, cut at the edge of the square.
        masks: N times the objects' pixels, or None where only boxes are known.
        known: (N,) bool: the picture is annotated.
        objects: (N,) how many objects are annotated, also those that the square view cuts off.
        notes: what did not fit, and how things were read; a line each.
    """

    names: tuple[str, ...]
    boxes: tuple[Tensor, ...]
    masks: tuple[Mask | None, ...]
    known: Tensor
    objects: Tensor
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def region(self, row: int, size: int) -> Tensor:
        """Draw a picture's objects: uint8 (size, size), 1 on an object, 2 where nobody may judge, else 0.

        Without a mask, what the boxes cover is the object.
        """
        mask = self.masks[row]
        return box_regions(self.boxes[row], size) if mask is None else mask.draw(size)

    def subset(self, rows: Tensor | Sequence[int]) -> Annotations:
        """Return these pictures, in this order."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        names, boxes, masks = ([part[row] for row in chosen.tolist()] for part in (self.names, self.boxes, self.masks))
        return Annotations(
            tuple(map(str, names)), tuple(boxes), tuple(masks), self.known[chosen], self.objects[chosen], self.notes
        )


def annotations_of(pictures: Pictures) -> Annotations:
    """Take the boxes and masks that pictures bring themselves, such as digit scenes.

    Raises:
        DataError: they bring none.
    """
    if pictures.boxes is None and pictures.masks is None:
        raise DataError("These pictures bring neither boxes nor masks; name --annotations, or read some for them.")
    count = len(pictures)
    masks = (None,) * count if pictures.masks is None else tuple(TensorMask(mask) for mask in pictures.masks)
    if pictures.boxes is not None:
        boxes = tuple(box[None].double() for box in pictures.boxes)
    else:
        parts = [boxes_of_parts((mask.pixels == 1).long().numpy(), False) for mask in masks if mask is not None]
        boxes = tuple(torch.tensor(part, dtype=torch.float64).reshape(-1, 4) for part in parts)
    objects = torch.tensor([len(box) for box in boxes])
    return Annotations(tuple(pictures.names), boxes, masks, torch.ones(count, dtype=torch.bool), objects)


@dataclass(frozen=True, kw_only=True)
class AnnotationOptions:
    """How annotations are read: what :func:`read_annotations` takes, under the same names."""

    format: str | None = None
    same_class: bool = False
    mask_kind: str | None = None
    class_values: Mapping[str, int] | None = None
    parts: bool = True


class Told(Protocol):
    """Options of a command about annotations."""

    @property
    def annotation_format(self) -> str | None: ...
    @property
    def same_class(self) -> bool: ...
    @property
    def mask_kind(self) -> str | None: ...
    @property
    def class_values(self) -> Sequence[str]: ...
    @property
    def parts(self) -> bool: ...


def as_told(options: Told) -> AnnotationOptions:
    """How annotations are read by the options of a command.

    Raises:
        OptionError: a class value that is none.
    """
    return AnnotationOptions(
        format=options.annotation_format,
        same_class=options.same_class,
        mask_kind=options.mask_kind,
        class_values=class_values(options.class_values),
        parts=options.parts,
    )


def refuse_unread(path: str | Path | None, options: AnnotationOptions) -> None:
    """Refuse options of reading where there is nothing to read.

    Raises:
        OptionError: no annotations are named.
    """
    if path is None and options != AnnotationOptions():
        given = next(each.name for each in fields(options) if getattr(options, each.name) != each.default)
        raise OptionError(f"{given} says how annotations are read, and none are named: give --annotations too.")


def annotations_for(
    pictures: Pictures, path: str | Path | None, options: AnnotationOptions = AnnotationOptions()
) -> Annotations:
    """Read annotations from a path, or where there is none take those that the pictures bring.

    Args:
        pictures: what is annotated.
        path: see :func:`read_annotations`; None takes the pictures' own.
        options: of reading.

    Raises:
        DataError: see :func:`annotations_of` and :func:`read_annotations`; or a path for pictures that are no files.
    """
    if path is None:
        return annotations_of(pictures)
    if not isinstance(pictures, FolderPictures):
        raise DataError("Annotations are matched to files, and these pictures are none; leave --annotations out.")
    return read_annotations(
        path,
        pictures,
        format=options.format,
        same_class=options.same_class,
        mask_kind=options.mask_kind,
        class_values=options.class_values,
        parts=options.parts,
    )


def read_annotations(
    path: str | Path,
    pictures: FolderPictures,
    *,
    format: str | None = None,  # noqa: A002  the word that everybody uses
    same_class: bool = False,
    mask_kind: str | None = None,
    class_values: Mapping[str, int] | None = None,
    parts: bool = True,
) -> Annotations:
    """Read annotations and match them to pictures by path (see :func:`heedmap.data.annotation_matching.match`).

    An object without area is left out. Where some objects of a picture have outlines, of the others all of the box is
    the object; what nobody may judge (COCO's crowds) stays so in any case.

    Args:
        path: a folder of masks, of VOC's XML or of YOLO's text; COCO's JSON; a CSV of boxes.
        pictures: the pictures; their files are opened for their sizes.
        format: ``masks``, ``coco``, ``voc``, ``yolo`` or ``csv``; None tells it from the files.
        same_class: take only objects of the picture's own class, by name.
        mask_kind: how mask files are read, one of ``KINDS``; None tells it from their values, and notes it.
        class_values: class -> the value that stands for it in the masks; other values are then no objects.
        parts: give each connected part of a mask a box of its own, so that a map that is the mask has them all. Else
            the pixels of one value share a box, which suits an object that something stands before.

    Raises:
        DataError: files that cannot be read, a box that is none, annotations of another shape than the picture, or
            nothing that fits any picture.
        OptionError: an unknown format or kind of mask, or an option that this format has no use for.
    """
    path = Path(path)
    name = format or find_format(path)
    _refuse_unheeded(path, name, same_class, mask_kind is not None or class_values is not None or not parts)
    if name == MASKS:
        if mask_kind is not None and mask_kind not in KINDS:
            raise OptionError(
                f"Kind of mask {mask_kind!r} is unknown; there are {', '.join(KINDS)}.{nearest(mask_kind, KINDS)}"
            )
        return _read_masks(path, pictures, mask_kind, class_values, parts)
    found, read_as = read_found(path, name)
    if same_class:
        _check_names(path, found, pictures.classes)
    found, flat = _with_area(found)
    matching = match(pictures.names, [one.key for one in found])
    _check_any(matching.annotation_of, path, [one.key for one in found], pictures)
    notes = [*read_as, *([matching.note] if matching.note else []), *flat]
    placed = []
    for row, place in enumerate(matching.annotation_of):
        wanted = pictures.classes[int(pictures.labels[row])] if same_class else None
        placed.append(None if place < 0 else _placed(found[place], pictures.path(row), wanted))
    used = [(found[place], row) for row, place in enumerate(matching.annotation_of) if place >= 0]
    notes += [note for note in (_boxes_beside_outlines(used), "" if same_class else _classes(used, pictures)) if note]
    return _gathered(pictures, placed, notes)


def _refuse_unheeded(path: Path, name: str, same_class: bool, is_of_masks: bool) -> None:
    if name == MASKS and same_class:
        raise OptionError(f"{path}: masks hold no names, so same_class cannot be heeded; give class_values instead.")
    if name in FORMATS and is_of_masks:
        raise OptionError(f"{path}: mask_kind, class_values and parts are about masks, not {name}; leave them out.")


def _with_area(found: list[Found]) -> tuple[list[Found], list[str]]:
    """Leave out objects without area: annotation programs write one for every slip of the mouse."""
    kept = [replace(one, things=tuple(thing for thing in one.things if not _is_flat(thing))) for one in found]
    count = sum(len(one.things) - len(other.things) for one, other in zip(found, kept, strict=True))
    return kept, [f"{count} objects without area (a box of no width or height) were left out."] if count else []


def _is_flat(thing: Thing) -> bool:
    left, top, right, bottom = thing.box
    return left == right or top == bottom


def _boxes_beside_outlines(used: list[tuple[Found, int]]) -> str:
    count = 0
    for found, _ in used:
        outlined = [thing.outline is not None for thing in found.things if not thing.ignored]
        count += outlined.count(False) if any(outlined) else 0
    return f"{count} objects have a box alone beside outlined ones; all of the box was taken." if count else ""


def _classes(used: list[tuple[Found, int]], pictures: FolderPictures) -> str:
    """Say which objects count, where the annotations name several classes and not all are the picture's own."""
    named = [
        (thing.name, pictures.classes[int(pictures.labels[row])])
        for found, row in used
        for thing in found.things
        if not thing.ignored
    ]
    names = sorted({name for name, _ in named})
    others = [name for name, label in named if name != label]
    if names and not set(names) & set(pictures.classes):
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        told = f"The annotations name {len(names)} classes ({shown}), none of them a picture's; every object counts."
        return told if len(names) > 1 else ""
    if not others:
        return ""
    return (
        f"{len(others)} of {len(named)} objects are of another class than their picture (such as {others[0]}), and "
        "count too; same_class takes only the picture's own."
    )


_Placed = tuple[list[Box], Mask | None, int]
"""Boxes in shares of the square view, the mask, and the number of objects before the picture was cropped."""


def _gathered(pictures: FolderPictures, placed: list[_Placed | None], notes: list[str]) -> Annotations:
    known = torch.tensor([one is not None for one in placed], dtype=torch.bool)
    filled: list[_Placed] = [one or ([], None, 0) for one in placed]
    boxes = tuple(torch.tensor(box, dtype=torch.float64).reshape(-1, 4) for box, _, _ in filled)
    gone = sum(count > 0 and not box for box, _, count in filled)
    if gone:
        notes = [*notes, f"{gone} pictures have objects only outside the centred square."]
    objects = torch.tensor([count for _, _, count in filled], dtype=torch.int64)
    return Annotations(tuple(pictures.names), boxes, tuple(mask for _, mask, _ in filled), known, objects, tuple(notes))


def _read_masks(
    folder: Path, pictures: FolderPictures, kind: str | None, class_values: Mapping[str, int] | None, parts: bool
) -> Annotations:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no folder of masks.")
    files = mask_files(folder)
    keys = [file.relative_to(folder).as_posix() for file in files]
    matching = match(pictures.names, keys)
    _check_any(matching.annotation_of, folder, keys, pictures)
    used = [files[place] for place in matching.annotation_of if place >= 0]
    _refuse_themselves(folder, pictures, files, matching.annotation_of)
    if class_values is not None and kind not in (None, "indexed"):
        raise OptionError(f"class_values is for indexed masks, and mask_kind says {kind}; leave one of them out.")
    is_asked = bool(kind or class_values)
    kind = kind or ("indexed" if class_values else _kind_of_files(used))
    notes = [matching.note] if matching.note else []
    told = "as asked" if is_asked else f"told from {min(len(used), LOOKED_AT)} of them"
    notes.append(f"Masks were read as {kind}, {told}.")
    values: set[int] = set()
    placed: list[_Placed | None] = []
    for row, place in enumerate(matching.annotation_of):
        if place < 0:
            placed.append(None)
            continue
        label = pictures.classes[int(pictures.labels[row])]
        if class_values is not None and label not in class_values:
            raise OptionError(f"class_values names {', '.join(class_values)}, but not {label}; give its value too.")
        mask = FileMask(files[place], kind, None if class_values is None else class_values[label])
        numbers = mask.numbers()
        values.update(distinct(numbers.clip(0)))
        height, width = numbers.shape
        _check_shape((width, height), _upright_size(pictures.path(row)), files[place])
        boxes = boxes_of_parts(numbers, parts)
        placed.append((_in_square(boxes, width, height), mask, len(boxes)))
    if class_values is not None:
        notes += _absent(class_values, values, used)
    if class_values is None and len(values - {0}) > 1:
        notes.append(
            f"{len(values - {0})} values stand for objects, whatever their class (class_values takes one for each)."
        )
    return _gathered(pictures, placed, notes)


def _refuse_themselves(
    folder: Path, pictures: FolderPictures, files: Sequence[Path], annotation_of: Sequence[int]
) -> None:
    for row, place in enumerate(annotation_of):
        if place >= 0 and files[place].samefile(pictures.path(row)):
            raise DataError(f"{folder}: {files[place].name} is the very picture, not its mask; name the masks' folder.")


def _absent(class_values: Mapping[str, int], values: set[int], used: Sequence[Path]) -> list[str]:
    """A note on the values of which no mask holds a pixel.

    Raises:
        DataError: of none of them.
    """
    absent = [f"{value} ({name})" for name, value in class_values.items() if value not in values]
    if len(absent) < len(class_values):
        return [f"No mask of its pictures holds {', '.join(absent)}."] if absent else []
    held = sorted(set().union(*(distinct(mask_values(file)[0]) for file in used[:LOOKED_AT])))
    shown = ", ".join(map(str, held[:10])) + (" ..." if len(held) > 10 else "")
    raise DataError(f"No mask holds any of the class_values, {', '.join(absent)}; they hold {shown}.")


def _kind_of_files(files: list[Path]) -> str:
    step = max(1, len(files) // LOOKED_AT)
    values: set[int] = set()
    is_indexed = False
    for file in files[::step]:
        found, says_so = mask_values(file)
        own = set(distinct(found))
        if len(own) > _MOST_COLOURS:
            raise DataError(f"{file}: {len(own)} colours are no mask but a photograph; name the masks' folder.")
        values |= own
        is_indexed |= says_so
    return kind_of(values, is_indexed)


def _placed(found: Found, picture: Path, wanted: str | None) -> _Placed:
    width, height = _upright_size(picture)
    if found.size is not None:
        _check_shape(found.size, (width, height), Path(found.key))
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
    return _in_square(boxes, width, height), mask, len(solid)


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
        raise DataError(f"{key}: the box {box} lies outside the picture; is it meant for another size, or in pixels?")
    return left, top, right, bottom


def _in_square(boxes: Sequence[Box], width: int, height: int) -> list[Box]:
    """From shares of the whole picture to shares of the square view; boxes wholly outside are left out."""
    left, top, right, _ = crop_box(width, height)
    side = right - left
    kept = []
    for box in boxes:
        x = [min(1.0, max(0.0, (value * width - left) / side)) for value in box[::2]]
        y = [min(1.0, max(0.0, (value * height - top) / side)) for value in box[1::2]]
        if x[0] < x[1] and y[0] < y[1]:
            kept.append((x[0], y[0], x[1], y[1]))
    return kept


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as a person sees it, from its header."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF 2.32: lying on its side
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: the picture's size cannot be read ({error}).") from error
    return (height, width) if turned else (width, height)


def _check_shape(found: tuple[int, int], picture: tuple[int, int], source: Path) -> None:
    ratio = found[0] / found[1] * picture[1] / picture[0]
    if not 1 - ODD_SHAPE <= ratio <= 1 + ODD_SHAPE:
        raise DataError(
            f"{source}: it is for a picture of {found[0]} x {found[1]}, but the picture is {picture[0]} x {picture[1]} "
            "as seen upright; annotate the whole upright picture."
        )


def _check_any(places: Sequence[int], path: Path, keys: Sequence[str], pictures: FolderPictures) -> None:
    if max(places, default=-1) < 0:
        such = f"such as {keys[0]!r}" if keys else "there are none"
        raise DataError(f"{path}: no annotation ({such}) fits a picture (such as {pictures.names[0]!r}) by its path.")


def _check_names(path: Path, found: list[Found], classes: Sequence[str]) -> None:
    names = {thing.name for one in found for thing in one.things}
    if not names & set(classes):
        odd = sorted(names)[0] if names else ""
        raise DataError(f"{path}: no object has the name of a class; there is {odd!r}.{nearest(odd, classes)}")


__all__ += ["Thing"]
