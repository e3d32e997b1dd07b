"""Bytes in, the classifier's view of the image out, within bounds."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from heedmap.apps.server.limits import Limits, Refusal
from heedmap.errors import ImageError
from heedmap.inference.reading import DecodedImage, decode

MOST_SCANS = 100
"""A JPEG may repeat a scan over all of its pixels in a few hundred bytes; real ones have ten or so."""


def read_bytes(content: bytes, image_size: int, limits: Limits, draw_at: int | None = None) -> DecodedImage:
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
        return decode(io.BytesIO(content), image_size, draw_at, limits.max_pixels)
    except ImageError as error:
        status = _STATUS.get(type(error.__cause__), 422) if content else 422
        raise Refusal(status, f"The image cannot be used: {str(error).removeprefix('image: ')}.") from None


_STATUS: dict[type, int] = {UnidentifiedImageError: 415, Image.DecompressionBombError: 413}
