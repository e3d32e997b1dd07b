"""Pictures decoded once, kept at the size at which they are wanted, for this run and the next.

    CACHE/decoded/FOLDER-HASH/HASH.rows    some pictures, uint8 (n, 3, S, S), mapped into memory by whoever wants them
    CACHE/decoded/FOLDER-HASH/HASH.json    which ones, with a checksum of each; written last
    CACHE/checked/HASH.bin                 pictures that were decoded once without an error
    CACHE/shards/HASH.json                 where the pictures of a tar shard lie

A picture is known by its path, its length and its time of change (in a shard: by the shard's, and its place there); it
is decoded anew when one of these is another. A file changed in place with both kept is not noticed. Files are written
beside their place and renamed into it, and never changed after, so several processes share them and an interruption
costs one file of them. A row whose checksum is wrong is decoded anew.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heedmap.data.folders import drop_unreadable
from heedmap.data.pictures import FilePictures, FolderPictures, Pictures, Splits, load_many
from heedmap.data.sharded import ShardPictures
from heedmap.errors import DataError

__all__ = ["DecodedCache", "DecodedPictures", "cache_folder", "check_splits_once", "refuse_failed"]

FEWEST = 256
"""A part with fewer pictures than this is decoded in a moment and not kept."""

_VERSION = "1"  # of the files, and of what decoding makes of a picture
_FILE_BYTES = 256 * 10**6
_SPARE_BYTES = 10**9  # left free on the disk
_SAY_EVERY = 30.0  # seconds
_DIGEST = 16


def cache_folder(choice: str | None = None) -> Path | None:
    """Return the folder to keep things in.

    Args:
        choice: a folder, ``off``, or None: what ``HEEDMAP_CACHE`` names (one of these two), or else the user's cache
            folder; where that cannot be written, one of the user's own in the system's folder for temporary files.

    Returns:
        The folder, made; None where nothing is to be kept.

    Raises:
        DataError: a folder that was named cannot be made.
    """
    choice = choice or os.environ.get("HEEDMAP_CACHE") or None
    if choice == "off":
        return None
    if choice is not None:
        folder = Path(choice).expanduser().absolute()
        if not _made(folder):
            raise DataError(f"The cache folder {folder} cannot be written; name another one with --cache, or 'off'.")
        return folder
    own = Path(tempfile.gettempdir()) / f"heedmap-{_user()}"
    return next((folder for folder in (_home(), own) if _made(folder)), None)


def _home() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "heedmap"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "heedmap" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heedmap"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a folder that all may write to, someone else may have been there first.
        is_ours = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        return False
    return is_ours and os.access(folder, os.W_OK)


# ---- which pictures


def _stamps(pictures: FilePictures) -> tuple[str, list[bytes]] | None:
    """Where the pictures come from, and a digest of each one's path, length and time of change."""
    try:
        if isinstance(pictures, FolderPictures):
            root = str(pictures.root.resolve())
            states = map(os.stat, map(pictures.path, range(len(pictures))))
            words = (f"{name}\0{s.st_size}\0{s.st_mtime_ns}" for name, s in zip(pictures.names, states, strict=True))
        elif isinstance(pictures, ShardPictures):
            paths = [path.resolve() for path in pictures.shards]
            root = str(paths[0].parent) if paths else ""
            told = [f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}" for path in paths]
            words = (f"{told[shard]}\0{offset}\0{size}" for shard, offset, size in pictures.places.tolist())
        else:
            return None
        return root, [_hash(word.encode("utf-8", "surrogateescape")) for word in words]
    except OSError:  # gone since it was listed; whoever decodes it says so
        return None


def _hash(content: bytes, size: int = _DIGEST) -> bytes:
    return hashlib.blake2b(content, digest_size=size).digest()


