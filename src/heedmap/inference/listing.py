"""Find the image files that a user named, and leave out what heedmap drew."""

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from heedmap.data.decoding import IMAGE_SUFFIXES
from heedmap.errors import DataError

DRAWN = {"panels": ".png", "maps": ".npz", "thumbnails": ".jpg"}
"""What a drawing consists of: its folders, and the suffix of the one file that each holds for an image."""

_SKIPPED = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def expand_images(arguments: str | Path | Iterable[str | Path], stdin: Iterable[str] = ()) -> list[Path]:
    """Return the named image files, each once, in their order; what heedmap drew earlier is skipped.

    Args:
        arguments: files, tried whatever their suffix; folders, searched to the bottom, hidden ones left out; patterns
            with ``*``, ``?``, ``[]`` and ``**``; or ``-`` for a list read from ``stdin``.
        stdin: lines, each one an argument; empty lines are skipped.

    Raises:
        DataError: a file that does not exist, a folder or pattern without images, an address (URL), or nothing named.
    """
    files: dict[Path, None] = {}
    for argument in map(str, (arguments,) if isinstance(arguments, str | Path) else arguments):
        lines = (line.rstrip("\r\n") for line in stdin) if argument == "-" else iter((argument,))
        for line in lines:
            files.update(dict.fromkeys(_resolved(line) if line.strip() else ()))
    if not files:
        raise DataError("No images were named; give files, folders, patterns such as 'photos/*.jpg', or - for a list.")
    return list(files)


def _resolved(argument: str) -> list[Path]:
    if _ADDRESS.match(argument):
        raise DataError(f"{argument} is an address; heedmap reads files only. Download it and name the file.")
    path = Path(argument).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return [path]
    if glob.has_magic(argument):
        return _matching(argument)
    raise DataError(f"There is no file or folder {argument}.")


def _in_folder(folder: Path) -> list[Path]:
    images = []
    # Links are followed as in folders to train on, but no folder is entered twice, and none that contains this one.
    seen = {str(above) for above in folder.resolve().parents}
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        drawn = DRAWN if _is_drawing(Path(parent)) else ()
        folders[:] = sorted(name for name in folders if _is_visible(name) and name not in drawn)
        images += [Path(parent, name) for name in sorted(files) if _is_visible(name) and _has_suffix(name)]
    if not images:
        own = " but those that heedmap drew" if _is_drawing(folder) else ""
        raise DataError(f"Folder {folder} holds no images{own} ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return images


def _matching(pattern: str) -> list[Path]:
    names = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
    images = [Path(name) for name in names if _has_suffix(name) and _is_image_place(Path(name))]
    if not images:
        raise DataError(f"No image matches {pattern}.")
    # What a link leads to a second time is left out: ``**`` goes round a loop of links forty times.
    longest_first = sorted({path.parent for path in images}, key=lambda folder: -len(folder.parts))
    shortest = set({os.path.realpath(folder): folder for folder in longest_first}.values())
    return [path for path in images if path.parent in shortest]


def _is_image_place(path: Path) -> bool:
    is_drawn = any(parent.name in DRAWN and _is_drawing(parent.parent) for parent in path.parents)
    return path.is_file() and not is_drawn and not any(part.lower() in _SKIPPED for part in path.parts)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _SKIPPED


def _has_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _is_drawing(folder: Path) -> bool:
    """Whether heedmap drew into this folder; one that was interrupted has no page yet."""
    page = (folder / "index.html").is_file() or (folder / "maps").is_dir()
    return page and (folder / "predictions.csv").is_file() and (folder / "panels").is_dir()


def remove_drawing(folder: Path) -> None:
    """Remove the files of an earlier drawing, known by the maps beside them; all others stay."""
    if not _is_drawing(folder):
        return
    for name in [path.stem for path in folder.glob("maps/*.npz")]:
        for part, suffix in DRAWN.items():
            (folder / part / f"{name}{suffix}").unlink(missing_ok=True)
    for page in ("index.html", "predictions.csv"):
        (folder / page).unlink(missing_ok=True)
