"""A folder of images as people have it, turned into parts and classes.

Two layouts are understood: ``DIR/train/CLASS/*`` with ``test``, ``val``, ``valid`` or ``validation`` beside ``train``
(upper or lower case), and ``DIR/CLASS/*``, from which a test part is drawn by class. Class folders are searched
recursively. Nothing is decoded here except in :func:`check_images` and :func:`check_splits`.
"""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from heedmap.config import counted
from heedmap.data.dataset import FileDataset, FolderDataset, ImageDataset, Splits, load_many
from heedmap.data.decoding import IMAGE_SUFFIXES
from heedmap.data.parts import PARTS, natural
from heedmap.errors import DataError, OptionError, nearest

__all__ = [
    "check_files",
    "check_splits",
    "drop_unreadable",
    "find_splits",
    "open_folder",
    "refuse_unreadable",
    "refuse_untestable",
    "split_by_class",
]

UNREADABLE_SHARE = 0.02

_DEBRIS = frozenset(["__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"])
_LAYOUT = "expected DIR/train/CLASS/images with DIR/test beside it, or DIR/CLASS/images"


@dataclass(frozen=True)
class _Listing:
    """What lies in the folder of one part: class -> paths relative to the data folder, and what was passed over."""

    folder: Path
    classes: dict[str, list[str]]
    subfolders: dict[str, frozenset[str]]
    stray: int
    others: dict[str, Counter[str]]

    @property
    def count(self) -> int:
        return sum(map(len, self.classes.values()))


def open_folder(path: str | Path, *, test: float = 0.2, seed: int = 0) -> Splits:
    """Read the layout of a data folder.

    A lone ``val``, ``valid`` or ``validation`` part is the test part. Where there is no test part at all, a share of
    each class is set apart with a recorded seed. ``Splits.unreadable`` is empty: see :func:`check_splits`.

    Args:
        path: the data folder.
        test: share in (0, 1) of each class to set apart where the folder has no test part.
        seed: of that draw.

    Returns:
        The parts; ``notes`` says what was done.

    Raises:
        DataError: the folder is missing, a file or empty; images lie in no class folder; there is one class only, a
            class without images, or a class in test or validation that train does not know.
    """
    root = _existing(path)
    layout = find_splits(root)
    train = _listing(root, layout.get("train", root))
    _check_train(train, root)
    classes = tuple(sorted(train.classes, key=natural))
    notes = _layout_notes(root, layout) + _listing_notes(train)
    if "test" not in layout and "validation" in layout:
        layout = {"train": layout["train"], "test": layout["validation"]}
        notes.append(f"There is no test folder, so {layout['test'].name!r} is the test part.")
    parts: dict[str, ImageDataset] = {}
    for part in ("validation", "test"):
        if part in layout:
            listing = _listing(root, layout[part])
            _check_part(listing, classes)
            notes += _listing_notes(listing) + _missing_notes(listing, classes)
            parts[part] = _images(root, listing, classes)
    images: ImageDataset = _images(root, train, classes)
    drawn = "test" not in parts
    if drawn:
        kept, taken = split_by_class(images.labels, test, seed)
        notes += _split_notes(images, kept, taken, test, seed)
        images, parts["test"] = images.subset(kept), images.subset(taken)
    held_out = (parts.get("validation"), parts["test"])
    return Splits(str(path), classes, images, *held_out, notes=tuple(notes), drawn=drawn)