def _write(target: Path, *contents: bytes | memoryview) -> None:
    """Write a file whole, although another process may be writing the same one."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            for content in contents:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


# ---- readable or not


def check_splits_once(splits: Splits, workers: int, cache: Path | None) -> Splits:
    """Decode every file that was not decoded before, and leave out those that fail.

    Args:
        splits: the parts.
        workers: threads; 0 is taken for one.
        cache: where is kept what was decoded; None decodes all.

    Raises:
        DataError: see :func:`heedmap.data.folders.drop_unreadable`.
    """
    parts = {name: part for name, part in splits.parts.items() if isinstance(part, FilePictures)}
    return drop_unreadable(splits, {name: _failures(part, workers, cache) for name, part in parts.items()})


def _failures(pictures: FilePictures, workers: int, cache: Path | None) -> list[tuple[int, str]]:
    stamped = None if cache is None else _stamps(pictures)
    if cache is None or stamped is None:
        return load_many(pictures, range(len(pictures)), 1, max(1, workers))[1]
    root, stamps = stamped
    kept = cache / "checked" / f"{_hash(os.fsencode(f'{_VERSION} {root}'), 8).hex()}.bin"
    known: set[bytes] = set()
    with contextlib.suppress(OSError):
        content = kept.read_bytes()
        known = {content[start : start + _DIGEST] for start in range(0, len(content), _DIGEST)}
    todo = [index for index, stamp in enumerate(stamps) if stamp not in known]
    if not todo:
        return []
    failed = load_many(pictures, todo, 1, max(1, workers))[1]
    bad = {index for index, _ in failed}
    known |= {stamps[index] for index in todo if index not in bad}
    with contextlib.suppress(OSError):  # it costs the next start some time, and nothing else
        kept.parent.mkdir(parents=True, exist_ok=True)
        _write(kept, b"".join(sorted(known)))
    return failed


# ---- decoded pictures


@dataclass(frozen=True)
class _File:
    """A file of rows, mapped."""

    rows: NDArray[np.uint8]
    sums: tuple[int, ...]


class DecodedPictures:
    """The pictures of one part, decoded and mapped: no memory of this process's own, shared with all others.

    Args:
        pictures: where they come from.
        size: side in pixels.
        files: of rows.
        places: (N, 2) int64, for each picture its file and row.
    """

    def __init__(self, pictures: Pictures, size: int, files: Sequence[_File], places: NDArray[np.int64]) -> None:
        self.pictures, self.size, self._files, self._places = pictures, size, files, places

    def gather(self, indices: Tensor) -> Tensor:
        """Return pictures as uint8 (n, 3, S, S), each checked.

        Raises:
            PictureError: a row is damaged, and its picture cannot be decoded any more.
        """
        found = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        rows = found.numpy()
        for place, index in enumerate(indices.tolist()):
            file, row = self._places[index]
            rows[place] = self._files[file].rows[row]
            if zlib.crc32(rows[place].data) != self._files[file].sums[row]:
                found[place] = self.pictures.load(index, self.size)
        return found


class DecodedCache:
    """Decoded pictures in a folder.

    Args:
        folder: see :func:`cache_folder`.
        limit: bytes that all decoded pictures in it may take; those unused for longest make room.
        say: is told where and how much, and how far it is.
    """

    def __init__(self, folder: Path, limit: float, say: Callable[[str], None]) -> None:
        self.folder, self.limit, self.say = folder / "decoded", limit, say

    def open(self, pictures: Pictures, size: int, workers: int) -> DecodedPictures | None:
        """Decode what is not there yet, and map all of it.

        Args:
            pictures: of a folder or of shards.
            size: side in pixels.
            workers: threads that decode.

        Returns:
            None where nothing is kept: other pictures, few, too many for the limit, or a disk that is full.

        Raises:
            DataError: a picture that was readable before cannot be decoded now.
        """
        stamped = _stamps(pictures) if isinstance(pictures, FilePictures) and len(pictures) >= FEWEST else None
        if stamped is None:
            return None
        root, stamps = stamped
        home = self.folder / f"{Path(root).name}-{_hash(os.fsencode(f'{_VERSION} {size} {root}'), 8).hex()}"
        known = _known(home, size)
        todo = [index for index, stamp in enumerate(stamps) if stamp not in known]
        need, row = len(todo) * 3 * size * size, 3 * size * size
        total = f"{len(pictures):,} pictures of {size} px, {len(pictures) * row / 1e6:,.0f} MB"
        try:
            if todo and not self._make_room(home, need):
                self.say(f"Not kept in the cache, which would grow beyond its limit or the disk: {total}.")
                return None
            home.mkdir(parents=True, exist_ok=True)
            os.utime(home)  # used now
            before = f"{len(todo):,} to decode once" if todo else "all there already"
            self.say(f"Cache {home}: {total}; {before}.")
            self._fill(home, pictures, stamps, todo, size, workers)
        except OSError as error:
            self.say(f"The cache {home} cannot be used ({error.strerror or error}); pictures are decoded as needed.")
            return None
        known = _known(home, size)
        if not all(stamp in known for stamp in stamps):  # another process has just made room for itself
            return None
        return _mapped(pictures, size, [known[stamp] for stamp in stamps])

    def _make_room(self, home: Path, need: int) -> bool:
        """Remove what was unused for longest until ``need`` bytes more fit; whether they do."""
        sets = sorted((each for each in self.folder.glob("*") if each.is_dir()), key=lambda each: each.stat().st_mtime)
        sizes = {each: sum(file.stat().st_size for file in each.glob("*.rows")) for each in sets}
        if sizes.get(home, 0) + need > self.limit:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        for each in sets:
            if sum(sizes.values()) + need <= self.limit and shutil.disk_usage(self.folder).free - need > _SPARE_BYTES:
                break
            if each != home:  # whoever has mapped it keeps what he has
                shutil.rmtree(each, ignore_errors=True)
                del sizes[each]
        return shutil.disk_usage(self.folder).free - need > _SPARE_BYTES

    def _fill(
        self, home: Path, pictures: Pictures, stamps: list[bytes], todo: list[int], size: int, workers: int
    ) -> None:
        said = time.monotonic()
        count = max(1, _FILE_BYTES // (3 * size * size))
        for start in range(0, len(todo), count):
            chosen = todo[start : start + count]
            images, failed = load_many(pictures, chosen, size, max(1, workers))
            refuse_failed(pictures, failed)
            rows = images.numpy()
            names = [stamps[index].hex() for index in chosen]
            target = home / _hash(os.fsencode("".join(names))).hex()
            _write(target.with_suffix(".rows"), rows.data.cast("B"))
            told = {"size": size, "pictures": names, "sums": [zlib.crc32(row.data) for row in rows]}
            _write(target.with_suffix(".json"), json.dumps(told).encode())
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                self.say(f"{start + len(chosen):,} of {len(todo):,} decoded.")


Known = dict[bytes, tuple[Path, int, int]]


def _known(home: Path, size: int) -> Known:
    """Digest -> file, row, and checksum of each picture that is there."""
    known: Known = {}
    for told, names, sums in _indexes(home, size):
        rows = told.with_suffix(".rows")
        known |= {bytes.fromhex(name): (rows, row, sums[row]) for row, name in enumerate(names)}
    return known


def _indexes(home: Path, size: int) -> Iterator[tuple[Path, list[str], list[int]]]:
    for told in sorted(home.glob("*.json")):
        try:
            content: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
            names, sums = content["pictures"], content["sums"]
            length = told.with_suffix(".rows").stat().st_size
            if content["size"] == size and len(names) == len(sums) and length == len(names) * 3 * size * size:
                yield told, names, sums
        except (OSError, ValueError, KeyError, TypeError):  # damaged: as if it were not there
            continue


def _mapped(pictures: Pictures, size: int, found: list[tuple[Path, int, int]]) -> DecodedPictures:
    numbers = {path: number for number, path in enumerate(dict.fromkeys(path for path, _, _ in found))}
    sums: list[dict[int, int]] = [{} for _ in numbers]
    for path, row, total in found:
        sums[numbers[path]][row] = total
    files = []
    for path, known in zip(numbers, sums, strict=True):
        rows = np.memmap(path, np.uint8, "r").reshape(-1, 3, size, size)
        files.append(_File(rows, tuple(known.get(row, 0) for row in range(len(rows)))))
    places = np.array([(numbers[path], row) for path, row, _ in found], dtype=np.int64).reshape(-1, 2)
    return DecodedPictures(pictures, size, files, places)


def refuse_failed(pictures: Pictures, failed: list[tuple[int, str]]) -> None:
    """Refuse to go on without a picture that could be read when the data was opened.

    Raises:
        DataError: there is one.
    """
    if failed:
        index, reason = failed[0]
        raise DataError(f"{pictures.names[index]}: {reason}. Remove the file and start again.")
