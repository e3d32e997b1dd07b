"""Annotations in the formats people have (masks, COCO, VOC, YOLO, a table of boxes), matched to images.

Everything becomes fractions of the square view that the classifier sees (:func:`heedmap.data.decoding.crop_box`): what
lies outside the square is cut off, and an object wholly outside is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from heedmap.config import class_values
from heedmap.data.annotations.formats import FORMATS, MASKS, AnnotatedImage, find_format, read_format
from heedmap.data.annotations.geometry import SquareObjects, to_square
from heedmap.data.annotations.mask_folder import read_masks
from heedmap.data.annotations.matching import match_some
from heedmap.data.dataset import FolderDataset, ImageDataset
from heedmap.data.masks import Mask, TensorMask, box_regions, component_boxes
from heedmap.errors import DataError, OptionError, nearest


@dataclass(frozen=True)
class Annotations:
    """Objects of N images, in the square view.

    Attributes:
        names: the images.
        boxes: N times (G, 4) float64 left, top, right, bottom in fractions, cut at the edge of the square.
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
        """Draw an image's objects: uint8 (size, size), 1 on an object, 2 where pixels are ignored, else 0.

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


class _AnnotationCommand(Protocol):
    """The options of a command that say where annotations are and how to read them."""

    @property
    def annotations(self) -> str | None: ...
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


@dataclass(frozen=True, kw_only=True)
class AnnotationOptions:
    """How to read annotations.

    Attributes:
        format: ``masks``, ``coco``, ``voc``, ``yolo`` or ``csv``; None detects it from the files.
        same_class: take only objects of the image's own class, by name.
        mask_kind: how mask files are read, one of ``KINDS``; None detects it from their values, and notes it.
        class_values: class -> the value that stands for it in the masks; other values are then no objects.
        parts: give each connected component of a mask a box of its own, so that a map that is the mask has them all.
            Else the pixels of one value share a box, which suits an object that something stands before.
    """

    format: str | None = None
    same_class: bool = False
    mask_kind: str | None = None
    class_values: Mapping[str, int] | None = None
    parts: bool = True

    @classmethod
    def from_command(cls, command: _AnnotationCommand) -> AnnotationOptions:
        """Take the options of a command.

        Raises:
            OptionError: a class value that is none, or options of reading without annotations.
        """
        options = cls(
            format=command.annotation_format,
            same_class=command.same_class,
            mask_kind=command.mask_kind,
            class_values=class_values(command.class_values),
            parts=command.parts,
        )
        options.check_used(command.annotations)
        return options

    def check_used(self, path: str | Path | None) -> None:
        """Check that there are annotations to read where an option is given.

        Raises:
            OptionError: ``path`` is None.
        """
        if path is None and self != AnnotationOptions():
            given = next(field.name for field in fields(self) if getattr(self, field.name) != field.default)
            raise OptionError(f"{given} sets how annotations are read, and there are none: give --annotations too.")


def annotations_of(images: ImageDataset) -> Annotations:
    """Return the boxes and masks that images have of their own, such as digit scenes.

    Raises:
        DataError: they have none.
    """
    if images.boxes is None and images.masks is None:
        raise DataError("These images have neither boxes nor masks; name --annotations, or read some for them.")
    count = len(images)
    masks = (None,) * count if images.masks is None else tuple(TensorMask(mask) for mask in images.masks)
    if images.boxes is not None:
        boxes = tuple(box[None].double() for box in images.boxes)
    else:
        of_masks = [component_boxes((mask.pixels == 1).long().numpy(), False) for mask in masks if mask is not None]
        boxes = tuple(_tensor(box) for box in of_masks)
    objects = torch.tensor([len(box) for box in boxes])
    return Annotations(tuple(images.names), boxes, masks, torch.ones(count, dtype=torch.bool), objects)


def read_annotations(
    path: str | Path | None, images: ImageDataset, options: AnnotationOptions = AnnotationOptions()
) -> Annotations:
    """Read annotations and match them to images by path (see :func:`heedmap.data.annotations.matching.match`).

    An object without area is left out. Where some objects of an image have outlines, of the others all of the box is
    the object; ignored regions (COCO's crowds) stay ignored in any case.

    Args:
        path: a folder of masks, of VOC's XML or of YOLO's text; COCO's JSON; a CSV of boxes; None takes what the images
            have of their own (:func:`annotations_of`).
        images: the images; their files are opened for their sizes.
        options: how to read.

    Raises:
        DataError: images without files, files that cannot be read, a box that is none, annotations of another shape
            than the image, or nothing that fits any image.
        OptionError: an unknown format or kind of mask, or an option that this format has no use for.
    """
    options.check_used(path)
    if path is None:
        return annotations_of(images)
    if not isinstance(images, FolderDataset):
        raise DataError("Annotations are matched to files, and these images have none; leave --annotations out.")
    path = Path(path)
    name = options.format or find_format(path)
    if name == MASKS and options.same_class:
        raise OptionError(f"{path}: masks hold no names, so same_class cannot be used; give class_values instead.")
    if name in FORMATS and (options.mask_kind is not None or options.class_values is not None or not options.parts):
        raise OptionError(f"{path}: mask_kind, class_values and parts are about masks, not {name}; leave them out.")
    if name == MASKS:
        return _collected(images, *read_masks(path, images, options.mask_kind, options.class_values, options.parts))
    annotated, notes = read_format(path, name)
    if options.same_class:
        _check_names(path, annotated, images.classes)
    annotated, flat = _with_area(annotated)
    matching = match_some(images.names, [image.key for image in annotated], path)
    objects: list[SquareObjects | None] = [None] * len(images)
    used: list[tuple[AnnotatedImage, str]] = []
    for row, index in enumerate(matching.annotation_of):
        if index >= 0:
            label = images.classes[int(images.labels[row])]
            objects[row] = to_square(annotated[index], images.path(row), label if options.same_class else None)
            used.append((annotated[index], label))
    classes = [] if options.same_class else _class_notes(used, images.classes)
    return _collected(images, objects, [*notes, *matching.notes, *flat, *_box_notes(used), *classes])


def _with_area(annotated: list[AnnotatedImage]) -> tuple[list[AnnotatedImage], list[str]]:
    """Leave out objects without area: annotation programs write one for every slip of the mouse."""
    count = 0
    images = []
    for image in annotated:
        solid = tuple(o for o in image.objects if o.box[0] != o.box[2] and o.box[1] != o.box[3])
        count += len(image.objects) - len(solid)
        images.append(replace(image, objects=solid))
    return images, [f"{count} objects without area (a box of no width or height) were left out."] if count else []


def _box_notes(used: list[tuple[AnnotatedImage, str]]) -> list[str]:
    count = 0
    for image, _ in used:
        outlined = [thing.outline is not None for thing in image.objects if not thing.ignored]
        count += outlined.count(False) if any(outlined) else 0
    return [f"{count} objects have a box alone beside outlined ones; all of the box was taken."] if count else []


def _class_notes(used: list[tuple[AnnotatedImage, str]], classes: Sequence[str]) -> list[str]:
    """Note which objects count, where the annotations name several classes and not all are the image's own."""
    named = [(thing.name, label) for image, label in used for thing in image.objects if not thing.ignored]
    names = sorted({name for name, _ in named})
    others = [name for name, label in named if name != label]
    if names and not set(names) & set(classes):
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        note = f"The annotations name {len(names)} classes ({shown}), none of them an image's; every object counts."
        return [note] if len(names) > 1 else []
    if not others:
        return []
    return [
        f"{len(others)} of {len(named)} objects are of another class than their image (such as {others[0]}), and "
        "count too; same_class takes only the image's own."
    ]


def _collected(images: FolderDataset, objects: list[SquareObjects | None], notes: list[str]) -> Annotations:
    known = torch.tensor([some is not None for some in objects], dtype=torch.bool)
    boxes, masks, counts = zip(*(some or ([], None, 0) for some in objects), strict=True)
    gone = sum(count > 0 and not box for box, count in zip(boxes, counts, strict=True))
    if gone:
        notes = [*notes, f"{gone} images have objects only outside the centred square."]
    return Annotations(images.names, tuple(map(_tensor, boxes)), masks, known, torch.tensor(counts), tuple(notes))


def _tensor(boxes: Sequence[tuple[float, float, float, float]]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


def _check_names(path: Path, annotated: list[AnnotatedImage], classes: Sequence[str]) -> None:
    names = {thing.name for image in annotated for thing in image.objects}
    if not names & set(classes):
        odd = sorted(names)[0] if names else ""
        raise DataError(f"{path}: no object has the name of a class; there is {odd!r}.{nearest(odd, classes)}")