def find_splits(folder: str | Path) -> dict[str, Path]:
    """Find the parts of a data folder.

    Returns:
        ``train``, ``validation``, ``test`` -> folder, those that exist; empty for ``DIR/CLASS/*``. A folder called
        ``train`` or ``valid`` that holds images itself and stands among other class folders is a class (a train is
        also a vehicle, and ``valid`` the opposite of ``invalid``).

    Raises:
        DataError: the folder is missing or a file; two folders claim the same part; there is ``test`` but no ``train``.
    """
    root = _existing(folder)
    found: dict[str, list[Path]] = {}
    folders = _subfolders(root)
    for child in folders:
        if child.name.lower() in PARTS:
            found.setdefault(PARTS[child.name.lower()], []).append(child)
    for part, claims in found.items():
        if len(claims) > 1:
            names = " and ".join(repr(claim.name) for claim in claims)
            raise DataError(f"{root}: {names} both claim to be the {part} part; keep one of them.")
    layout = {part: claims[0] for part, claims in found.items()}
    if "train" not in layout:
        for child in layout.values():
            if _subfolders(child):
                raise DataError(
                    f"{root}: there is {child.name!r} but no 'train'; name the folder to learn from 'train'."
                )
        return {}
    a_class_called_train = len(layout) == 1 and len(folders) > 1 and not _subfolders(layout["train"])
    return {} if a_class_called_train else layout


