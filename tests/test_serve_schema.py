"""The service against its own description: what OpenAPI promises is fuzzed and must hold."""

import io

import numpy as np
import pytest
from PIL import Image

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(file, kind)
    return file.getvalue()


IMAGES = hypothesis.strategies.sampled_from([image(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")])
KINDS = ("jpeg", "png", "webp", "gif", "bmp", "tiff")
for _kind in (*(f"image/{kind}" for kind in KINDS), "application/octet-stream"):
    schemathesis.openapi.media_type(_kind, IMAGES)
