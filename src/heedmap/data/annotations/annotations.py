"""Where the objects are, as people have it: masks, COCO, VOC, YOLO, a table of boxes, matched to images.

Everything is turned to shares of the square view that the classifier sees (:func:`heedmap.data.decoding.crop_box`):
what lies outside the square is cut off, and an object wholly outside is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from heedmap.config import class_values
from heedmap.data.annotations.formats import FORMATS, MASKS, Objects, Thing, find_format, read_found
from heedmap.data.annotations.geometry import Placed, placed
from heedmap.data.annotations.mask_folder import read_masks
from heedmap.data.annotations.matching import match, refuse_none
from heedmap.data.dataset import FolderDataset, ImageDataset
from heedmap.data.masks import (
    Mask,
    TensorMask,
    box_regions,
    boxes_of_parts,
)
from heedmap.errors import DataError, OptionError, nearest

__all__ = [
    "AnnotationOptions",
    "Annotations",
    "annotations_for",
    "annotations_of",
    "as_told",
    "read_annotations",
    "refuse_unread",
]


@dataclass(frozen=True)
class Annotations:
    """Objects of N images, in the square view.

    Attributes:
        names: the images.
        boxes: N times (G, 4) float64 left, top, right, bottom in shares, cut at the edge of the square.
        masks: N times the objects' pixels, or None where only boxes are known.
        known: (N,) bool: the image is annotated.
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
        """Draw an image's objects: uint8 (size, size), 1 on an object, 2 where nobody may evaluate, else 0.

        Without a mask, what the boxes cover is the object.
        """
        mask = self.masks[row]
        return box_regions(self.boxes[row], size) if mask is None else mask.draw(size)

    def subset(self, rows: Tensor | Sequence[int]) -> Annotations:
        """Return these images, in this order."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        names, boxes, masks = ([part[row] for row in chosen.tolist()] for part in (self.names, self.boxes, self.masks))
        return Annotations(
            tuple(map(str, names)), tuple(boxes), tuple(masks), self.known[chosen], self.objects[chosen], self.notes
        )


def annotations_of(images: ImageDataset) -> Annotations:
    """Take the boxes and masks that images bring themselves, such as digit scenes.

    Raises:
        DataError: they bring none.
    """
    if images.boxes is None and images.masks is None:
        raise DataError("These images bring neither boxes nor masks; name --annotations, or read some for them.")
    count = len(images)
    masks = (None,) * count if images.masks is None else tuple(TensorMask(mask) for mask in images.masks)
    if images.boxes is not None:
        boxes = tuple(box[None].double() for box in images.boxes)
    else:
        parts = [boxes_of_parts((mask.pixels == 1).long().numpy(), False) for mask in masks if mask is not None]
        boxes = tuple(torch.tensor(part, dtype=torch.float64).reshape(-1, 4) for part in parts)
    objects = torch.tensor([len(box) for box in boxes])
    return Annotations(tuple(images.names), boxes, masks, torch.ones(count, dtype=torch.bool), objects)


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
    images: ImageDataset, path: str | Path | None, options: AnnotationOptions = AnnotationOptions()
) -> Annotations:
    """Read annotations from a path, or where there is none take those that the images bring.

    Args:
        images: what is annotated.
        path: see :func:`read_annotations`; None takes the images' own.
        options: of reading.

    Raises:
        DataError: see :func:`annotations_of` and :func:`read_annotations`; or a path for images that are no files.
    """
    if path is None:
        return annotations_of(images)
    if not isinstance(images, FolderDataset):
        raise DataError("Annotations are matched to files, and these images are none; leave --annotations out.")
    return read_annotations(
        path,
        images,
        format=options.format,
        same_class=options.same_class,
        mask_kind=options.mask_kind,
        class_values=options.class_values,
        parts=options.parts,
    )


def read_annotations(
    path: str | Path,
    images: FolderDataset,
    *,
    format: str | None = None,  # noqa: A002  the word that everybody uses
    same_class: bool = False,
    mask_kind: str | None = None,
    class_values: Mapping[str, int] | None = None,
    parts: bool = True,
) -> Annotations:
    """Read annotations and match them to images by path (see :func:`heedmap.data.annotations.matching.match`).

    An object without area is left out. Where some objects of an image have outlines, of the others all of the box is
    the object; what nobody may evaluate (COCO's crowds) stays so in any case.

    Args:
        path: a folder of masks, of VOC's XML or of YOLO's text; COCO's JSON; a CSV of boxes.
        images: the images; their files are opened for their sizes.
        format: ``masks``, ``coco``, ``voc``, ``yolo`` or ``csv``; None tells it from the files.
        same_class: take only objects of the image's own class, by name.
        mask_kind: how mask files are read, one of ``KINDS``; None tells it from their values, and notes it.
        class_values: class -> the value that stands for it in the masks; other values are then no objects.
        parts: give each connected part of a mask a box of its own, so that a map that is the mask has them all. Else
            the pixels of one value share a box, which suits an object that something stands before.

    Raises:
        DataError: files that cannot be read, a box that is none, annotations of another shape than the image, or
            nothing that fits any image.
        OptionError: an unknown format or kind of mask, or an option that this format has no use for.
    """
    path = Path(path)
    name = format or find_format(path)
    _refuse_unheeded(path, name, same_class, mask_kind is not None or class_values is not None or not parts)
    if name == MASKS:
        return _gathered(images, *read_masks(path, images, mask_kind, class_values, parts))
    found, read_as = read_found(path, name)
    if same_class:
        _check_names(path, found, images.classes)
    found, flat = _with_area(found)
    matching = match(images.names, [one.key for one in found])
    refuse_none(matching, path, [one.key for one in found], images.names)
    notes = [*read_as, *([matching.note] if matching.note else []), *flat]
    objects: list[Placed | None] = []
    for row, place in enumerate(matching.annotation_of):
        wanted = images.classes[int(images.labels[row])] if same_class else None
        objects.append(None if place < 0 else placed(found[place], images.path(row), wanted))
    used = [(found[place], row) for row, place in enumerate(matching.annotation_of) if place >= 0]
    notes += [note for note in (_boxes_beside_outlines(used), "" if same_class else _classes(used, images)) if note]
    return _gathered(images, objects, notes)


def _refuse_unheeded(path: Path, name: str, same_class: bool, is_of_masks: bool) -> None:
    if name == MASKS and same_class:
        raise OptionError(f"{path}: masks hold no names, so same_class cannot be heeded; give class_values instead.")
    if name in FORMATS and is_of_masks:
        raise OptionError(f"{path}: mask_kind, class_values and parts are about masks, not {name}; leave them out.")


def _with_area(found: list[Objects]) -> tuple[list[Objects], list[str]]:
    """Leave out objects without area: annotation programs write one for every slip of the mouse."""
    kept = [replace(one, things=tuple(thing for thing in one.things if not _is_flat(thing))) for one in found]
    count = sum(len(one.things) - len(other.things) for one, other in zip(found, kept, strict=True))
    return kept, [f"{count} objects without area (a box of no width or height) were left out."] if count else []


def _is_flat(thing: Thing) -> bool:
    left, top, right, bottom = thing.box
    return left == right or top == bottom


def _boxes_beside_outlines(used: list[tuple[Objects, int]]) -> str:
    count = 0
    for found, _ in used:
        outlined = [thing.outline is not None for thing in found.things if not thing.ignored]
        count += outlined.count(False) if any(outlined) else 0
    return f"{count} objects have a box alone beside outlined ones; all of the box was taken." if count else ""


def _classes(used: list[tuple[Objects, int]], images: FolderDataset) -> str:
    """Say which objects count, where the annotations name several classes and not all are the image's own."""
    named = [
        (thing.name, images.classes[int(images.labels[row])])
        for found, row in used
        for thing in found.things
        if not thing.ignored
    ]
    names = sorted({name for name, _ in named})
    others = [name for name, label in named if name != label]
    if names and not set(names) & set(images.classes):
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        told = f"The annotations name {len(names)} classes ({shown}), none of them an image's; every object counts."
        return told if len(names) > 1 else ""
    if not others:
        return ""
    return (
        f"{len(others)} of {len(named)} objects are of another class than their image (such as {others[0]}), and "
        "count too; same_class takes only the image's own."
    )


def _gathered(images: FolderDataset, objects: list[Placed | None], notes: list[str]) -> Annotations:
    known = torch.tensor([one is not None for one in objects], dtype=torch.bool)
    filled: list[Placed] = [one or ([], None, 0) for one in objects]
    boxes = tuple(torch.tensor(box, dtype=torch.float64).reshape(-1, 4) for box, _, _ in filled)
    gone = sum(count > 0 and not box for box, _, count in filled)
    if gone:
        notes = [*notes, f"{gone} images have objects only outside the centred square."]
    counts = torch.tensor([count for _, _, count in filled], dtype=torch.int64)
    return Annotations(tuple(images.names), boxes, tuple(mask for _, mask, _ in filled), known, counts, tuple(notes))


def _check_names(path: Path, found: list[Objects], classes: Sequence[str]) -> None:
    names = {thing.name for one in found for thing in one.things}
    if not names & set(classes):
        odd = sorted(names)[0] if names else ""
        raise DataError(f"{path}: no object has the name of a class; there is {odd!r}.{nearest(odd, classes)}")
