"""Bytes in, the classifier's view of the image out, within bounds."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from heedmap.apps.server.limits import Limits, Refusal
from heedmap.data.decoding import read_image, square
from heedmap.errors import ImageError
from heedmap.inference.reading import full_size

MOST_SCANS = 100
"""A JPEG may repeat a scan over all of its pixels in a few hundred bytes; real ones have ten or so."""


@dataclass(frozen=True)
class Upload:
    """A decoded image.

    Attributes:
        image: the classifier's view, uint8 RGB (3, S, S).
        view: a square view to draw on; None unless asked for.
        size: (width, height) in full, upright.
    """

    image: NDArray[np.uint8]
    view: Image.Image | None
    size: tuple[int, int]


def read_bytes(content: bytes, image_size: int, limits: Limits, draw_at: int | None = None) -> Upload:
    """Decode an image exactly as ``heedmap visualize`` does.

    Args:
        content: an image file.
        image_size: side of the classifier's view.
        limits: ``max_pixels`` holds here.
        draw_at: side of the view to draw on, where one is wanted.

    Raises:
        Refusal: 413 for too many pixels, 415 for what is no image, 422 for an empty or damaged one.
    """
    if content[:2] == b"\xff\xd8" and content.count(b"\xff\xda") > MOST_SCANS:
        raise Refusal(422, f"The image has more than {MOST_SCANS} scans, which no camera writes; save it anew.")
    try:
        decoded_image = read_image(io.BytesIO(content), short_side=image_size, max_pixels=limits.max_pixels)
        large = decoded_image
        if draw_at is not None and draw_at > image_size:
            large = read_image(io.BytesIO(content), short_side=draw_at, max_pixels=limits.max_pixels)
    except ImageError as error:
        status = _STATUS.get(type(error.__cause__), 422) if content else 422
        raise Refusal(status, f"The image cannot be used: {str(error).removeprefix('image: ')}.") from None
    view = None if draw_at is None else square(large, draw_at)
    image = np.ascontiguousarray(np.asarray(square(decoded_image, image_size)).transpose(2, 0, 1))
    return Upload(image, view, full_size(io.BytesIO(content), decoded_image))


_STATUS: dict[type, int] = {UnidentifiedImageError: 415, Image.DecompressionBombError: 413}
