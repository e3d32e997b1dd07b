"""Images read ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from heedmap.data.decoding import read_image, square, to_tensor
from heedmap.errors import ImageError
from heedmap.inference.reading import full_size
from heedmap.inference.sources import Failure, Item, Part


@dataclass(frozen=True)
class DecodedImage:
    """An image that was read: the network's view, uint8 (3, S, S), and its (width, height) in full, upright."""

    item: Item
    image: Tensor
    size: tuple[int, int]


def read_ahead(
    parts: Iterable[Part], pool: ThreadPoolExecutor, image_size: int, ahead: int
) -> Iterator[tuple[Part, DecodedImage | Failure | None]]:
    """Read images in threads, in order, at most ``ahead`` of them before they are wanted.

    Returns:
        Each part's images, or why they cannot be read, and then None for the part's end.
    """
    waiting: deque[tuple[Part, Future[DecodedImage | Failure] | None]] = deque()
    for part in parts:
        for item in part.items:
            waiting.append((part, pool.submit(read, item, image_size)))
            while len(waiting) > ahead:
                yield _arrived(*waiting.popleft())
        waiting.append((part, None))
    while waiting:
        yield _arrived(*waiting.popleft())


def _arrived(part: Part, future: Future[DecodedImage | Failure] | None) -> tuple[Part, DecodedImage | Failure | None]:
    return part, None if future is None else future.result()


def read(item: Item, image_size: int) -> DecodedImage | Failure:
    """Decode an image for the network exactly as in training."""
    try:
        source = item.open()
        image = read_image(source, short_side=image_size)
    except ImageError as error:
        return Failure(item, item.reason(error))
    return DecodedImage(item, to_tensor(square(image, image_size)), full_size(source, image))
