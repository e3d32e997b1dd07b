"""Picture files in, batches for the network out; what cannot be read is named and passed over."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from heedmap.data.decoding import read_picture, square
from heedmap.errors import PictureError
from heedmap.visualize.answers import TILE
from heedmap.visualize.listing import drawing_names


@dataclass(frozen=True)
class Read:
    """A decoded picture.

    Attributes:
        path: its file.
        name: of its drawings.
        image: the network's view, uint8 (3, S, S).
        view: the view to draw on.
        size: (width, height) in full, upright.
    """

    path: Path
    name: str
    image: NDArray[np.uint8]
    view: Image.Image
    size: tuple[int, int]


def batches(
    pool: ThreadPoolExecutor, pictures: Iterable[str | Path], image_size: int, batch_size: int
) -> Iterator[tuple[list[Read], list[tuple[str, str]]]]:
    """Decode in threads, one batch ahead of the network; each batch comes with the (path, reason) of its failures."""
    named = drawing_names(Path(path) for path in pictures)

    def start() -> list[Future[Read | tuple[str, str]]]:
        chunk = itertools.islice(named, batch_size)
        return [pool.submit(read, path, name, image_size) for path, name in chunk]

    ahead = start()
    while ahead:
        current, ahead = ahead, start()
        done = [future.result() for future in current]
        yield [one for one in done if isinstance(one, Read)], [one for one in done if isinstance(one, tuple)]


def read(path: Path, name: str, image_size: int) -> Read | tuple[str, str]:
    """Decode a picture for the network exactly as in training, and sharp enough to draw on."""
    try:
        picture = read_picture(path, short_side=image_size)
        large = picture if image_size >= TILE else read_picture(path, short_side=TILE)
    except PictureError as error:
        return str(path), str(error).removeprefix(f"{path}: ")
    image = np.ascontiguousarray(np.asarray(square(picture, image_size)).transpose(2, 0, 1))
    return Read(path, name, image, square(large, TILE), full_size(path, picture))


def full_size(path: Path | IO[bytes], picture: Image.Image) -> tuple[int, int]:
    """Return the picture's (width, height) upright in full, also where a JPEG was decoded at a part of its size."""
    try:
        with JpegImagePlugin.JpegImageFile(path) as header:
            width, height = header.size
    except SyntaxError:  # Pillow's word for: this is no JPEG
        return picture.size
    is_turned = (width > height) != (picture.width > picture.height)
    return (height, width) if is_turned else (width, height)
