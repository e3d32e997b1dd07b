"""Read a folder of masks: match them to images, find out how their values are read, and box their components."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from heedmap.data.annotations.formats import mask_files
from heedmap.data.annotations.geometry import SquareObjects, boxes_in_square, check_shape, upright_size
from heedmap.data.annotations.matching import match_some
from heedmap.data.dataset import FolderDataset
from heedmap.data.masks import KINDS, VOID, FileMask, component_boxes, distinct, kind_of, mask_values
from heedmap.errors import DataError, OptionError, nearest

INSPECTED = 64  # masks from which the kind of all is detected
MOST_COLOURS = 256  # in one mask


def read_masks(
    folder: Path, images: FolderDataset, kind: str | None, class_values: Mapping[str, int] | None, parts: bool
) -> tuple[list[SquareObjects | None], list[str]]:
    """Match mask files to images and find the boxes of their components.

    Args:
        folder: of masks.
        images: what they are of.
        kind, class_values, parts: see :class:`heedmap.data.annotations.annotations.AnnotationOptions`.

    Returns:
        For each image its objects, or None without a mask; and notes.

    Raises:
        DataError: no masks, files that are none, or values that no mask holds.
        OptionError: values or kinds that are impossible.
    """
    _check_options(kind, class_values)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no folder of masks.")
    files = mask_files(folder)
    matching = match_some(images.names, [file.relative_to(folder).as_posix() for file in files], folder)
    used = [(row, files[index]) for row, index in enumerate(matching.annotation_of) if index >= 0]
    for row, file in used:
        if file.samefile(images.path(row)):
            raise DataError(f"{folder}: {file.name} is the very image, not its mask; name the masks' folder.")
    how = "as requested" if kind or class_values else f"detected from {min(len(used), INSPECTED)} of them"
    kind = kind or ("indexed" if class_values else _kind_of_files([file for _, file in used]))
    notes = [*matching.notes, f"Masks were read as {kind}, {how}."]
    values: set[int] = set()
    objects: list[SquareObjects | None] = [None] * len(images)
    for row, file in used:
        label = images.classes[int(images.labels[row])]
        if class_values is not None and label not in class_values:
            raise OptionError(f"class_values names {', '.join(class_values)}, but not {label}; give its value too.")
        mask = FileMask(file, kind, None if class_values is None else class_values[label])
        numbers = mask.numbers()
        values.update(distinct(numbers.clip(0)))
        height, width = numbers.shape
        check_shape((width, height), upright_size(images.path(row)), file)
        boxes = component_boxes(numbers, parts)
        objects[row] = boxes_in_square(boxes, width, height), mask, len(boxes)
    if class_values is not None:
        notes += _absent_values(class_values, values, [file for _, file in used])
    elif len(values - {0}) > 1:
        notes.append(
            f"{len(values - {0})} values stand for objects, whatever their class (class_values takes one for each)."
        )
    return objects, notes


def _check_options(kind: str | None, class_values: Mapping[str, int] | None) -> None:
    if kind is not None and kind not in KINDS:
        raise OptionError(f"Kind of mask {kind!r} is unknown; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    if class_values is not None and kind not in (None, "indexed"):
        raise OptionError(f"class_values is for indexed masks, and mask_kind is {kind}; leave one of them out.")
    if class_values is not None and VOID in class_values.values():
        raise OptionError(f"class_values cannot hold {VOID}: in indexed masks these pixels are ignored.")


def _absent_values(class_values: Mapping[str, int], values: set[int], files: Sequence[Path]) -> list[str]:
    """Return a note on the values of which no mask holds a pixel.

    Raises:
        DataError: no mask holds any of them.
    """
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
