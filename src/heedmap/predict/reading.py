"""Pictures read ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from heedmap.data.decoding import read_picture, square, to_tensor
from heedmap.errors import PictureError
from heedmap.visualize.reading import full_size
from heedmap.visualize.sources import Failure, Item, Part


@dataclass(frozen=True)
class Picture:
    """A picture that was read: the network's view, uint8 (3, S, S), and its (width, height) in full, upright."""

    item: Item
    image: Tensor
    size: tuple[int, int]


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
        source = item.open()
        picture = read_picture(source, short_side=image_size)
    except PictureError as error:
        return Failure(item, item.reason(error))
    return Picture(item, to_tensor(square(picture, image_size)), full_size(source, picture))
