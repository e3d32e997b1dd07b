"""One image file in, RGB as a person sees it out; and the square view that every classifier gets.

Only formats that Pillow decodes by itself are tried. In particular EPS, which would start Ghostscript on a file that
somebody downloaded, is not. Colour profiles are not applied: CMYK is turned into RGB by Pillow's plain formula.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from heedmap.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "crop_box", "read_image", "square", "to_tensor"]

MAX_PIXELS = 100_000_000
"""Images whose header promises more pixels than this are refused before anything is decoded."""

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"])
"""Endings, in lower case, of the files that are taken for images."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_ORIENTATION_TAG = 0x0112
_WHITE_IS_ZERO = 0
_BITS_TAG, _PHOTOMETRIC_TAG = 258, 262

# EXIF orientation -> what turns the stored image into the upright one (EXIF 2.32, section 4.6.4, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: str | Path | IO[bytes], *, short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode one image to RGB as a person sees it.

    EXIF rotation is applied, transparency is laid over white, 16-bit grey is scaled (not clipped) to 8 bits, CMYK is
    converted (Adobe's inverted CMYK too), and of an animation the first frame is taken.

    Args:
        path: a file, or an open binary stream.
        short_side: where only this many pixels along the short side are needed, a JPEG is decoded at 1/2, 1/4 or 1/8
            of its size, never below ``short_side``. None decodes at full size.
        max_pixels: refuse more than this; above ``MAX_PIXELS`` it changes nothing.

    Returns:
        An ``RGB`` image, detached from the file.

    Raises:
        ImageError: ``<file>: <reason>`` for a missing, empty, truncated or damaged file, one that is no image, one
            above ``max_pixels``, or one whose samples have no agreed black and white (32-bit and floating point).
    """
    if isinstance(path, str | Path) and _is_special(path):
        raise ImageError(f"{path}: it is a pipe, a socket or a device, not a file")
    try:
        with _pillow_quiet(), Image.open(path, formats=_FORMATS) as opened:
            _check_size(opened, min(max_pixels, MAX_PIXELS))
            if short_side is not None and opened.format in ("JPEG", "MPO"):
                opened.draft(None, (short_side, short_side))
            opened.load()
            return _upright(_rgb(opened), _orientation(opened))
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise anything: struct.error, IndexError, zlib.error ...
        raise ImageError(f"{_name(path)}: {_reason(error, path)}") from error


def crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) in pixels: the centred square that :func:`square` keeps, to half a pixel."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def square(image: Image.Image, size: int) -> Image.Image:
    """Return the centred square of an image at ``size`` x ``size`` pixels (bilinear, antialiased).

    The same as resizing the short side to ``size`` and cropping the centre, in one pass.
    """
    side = min(image.size)
    if side == size:
        return image.crop(crop_box(*image.size))
    # Half pixels count here: in a JPEG decoded at an eighth, half a pixel is four of the original.
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as uint8 (3, H, W)."""
    import torch  # the rest of this file is used where there is none

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _is_special(path: str | Path) -> bool:
    """Whether it is there and neither file nor folder; a pipe would be waited for until somebody writes into it."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  a million times; a Path for each is slow
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _check_size(image: Image.Image, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, above the guard of {_millions(most)} million")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        return _from_wide(image)
    if not _has_transparency(image):
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _has_transparency(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"):
        return True
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips or cuts bits, depending on its version; 65535 must become 255, 257 become 1."""
    samples = np.asarray(image).astype(np.float32)
    tags = getattr(image, "tag_v2", {})
    grey = samples * (255.0 / (2 ** tags.get(_BITS_TAG, (16,))[0] - 1))
    if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        grey = 255.0 - grey
    if "transparency" in image.info:
        grey = np.where(samples == image.info["transparency"], 255.0, grey)
    return Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8)).convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    # A 16-bit PNG or PGM reaches us as mode I in some versions of Pillow, with white at 65535.
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        grey = np.rint(np.asarray(image) / 257.0).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    raise ValueError("32-bit samples have no agreed black and white; save it with 8 or 16 bits")


def _orientation(image: Image.Image) -> int:
    # Read after loading: Pillow has turned a TIFF upright by then, and a PNG's EXIF may follow its pixels.
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block: every viewer shows the image as stored
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _name(path: str | Path | IO[bytes]) -> str:
    return str(path) if isinstance(path, str | Path) else str(getattr(path, "name", "image"))


def _reason(error: Exception, path: str | Path | IO[bytes]) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims {_claimed(error)}; shrink it"
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty (0 bytes)" if _is_empty(path) else "it is not an image that heedmap reads"
    for kind, reason in _FILE_TROUBLE.items():
        if isinstance(error, kind):
            return reason
    return f"it is damaged or cannot be decoded ({str(error).strip().splitlines()[0] if str(error) else repr(error)})"


_FILE_TROUBLE: dict[type[Exception], str] = {
    FileNotFoundError: "there is no such file",
    IsADirectoryError: "it is a folder",
    PermissionError: "no permission to read it",
}


def _claimed(error: Exception) -> str:
    # Pillow's sentence is "Image size (N pixels) exceeds limit of ...", ours is "W x H pixels, above ...".
    text = str(error)
    if "(" not in text:
        return text
    return f"{text.partition('(')[2].partition(')')[0]}, above the guard of {_millions(MAX_PIXELS)} million"


def _millions(pixels: int) -> str:
    return f"{pixels / 10**6:g}"


def _is_empty(path: str | Path | IO[bytes]) -> bool:
    if isinstance(path, str | Path):
        return Path(path).stat().st_size == 0
    return path.seek(0, 2) == 0


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Keep Pillow's warnings (corrupt EXIF, large image ...) from leaking, or from becoming errors half way.

    ``catch_warnings`` swaps a global and is not safe between threads, so all decoding threads share one: the first in
    installs the filter and the last out takes it away.
    """
    global _quiet_users, _quiet_filters
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                _quiet_filters.__exit__(None, None, None)
