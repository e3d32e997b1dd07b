"""A PNG encoder for panels, in a third of the time that the general one takes."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # the filter that stores what differs from the pixel above
_LEVEL = 1


def png(image: Image.Image) -> bytes:
    """Encode an RGB image without loss (PNG specification, third edition, 5 and 9).

    Every line is filtered by the line above. Pillow tries all five filters on each line, which took longer than all
    else about a panel of paper, text and photographs, for files a tenth smaller.
    """
    pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    lines = pixels.reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.data, _LEVEL)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
