"""Annotation files as other programs write them, read into one form. Nothing here knows the pictures."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from heedmap.data.object_masks import Outline, RunLengths
from heedmap.errors import DataError, OptionError, nearest

__all__ = ["FORMATS", "MASKS", "Found", "Thing", "find_format", "mask_files"]

MASKS = "masks"
_MASK_SUFFIXES = frozenset([".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm"])

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        box: left, top, right, bottom.
        name: its class; empty where the file does not say.
        outline: polygons or run lengths, or None.
        ignored: a region where nobody may judge (COCO's crowds), not an object.
    """

    box: Box
    name: str = ""
    outline: Outline | None = None
    ignored: bool = False


@dataclass(frozen=True)
class Found:
    """The objects of one picture.

    Attributes:
        key: the picture's path or name, as the file gives it.
        things: the objects.
        size: (width, height) in pixels of the picture, as the file gives it, or None.
        is_share: coordinates are shares of the picture, not pixels; outlines too.
    """

    key: str
    things: tuple[Thing, ...]
    size: tuple[int, int] | None = None
    is_share: bool = False


def find_format(path: Path) -> str:
    """Tell a format from the files.

    Raises:
        DataError: nothing there, or nothing that is understood.
    """
    if not path.exists():
        raise DataError(
            f"{path}: there are no annotations; name a folder of masks, XML or text files, a JSON or a CSV."
        )
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    suffixes = {file.suffix.lower() for file in files}
    if path.is_file():
        single = {".json": "coco", ".csv": "csv", ".xml": "voc"}.get(path.suffix.lower())
        if single is None:
            raise DataError(f"{path}: expected .json (COCO), .csv or .xml (VOC), or a folder.")
        return single
    told = [
        name
        for name, matching in (("voc", {".xml"}), ("yolo", {".txt"}), (MASKS, _MASK_SUFFIXES))
        if suffixes & matching
    ]
    if len(told) != 1:
        what = f"both {' and '.join(told)} files" if told else "no masks, XML or text files"
        raise DataError(f"{path}: the folder holds {what}; name the folder of one kind, or say which by format.")
    return told[0]


def mask_files(folder: Path) -> list[Path]:
    """List the mask files of a folder, searched to the bottom."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _MASK_SUFFIXES and file.is_file())


def read_coco(path: Path) -> list[Found]:
    """Read COCO's instances: boxes, polygons, and run lengths, packed or not."""
    content = _json(path)
    try:
        names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
        things: dict[Any, list[Thing]] = defaultdict(list)
        for annotation in content["annotations"]:
            things[annotation["image_id"]].append(_coco_thing(annotation, names))
        return [
            Found(
                str(image["file_name"]),
                tuple(things.get(image["id"], ())),
                (int(image["width"]), int(image["height"])) if image.get("width") and image.get("height") else None,
            )
            for image in content["images"]
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: it is not COCO's JSON as expected ({_word(error)}).") from error


def _coco_thing(annotation: dict[str, Any], names: dict[Any, str]) -> Thing:
    outline: Outline | None = None
    shape = annotation.get("segmentation")
    if isinstance(shape, dict):
        outline = RunLengths.read(shape["counts"], shape["size"])
    elif shape:
        outline = tuple(tuple(float(value) for value in polygon) for polygon in shape)
    left, top, width, height = (float(value) for value in annotation["bbox"])
    name = names.get(annotation.get("category_id"), "")
    return Thing((left, top, left + width, top + height), name, outline, bool(annotation.get("iscrowd", 0)))


def read_voc(path: Path) -> list[Found]:
    """Read VOC's XML, one file a picture. Its pixels count from 1, both ends included."""
    files = [path] if path.is_file() else sorted(path.rglob("*.xml"))
    found = []
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()
            size = root.find("size")
            things = tuple(_voc_thing(thing) for thing in root.iter("object"))
            width, height = (0, 0) if size is None else (int(_text(size, "width")), int(_text(size, "height")))
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError(f"{file}: it is not VOC's XML as expected ({_word(error)}).") from error
        key = file.name if path.is_file() else file.relative_to(path).as_posix()
        found.append(Found(key, things, (width, height) if width and height else None))
    return found


def _voc_thing(thing: ElementTree.Element) -> Thing:
    box = thing.find("bndbox")
    if box is None:
        raise ValueError("an object without bndbox")
    left, top, right, bottom = (float(_text(box, word)) for word in ("xmin", "ymin", "xmax", "ymax"))
    return Thing((left - 1, top - 1, right, bottom), _text(thing, "name"))


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(name)
    if text is None:
        raise ValueError(f"{element.tag} without {name}")
    return text.strip()


def read_yolo(path: Path) -> list[Found]:
    """Read YOLO's text, one file a picture, one line an object: class, then centre and size or a polygon."""
    names = _yolo_names(path)
    found = []
    files = [file for file in sorted(path.rglob("*.txt")) if file.name not in ("classes.txt", "README.txt")]
    for file in files:
        things = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    things.append(_yolo_thing([float(word) for word in line.split()], names))
                except ValueError as error:
                    raise DataError(f"{file}, line {number}: not a YOLO line ({error}).") from error
        found.append(Found(file.relative_to(path).as_posix(), tuple(things), is_share=True))
    return found


def _yolo_thing(numbers: list[float], names: Sequence[str]) -> Thing:
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    label = int(numbers[0]) if numbers else -1
    name = names[label] if 0 <= label < len(names) else str(label)
    values = numbers[1:]
    if len(values) in (4, 5):  # the fifth is a confidence
        x, y, width, height = values[:4]
        return Thing((x - width / 2, y - height / 2, x + width / 2, y + height / 2), name)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(numbers)} numbers")
    across, down = values[::2], values[1::2]
    return Thing((min(across), min(down), max(across), max(down)), name, (tuple(values),))


