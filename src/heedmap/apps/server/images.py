"""Bytes in, the classifier's view of the image out, within the limits."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from heedmap.apps.limits import Limits, RequestError
from heedmap.apps.uploads import check_scans
from heedmap.data.decoding import read_image, square
from heedmap.errors import ImageError
from heedmap.inference.reading import full_size

_STATUS: dict[type, int] = {UnidentifiedImageError: 415, Image.DecompressionBombError: 413}


@dataclass(frozen=True)
class DecodedUpload:
    """A decoded image.

    Attributes:
        image: the classifier's view, uint8 RGB (3, S, S).
        view: a square view to draw on; None unless requested.
        size: (width, height) in full, upright.
    """

    image: NDArray[np.uint8]
    view: Image.Image | None
    size: tuple[int, int]


def decode_upload(content: bytes, image_size: int, limits: Limits, draw_at: int | None = None) -> DecodedUpload:
    """Decode an image exactly as ``heedmap visualize`` does.

    Args:
        content: an image file.
        image_size: side of the classifier's view.
        limits: ``max_pixels`` holds here.
        draw_at: side of the view to draw on, where there is to be one.

    Raises:
        RequestError: 413 for too many pixels, 415 for what is no image, 422 for an empty or damaged one.
    """
    try:
        check_scans(content)
        decoded = read_image(io.BytesIO(content), short_side=image_size, max_pixels=limits.max_pixels)
        large = decoded
        if draw_at is not None and draw_at > image_size:
            large = read_image(io.BytesIO(content), short_side=draw_at, max_pixels=limits.max_pixels)
    except ImageError as error:
        status = _STATUS.get(type(error.__cause__), 422) if content else 422
        raise RequestError(status, f"The image cannot be used: {str(error).removeprefix('image: ')}.") from None
    view = None if draw_at is None else square(large, draw_at)
    image = np.ascontiguousarray(np.asarray(square(decoded, image_size)).transpose(2, 0, 1))
    return DecodedUpload(image, view, full_size(io.BytesIO(content), decoded))
