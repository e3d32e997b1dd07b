"""A cache of decoded images at one size, for this run and the next, shared by processes.

    CACHE/decoded/FOLDER-HASH/HASH.rows    some images, uint8 (n, S, S, 3), mapped into memory
    CACHE/decoded/FOLDER-HASH/HASH.json    which ones, with a checksum of each, and of which files; written last

An image is identified by its fingerprint (:mod:`heedmap.data.cache.verified`) and decoded again when that changes.
Files are written under another name and renamed, and never changed after, so several processes share them and an
interruption costs one file of them. A row whose checksum is wrong is decoded again.
"""

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heedmap.data.cache.folder import digest, remove_partials, write_shared
from heedmap.data.cache.verified import Fingerprints, is_unchanged
from heedmap.data.dataset import FileDataset, ImageDataset, empty_images, load_all

MIN_IMAGES = 256  # a part with fewer images than this is decoded in a moment and not cached
SPARE_BYTES = 10**9  # left free on the disk
_VERSION = "2"  # of the files, and of what decoding makes of an image
_FILE_BYTES = 256 * 10**6
_REPORT_EVERY = 30.0  # seconds
_FRESH = 3600.0  # seconds in which rows without an index may still be getting one


class _Row(NamedTuple):
    """Where a decoded image lies."""

    file: Path
    row: int
    checksum: int


class DecodedDataset:
    """The images of one part, decoded and mapped: no memory of this process's own, shared with all others."""

    def __init__(self, images: ImageDataset, size: int, rows: list[_Row]) -> None:
        self.images, self.size = images, size
        numbers = {file: number for number, file in enumerate(dict.fromkeys(row.file for row in rows))}
        self._files = [np.memmap(file, np.uint8, "r").reshape(-1, size, size, 3) for file in numbers]
        places = [(numbers[row.file], row.row, row.checksum) for row in rows]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)

    def gather(self, indices: Tensor) -> Tensor:
        """Return images as uint8 (n, 3, S, S) in memory format channels_last, each checked, or decoded again."""
        images = empty_images(len(indices), self.size)
        pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).numpy()
        for place, index in enumerate(indices.tolist()):
            file, row, checksum = self._places[index].tolist()
            pixels[place] = self._files[file][row]
            if zlib.crc32(pixels[place].data) != checksum:
                images[place] = self.images.load(index, self.size)
        return images


