"""Which pictures are asked about, cut into parts, and read ahead of the network."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, JpegImagePlugin
from torch import Tensor

from heedmap.data.decoding import read_picture, square, to_tensor
from heedmap.data.folders import PARTS
from heedmap.data.sharded import expand_shards, is_sharded
from heedmap.data.shards import index_shard, read_member, split_key
from heedmap.errors import DataError, PictureError
from heedmap.visualize.listing import expand_pictures

_TAR = ".tar"


@dataclass(frozen=True)
class Item:
    """A picture to be read: a file, or a member of a shard with its place there."""

    path: str
    member: str | None = None
    offset: int = 0
    size: int = 0

    @property
    def key(self) -> str | None:
        """The member's path up to the first dot of its name; None for a file."""
        return None if self.member is None else split_key(self.member)[0]


@dataclass(frozen=True)
class Picture:
    """A picture that was read: the network's view, uint8 (3, S, S), and its (width, height) in full, upright."""

    item: Item
    image: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Failure:
    """What could not be read, and why; ``item.member`` is None where it is a whole shard, or the rest of one."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Part:
    """Some pictures, whose answers are written together."""

    number: int
    items: tuple[Item, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Sources:
    """All that is asked about, in the order in which it was named: files first, then shards."""

    files: list[str] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)

    def digest(self) -> str:
        """A fingerprint of the list; of a shard its length and time of change count too."""
        found = hashlib.blake2b(digest_size=16)
        for name in self.files:
            found.update(name.encode("utf-8", "surrogateescape") + b"\n")
        for shard in self.shards:
            status = shard.stat()
            found.update(f"{shard} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def parts(self, size: int, cache: Path | None = None) -> Iterator[Part]:
        """Cut into parts of at most ``size`` pictures, the same ones every time; none reaches over a shard's end."""
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
        arguments: files, folders and patterns (:func:`heedmap.visualize.expand_pictures`); tar shards, folders of
            them, with or without parts such as train and test, and patterns of them, ``shards/{000..099}.tar`` too;
            ``@list.txt`` for a file with one of these a line; ``-`` for such lines on ``stdin``.
        stdin: those lines.

    Raises:
        DataError: something that is not there, or nothing named.
    """
    files: dict[str, None] = {}
    shards: dict[Path, None] = {}
    for argument in _written_out(map(str, arguments), stdin):
        folder = Path(argument).expanduser()
        if argument.endswith(_TAR) and not folder.is_dir():
            shards.update(dict.fromkeys(expand_shards(argument)))
            continue
        inside = _shards_in(folder) if folder.is_dir() else []
        shards.update(dict.fromkeys(inside))
        try:
            files.update(dict.fromkeys(map(str, expand_pictures(argument))))
        except DataError:
            if not inside:
                raise
    if not files and not shards:
        raise DataError("No pictures were named; give files, folders, shards, @list.txt, or - for a list.")
    return Sources(list(files), list(shards))


def _shards_in(folder: Path) -> list[Path]:
    """The shards that lie in a folder, and those in its parts where it has some."""
    own = expand_shards(folder) if any(folder.glob(f"*{_TAR}")) else []
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
    for start in range(0, max(1, len(index)), size):
        chosen = slice(start, start + size)
        places = zip(index.names[chosen], index.offsets[chosen], index.sizes[chosen], strict=True)
        yield Part(number, tuple(Item(str(shard), *place) for place in places), failures if start == 0 else ())
        number += 1


def read_ahead(
    parts: Iterable[Part], pool: ThreadPoolExecutor, image_size: int, ahead: int
) -> Iterator[tuple[Part, Picture | Failure | None]]:
    """Read pictures in threads, in order, at most ``ahead`` of them before they are wanted.

    Returns:
        Each part's pictures, or why they cannot be read, and then None for the part's end.
    """
    waiting: deque[tuple[Part, Future[Picture | Failure] | None]] = deque()
    for part in parts:
        for item in part.items:
            waiting.append((part, pool.submit(read, item, image_size)))
            while len(waiting) > ahead:
                yield _arrived(*waiting.popleft())
        waiting.append((part, None))
    while waiting:
        yield _arrived(*waiting.popleft())


def _arrived(part: Part, future: Future[Picture | Failure] | None) -> tuple[Part, Picture | Failure | None]:
    return part, None if future is None else future.result()


def read(item: Item, image_size: int) -> Picture | Failure:
    """Decode a picture for the network exactly as in training."""
    try:
        source: Path | io.BytesIO = Path(item.path)
        if item.member is not None:
            source = io.BytesIO(read_member(Path(item.path), item.offset, item.size, item.member))
        picture = read_picture(source, short_side=image_size)
    except PictureError as error:
        names = (item.path, item.member, "picture")  # what stands before the reason
        text = str(error)
        return Failure(item, next((text.removeprefix(f"{n}: ") for n in names if text.startswith(f"{n}: ")), text))
    return Picture(item, to_tensor(square(picture, image_size)), _full_size(source, picture))


def _full_size(source: Path | io.BytesIO, picture: Image.Image) -> tuple[int, int]:
    """The picture's (width, height) upright in full, also where a JPEG was decoded at a part of its size."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
    try:
        with JpegImagePlugin.JpegImageFile(source) as header:
            width, height = header.size
    except SyntaxError:  # Pillow's word for: this is no JPEG
        return picture.size
    is_turned = (width > height) != (picture.width > picture.height)
    return (height, width) if is_turned else (width, height)
