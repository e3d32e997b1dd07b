"""Read annotation files as other programs write them into one form, without knowing the images.

COCO's JSON is read here and not by ``pycocotools.coco.COCO``, which prints, fails with bare ``KeyError``s, and indexes
much that is not used; its polygons and run lengths are drawn by pycocotools (:mod:`heedmap.data.masks`).
"""

import csv
import json
import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from heedmap.data.masks import Outline, RunLengths
from heedmap.errors import DataError, OptionError, nearest

MASKS = "masks"
MASK_SUFFIXES = frozenset([".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm"])
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_MOST_FRACTION = 1.02  # fractions are rounded, and some programs let a box reach over the edge a little

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class BoxedObject:
    """One annotated object."""

    box: Box
    name: str = ""  # its class; empty where the file names none
    outline: Outline | None = None
    ignored: bool = False  # a region to ignore (COCO's crowds), not an object


@dataclass(frozen=True)
class AnnotatedImage:
    """The objects of one image, as a file gives them."""

    key: str  # the image's path or name
    objects: tuple[BoxedObject, ...]
    size: tuple[int, int] | None = None  # (width, height) of the image in pixels
    is_normalized: bool = False  # coordinates are fractions of the image, not pixels; outlines too


class AnnotationFile(NamedTuple):
    """What files hold, and how they were read, where they could have been meant otherwise."""

    images: list[AnnotatedImage]
    notes: tuple[str, ...] = ()


def find_format(path: Path) -> str:
    """Detect the format of annotations from the files; ``DataError`` where nothing is understood."""
    if not path.exists():
        raise DataError(f"{path}: no annotations; name a folder of masks, XML or text files, a JSON or a CSV.")
    if path.is_file():
        single = {".json": "coco", ".csv": "csv", ".xml": "voc"}.get(path.suffix.lower())
        if single is None:
            raise DataError(f"{path}: expected .json (COCO), .csv or .xml (VOC), or a folder.")
        return single
    suffixes = {file.suffix.lower() for file in path.rglob("*") if file.is_file() and not _is_readme(file)}
    known = (("voc", {".xml"}), ("yolo", {".txt"}), (MASKS, MASK_SUFFIXES))
    formats = [name for name, endings in known if suffixes & endings]
    if len(formats) != 1:
        what = f"both {' and '.join(formats)} files" if formats else "no masks, XML or text files"
        way = "name the folder of one kind, or give --annotation-format (format=)"
        raise DataError(f"{path}: the folder holds {what}; {way}.")
    return formats[0]


def read_coco(path: Path) -> AnnotationFile:
    """Read COCO's instances: boxes, polygons, and run lengths, packed or not."""
    with _damaged(f"{path}: it cannot be read as JSON"):
        content = json.loads(path.read_text(encoding="utf-8"))
    with _damaged(f"{path}: it is not COCO's JSON as expected"):
        if not isinstance(content, dict):
            raise ValueError("no 'images' and 'annotations'")
        names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
        objects: dict[Any, list[BoxedObject]] = defaultdict(list)
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append(_coco_object(annotation, names))
        images = [
            AnnotatedImage(
                str(image["file_name"]),
                tuple(objects.get(image["id"], ())),
                (int(image["width"]), int(image["height"])) if image.get("width") and image.get("height") else None,
            )
            for image in content["images"]
        ]
        return AnnotationFile(images)


def _coco_object(annotation: dict[str, Any], names: dict[Any, str]) -> BoxedObject:
    outline: Outline | None = None
    shape = annotation.get("segmentation")
    if isinstance(shape, dict):
        outline = RunLengths.read(shape["counts"], shape["size"])
    elif shape:
        outline = tuple(_finite(polygon) for polygon in shape)
        if any(len(polygon) % 2 for polygon in outline):
            raise ValueError("a polygon with an odd number of coordinates")
    left, top, width, height = (float(value) for value in annotation["bbox"])
    name = names.get(annotation.get("category_id"), "")
    return BoxedObject((left, top, left + width, top + height), name, outline, bool(annotation.get("iscrowd", 0)))


