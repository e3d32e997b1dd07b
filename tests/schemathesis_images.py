"""What schemathesis sends where an image is asked for: real ones of several kinds."""

import io

import numpy as np
import schemathesis
from hypothesis import strategies
from PIL import Image


def _image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(300).reshape(10, 10, 3).astype(np.uint8)).save(file, kind)
    return file.getvalue()


_IMAGES = strategies.sampled_from([_image(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")])
for _kind in (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/tiff",
    "application/octet-stream",
):
    schemathesis.openapi.media_type(_kind, _IMAGES)
schemathesis.openapi.format("binary", _IMAGES)
