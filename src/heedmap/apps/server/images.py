"""Bytes in, the classifier's view of the image out, within the limits."""

import io

from PIL import Image, UnidentifiedImageError

from heedmap.apps.limits import Limits, RequestError
from heedmap.apps.uploads import check_scans
from heedmap.errors import ImageError
from heedmap.inference.reading import DecodedImage, decode

_STATUS: dict[type, int] = {UnidentifiedImageError: 415, Image.DecompressionBombError: 413}


def decode_upload(content: bytes, image_size: int, limits: Limits, draw_at: int | None = None) -> DecodedImage:
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
        return decode(io.BytesIO(content), image_size, draw_at, limits.max_pixels)
    except ImageError as error:
        status = _STATUS.get(type(error.__cause__), 422) if content else 422
        raise RequestError(status, f"The image cannot be used: {str(error).removeprefix('image: ')}.") from None
