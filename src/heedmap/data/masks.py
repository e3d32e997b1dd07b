"""The pixels of objects in the square view, drawn on demand from a mask file, an outline, or a tensor.

Polygons and run lengths are drawn by pycocotools, as for the published figures of the field; at a border that is not on
whole pixels this may differ by a pixel from the rule of pixel centres. Its C code trusts its input (too short run
lengths leave memory uninitialized, a truncated text is read beyond its end), so input is checked before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from heedmap.data.decoding import MAX_PIXELS, crop_box
from heedmap.errors import DataError

OBJECT, IGNORED = 1, 2
KINDS = ("binary", "indexed", "grey")
"""How the values of mask files are read: ``binary``, all above 0 is object; ``indexed``, each value above 0 is one, and
255 (of colours: VOC's cream) is ignored; ``grey``, 128 and above is object."""

VOID = 255  # of indexed masks: pixels that are ignored
_VOC_VOID = 224 << 16 | 224 << 8 | 192
_SPECK = 0.01
_MOST_INDEX = 64  # a grey file whose values lie below, but for 255, holds numbers of classes or objects


class Mask(Protocol):
    """The pixels of an image's objects."""

    def draw(self, size: int) -> Tensor:
        """Return the square view: uint8 (size, size), 1 on an object, 2 where pixels are ignored, else 0."""


def square_region(region: NDArray[np.uint8], size: int) -> Tensor:
    """Cut the centred square out of a region (H, W) of 0, 1 and 2, and resize it to ``size`` by the nearest pixel."""
    left, top, right, bottom = crop_box(region.shape[1], region.shape[0])
    square = Image.fromarray(np.ascontiguousarray(region[top:bottom, left:right]))
    if square.size != (size, size):
        square = square.resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(square))


def mask_values(path: Path) -> tuple[NDArray[np.int64], bool]:
    """Read a mask file as numbers (H, W): indices of a palette, grey values, or colours as one number each.

    Also return whether a palette or colours state that they are not shades.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            if opened.mode in ("P", "L", "1", "I;16", "I"):
                return np.asarray(opened).astype(np.int64), opened.mode == "P"
            colours = np.asarray(opened.convert("RGB")).astype(np.int64)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: the mask cannot be decoded ({error}).") from error
    if (colours == colours[..., :1]).all():
        return colours[..., 0], False
    return colours @ np.array([1 << 16, 1 << 8, 1]), True


def kind_of(values: set[int], is_indexed: bool) -> str:
    """Return from all values of a folder's masks how to read them (see ``KINDS``)."""
    if values <= {0, 1} or values <= {0, 255}:
        return "binary"
    return "indexed" if is_indexed or max(values - {255}) < _MOST_INDEX else "grey"


@dataclass(frozen=True)
class FileMask:
    """A mask in a file, read as ``kind`` (see ``KINDS``); of an indexed one, ``value`` alone, or all, is the object."""

    path: Path
    kind: str
    value: int | None = None

    def numbers(self) -> NDArray[np.int64]:
        """Return (H, W): 0 off objects, -1 where pixels are ignored, else the number of the object.

        Raises:
            DataError: the file cannot be decoded, or holds more values than its kind.
        """
        values, _ = mask_values(self.path)
        if self.kind == "binary":
            if len(different := distinct(values)) > 2:
                kinds = ", ".join(KINDS)
                raise DataError(
                    f"{self.path}: the mask holds {len(different)} values, not two; give mask_kind ({kinds})."
                )
            return (values > 0).astype(np.int64)
        if self.kind == "grey":
            return (values >= 128).astype(np.int64)
        chosen = values > 0 if self.value is None else values == self.value
        return np.where((values == VOID) | (values == _VOC_VOID), -1, np.where(chosen, values, 0))

    def draw(self, size: int) -> Tensor:
        """See :class:`Mask`."""
        numbers = self.numbers()
        return square_region(np.where(numbers < 0, IGNORED, (numbers > 0) * OBJECT).astype(np.uint8), size)


@dataclass(frozen=True)
class RunLengths:
    """COCO's run lengths, packed into text, of a mask of ``size`` (height, width)."""

    counts: bytes
    size: tuple[int, int]

    def pixels(self) -> NDArray[np.bool_]:
        """Return the mask: (H, W) bool."""
        return coco.decode({"size": self.size, "counts": self.counts}).astype(bool)

    @classmethod
    def read(cls, counts: str | Sequence[int], size: Sequence[int]) -> RunLengths:
        """Read lengths, or the text that COCO packs them into.

        Raises:
            ValueError: the lengths do not fill the image, or are no lengths.
        """
        height, width = int(size[0]), int(size[1])
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise ValueError(f"run lengths of an image of {width} x {height}")
        unfit = ValueError(f"run lengths that do not fill {width} x {height}")
        try:
            if isinstance(counts, str):
                packed = counts.encode("ascii")
                if not packed or (packed[-1] - 48) & 32:  # the text ends within a number
                    raise unfit
            else:
                lengths = {"size": [height, width], "counts": [int(number) for number in counts]}
                packed = coco.frPyObjects(lengths, height, width)["counts"]
            coco.decode({"size": [height, width], "counts": packed})  # fails where they are too long
        except (ValueError, OverflowError):
            raise unfit from None
        try:
            coco.decode({"size": [1, height * width - 1], "counts": packed})
        except ValueError:
            return cls(packed, (height, width))
        raise unfit  # they fit into a smaller image


