"""Decode an image file to upright RGB, and cut the square view that every classifier gets.

Only formats that Pillow decodes by itself are tried; EPS, which would start Ghostscript on a downloaded file, is not.
Colour profiles are not applied: CMYK is turned into RGB by Pillow's plain formula.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from heedmap.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 100_000_000  # images whose header claims more are refused before anything is decoded
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"])
PARTS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
"""Name of a folder, in lower case -> the part of a dataset that it holds."""

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_WHITE_IS_ZERO = 0
# EXIF orientation 2 to 8 -> what turns the stored image into the upright one (EXIF 2.32, section 4.6.4, tag 274).
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_UPRIGHT = {orientation: Image.Transpose[name] for orientation, name in enumerate(_TURNS, 2)}


def read_image(
    path: str | Path | IO[bytes], *, short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode one image to upright RGB.

    EXIF rotation is applied, transparency is laid over white, 16-bit grey is scaled (not clipped) to 8 bits, CMYK is
    converted (Adobe's inverted CMYK too), and of an animation the first frame is taken.

    Args:
        path: a file, or an open binary stream.
        short_side: pixels needed along the short side: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, never below
            that. None decodes at full size.
        max_pixels: refuse more than this; above ``MAX_PIXELS`` it changes nothing.

    Raises:
        ImageError: ``<file>: <reason>`` for a missing, empty, truncated or damaged file, one that is no image, one
            above ``max_pixels``, or one whose samples have no agreed black and white (32-bit and floating point).
    """
    if isinstance(path, str | Path) and _is_special(path):
        raise ImageError(f"{path}: it is a pipe, a socket or a device, not a file")
    try:
        with _pillow_quiet(), Image.open(path, formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > (most := min(max_pixels, MAX_PIXELS)):
                claim = f"{width} x {height} pixels, above the guard of {most / 10**6:g} million"
                raise Image.DecompressionBombError(claim)
            if short_side is not None and opened.format in ("JPEG", "MPO"):
                opened.draft(None, (short_side, short_side))
            opened.load()
            image, turn = _rgb(opened), _UPRIGHT.get(_orientation(opened))
            return image if turn is None else image.transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise anything: struct.error, IndexError, zlib.error ...
        name = path if isinstance(path, str | Path) else getattr(path, "name", "image")
        raise ImageError(f"{name}: {_reason(error, path)}") from error


def crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) in pixels of the centred square that :func:`square` cuts, to half a pixel."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def square(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to ``size`` pixels and crop the centre, in one pass (bilinear, antialiased)."""
    side = min(image.size)
    if side == size:
        return image.crop(crop_box(*image.size))
    # Half pixels count here: in a JPEG decoded at an eighth, half a pixel is four of the original.
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key: ``class2`` before ``class10``, upper and lower case together, the name itself to settle ties."""
    words = re.split(r"([0-9]+)", name)
    return [(int(word), "") if place % 2 else (0, word.casefold()) for place, word in enumerate(words)], name


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as uint8 (3, H, W)."""
    import torch  # the rest of this file is used where there is none

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def plain(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.float().div_(255)


def _is_special(path: str | Path) -> bool:
    """Return whether it exists and is neither file nor folder; reading a pipe would block until somebody writes."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  a million times; a Path for each is slow
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _rgb(image: Image.Image) -> Image.Image:
    # A 16-bit PNG or PGM reaches us as mode I in some versions of Pillow, with white at 65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit samples have no agreed black and white; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips or cuts bits, depending on its version; 65535 must become 255, 257 become 1."""
    samples = np.asarray(image).astype(np.float32)
    tags = getattr(image, "tag_v2", {})
    grey = samples * (255.0 / (2 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1))
    if tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
        grey = 255.0 - grey
    if "transparency" in image.info:
        grey = np.where(samples == image.info["transparency"], 255.0, grey)
    return Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    # Read after loading: Pillow has turned a TIFF upright by then, and a PNG's EXIF may follow its pixels.
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block: every viewer shows the image as stored
        return 1


def _reason(error: Exception, path: str | Path | IO[bytes]) -> str:
    if isinstance(error, Image.DecompressionBombError):
        claim = str(error)
        if "(" in claim:  # Pillow's own: "Image size (N pixels) exceeds limit of ..."
            pixels = claim.partition("(")[2].partition(")")[0]
            claim = f"{pixels}, above the guard of {MAX_PIXELS / 10**6:g} million"
        return f"it claims {claim}; shrink it"
    if isinstance(error, UnidentifiedImageError):
        is_empty = (Path(path).stat().st_size if isinstance(path, str | Path) else path.seek(0, 2)) == 0
        return "the file is empty (0 bytes)" if is_empty else "it is not an image that heedmap reads"
    reasons: dict[type[Exception], str] = {
        FileNotFoundError: "there is no such file",
        IsADirectoryError: "it is a folder",
        PermissionError: "no permission to read it",
    }
    if reason := reasons.get(type(error)):
        return reason
    return f"it is damaged or cannot be decoded ({str(error).strip().splitlines()[0] if str(error) else repr(error)})"


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Silence Pillow's warnings (corrupt EXIF, large image ...), which may be errors to the caller.

    ``catch_warnings`` swaps a global and is not safe between threads, so all decoding threads share one: the first in
    installs the filter and the last out removes it.
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
