"""Which images are asked about: files, and members of tar shards, found by what a user wrote; and their bytes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from heedmap.data.parts import PARTS
from heedmap.data.webdataset.index import (
    SUFFIX,
    expand_shards,
    index_shard,
    is_sharded,
    label_names,
    read_member,
    split_key,
)
from heedmap.errors import DataError
from heedmap.inference.listing import expand_images


@dataclass(frozen=True)
class Item:
    """An image to be read: a file, or a member of a shard with its place there, and its label where that has one."""

    path: str
    member: str | None = None
    offset: int = 0
    size: int = 0
    label: str | None = None

    @property
    def key(self) -> str | None:
        """The member's path up to the first dot of its name; None for a file."""
        return None if self.member is None else split_key(self.member)[0]

    @property
    def name(self) -> str:
        """The file's path, or ``SHARD/MEMBER``."""
        return self.path if self.member is None else f"{self.path}/{self.member}"

    def open(self) -> Path | io.BytesIO:
        """Return the file, or the member's bytes.

        Raises:
            ImageError: see :func:`heedmap.data.webdataset.index.read_member`.
        """
        if self.member is None:
            return Path(self.path)
        return io.BytesIO(read_member(Path(self.path), self.offset, self.size, self.member))

    def reason(self, error: Exception) -> str:
        """Return why it cannot be read, without the name that stands before."""
        names = (self.path, self.member, "image")
        text = str(error)
        return next((text.removeprefix(f"{name}: ") for name in names if text.startswith(f"{name}: ")), text)


@dataclass(frozen=True)
class Failure:
    """What could not be read, and why; ``item.member`` is None where it is a whole shard, or the rest of one."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Part:
    """Some images, whose answers are written together."""

    number: int
    items: tuple[Item, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Sources:
    """All that is asked about, in the order in which it was named: files first, then shards."""

    files: list[str] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)

    @property
    def count(self) -> int | None:
        """The number of images; None where there are shards, which are not opened to count."""
        return None if self.shards else len(self.files)

    def digest(self) -> str:
        """A fingerprint of the list, and of the length and time of change of each file and shard."""
        found = hashlib.blake2b(digest_size=16)
        for name in (*self.files, *map(str, self.shards)):
            state = ""
            with contextlib.suppress(OSError):  # an image that is not there is told of when it is read
                status = os.stat(name)  # noqa: PTH116  a million times; a Path for each is slow
                state = f"{status.st_size} {status.st_mtime_ns}"
            found.update(f"{name} {state}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def parts(self, size: int, cache: Path | None = None) -> Iterator[Part]:
        """Cut into parts of at most ``size`` images, the same ones every time; none reaches over a shard's end."""
        number = 0
        for start in range(0, len(self.files), size):
            yield Part(number, tuple(Item(name) for name in self.files[start : start + size]))
            number += 1
        for shard in self.shards:
            for part in _cut(shard, number, size, cache):
                yield part
                number += 1


def find_sources(arguments: Iterable[str | Path], stdin: Iterable[str] = ()) -> Sources:
    """Find what is meant by what a user wrote.

    Args:
        arguments: files, folders and patterns (:func:`heedmap.workflows.visualize.expand_images`); tar shards, folders
            of them, with or without parts such as train and test, and patterns of them, ``shards/{000..099}.tar`` too;
            ``@list.txt`` for a file with one of these a line; ``-`` for such lines on ``stdin``.
        stdin: those lines.

    Raises:
        DataError: something that is not there, or nothing named.
    """
    files: dict[str, None] = {}
    shards: dict[Path, None] = {}
    for argument in _written_out(map(str, arguments), stdin):
        found = _meant_by(argument)
        files.update(dict.fromkeys(found.files))
        shards.update(dict.fromkeys(found.shards))
    if not files and not shards:
        raise DataError("No images were named; give files, folders, shards, @list.txt, or - for a list.")
    return Sources(list(files), list(shards))


def named_sources(images: Sources | str | Path | Iterable[str | Path]) -> Sources:
    """Return what is meant from Python: names that are taken as they stand, whatever letters are in them.

    Raises:
        DataError: none at all, or a folder without images.
    """
    if isinstance(images, Sources):
        return images
    files: dict[str, None] = {}
    shards: dict[Path, None] = {}
    for path in map(Path, (images,) if isinstance(images, str | Path) else images):
        if path.is_dir():
            found = _meant_by(str(path))
            files.update(dict.fromkeys(found.files))
            shards.update(dict.fromkeys(found.shards))
        elif path.suffix == SUFFIX:
            shards[path] = None
        else:
            files[str(path)] = None
    if not files and not shards:
        raise DataError("There are no images to draw; name some.")
    return Sources(list(files), list(shards))


def _meant_by(argument: str) -> Sources:
    folder = Path(argument).expanduser()
    if argument.endswith(SUFFIX) and not folder.is_dir():
        return Sources(shards=expand_shards(argument))
    inside = _shards_in(folder) if folder.is_dir() else []
    try:
        return Sources(list(map(str, expand_images(argument))), inside)
    except DataError:
        if not inside:
            raise
    return Sources(shards=inside)


def _shards_in(folder: Path) -> list[Path]:
    """The shards that lie in a folder, and those in its parts where it has some."""
    own = expand_shards(folder) if any(folder.glob(f"*{SUFFIX}")) else []
    parts = sorted(child for child in folder.iterdir() if child.is_dir() and child.name.lower() in PARTS)
    return own + [shard for part in parts if is_sharded(part) for shard in expand_shards(part)]


def _written_out(arguments: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            yield from _lines(stdin)
        elif argument.startswith("@"):
            try:
                with Path(argument[1:]).expanduser().open(encoding="utf-8", errors="surrogateescape") as lines:
                    yield from _lines(lines)
            except OSError as error:
                raise DataError(f"List {argument[1:]} cannot be read: {error.strerror or error}.") from None
        else:
            yield argument


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines if line.strip())


def _cut(shard: Path, number: int, size: int, cache: Path | None) -> Iterator[Part]:
    whole = Item(str(shard))
    try:
        index = index_shard(shard, cache)
    except DataError as error:  # one bad shard of a thousand must not end the work of a day
        yield Part(number, (), (Failure(whole, str(error)),))
        return
    failures = (Failure(whole, index.trouble),) if index.trouble else ()
    labels = label_names(index)
    for start in range(0, max(1, len(index)), size):
        chosen = slice(start, start + size)
        places = zip(index.names[chosen], index.offsets[chosen], index.sizes[chosen], labels[chosen], strict=True)
        yield Part(number, tuple(Item(str(shard), *place) for place in places), failures if start == 0 else ())
        number += 1