Outline = tuple[tuple[float, ...], ...] | RunLengths
"""Polygons (x, y, x, y ... in fractions of the whole image), or run lengths."""


@dataclass(frozen=True)
class OutlineMask:
    """Outlines of objects and of ignored regions in an ``image`` of (width, height) pixels."""

    outlines: tuple[Outline, ...]
    ignored: tuple[Outline, ...]
    image: tuple[int, int]

    def draw(self, size: int) -> Tensor:
        """See :class:`Mask`."""
        width, height = self.image
        region = np.zeros((height, width), np.uint8)
        for outlines, value in ((self.ignored, IGNORED), (self.outlines, OBJECT)):
            for outline in outlines:
                region[_outline_pixels(outline, width, height)] = value
        return square_region(region, size)


def _outline_pixels(outline: Outline, width: int, height: int) -> NDArray[np.bool_]:
    """Draw one outline: (height, width) bool."""
    if isinstance(outline, RunLengths):
        pixels = outline.pixels()
        if pixels.shape == (height, width):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))
    # Two points have no area (pycocotools would take them for a box). Its time grows with the distance between points.
    polygons = [np.clip(polygon, -1, 2).reshape(-1, 2) * (width, height) for polygon in outline if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), bool)
    encoded = coco.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    return coco.decode(coco.merge(encoded)).astype(bool)


@dataclass(frozen=True)
class TensorMask:
    """A mask of the square view in memory: (H, W), bool on the object, or a region as uint8."""

    pixels: Tensor

    def draw(self, size: int) -> Tensor:
        """See :class:`Mask`."""
        return square_region(self.pixels.to(torch.uint8).numpy(), size)


@dataclass(frozen=True)
class PackedRegions:
    """Regions (see :class:`Mask`) of many images, ``size`` pixels wide, at two bits a pixel.

    ``packed`` is (N, 2, bytes): the object, and where pixels are ignored.
    """

    packed: NDArray[np.uint8]
    size: int

    @classmethod
    def pack(cls, regions: Iterable[Tensor], count: int, size: int) -> PackedRegions:
        """Pack ``count`` regions, uint8 (size, size), one after the other."""
        packed = np.zeros((count, 2, math.ceil(size * size / 8)), np.uint8)
        for row, region in enumerate(regions):
            pixels = region.numpy().reshape(1, -1)
            packed[row] = np.packbits(np.concatenate((pixels == OBJECT, pixels == IGNORED)), axis=1)
        return cls(packed, size)

    @property
    def marked(self) -> int:
        """How many images have an object."""
        return int(self.packed[:, 0].any(1).sum())

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the regions of rows (n,): uint8 (n, size, size)."""
        bits = np.unpackbits(self.packed[rows.cpu().numpy()], axis=2, count=self.size**2)
        planes = torch.from_numpy(bits).view(-1, 2, self.size, self.size)
        return OBJECT * planes[:, 0] + IGNORED * planes[:, 1]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[torch.tensor([row])][0] for row in range(len(self)))

    def subset(self, rows: Tensor) -> PackedRegions:
        """Return these rows (n,), still packed."""
        return PackedRegions(self.packed[rows.numpy()], self.size)


def distinct(values: NDArray[np.int64]) -> list[int]:
    """Return the distinct values, ascending; by counting where that is faster than sorting a whole image."""
    if values.size and values.min() >= 0 and values.max() < 1 << 16:
        return np.flatnonzero(np.bincount(values.ravel())).tolist()
    return np.unique(values).tolist()


def component_boxes(numbers: NDArray[np.int64], is_split: bool) -> list[tuple[float, float, float, float]]:
    """Return tight boxes, in fractions of the whole image, of objects (see :meth:`FileMask.numbers`).

    ``is_split`` gives a box to each connected component of an object, corners touching, that has at least a hundredth
    of the pixels of its largest one; else there is one for all of the object.
    """
    from scipy import ndimage

    height, width = numbers.shape
    boxes = []
    for number in distinct(numbers[numbers > 0]):
        labels = (numbers == number).astype(np.int32)
        if is_split:
            ndimage.label(labels, np.ones((3, 3)), output=labels)
        pixels = np.bincount(labels.ravel())[1:]
        for (down, across), count in zip(ndimage.find_objects(labels), pixels, strict=True):
            if count >= _SPECK * pixels.max():
                boxes.append((across.start / width, down.start / height, across.stop / width, down.stop / height))
    return boxes