class DecodedCache:
    """Decoded images in a folder.

    Args:
        folder: see :func:`heedmap.data.cache.folder.cache_folder`.
        limit: bytes that all files of decoded images in it may take; rows of images that have changed make room,
            and then the sets that were unused for longest.
        message: receives a line on where, how much, and how far it is.
    """

    def __init__(self, folder: Path, limit: float, message: Callable[[str], None]) -> None:
        self.folder, self.limit, self.message = folder / "decoded", limit, message

    def open(self, images: ImageDataset, size: int, workers: int) -> DecodedDataset | None:
        """Decode the images of a folder or of shards that are missing (:func:`load_all`), and map all of them.

        Return None where nothing is cached: other images, few, too many for the limit, or a disk that is full.
        """
        prints = Fingerprints.of(images) if isinstance(images, FileDataset) and len(images) >= MIN_IMAGES else None
        if prints is None:
            return None
        name = digest(os.fsencode(f"{_VERSION} {size} {prints.root}"), 8).hex()
        home = self.folder / f"{Path(prints.root).name}-{name}"
        total = f"{len(images):,} images of {size} px, {len(images) * 3 * size * size / 1e6:,.0f} MB"
        try:
            for folder in _sets(self.folder):
                remove_partials(folder)
            known = _known(home, size)
            todo = _todo(known, prints)
            if todo and not self._make_room(home, prints, size, len(todo)):
                self.message(f"Not cached, because the cache would grow beyond its limit or the disk: {total}.")
                return None
            if todo:  # what made room may have been in this set
                todo = _todo(_known(home, size), prints)
            home.mkdir(parents=True, exist_ok=True)
            os.utime(home)  # used now
            self.message(f"Cache {home}: {total}; {f'{len(todo):,} to decode once' if todo else 'all there already'}.")
            self._fill(home, images, prints, todo, size, workers)
            known = _known(home, size) if todo else known
            return DecodedDataset(images, size, [known[fingerprint] for fingerprint in prints.digests])
        except OSError as error:
            why = error.strerror or str(error)
        except KeyError:
            why = "another process has just made room for itself"
        self.message(f"The cache {home} cannot be used ({why}); images are decoded as needed.")
        return None

    def _make_room(self, home: Path, prints: Fingerprints, size: int, count: int) -> bool:
        """Remove what is outdated, then what was unused for longest, until ``count`` images more fit; return whether.

        Where they cannot fit even so, only what nobody can use any more is removed.
        """
        missing = self._missing(count * 3 * size * size)
        if missing <= 0:
            return True
        dead, mixed = _outdated(home, prints, size)
        sets = sorted((folder for folder in _sets(self.folder) if folder != home), key=_used)
        pieces = [*dead, *(_Piece(folder, _size(folder)) for folder in sets), *mixed]
        is_enough = sum(piece.gain for piece in pieces) >= missing
        for piece in pieces if is_enough else dead:
            if missing > 0 or not is_enough:
                piece.remove()
                missing -= piece.gain
        todo = _todo(_known(home, size), prints)
        return is_enough and self._missing(len(todo) * 3 * size * size) <= 0  # what is mapped may stay on the disk

    def _missing(self, need: int) -> float:
        """Bytes by which ``need`` more would go beyond the limit, or into what is left free on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        used = sum(map(_size, _sets(self.folder)))
        return max(used + need - self.limit, need + SPARE_BYTES - shutil.disk_usage(self.folder).free)

    def _fill(
        self, home: Path, images: ImageDataset, prints: Fingerprints, todo: list[int], size: int, workers: int
    ) -> None:
        reported = time.monotonic()
        count = max(1, _FILE_BYTES // (3 * size * size))
        for start in range(0, len(todo), count):
            block = todo[start : start + count]
            rows = load_all(images, block, size, workers).permute(0, 2, 3, 1).numpy()
            names = [prints.digests[index].hex() for index in block]
            target = home / digest(os.fsencode("".join(names))).hex()
            write_shared(target.with_suffix(".rows"), rows.data.cast("B"))
            files = {prints.files[index]: prints.states[prints.files[index]] for index in block}
            sums = [zlib.crc32(row.data) for row in rows]
            index = {"size": size, "images": names, "sums": sums, "root": prints.root, "files": files}
            write_shared(target.with_suffix(".json"), json.dumps(index).encode())
            if time.monotonic() - reported > _REPORT_EVERY:
                reported = time.monotonic()
                self.message(f"{start + len(block):,} of {len(todo):,} decoded.")


class _Piece(NamedTuple):
    """What may be removed, and the bytes that this gains."""

    path: Path
    gain: int

    def remove(self) -> None:
        if self.path.is_dir():  # a process that has mapped it can go on
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            self.path.with_suffix(".json").unlink(missing_ok=True)  # first, so that it never names what is gone
            self.path.unlink(missing_ok=True)


def _outdated(home: Path, prints: Fingerprints, size: int) -> tuple[list[_Piece], list[_Piece]]:
    """Files of a set that hold no image as it is now, and those that hold others too, which are decoded again."""
    indexes = {index.path.with_suffix(".rows"): index for index in _indexes(home, size)}
    needed = {fingerprint.hex() for fingerprint in prints.digests}
    dead, mixed = [], []
    for rows in home.glob("*.rows"):
        index, length = indexes.get(rows), _size(rows)
        if index is None:
            if time.time() - _used(rows) > _FRESH:
                dead.append(_Piece(rows, length))
            continue
        live = [
            prints.states.get(file) == state or is_unchanged(index.root, file, state)
            for file, state in index.files.items()
        ]
        again = sum(name in needed for name in index.names) * 3 * size * size
        if not any(live):
            dead.append(_Piece(rows, length))
        elif not all(live) and again < length:
            mixed.append(_Piece(rows, length - again))
    return dead, mixed


def _sets(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.is_dir()]


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process has just removed it
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a set, partial ones included; 0 for what another process removed."""
    total = 0
    with contextlib.suppress(OSError):
        for file in path.iterdir() if path.is_dir() else (path,):
            with contextlib.suppress(OSError):
                total += file.stat().st_size
    return total


class _Index(NamedTuple):
    """What a file of rows holds: see the head of this module."""

    path: Path
    names: list[str]
    sums: list[int]
    root: str
    files: dict[str, str]


def _known(home: Path, size: int) -> dict[bytes, _Row]:
    """Fingerprint -> where the image lies, for all that are cached."""
    known: dict[bytes, _Row] = {}
    for index in _indexes(home, size):
        file = index.path.with_suffix(".rows")
        known |= {bytes.fromhex(name): _Row(file, row, index.sums[row]) for row, name in enumerate(index.names)}
    return known


def _todo(known: dict[bytes, _Row], prints: Fingerprints) -> list[int]:
    return [index for index, fingerprint in enumerate(prints.digests) if fingerprint not in known]


def _indexes(home: Path, size: int) -> Iterator[_Index]:
    for path in sorted(home.glob("*.json")):
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            index = _Index(path, content["images"], content["sums"], content["root"], content["files"])
            length, count = path.with_suffix(".rows").stat().st_size, len(index.names)
            if content["size"] == size and count == len(index.sums) and length == count * 3 * size * size:
                yield index
        except (OSError, ValueError, KeyError, TypeError):  # damaged: as if it did not exist
            continue