def _finite(values: Sequence[Any]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    return numbers


def read_voc(path: Path) -> AnnotationFile:
    """Read VOC's XML, one file per image. Its pixels count from 1, both ends included."""
    images = []
    for file in [path] if path.is_file() else sorted(path.rglob("*.xml")):
        with _damaged(f"{file}: it is not VOC's XML as expected", ElementTree.ParseError):
            root = ElementTree.parse(file).getroot()
            size = root.find("size")
            objects = tuple(_voc_object(element) for element in root.iter("object"))
            width, height = (0, 0) if size is None else (int(_text(size, "width")), int(_text(size, "height")))
        key = file.name if path.is_file() else file.relative_to(path).as_posix()
        images.append(AnnotatedImage(key, objects, (width, height) if width and height else None))
    return AnnotationFile(images)


def _voc_object(element: ElementTree.Element) -> BoxedObject:
    box = element.find("bndbox")
    if box is None:
        raise ValueError("an object without bndbox")
    left, top, right, bottom = (float(_text(box, word)) for word in ("xmin", "ymin", "xmax", "ymax"))
    return BoxedObject((left - 1, top - 1, right, bottom), _text(element, "name"))


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(name)
    if text is None:
        raise ValueError(f"{element.tag} without {name}")
    return text.strip()


def read_yolo(path: Path) -> AnnotationFile:
    """Read YOLO's text, one file per image, one line per object: class, then centre and size or a polygon.

    Of an export, only what lies in folders called ``labels``; read-me files and lists of images are skipped. The names
    of classes come from ``data.yaml`` or ``classes.txt``, in the folder or in the two above it.
    """
    names = _yolo_names(path)
    images = []
    for file in _yolo_files(path):
        objects = []
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                with _damaged(f"{file}, line {number}: not a YOLO line"):
                    objects.append(_yolo_object(_finite(line.split()), names))
        images.append(AnnotatedImage(file.relative_to(path).as_posix(), tuple(objects), is_normalized=True))
    return AnnotationFile(images)


def _yolo_files(path: Path) -> list[Path]:
    files = [file for file in sorted(path.rglob("*.txt")) if file.name != "classes.txt" and not _is_readme(file)]
    labels = [file for file in files if "labels" in file.relative_to(path).parts[:-1]]
    return labels or [file for file in files if not _is_list_of_images(file)]


def _is_readme(file: Path) -> bool:
    return file.name.lower().startswith("readme")


def _is_list_of_images(file: Path) -> bool:  # such as train.txt, which names an image in each line
    first = next(filter(None, map(str.strip, _lines(file))), "")
    return first.lower().endswith(_IMAGE_SUFFIXES)


def _lines(file: Path) -> list[str]:
    with _damaged(f"{file}: it cannot be read as text"):
        return file.read_text(encoding="utf-8").splitlines()


def _yolo_object(numbers: Sequence[float], names: Sequence[str]) -> BoxedObject:
    label = int(numbers[0]) if numbers else -1
    name = names[label] if 0 <= label < len(names) else str(label)
    values = tuple(numbers[1:])
    if len(values) in (4, 5):  # the fifth is a confidence
        x, y, width, height = values[:4]
        return BoxedObject((x - width / 2, y - height / 2, x + width / 2, y + height / 2), name)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(numbers)} numbers")
    across, down = values[::2], values[1::2]
    return BoxedObject((min(across), min(down), max(across), max(down)), name, (values,))


def _yolo_names(path: Path) -> list[str]:
    for folder in (path, *path.absolute().parents[:2]):
        if (file := folder / "data.yaml").is_file():
            import yaml

            with _damaged(f"{file}: no names of classes can be read there", yaml.YAMLError):
                names = yaml.safe_load(file.read_text(encoding="utf-8"))["names"]
                named = dict(enumerate(names)) if isinstance(names, list) else {int(key): names[key] for key in names}
            return [str(named.get(number, number)) for number in range(max(named, default=-1) + 1)]
        if (folder / "classes.txt").is_file():
            return _lines(folder / "classes.txt")
    return []


_IMAGE_WORDS = ("path", "file", "filename", "file_name", "image", "image_path", "picture", "name", "image_id")
_CLASS_WORDS = ("class", "label", "category", "class_name")
_CORNERS = (
    *(("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max")),
    *(("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2")),
)
_SIDES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))


class _Columns(NamedTuple):
    """Columns of a table; ``are_sides`` where the last two numbers are width and height."""

    image: int
    numbers: list[int]
    label: int | None
    are_sides: bool