def split_by_class(labels: Tensor, share: float, seed: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Set a share of each class apart, the same one for the same seed.

    Args:
        labels: (N,) int64.
        share: in (0, 1); of each class that many images are taken, rounded, but at least one and never all. A class
            with a single image keeps it.
        seed: of the draw.
        most: lower the share so that about this many are taken in all (the one of each class still is).

    Returns:
        Two int64 tensors of ascending places in ``labels``: kept and taken.

    Raises:
        OptionError: ``share`` does not lie between 0 and 1.
    """
    if not 0 < share < 1:
        raise OptionError(f"The share to set apart must lie between 0 and 1, not {share}.")
    if most is not None:
        share = min(share, most / max(1, len(labels)))
    generator = torch.Generator().manual_seed(seed)
    is_taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        places = (labels == label).nonzero().flatten()
        count = min(max(int(share * len(places) + 0.5), 1), len(places) - 1)
        is_taken[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return (~is_taken).nonzero().flatten(), is_taken.nonzero().flatten()


def check_files(images: FolderDataset, workers: int) -> tuple[tuple[str, str], ...]:
    """Decode every file once (JPEGs at an eighth of their size, which still reads every byte).

    Args:
        images: the files.
        workers: threads; 0 is taken for one.

    Returns:
        (name, reason) of each that cannot be decoded.
    """
    return tuple((images.names[index], reason) for index, reason in _failures(images, workers))


def check_splits(splits: Splits, workers: int) -> Splits:
    """Decode every file of every part once and leave out those that fail; see :func:`drop_unreadable`."""
    parts = splits.parts.items()
    return drop_unreadable(splits, {n: _failures(p, workers) for n, p in parts if isinstance(p, FileDataset)})


def drop_unreadable(splits: Splits, failures: Mapping[str, Sequence[tuple[int, str]]]) -> Splits:
    """Leave out images that cannot be decoded and record them in ``unreadable``.

    Args:
        splits: the parts as they were opened.
        failures: part -> (index, reason), as :func:`heedmap.data.dataset.load_many` returns them.

    Returns:
        The parts without these images.

    Raises:
        DataError: a class of train, or the whole of another part, has no readable image left.
    """
    parts = dict(splits.parts)
    unreadable = list(splits.unreadable)
    for name, failed in failures.items():
        images = parts[name]
        unreadable += [(images.names[index], reason) for index, reason in failed]
        bad = {index for index, _ in failed}
        parts[name] = images.subset([index for index in range(len(images)) if index not in bad])
        if failed:
            _check_readable(name, splits, parts[name], failed[0][1])
    others = (parts.get("validation"), parts.get("test"))
    notes = splits.notes
    if splits.test is not None and others[1] is not None:  # what was said of the draw is to hold for what is left
        before, after = _drawn(len(splits.train), len(splits.test)), _drawn(len(parts["train"]), len(others[1]))
        notes = tuple(note.replace(before, after) for note in notes)
    return replace(
        splits, train=parts["train"], validation=others[0], test=others[1], unreadable=tuple(unreadable), notes=notes
    )


def refuse_unreadable(splits: Splits) -> None:
    """Check that no more than one image in fifty was left out.

    Raises:
        DataError: more were.
    """
    lost, total = len(splits.unreadable), sum(map(len, splits.parts.values()))
    if lost > UNREADABLE_SHARE * (total + lost):
        path, reason = splits.unreadable[0]
        raise DataError(
            f"{lost} of {total + lost} images cannot be read, the first is {path} ({reason}). `heedmap audit "
            f"{shlex.quote(splits.name)}` lists them; --allow-unreadable goes on without them."
        )


def refuse_untestable(splits: Splits) -> None:
    """Check that a test part that was drawn holds something.

    Raises:
        DataError: every class has a single image, which is learned from.
    """
    if splits.test is not None and not len(splits.test):
        raise DataError(
            f"{splits.name}: no class has two images, so there is none to test on; add some, or a folder 'test' "
            "beside 'train'."
        )


def _failures(images: FileDataset, workers: int) -> list[tuple[int, str]]:
    return load_many(images, range(len(images)), 1, max(1, workers))[1]


def _check_readable(part: str, splits: Splits, images: ImageDataset, reason: str) -> None:
    if part != "train" and len(images) == 0:
        raise DataError(f"{splits.name}: no image of the {part} part can be read; the first says: {reason}.")
    counts = torch.bincount(images.labels, minlength=len(splits.classes)).tolist()
    for name, count in zip(splits.classes, counts, strict=True):
        if part == "train" and count == 0:
            raise DataError(f"{splits.name}: no image of class {name!r} can be read; mend its files or leave it out.")


def _existing(path: str | Path) -> Path:
    root = Path(path)
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"{path} is a file, not a folder of images; {_LAYOUT}.")
    beside = [child.name for child in _subfolders(root.parent)] if root.parent.is_dir() else []
    raise DataError(f"There is no folder {str(path)!r}.{nearest(root.name, beside, cutoff=0.7)}")


def _is_debris(name: str) -> bool:
    return name.startswith(".") or name.lower() in _DEBRIS


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _is_debris(entry.name)]
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
        # Line ends, and bytes that are no text, would fall apart in tables and pages, and cannot be written at all.
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in child.name):
            raise DataError(f"{folder}: {child.name!a} cannot be shown as the name of a class; rename the folder.")
        name = unicodedata.normalize("NFC", child.name)  # macOS stores é as two characters, and zips keep that
        files = _files_under(child)
        taken = [file for file in files if _suffix(file) in IMAGE_SUFFIXES]
        classes.setdefault(name, []).extend(sorted(Path(file).relative_to(root).as_posix() for file in taken))
        others.setdefault(name, Counter()).update(_suffix(f) for f in files if _suffix(f) not in IMAGE_SUFFIXES)
        subfolders[name] = frozenset(inner.name for inner in _subfolders(child))
    stray = sum(_suffix(entry.name) in IMAGE_SUFFIXES for entry in _entries(folder) if not entry.is_dir())
    return _Listing(folder, classes, subfolders, stray, others)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  a Path for each of a million files is slow


def _files_under(folder: Path) -> list[str]:
    """All files below a folder. Links are followed, but no folder is entered twice, and none that contains this one."""
    found: list[str] = []
    todo = [str(folder)]
    around = folder.parent.resolve()  # a link to it would be a class of all images there are
    seen = {str(above) for above in (around, *around.parents, *folder.resolve().parents)}
    while todo:
        here = todo.pop()
        real = os.path.realpath(here)
        if real not in seen:
            seen.add(real)
            for entry in _entries(here):
                (todo if entry.is_dir() else found).append(entry.path)
    return found


def _images(root: Path, listing: _Listing, classes: tuple[str, ...]) -> FolderDataset:
    names = [name for one in classes for name in listing.classes.get(one, [])]
    labels = [label for label, one in enumerate(classes) for _ in listing.classes.get(one, [])]
    return FolderDataset(root, names, torch.tensor(labels, dtype=torch.int64), classes)


def _check_train(listing: _Listing, root: Path) -> None:
    folder = listing.folder
    if listing.count == 0 and listing.stray:
        raise DataError(f"{folder}: {listing.stray} images lie in it without class folders; sort them into CLASS/.")
    if not listing.classes:
        raise DataError(f"{folder} is empty; {_LAYOUT}.")
    if listing.count == 0:
        raise DataError(f"{folder} holds no images{_instead(listing)}; {_LAYOUT}.")
    if len(listing.classes) == 1:
        (name,) = listing.classes
        if (folder / "manifest.json").is_file():
            raise DataError(f"{folder} is a run, not a folder of images; name the images.")
        inside = listing.subfolders[name]
        hint = f" Did you mean {folder / name}?" if folder == root and len(inside) > 1 else ""
        raise DataError(f"{folder} holds one class only, {name!r}; a classifier needs two or more.{hint}")
    empty = sorted((name for name, files in listing.classes.items() if not files), key=natural)
    if empty:
        names = ", ".join(map(repr, empty))
        raise DataError(
            f"{folder}: no images of class {names}{_instead(listing, empty)}; add some or remove the folder."
        )


def _instead(listing: _Listing, classes: Sequence[str] | None = None) -> str:
    """Say what lies there instead of images, such as ``(but 30 .heic)``."""
    totals: Counter[str] = Counter()
    for name in listing.others if classes is None else classes:
        totals.update(listing.others[name])
    return f" (but {_tally(totals)})" if totals else ""


def _tally(endings: Counter[str]) -> str:
    ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {ending or 'without ending'}" for ending, count in ordered[:4])


def _check_part(listing: _Listing, classes: tuple[str, ...]) -> None:
    unknown = sorted((name for name, files in listing.classes.items() if files and name not in classes), key=natural)
    if unknown:
        names = ", ".join(map(repr, unknown))
        hints = "".join(nearest(name, classes) for name in unknown)
        raise DataError(f"{listing.folder}: train has no class {names}; name the folders as in train.{hints}")
    if listing.count == 0:
        where = f"{listing.stray} images lie in it without class folders" if listing.stray else "holds no images"
        raise DataError(f"{listing.folder}: {where}; sort them into CLASS/ as in train, or move the folder away.")


def _layout_notes(root: Path, layout: Mapping[str, Path]) -> list[str]:
    beside = [child.name for child in _subfolders(root) if child not in layout.values()]
    if layout:
        return [f"Passed over beside train: {', '.join(beside)}."] if beside else []
    return [f"{name!r} is read as a class, not as a part of the data." for name in beside if name.lower() in PARTS]


def _listing_notes(listing: _Listing) -> list[str]:
    notes = []
    if listing.stray:
        notes.append(
            f"{listing.stray} images lie directly in {listing.folder.name!r}, without class, and are passed over."
        )
    totals: Counter[str] = Counter()
    for endings in listing.others.values():
        totals.update(endings)
    if totals:
        notes.append(f"Files in {listing.folder.name!r} that are not images by their ending: {_tally(totals)}.")
    kinds = set(listing.subfolders.values())
    if len(kinds) == 1 and len(inner := next(iter(kinds))) > 1:
        few = ", ".join(sorted(inner, key=natural)[:4])
        notes.append(
            f"Every class folder holds the same subfolders ({few} ...): should the outer ones be train and test?"
        )
    return notes


def _missing_notes(listing: _Listing, classes: tuple[str, ...]) -> list[str]:
    missing = ", ".join(name for name in classes if not listing.classes.get(name))
    return [f"{listing.folder.name!r} has no images of class {missing}."] if missing else []


def _drawn(train: int, test: int) -> str:
    return f"{counted(train, 'image')} to learn from, {test:,} to test on."


def _split_notes(images: ImageDataset, kept: Tensor, taken: Tensor, share: float, seed: int) -> list[str]:
    notes = [
        f"There is no test part, so {share:.0%} of each class was set apart as one with seed {seed}: "
        + _drawn(len(kept), len(taken))
    ]
    counts = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    single = ", ".join(name for name, count in zip(images.classes, counts, strict=True) if count == 1)
    return [*notes, f"One image only, so none to test on: class {single}."] if single else notes
