"""List a folder of images by parts and classes; nothing is decoded here.

Two layouts are understood: ``DIR/train/CLASS/*`` with ``test``, ``val``, ``valid`` or ``validation`` beside ``train``
(upper or lower case), and ``DIR/CLASS/*``, from which a test part is drawn. Class folders are searched recursively.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from heedmap.data.dataset import FolderDataset, Splits
from heedmap.data.decoding import IMAGE_SUFFIXES, PARTS, natural
from heedmap.errors import DataError, nearest

_SYSTEM_FILES = frozenset(["__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"])
_LAYOUT = "expected DIR/train/CLASS/images with DIR/test beside it, or DIR/CLASS/images"


@dataclass(frozen=True)
class _Listing:
    """The folder of one part."""

    folder: Path
    classes: dict[str, list[str]]  # class -> paths of its images, relative to the data folder
    subfolders: dict[str, frozenset[str]]  # class -> names of the folders in its own
    stray: int  # images beside the class folders
    others: dict[str, Counter[str]]  # class -> endings of files that are not images

    @property
    def count(self) -> int:
        return sum(map(len, self.classes.values()))

    def other_files(self, classes: Sequence[str] | None = None) -> str:
        """Return the files that are not images, such as ``30 .heic``; an empty string without any."""
        endings = sum((self.others[name] for name in (self.others if classes is None else classes)), Counter[str]())
        ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {ending or 'without ending'}" for ending, count in ordered[:4])


def open_folder(path: str | Path, *, test: float = 0.2, seed: int = 0) -> Splits:
    """List a data folder by parts and classes.

    A lone ``val``, ``valid`` or ``validation`` part is the test part. Where there is no test part at all, the share
    ``test`` of each class is set apart (:func:`heedmap.data.dataset.split_by_class`). ``notes`` states what was done.
    Damaged files are still among the images: see :func:`heedmap.data.cache.verified.verify_images`.

    Raises:
        DataError: the folder is missing, a file or empty; images lie in no class folder; there is one class only, a
            class without images, or a class in test or validation that train does not have.
        OptionError: ``test`` does not lie between 0 and 1.
    """
    root = _existing(path)
    layout = find_parts(root)
    train = _listing(root, layout.get("train", root))
    _check_train(train, root)
    classes = tuple(sorted(train.classes, key=natural))
    notes = _layout_notes(root, layout) + _listing_notes(train)
    if "test" not in layout and "validation" in layout:
        layout = {"train": layout["train"], "test": layout["validation"]}
        notes.append(f"There is no test folder, so {layout['test'].name!r} is the test part.")
    parts: dict[str, FolderDataset] = {}
    for part in ("validation", "test"):
        if part in layout:
            listing = _listing(root, layout[part])
            _check_part(listing, classes)
            notes += _listing_notes(listing)
            if missing := ", ".join(name for name in classes if not listing.classes.get(name)):
                notes.append(f"{listing.folder.name!r} has no images of class {missing}.")
            parts[part] = _images(root, listing, classes)
    images = _images(root, train, classes)
    splits = Splits(str(path), classes, images, parts.get("validation"), parts.get("test"), notes=tuple(notes))
    return splits.with_test_part(test, seed)


def find_parts(folder: str | Path) -> dict[str, Path]:
    """Return ``train``, ``validation``, ``test`` -> folder, those that exist; empty for ``DIR/CLASS/*``.

    A folder called ``train`` or ``valid`` that holds images itself and stands among other class folders is a class (a
    train is also a vehicle, and ``valid`` the opposite of ``invalid``).

    Raises:
        DataError: the folder is missing or a file; two folders claim the same part; there is ``test`` but no ``train``.
    """
    root = _existing(folder)
    layout: dict[str, Path] = {}
    folders = _subfolders(root)
    for child in folders:
        part = PARTS.get(child.name.lower())
        if part in layout:
            names = f"{layout[part].name!r} and {child.name!r}"
            raise DataError(f"{root}: {names} both claim to be the {part} part; keep one of them.")
        if part is not None:
            layout[part] = child
    if "train" not in layout:
        if full := next((child for child in layout.values() if _subfolders(child)), None):
            raise DataError(f"{root}: there is {full.name!r} but no 'train'; name the folder to learn from 'train'.")
        return {}
    a_class_called_train = len(layout) == 1 and len(folders) > 1 and not _subfolders(layout["train"])
    return {} if a_class_called_train else layout


def _existing(path: str | Path) -> Path:
    root = Path(path)
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"{path} is a file, not a folder of images; {_LAYOUT}.")
    beside = [child.name for child in _subfolders(root.parent)] if root.parent.is_dir() else []
    raise DataError(f"There is no folder {str(path)!r}.{nearest(root.name, beside, cutoff=0.7)}")


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _SYSTEM_FILES]
    except PermissionError as error:
        raise DataError(
            f"No permission to read the folder {str(folder)!r}; change its rights or move it away."
        ) from error


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _listing(root: Path, folder: Path) -> _Listing:
    classes: dict[str, list[str]] = {}
    subfolders: dict[str, frozenset[str]] = {}
    others: dict[str, Counter[str]] = {}
    for child in _subfolders(folder):
        # Line ends, and bytes that are no text, would break tables and pages, and cannot be written at all.
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in child.name):
            raise DataError(f"{folder}: {child.name!a} cannot be shown as the name of a class; rename the folder.")
        name = unicodedata.normalize("NFC", child.name)  # macOS stores é as two characters, and zips keep that
        files = _files_under(child)
        images = [file for file in files if _suffix(file) in IMAGE_SUFFIXES]
        classes.setdefault(name, []).extend(sorted(Path(file).relative_to(root).as_posix() for file in images))
        others.setdefault(name, Counter()).update(_suffix(f) for f in files if _suffix(f) not in IMAGE_SUFFIXES)
        subfolders[name] = frozenset(inner.name for inner in _subfolders(child))
    stray = sum(_suffix(entry.name) in IMAGE_SUFFIXES for entry in _entries(folder) if not entry.is_dir())
    return _Listing(folder, classes, subfolders, stray, others)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  a Path for each of a million files is slow


def _files_under(folder: Path) -> list[str]:
    """All files below a folder. Links are followed, but no folder is entered twice, and none that contains this one."""
    files: list[str] = []
    todo = [str(folder)]
    parent = folder.parent.resolve()  # a link to it would be a class of all images there are
    seen = {str(above) for above in (parent, *parent.parents, *folder.resolve().parents)}
    while todo:
        current = todo.pop()
        real = os.path.realpath(current)
        if real not in seen:
            seen.add(real)
            for entry in _entries(current):
                (todo if entry.is_dir() else files).append(entry.path)
    return files


def _images(root: Path, listing: _Listing, classes: tuple[str, ...]) -> FolderDataset:
    names = [file for name in classes for file in listing.classes.get(name, [])]
    labels = [label for label, name in enumerate(classes) for _ in listing.classes.get(name, [])]
    return FolderDataset(root, names, torch.tensor(labels, dtype=torch.int64), classes)


def _check_train(listing: _Listing, root: Path) -> None:
    folder = listing.folder
    if listing.count == 0 and listing.stray:
        raise DataError(f"{folder}: {listing.stray} images lie in it without class folders; sort them into CLASS/.")
    if not listing.classes:
        raise DataError(f"{folder} is empty; {_LAYOUT}.")
    if listing.count == 0:
        raise DataError(f"{folder} holds no images{_instead(listing.other_files())}; {_LAYOUT}.")
    if len(listing.classes) == 1:
        (name,) = listing.classes
        if (folder / "manifest.json").is_file():
            raise DataError(f"{folder} is a run, not a folder of images; name the images.")
        hint = f" Did you mean {folder / name}?" if folder == root and len(listing.subfolders[name]) > 1 else ""
        raise DataError(f"{folder} holds one class only, {name!r}; a classifier needs two or more.{hint}")
    if empty := sorted((name for name, files in listing.classes.items() if not files), key=natural):
        names = ", ".join(map(repr, empty)) + _instead(listing.other_files(empty))
        raise DataError(f"{folder}: no images of class {names}; add some or remove the folder.")


def _instead(files: str) -> str:
    return f" (but {files})" if files else ""


def _check_part(listing: _Listing, classes: tuple[str, ...]) -> None:
    unknown = sorted((name for name, files in listing.classes.items() if files and name not in classes), key=natural)
    if unknown:
        names, hints = ", ".join(map(repr, unknown)), "".join(nearest(name, classes) for name in unknown)
        raise DataError(f"{listing.folder}: train has no class {names}; name the folders as in train.{hints}")
    if listing.count == 0:
        where = f"{listing.stray} images lie in it without class folders" if listing.stray else "holds no images"
        raise DataError(f"{listing.folder}: {where}; sort them into CLASS/ as in train, or move the folder away.")


def _layout_notes(root: Path, layout: Mapping[str, Path]) -> list[str]:
    beside = [child.name for child in _subfolders(root) if child not in layout.values()]
    if layout:
        return [f"Skipped beside train: {', '.join(beside)}."] if beside else []
    return [f"{name!r} is read as a class, not as a part of the data." for name in beside if name.lower() in PARTS]


def _listing_notes(listing: _Listing) -> list[str]:
    notes = []
    folder = repr(listing.folder.name)
    if listing.stray:
        notes.append(f"{listing.stray} images lie directly in {folder}, without class, and are skipped.")
    if others := listing.other_files():
        notes.append(f"Files in {folder} that are not images by their ending: {others}.")
    inner = set(listing.subfolders.values())
    if len(inner) == 1 and len(names := inner.pop()) > 1:
        few = ", ".join(sorted(names, key=natural)[:4])
        notes.append(
            f"Every class folder holds the same subfolders ({few} ...): should the outer ones be train and test?"
        )
    return notes
