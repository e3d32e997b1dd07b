"""A folder of masks: which belongs to which image, how their values are read, and the boxes of their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from heedmap.data.annotations.formats import mask_files
from heedmap.data.annotations.geometry import Placed, check_shape, in_square, upright_size
from heedmap.data.annotations.matching import match, refuse_none
from heedmap.data.dataset import FolderDataset
from heedmap.data.masks import KINDS, NOBODY, FileMask, boxes_of_parts, distinct, kind_of, mask_values
from heedmap.errors import DataError, OptionError, nearest

LOOKED_AT = 64  # masks from which it is told how all are to be read
MOST_COLOURS = 256  # in one mask


def read_masks(
    folder: Path, images: FolderDataset, kind: str | None, class_values: Mapping[str, int] | None, parts: bool
) -> tuple[list[Placed | None], list[str]]:
    """Match mask files to images and find the boxes of their parts.

    Args:
        folder: of masks.
        images: what they are of.
        kind, class_values, parts: see :func:`heedmap.data.annotations.annotations.read_annotations`.

    Returns:
        For each image its objects, or None without a mask; and what there is to say.

    Raises:
        DataError: no masks, files that are none, or values that no mask holds.
        OptionError: values or kinds that cannot be meant.
    """
    if kind is not None and kind not in KINDS:
        raise OptionError(f"Kind of mask {kind!r} is unknown; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no folder of masks.")
    files = mask_files(folder)
    keys = [file.relative_to(folder).as_posix() for file in files]
    matching = match(images.names, keys)
    refuse_none(matching, folder, keys, images.names)
    used = [files[place] for place in matching.annotation_of if place >= 0]
    _refuse_themselves(folder, images, files, matching.annotation_of)
    if class_values is not None and kind not in (None, "indexed"):
        raise OptionError(f"class_values is for indexed masks, and mask_kind says {kind}; leave one of them out.")
    if class_values is not None and NOBODY in class_values.values():
        raise OptionError(f"class_values cannot hold {NOBODY}: in indexed masks it is where nobody may evaluate.")
    is_asked = bool(kind or class_values)
    kind = kind or ("indexed" if class_values else _kind_of_files(used))
    notes = [matching.note] if matching.note else []
    told = "as asked" if is_asked else f"told from {min(len(used), LOOKED_AT)} of them"
    notes.append(f"Masks were read as {kind}, {told}.")
    values: set[int] = set()
    placed: list[Placed | None] = []
    for row, place in enumerate(matching.annotation_of):
        if place < 0:
            placed.append(None)
            continue
        label = images.classes[int(images.labels[row])]
        if class_values is not None and label not in class_values:
            raise OptionError(f"class_values names {', '.join(class_values)}, but not {label}; give its value too.")
        mask = FileMask(files[place], kind, None if class_values is None else class_values[label])
        numbers = mask.numbers()
        values.update(distinct(numbers.clip(0)))
        height, width = numbers.shape
        check_shape((width, height), upright_size(images.path(row)), files[place])
        boxes = boxes_of_parts(numbers, parts)
        placed.append((in_square(boxes, width, height), mask, len(boxes)))
    if class_values is not None:
        notes += _absent(class_values, values, used)
    if class_values is None and len(values - {0}) > 1:
        notes.append(
            f"{len(values - {0})} values stand for objects, whatever their class (class_values takes one for each)."
        )
    return placed, notes


def _refuse_themselves(
    folder: Path, images: FolderDataset, files: Sequence[Path], annotation_of: Sequence[int]
) -> None:
    for row, place in enumerate(annotation_of):
        if place >= 0 and files[place].samefile(images.path(row)):
            raise DataError(f"{folder}: {files[place].name} is the very image, not its mask; name the masks' folder.")


def _absent(class_values: Mapping[str, int], values: set[int], used: Sequence[Path]) -> list[str]:
    """A note on the values of which no mask holds a pixel.

    Raises:
        DataError: of none of them.
    """
    absent = [f"{value} ({name})" for name, value in class_values.items() if value not in values]
    if len(absent) < len(class_values):
        return [f"No mask of its images holds {', '.join(absent)}."] if absent else []
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
        if says_so and len(own) > MOST_COLOURS:
            raise DataError(f"{file}: {len(own)} colours are no mask but a photograph; name the masks' folder.")
        values |= own
        is_indexed |= says_so
    return kind_of(values, is_indexed)