def read_csv(path: Path) -> AnnotationFile:
    """Read a table of boxes, one line per object, several lines per image.

    Columns by name: the image (``path``, ``file``, ``filename``, ``image`` ...), corners (``left,top,right,bottom``,
    ``xmin,ymin,xmax,ymax``, ``x1,y1,x2,y2`` ...) or a corner and sides (``x,y,w,h`` ...), and ``class`` or ``label`` if
    known. Without a header: image, left, top, right, bottom. Where no number of the table is above 1.02, they are
    fractions; where some boxes look like fractions and some do not, the table is refused.
    A line with an image and no numbers states that there is no object.
    """
    with (
        _damaged(f"{path}: it cannot be read as a table", csv.Error),
        path.open(newline="", encoding="utf-8-sig") as table,
    ):
        lines = [line for line in csv.reader(table) if any(cell.strip() for cell in line)]
    if not lines:
        raise DataError(f"{path}: the table is empty.")
    has_no_header = len(lines[0]) >= 5 and all(map(_is_number, lines[0][1:5]))
    columns = _Columns(0, [1, 2, 3, 4], None, False) if has_no_header else _columns(path, lines[0])
    objects: dict[str, list[BoxedObject]] = {}
    boxes: list[list[float]] = []  # as written
    first = 0 if has_no_header else 1
    for number, line in enumerate(lines[first:], first + 1):
        with _damaged(f"{path}, line {number}: not an image and four numbers"):
            of_image = objects.setdefault(line[columns.image].strip(), [])
            cells = [line[column].strip() for column in columns.numbers]
            if any(cells):
                left, top, right, bottom = values = [float(cell) for cell in cells]
                boxes.append(values)
                box = (left, top, left + right, top + bottom) if columns.are_sides else (left, top, right, bottom)
                of_image.append(BoxedObject(box, "" if columns.label is None else line[columns.label].strip()))
    is_normalized = _are_fractions(path, boxes)
    notes = (f"The numbers of {path.name} were read as {'fractions' if is_normalized else 'pixels'}.",) if boxes else ()
    images = [AnnotatedImage(key, tuple(some), is_normalized=is_normalized) for key, some in objects.items()]
    return AnnotationFile(images, notes)


def _are_fractions(path: Path, boxes: list[list[float]]) -> bool:
    """Return whether all boxes are fractions; ``DataError`` where some are and some are not.

    In pixels, a box within the very first one has whole numbers, or is rare.
    """
    small = [box for box in boxes if max(box) <= _MOST_FRACTION]
    broken = [box for box in small if any(value != int(value) for value in box)]
    if len(boxes) > len(small) and (broken or len(small) > len(boxes) / 2):
        large = next(box for box in boxes if max(box) > _MOST_FRACTION)
        shown = [", ".join(f"{value:g}" for value in box) for box in ((broken or small)[0], large)]
        odd = f"{len(small)} of {len(boxes)} boxes lie within a single pixel ({shown[0]}), others do not ({shown[1]})"
        raise DataError(f"{path}: {odd}; give all numbers as fractions of the image, or all in pixels.")
    return bool(boxes) and len(small) == len(boxes)


def _columns(path: Path, header: list[str]) -> _Columns:
    words = [word.strip().lower() for word in header]
    image = next((words.index(word) for word in _IMAGE_WORDS if word in words), None)
    label = next((words.index(word) for word in _CLASS_WORDS if word in words), None)
    for choices, are_sides in ((_CORNERS, False), (_SIDES, True)):
        for choice in choices:
            if image is not None and all(word in words for word in choice):
                return _Columns(image, [words.index(word) for word in choice], label, are_sides)
    if header[0].lstrip().startswith(("{", "[")):
        raise DataError(f"{path}: this is no table, it looks like JSON; give the format coco, or none.")
    shown = textwrap.shorten(", ".join(header), 100, placeholder=" ...")
    raise DataError(f"{path}: the columns {shown} are not understood; name them path, left, top, right, bottom.")


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


@contextmanager
def _damaged(what: str, error_type: type[Exception] = OSError) -> Iterator[None]:
    """Turn what damaged files raise, and ``error_type``, into a ``DataError``: ``WHAT (REASON)``."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, error_type) as error:
        first = (str(error) or repr(error)).splitlines()[0]
        raise DataError(f"{what} ({'no ' if isinstance(error, KeyError) else ''}{first}).") from error


FORMATS: dict[str, Callable[[Path], AnnotationFile]]
FORMATS = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo, "csv": read_csv}
"""Format -> its reader; a folder of ``masks`` needs the images."""


def read_format(path: Path, name: str) -> AnnotationFile:
    """Read annotations of a format; ``DataError`` for files of another one, ``OptionError`` for an unknown one."""
    if name not in FORMATS:
        known = [*FORMATS, MASKS]
        raise OptionError(f"Annotation format {name!r} is unknown; there are {', '.join(known)}.{nearest(name, known)}")
    return FORMATS[name](path)
