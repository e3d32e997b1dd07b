"""From what a user names to what the network sees: files and members of tar shards, listed, cut into parts, decoded."""

import contextlib
import hashlib
import io
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from heedmap.data.decoding import MAX_PIXELS, PARTS, read_image, square
from heedmap.data.webdataset.index import (
    SUFFIX,
    expand_shards,
    index_shard,
    is_sharded,
    label_names,
    read_member,
    split_key,
)
from heedmap.errors import DataError, ImageError
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

    @property
    def stem(self) -> str:
        """What its drawings should be called: ``cat`` of a file, ``train-000_cats_01`` of a member."""
        return Path(self.path).stem + ("" if self.key is None else f"_{self.key}")

    def open(self) -> Path | io.BytesIO:
        """Return the file, or the member's bytes; errors as :func:`heedmap.data.webdataset.index.read_member`."""
        path = Path(self.path)
        return path if self.member is None else io.BytesIO(read_member(path, self.offset, self.size, self.member))

    def reason(self, error: Exception) -> str:
        """Return why it cannot be read, without the name at the beginning."""
        names, text = (self.path, self.member, "image"), str(error)
        return next((text.removeprefix(f"{name}: ") for name in names if text.startswith(f"{name}: ")), text)


@dataclass(frozen=True)
class Failure:
    """What could not be read, and why; ``item.member`` is None where it is a whole shard, or the rest of one."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Part:
    """Some images whose predictions are written together."""

    number: int
    items: tuple[Item, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Sources:
    """All images to predict, in the order in which they were named: files first, then shards."""

    files: list[str] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)

    @property
    def count(self) -> int | None:
        """The number of images; None where there are shards, which are not opened to count."""
        return None if self.shards else len(self.files)

    def digest(self) -> str:
        """Return a fingerprint of the list, and of the length and time of change of each file and shard."""
        digest = hashlib.blake2b(digest_size=16)
        for name in (*self.files, *map(str, self.shards)):
            state = ""
            with contextlib.suppress(OSError):  # a missing image is reported when it is read
                status = os.stat(name)  # noqa: PTH116  a million times; a Path for each is slow
                state = f"{status.st_size} {status.st_mtime_ns}"
            digest.update(f"{name} {state}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def parts(self, size: int, cache: Path | None = None) -> Iterator[Part]:
        """Cut into parts of at most ``size`` images, the same ones every time; none reaches over a shard's end."""
        starts = range(0, len(self.files), size)
        whole = ((tuple(map(Item, self.files[start : start + size])), ()) for start in starts)
        cut = (part for shard in self.shards for part in _cut(shard, size, cache))
        return (Part(number, *content) for number, content in enumerate(itertools.chain(whole, cut)))


def _cut(shard: Path, size: int, cache: Path | None) -> Iterator[tuple[tuple[Item, ...], tuple[Failure, ...]]]:
    whole = Item(str(shard))
    try:
        index = index_shard(shard, cache)
    except DataError as error:  # one bad shard of a thousand must not end the work of a day
        yield (), (Failure(whole, str(error)),)
        return
    failures = (Failure(whole, index.trouble),) if index.trouble else ()
    labels = label_names(index)
    for start in range(0, max(1, len(index)), size):
        chosen = slice(start, start + size)
        places = zip(index.names[chosen], index.offsets[chosen], index.sizes[chosen], labels[chosen], strict=True)
        yield tuple(Item(str(shard), *place) for place in places), failures if start == 0 else ()


def find_sources(arguments: Iterable[str | Path], stdin: Iterable[str] = ()) -> Sources:
    """Find the images that a user named on the command line.

    Arguments are files, folders and patterns (:func:`heedmap.inference.listing.expand_images`); tar shards, folders of
    them, with or without parts such as train and test, and patterns of them, ``shards/{000..099}.tar`` too;
    ``@list.txt`` for a file with one of these a line; ``-`` for such lines on ``stdin``.

    Raises:
        DataError: something that does not exist, or nothing named.
    """
    named = itertools.chain.from_iterable(_listed(str(argument), stdin) for argument in arguments)
    return _joined(map(_resolved, named), "give files, folders, shards, @list.txt, or -")


def named_sources(images: Sources | str | Path | Iterable[str | Path]) -> Sources:
    """Find the images named in Python, names as they stand; a DataError for none, or a folder without images."""

    def resolved(path: Path) -> Sources:
        if path.is_dir():
            return _resolved(str(path))
        return Sources(shards=[path]) if path.suffix == SUFFIX else Sources([str(path)])

    if isinstance(images, Sources):
        return images
    paths = map(Path, (images,) if isinstance(images, str | Path) else images)
    return _joined(map(resolved, paths), "there are no images to draw")


