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
from heedmap.data.annotations.formats import (
    FORMATS,
    MASK_SUFFIXES,
    MASKS,
    AnnotatedImage,
    find_format,
    read_format,
)
from heedmap.data.annotations.matching import (
    SquareObjects,
    boxes_in_square,
    check_shape,
    match_some,
    to_square,
    upright_size,
)
from heedmap.data.dataset import FolderDataset, ImageDataset
from heedmap.data.masks import KINDS, VOID, FileMask, Mask, TensorMask, component_boxes, distinct, kind_of, mask_values
from heedmap.errors import DataError, OptionError, nearest

INSPECTED = 64  # masks from which the kind of all is detected
MOST_COLOURS = 256  # in one mask


@dataclass(frozen=True)
class Annotations:
    """Objects of N images, in the square view.

    Attributes:
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
        """Draw an image's objects as :meth:`Mask.draw` does; without a mask, what the boxes cover is the object."""
        mask = self.masks[row]
        return box_regions(self.boxes[row], size) if mask is None else mask.draw(size)

    def subset(self, rows: Tensor | Sequence[int]) -> Annotations:
        """Return these images, in this order."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        order = chosen.tolist()
        names, boxes = tuple(self.names[row] for row in order), tuple(self.boxes[row] for row in order)
        masks = tuple(self.masks[row] for row in order)
        return Annotations(names, boxes, masks, self.known[chosen], self.objects[chosen], self.notes)


def box_regions(boxes: Tensor, size: int) -> Tensor:
    """Draw boxes (G, 4) in fractions: uint8 (size, size), 1 where a pixel's centre lies in one of them."""
    centre = (torch.arange(size) + 0.5) / size
    left, top, right, bottom = boxes.T[:, :, None]
    across, down = (left <= centre) & (centre <= right), (top <= centre) & (centre <= bottom)
    return (down[:, :, None] & across[:, None, :]).any(0).to(torch.uint8)


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

    def __post_init__(self) -> None:
        """Raise ``OptionError`` for an unknown kind of mask, or values of classes that it cannot hold."""
        kind = self.mask_kind
        if kind is not None and kind not in KINDS:
            raise OptionError(f"Kind of mask {kind!r} is unknown; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
        if self.class_values is not None and kind not in (None, "indexed"):
            raise OptionError(f"class_values is for indexed masks, and mask_kind is {kind}; leave one of them out.")
        if self.class_values is not None and VOID in self.class_values.values():
            raise OptionError(f"class_values cannot hold {VOID}: in indexed masks these pixels are ignored.")

    @classmethod
    def from_command(cls, command: _AnnotationCommand) -> AnnotationOptions:
        """Take the options of a command; raises ``OptionError`` for a class value that is none, and as below."""
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
        """Raise ``OptionError`` where an option is given and ``path`` is None, so that there is nothing to read."""
        if path is None and self != AnnotationOptions():
            given = next(field.name for field in fields(self) if getattr(self, field.name) != field.default)
            raise OptionError(f"{given} sets how annotations are read, and there are none: give --annotations too.")


def annotations_of(images: ImageDataset) -> Annotations:
    """Return the boxes and masks that images have of their own, such as digit scenes; ``DataError`` without any."""
    if images.boxes is None and images.masks is None:
        raise DataError("These images have neither boxes nor masks; name --annotations, or read some for them.")
    count = len(images)
    masks = (None,) * count if images.masks is None else tuple(TensorMask(mask) for mask in images.masks)
    if images.boxes is not None:
        boxes = tuple(box[None].double() for box in images.boxes)
    else:
        pixels = [(mask.pixels == 1).long().numpy() for mask in masks if mask is not None]
        boxes = tuple(_tensor(component_boxes(numbers, False)) for numbers in pixels)
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
        images: what they are of; their files are opened for their sizes.

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
        return _collected(images, *_read_masks(path, images, options))
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
    images = [
        replace(image, objects=tuple(o for o in image.objects if o.box[0] != o.box[2] and o.box[1] != o.box[3]))
        for image in annotated
    ]
    count = sum(len(image.objects) for image in annotated) - sum(len(image.objects) for image in images)
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
    odd = f"{len(others)} of {len(named)} objects are of another class than their image (such as {others[0]})"
    return [f"{odd}, and count too; same_class takes only the image's own."]


def _collected(images: FolderDataset, objects: list[SquareObjects | None], notes: list[str]) -> Annotations:
    known = torch.tensor([some is not None for some in objects], dtype=torch.bool)
    boxes, masks, counts = zip(*(some or ([], None, 0) for some in objects), strict=True)
    if gone := sum(count > 0 and not box for box, count in zip(boxes, counts, strict=True)):
        notes = [*notes, f"{gone} images have objects only outside the centred square."]
    return Annotations(images.names, tuple(map(_tensor, boxes)), masks, known, torch.tensor(counts), tuple(notes))


def _tensor(boxes: Sequence[tuple[float, float, float, float]]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


def _check_names(path: Path, annotated: list[AnnotatedImage], classes: Sequence[str]) -> None:
    names = {thing.name for image in annotated for thing in image.objects}
    if not names & set(classes):
        odd = sorted(names)[0] if names else ""
        raise DataError(f"{path}: no object has the name of a class; there is {odd!r}.{nearest(odd, classes)}")


def _read_masks(
    folder: Path, images: FolderDataset, options: AnnotationOptions
) -> tuple[list[SquareObjects | None], list[str]]:
    """Return for each image its objects, or None without a mask, and notes; see :func:`read_annotations`."""
    kind, values_of = options.mask_kind, options.class_values
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no folder of masks.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in MASK_SUFFIXES and file.is_file())
    matching = match_some(images.names, [file.relative_to(folder).as_posix() for file in files], folder)
    used = [(row, files[index]) for row, index in enumerate(matching.annotation_of) if index >= 0]
    for row, file in used:
        if file.samefile(images.path(row)):
            raise DataError(f"{folder}: {file.name} is the very image, not its mask; name the masks' folder.")
    how = "as requested" if kind or values_of else f"detected from {min(len(used), INSPECTED)} of them"
    kind = kind or ("indexed" if values_of else _kind_of_files([file for _, file in used]))
    notes = [*matching.notes, f"Masks were read as {kind}, {how}."]
    values: set[int] = set()
    objects: list[SquareObjects | None] = [None] * len(images)
    for row, file in used:
        label = images.classes[int(images.labels[row])]
        if values_of is not None and label not in values_of:
            raise OptionError(f"class_values names {', '.join(values_of)}, but not {label}; give its value too.")
        mask = FileMask(file, kind, None if values_of is None else values_of[label])
        numbers = mask.numbers()
        values.update(distinct(numbers.clip(0)))
        height, width = numbers.shape
        check_shape((width, height), upright_size(images.path(row)), file)
        boxes = component_boxes(numbers, options.parts)
        objects[row] = boxes_in_square(boxes, width, height), mask, len(boxes)
    if values_of is not None:
        notes += _absent_values(values_of, values, [file for _, file in used])
    elif (count := len(values - {0})) > 1:
        notes.append(f"{count} values stand for objects, whatever their class (class_values takes one for each).")
    return objects, notes


def _absent_values(class_values: Mapping[str, int], values: set[int], files: Sequence[Path]) -> list[str]:
    """Return a note on the values of which no mask holds a pixel; ``DataError`` where that are all of them."""
    absent = [f"{value} ({name})" for name, value in class_values.items() if value not in values]
    if len(absent) < len(class_values):
        return [f"No mask of its images holds {', '.join(absent)}."] if absent else []
    held = sorted(set().union(*(distinct(mask_values(file)[0]) for file in files[:INSPECTED])))
    shown = ", ".join(map(str, held[:10])) + (" ..." if len(held) > 10 else "")
    raise DataError(f"No mask holds any of the class_values, {', '.join(absent)}; they hold {shown}.")


def _kind_of_files(files: list[Path]) -> str:
    step = max(1, len(files) // INSPECTED)
    values: set[int] = set()
    is_indexed = False
    for file in files[::step]:
        numbers, has_palette = mask_values(file)
        own = set(distinct(numbers))
        if has_palette and len(own) > MOST_COLOURS:
            raise DataError(f"{file}: {len(own)} colours are no mask but a photograph; name the masks' folder.")
        values |= own
        is_indexed |= has_palette
    return kind_of(values, is_indexed)
