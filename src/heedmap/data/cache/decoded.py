"""Images decoded once, kept at the size at which they are wanted, for this run and the next.

    CACHE/decoded/FOLDER-HASH/HASH.rows    some images, uint8 (n, S, S, 3), mapped into memory by whoever wants them
    CACHE/decoded/FOLDER-HASH/HASH.json    which ones, with a checksum of each, and of which files; written last

An image is known by the path and the state of its file (:func:`heedmap.data.cache.folder.state`), in a shard also by
its place there; it is decoded anew when one of these is another. Files are written beside their place and renamed into
it, and never changed after, so several processes share them and an interruption costs one file of them. A row whose
checksum is wrong is decoded anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heedmap.data.cache.fingerprints import Fingerprints, fingerprinted, is_unchanged
from heedmap.data.cache.folder import digest, remove_partials, write_kept
from heedmap.data.dataset import FileDataset, ImageDataset, empty_images, load_many
from heedmap.errors import DataError

__all__ = ["DecodedCache", "DecodedDataset", "refuse_failed"]

FEWEST = 256
"""A part with fewer images than this is decoded in a moment and not kept."""

SPARE_BYTES = 10**9
"""Left free on the disk."""

_VERSION = "2"  # of the files, and of what decoding makes of an image
_FILE_BYTES = 256 * 10**6
_SAY_EVERY = 30.0  # seconds
_FRESH = 3600.0  # seconds in which rows without an index may still be getting one


@dataclass(frozen=True)
class _File:
    """A file of rows, mapped."""

    rows: NDArray[np.uint8]
    sums: tuple[int, ...]


class DecodedDataset:
    """The images of one part, decoded and mapped: no memory of this process's own, shared with all others.

    Args:
        images: where they come from.
        size: side in pixels.
        files: of rows.
        places: (N, 2) int64, for each image its file and row.
    """

    def __init__(self, images: ImageDataset, size: int, files: Sequence[_File], places: NDArray[np.int64]) -> None:
        self.images, self.size, self._files, self._places = images, size, files, places

    def gather(self, indices: Tensor) -> Tensor:
        """Return images as uint8 (n, 3, S, S) in channels_last, each checked.

        Raises:
            ImageError: a row is damaged, and its image cannot be decoded any more.
        """
        found = empty_images(len(indices), self.size)
        rows = found.permute(0, 2, 3, 1).numpy()
        for place, index in enumerate(indices.tolist()):
            file, row = self._places[index]
            rows[place] = self._files[file].rows[row]
            if zlib.crc32(rows[place].data) != self._files[file].sums[row]:
                found[place] = self.images.load(index, self.size)
        return found


class DecodedCache:
    """Decoded images in a folder.

    Args:
        folder: see :func:`heedmap.data.cache.folder.cache_folder`.
        limit: bytes that all files of decoded images in it may take; rows of images that have changed make room,
            and then the sets unused for longest.
        say: is told where and how much, and how far it is.
    """

    def __init__(self, folder: Path, limit: float, say: Callable[[str], None]) -> None:
        self.folder, self.limit, self.say = folder / "decoded", limit, say

    def open(self, images: ImageDataset, size: int, workers: int) -> DecodedDataset | None:
        """Decode what is not there yet, and map all of it.

        Args:
            images: of a folder or of shards.
            size: side in pixels.
            workers: threads that decode.

        Returns:
            None where nothing is kept: other images, few, too many for the limit, or a disk that is full.

        Raises:
            DataError: an image that was readable before cannot be decoded now.
        """
        seen = fingerprinted(images) if isinstance(images, FileDataset) and len(images) >= FEWEST else None
        if seen is None:
            return None
        name = digest(os.fsencode(f"{_VERSION} {size} {seen.root}"), 8).hex()
        home = self.folder / f"{Path(seen.root).name}-{name}"
        total = f"{len(images):,} images of {size} px, {len(images) * 3 * size * size / 1e6:,.0f} MB"
        try:
            for folder in _sets(self.folder):
                remove_partials(folder)
            known = _known(home, size)
            todo = _todo(known, seen)
            if todo and not self._make_room(home, seen, size, len(todo)):
                self.say(f"Not kept in the cache, which would grow beyond its limit or the disk: {total}.")
                return None
            if todo:  # what made room may have been in this set
                todo = _todo(_known(home, size), seen)
            home.mkdir(parents=True, exist_ok=True)
            os.utime(home)  # used now
            before = f"{len(todo):,} to decode once" if todo else "all there already"
            self.say(f"Cache {home}: {total}; {before}.")
            self._fill(home, images, seen, todo, size, workers)
            known = _known(home, size) if todo else known
            return _mapped(images, size, [known[fingerprint] for fingerprint in seen.fingerprints])
        except OSError as error:
            why = error.strerror or str(error)
        except KeyError:
            why = "another process has just made room for itself"
        self.say(f"The cache {home} cannot be used ({why}); images are decoded as needed.")
        return None

    def _make_room(self, home: Path, seen: Fingerprints, size: int, count: int) -> bool:
        """Remove what is old, and then what was unused for longest, until ``count`` images more fit; whether they do.

        Where they cannot fit even so, only what nobody can use any more is removed.
        """
        missing = self._missing(count * 3 * size * size)
        if missing <= 0:
            return True
        dead, mixed = _old(home, seen, size)
        sets = sorted((each for each in _sets(self.folder) if each != home), key=_used)
        pieces = [*dead, *(_Piece(each, _size(each)) for each in sets), *mixed]
        is_enough = sum(piece.gain for piece in pieces) >= missing
        for piece in pieces if is_enough else dead:
            if missing > 0 or not is_enough:
                piece.remove()
                missing -= piece.gain
        todo = _todo(_known(home, size), seen)
        return is_enough and self._missing(len(todo) * 3 * size * size) <= 0  # what is mapped may keep its place

    def _missing(self, need: int) -> float:
        """Bytes by which ``need`` more would go beyond the limit, or into what is left free on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        taken = sum(map(_size, _sets(self.folder)))
        return max(taken + need - self.limit, need + SPARE_BYTES - shutil.disk_usage(self.folder).free)

    def _fill(
        self, home: Path, dataset: ImageDataset, seen: Fingerprints, todo: list[int], size: int, workers: int
    ) -> None:
        said = time.monotonic()
        count = max(1, _FILE_BYTES // (3 * size * size))
        for start in range(0, len(todo), count):
            chosen = todo[start : start + count]
            images, failed = load_many(dataset, chosen, size, max(1, workers))
            refuse_failed(dataset, failed)
            rows = images.permute(0, 2, 3, 1).numpy()
            names = [seen.fingerprints[index].hex() for index in chosen]
            target = home / digest(os.fsencode("".join(names))).hex()
            write_kept(target.with_suffix(".rows"), rows.data.cast("B"))
            files = {seen.files[index]: seen.states[seen.files[index]] for index in chosen}
            sums = [zlib.crc32(row.data) for row in rows]
            told = {"size": size, "images": names, "sums": sums, "root": seen.root, "files": files}
            write_kept(target.with_suffix(".json"), json.dumps(told).encode())
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                self.say(f"{start + len(chosen):,} of {len(todo):,} decoded.")


# ---- room


class _Piece(NamedTuple):
    """What may be removed, and the bytes that this gains."""

    path: Path
    gain: int

    def remove(self) -> None:
        if self.path.is_dir():  # whoever has mapped it keeps what he has
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            self.path.with_suffix(".json").unlink(missing_ok=True)  # first, so that it never names what is gone
            self.path.unlink(missing_ok=True)


def _old(home: Path, seen: Fingerprints, size: int) -> tuple[list[_Piece], list[_Piece]]:
    """Files of a set that hold no image as it is now, and those that hold others too, which are decoded again."""
    indexes = {index.path.with_suffix(".rows"): index for index in _indexes(home, size)}
    wanted = {fingerprint.hex() for fingerprint in seen.fingerprints}
    dead, mixed = [], []
    for rows in home.glob("*.rows"):
        index = indexes.get(rows)
        length = _size(rows)
        if index is None:
            if time.time() - _used(rows) > _FRESH:
                dead.append(_Piece(rows, length))
            continue
        live = [
            seen.states.get(file) == was or is_unchanged(index.root, file, was) for file, was in index.files.items()
        ]
        again = sum(name in wanted for name in index.names) * 3 * size * size
        if not any(live):
            dead.append(_Piece(rows, length))
        elif not all(live) and again < length:
            mixed.append(_Piece(rows, length - again))
    return dead, mixed


def _sets(folder: Path) -> list[Path]:
    return [each for each in folder.glob("*") if each.is_dir()]


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process has just removed it
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a set, those half written too; 0 for what another process removed."""
    total = 0
    with contextlib.suppress(OSError):
        for each in path.iterdir() if path.is_dir() else (path,):
            with contextlib.suppress(OSError):
                total += each.stat().st_size
    return total


# ---- what is there


Known = dict[bytes, tuple[Path, int, int]]


def _known(home: Path, size: int) -> Known:
    """Digest -> file, row, and checksum of each image that is there."""
    known: Known = {}
    for index in _indexes(home, size):
        rows = index.path.with_suffix(".rows")
        known |= {bytes.fromhex(name): (rows, row, index.sums[row]) for row, name in enumerate(index.names)}
    return known


def _todo(known: Known, seen: Fingerprints) -> list[int]:
    return [index for index, fingerprint in enumerate(seen.fingerprints) if fingerprint not in known]


class _Index(NamedTuple):
    """What a file of rows holds: see the head of this module."""

    path: Path
    names: list[str]
    sums: list[int]
    root: str
    files: dict[str, str]


def _indexes(home: Path, size: int) -> Iterator[_Index]:
    for told in sorted(home.glob("*.json")):
        try:
            content: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
            index = _Index(told, content["images"], content["sums"], content["root"], content["files"])
            length, count = told.with_suffix(".rows").stat().st_size, len(index.names)
            if content["size"] == size and count == len(index.sums) and length == count * 3 * size * size:
                yield index
        except (OSError, ValueError, KeyError, TypeError):  # damaged: as if it were not there
            continue


def _mapped(images: ImageDataset, size: int, found: list[tuple[Path, int, int]]) -> DecodedDataset:
    numbers = {path: number for number, path in enumerate(dict.fromkeys(path for path, _, _ in found))}
    sums: list[dict[int, int]] = [{} for _ in numbers]
    for path, row, total in found:
        sums[numbers[path]][row] = total
    files = []
    for path, known in zip(numbers, sums, strict=True):
        rows = np.memmap(path, np.uint8, "r").reshape(-1, size, size, 3)
        files.append(_File(rows, tuple(known.get(row, 0) for row in range(len(rows)))))
    places = np.array([(numbers[path], row) for path, row, _ in found], dtype=np.int64).reshape(-1, 2)
    return DecodedDataset(images, size, files, places)


def refuse_failed(images: ImageDataset, failed: list[tuple[int, str]]) -> None:
    """Refuse to go on without an image that could be read when the data was opened.

    Raises:
        DataError: there is one.
    """
    if failed:
        index, reason = failed[0]
        raise DataError(f"{images.names[index]}: {reason}. Remove the file and start again.")