def _yolo_names(path: Path) -> list[str]:
    """Class names where ``classes.txt`` lies in the folder or beside it."""
    for file in (path / "classes.txt", path.parent / "classes.txt"):
        if file.is_file():
            return file.read_text(encoding="utf-8").split("\n")
    return []


_PICTURE_WORDS = ("path", "file", "filename", "file_name", "image", "image_path", "picture", "name", "image_id")
_CLASS_WORDS = ("class", "label", "category", "class_name")
_CORNERS = (
    ("left", "top", "right", "bottom"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
)
_SIDES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))


def read_csv(path: Path) -> list[Found]:
    """Read a table of boxes, one line an object, several lines a picture.

    Columns by name: the picture (``path``, ``file``, ``filename``, ``image`` ...), corners (``left,top,right,bottom``,
    ``xmin,ymin,xmax,ymax``, ``x1,y1,x2,y2`` ...) or a corner and sides (``x,y,w,h`` ...), and ``class`` or ``label`` if
    known. Without a head: picture, left, top, right, bottom. Where no number of the table is above 1, they are shares.
    A line with a picture and no numbers says that there is no object.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = [line for line in csv.reader(stream) if any(cell.strip() for cell in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: it cannot be read as a table ({_word(error)}).") from error
    if not lines:
        raise DataError(f"{path}: the table is empty.")
    picture, numbers, label, is_sides, first = _columns(path, lines[0])
    things: dict[str, list[Thing]] = {}
    for number, line in enumerate(lines[first:], first + 1):
        try:
            of_picture = things.setdefault(line[picture].strip(), [])
            cells = [line[column].strip() for column in numbers]
            if any(cells):
                left, top, right, bottom = (float(cell) for cell in cells)
                box = (left, top, left + right, top + bottom) if is_sides else (left, top, right, bottom)
                of_picture.append(Thing(box, line[label].strip() if label is not None else ""))
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}, line {number}: not a picture and four numbers ({_word(error)}).") from error
    boxes = [value for found in things.values() for thing in found for value in thing.box]
    is_share = bool(boxes) and max(boxes) <= 1
    return [Found(key, tuple(found), is_share=is_share) for key, found in things.items()]


def _columns(path: Path, head: list[str]) -> tuple[int, list[int], int | None, bool, int]:
    """Columns of the picture, of the four numbers, of the class; whether the last two are sides; the first line."""
    words = [word.strip().lower() for word in head]
    if len(head) >= 5 and all(_is_number(word) for word in words[1:5]):
        return 0, [1, 2, 3, 4], None, False, 0
    picture = next((words.index(word) for word in _PICTURE_WORDS if word in words), None)
    label = next((words.index(word) for word in _CLASS_WORDS if word in words), None)
    for choices, is_sides in ((_CORNERS, False), (_SIDES, True)):
        for choice in choices:
            if picture is not None and all(word in words for word in choice):
                return picture, [words.index(word) for word in choice], label, is_sides, 1
    raise DataError(
        f"{path}: the columns {', '.join(head)} are not understood; name them path, left, top, right, bottom."
    )


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: it cannot be read as JSON ({_word(error)}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: it is not COCO's JSON as expected (no 'images' and 'annotations').")
    return content


def _word(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0] if str(error) else repr(error)


FORMATS: dict[str, Callable[[Path], list[Found]]] = {
    "coco": read_coco,
    "voc": read_voc,
    "yolo": read_yolo,
    "csv": read_csv,
}
"""Format -> how it is read; ``masks`` comes beside."""


def read_found(path: Path, name: str) -> list[Found]:
    """Read annotations of a format.

    Raises:
        DataError: files that are not what the format says.
        OptionError: an unknown format.
    """
    if name not in FORMATS:
        known = [*FORMATS, MASKS]
        raise OptionError(f"Annotation format {name!r} is unknown; there are {', '.join(known)}.{nearest(name, known)}")
    return FORMATS[name](path)
