"""Image files in, batches for the network out; what cannot be read is named and passed over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from heedmap.data.decoding import read_image, square
from heedmap.errors import ImageError
from heedmap.inference.listing import DrawingNames
from heedmap.inference.prediction import TILE
from heedmap.inference.sources import Failure, Item, Sources

_PART = 1024  # images listed at a time


@dataclass(frozen=True)
class Read:
    """A decoded image.

    Attributes:
        item: where it lies.
        name: of its drawings.
        image: the network's view, uint8 (3, S, S).
        view: the view to draw on.
        size: (width, height) in full, upright.
    """

    item: Item
    name: str
    image: NDArray[np.uint8]
    view: Image.Image
    size: tuple[int, int]


def batches(
    pool: ThreadPoolExecutor, sources: Sources, image_size: int, batch_size: int
) -> Iterator[tuple[list[Read], list[Failure]]]:
    """Decode in threads, one batch ahead of the network; each batch comes with what could not be read."""
    name, lost = DrawingNames(), list[Failure]()
    items = _items(sources, lost)

    def start() -> list[Future[Read | Failure]]:
        return [
            pool.submit(read_item, item, name(_wish(item)), image_size) for item in itertools.islice(items, batch_size)
        ]

    ahead = start()
    while ahead:
        current, ahead = ahead, start()
        done = [future.result() for future in current]
        found, lost[:] = lost[:], []
        yield [one for one in done if isinstance(one, Read)], found + [one for one in done if isinstance(one, Failure)]
    if lost:
        yield [], lost


def _items(sources: Sources, lost: list[Failure]) -> Iterator[Item]:
    """All images; shards that cannot be read are added to ``lost`` on the way."""
    for part in sources.parts(_PART):
        lost += part.failures
        yield from part.items


def _wish(item: Item) -> str:
    """What the drawings of an image should be called: ``cat`` of a file, ``train-000_cats_01`` of a member."""
    return Path(item.path).stem + ("" if item.key is None else f"_{item.key}")


def read_item(item: Item, name: str, image_size: int) -> Read | Failure:
    """Decode an image for the network exactly as in training, and sharp enough to draw on."""
    try:
        source = item.open()
        decoded = read_image(source, short_side=image_size)
        large = decoded if image_size >= TILE else read_image(source, short_side=TILE)
    except ImageError as error:
        return Failure(item, item.reason(error))
    image = np.ascontiguousarray(np.asarray(square(decoded, image_size)).transpose(2, 0, 1))
    return Read(item, name, image, square(large, TILE), full_size(source, decoded))


def full_size(path: Path | IO[bytes], image: Image.Image) -> tuple[int, int]:
    """Return the image's (width, height) upright in full, also where a JPEG was decoded at a part of its size."""
    if not isinstance(path, Path):
        path.seek(0)
    try:
        with JpegImagePlugin.JpegImageFile(path) as header:
            width, height = header.size
    except SyntaxError:  # Pillow's word for: this is no JPEG
        return image.size
    is_turned = (width > height) != (image.width > image.height)
    return (height, width) if is_turned else (width, height)