def _joined(several: Iterable[Sources], hint: str) -> Sources:
    each = list(several)
    files = dict.fromkeys(file for sources in each for file in sources.files)
    shards = dict.fromkeys(shard for sources in each for shard in sources.shards)
    if not files and not shards:
        raise DataError(f"No images were named; {hint}.")
    return Sources(list(files), list(shards))


def _resolved(argument: str) -> Sources:
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
    parts = sorted(child for child in folder.iterdir() if child.is_dir() and child.name.lower() in PARTS)
    sharded = [folder] * any(folder.glob(f"*{SUFFIX}")) + list(filter(is_sharded, parts))
    return [shard for place in sharded for shard in expand_shards(place)]


def _listed(argument: str, stdin: Iterable[str]) -> Iterable[str]:
    if argument != "-" and not argument.startswith("@"):
        return (argument,)
    lines = stdin
    if argument != "-":
        try:
            lines = Path(argument[1:]).expanduser().read_text("utf-8", "surrogateescape").split("\n")
        except OSError as error:
            raise DataError(f"List {argument[1:]} cannot be read: {error.strerror or error}.") from None
    return (line.rstrip("\r\n") for line in lines if line.strip())


@dataclass(frozen=True)
class DecodedImage:
    """An image as a network sees it: pixels (3, S, S), uint8 RGB.

    Attributes:
        size: (width, height) of the whole image, upright.
        view: the same square to draw on, where one was requested.
        item: the image that was read; None for an upload.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    view: Image.Image | None = None
    item: Item | None = None


def decode(
    source: Path | IO[bytes], image_size: int, view_size: int | None = None, max_pixels: int = MAX_PIXELS
) -> DecodedImage:
    """Decode an image for the network exactly as in training, and sharp enough to draw on.

    ``image_size`` is the side of the network's view, ``view_size`` that of the view to draw on, or None. Images of more
    than ``max_pixels`` are refused; errors as :func:`heedmap.data.decoding.read_image`.
    """
    image = read_image(source, short_side=image_size, max_pixels=max_pixels)
    view = None
    if view_size is not None:
        is_sharp = image_size >= view_size
        large = image if is_sharp else read_image(source, short_side=view_size, max_pixels=max_pixels)
        view = square(large, view_size)
    pixels = np.ascontiguousarray(np.asarray(square(image, image_size)).transpose(2, 0, 1))
    return DecodedImage(pixels, _full_size(source, image), view)


def _full_size(source: Path | IO[bytes], image: Image.Image) -> tuple[int, int]:
    """The image's (width, height) upright in full, also where a JPEG was decoded at a part of its size."""
    if not isinstance(source, Path):
        source.seek(0)
    try:
        with JpegImagePlugin.JpegImageFile(source) as header:
            width, height = header.size
    except SyntaxError:  # Pillow's way of saying that this is no JPEG
        return image.size
    is_turned = (width > height) != (image.width > image.height)
    return (height, width) if is_turned else (width, height)


def read_item(item: Item, image_size: int, view_size: int | None = None) -> DecodedImage | Failure:
    """Decode an image, or return why it cannot be read; see :func:`decode`."""
    try:
        return replace(decode(item.open(), image_size, view_size), item=item)
    except ImageError as error:
        return Failure(item, item.reason(error))


@dataclass(frozen=True)
class Reader:
    """Decodes images in the threads of a pool, ahead of the network; sizes as :func:`decode`."""

    pool: ThreadPoolExecutor
    image_size: int
    view_size: int | None = None

    def images(self, parts: Iterable[Part], ahead: int) -> Iterator[tuple[Part, DecodedImage | Failure | None]]:
        """Yield each part's images in order, or why they cannot be read, and then None for the part's end.

        At most ``ahead`` of them are decoded early.
        """

        def finished(
            part: Part, future: Future[DecodedImage | Failure] | None
        ) -> tuple[Part, DecodedImage | Failure | None]:
            return part, None if future is None else future.result()

        waiting: deque[tuple[Part, Future[DecodedImage | Failure] | None]] = deque()
        for part in parts:
            for item in part.items:
                waiting.append((part, self.pool.submit(read_item, item, self.image_size, self.view_size)))
                while len(waiting) > ahead:
                    yield finished(*waiting.popleft())
            waiting.append((part, None))
        yield from itertools.starmap(finished, waiting)

    def batches(self, parts: Iterable[Part], batch_size: int) -> Iterator[tuple[list[DecodedImage], list[Failure]]]:
        """Yield batches, one of them decoded ahead, each with what could not be read on the way."""
        images: list[DecodedImage] = []
        failures: list[Failure] = []
        count, current = 0, None
        for part, image in self.images(parts, batch_size):
            if part is not current:
                failures += part.failures
                current = part
            count += image is not None
            if isinstance(image, DecodedImage):
                images.append(image)
            elif isinstance(image, Failure):
                failures.append(image)
            if count == batch_size:
                yield images, failures
                images, failures, count = [], [], 0
        if images or failures:
            yield images, failures
