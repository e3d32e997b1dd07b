"""The pixels of objects, drawn into the square view when asked for: from a mask file, an outline, or a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heedmap.data.decoding import crop_box
from heedmap.errors import DataError

__all__ = [
    "IGNORED",
    "KINDS",
    "NOBODY",
    "OBJECT",
    "FileMask",
    "Mask",
    "OutlineMask",
    "PackedRegions",
    "RunLengths",
    "TensorMask",
    "box_regions",
    "boxes_of_parts",
    "distinct",
    "kind_of",
    "mask_values",
    "square_region",
]

OBJECT, IGNORED = 1, 2
KINDS = ("binary", "indexed", "grey")
"""How the values of mask files are read: ``binary``, all above 0 is object; ``indexed``, each value above 0 is one, and
255 (of colours: VOC's cream) is where nobody may evaluate; ``grey``, 128 and above is object."""

NOBODY = 255  # of indexed masks: where nobody may evaluate
VOC_VOID = 224 << 16 | 224 << 8 | 192
SPECK = 0.01
_INDEX_MOST = 64  # a grey file whose values lie below, but for 255, holds numbers of classes or objects

Bytes = NDArray[np.uint8]


class Mask(Protocol):
    """The pixels of an image's objects."""

    def draw(self, size: int) -> Tensor:
        """Return the square view: uint8 (size, size), 1 on an object, 2 where nobody may evaluate, else 0."""


def square_region(region: Bytes, size: int) -> Tensor:
    """Cut the centred square out of a region (H, W) of 0, 1 and 2, and bring it to ``size`` by the nearest pixel."""
    left, top, right, bottom = crop_box(region.shape[1], region.shape[0])
    square = Image.fromarray(np.ascontiguousarray(region[top:bottom, left:right]))
    if square.size != (size, size):
        square = square.resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(square))


def mask_values(path: Path) -> tuple[NDArray[np.int64], bool]:
    """Read a mask file as numbers: (H, W), indices of a palette, grey values, or colours as one number each.

    Returns:
        The numbers, and whether the file says by a palette or by colours that they are not shades.

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
    """Tell from all values of a folder's masks how they are to be read (see ``KINDS``)."""
    if values <= {0, 1} or values <= {0, 255}:
        return "binary"
    return "indexed" if is_indexed or max(values - {255}) < _INDEX_MOST else "grey"


@dataclass(frozen=True)
class FileMask:
    """A mask in a file.

    Attributes:
        path: the file.
        kind: see ``KINDS``.
        value: of an indexed mask, the one index that is the object; None takes all.
    """

    path: Path
    kind: str
    value: int | None = None

    def numbers(self) -> NDArray[np.int64]:
        """(H, W): 0 off objects, -1 where nobody may evaluate, else the number of the object.

        Raises:
            DataError: the file cannot be decoded.
        """
        values, _ = mask_values(self.path)
        if self.kind == "binary":
            if len(found := distinct(values)) > 2:
                raise DataError(
                    f"{self.path}: the mask holds {len(found)} values where the others hold two; "
                    f"say by mask_kind how to read them ({', '.join(KINDS)})."
                )
            return (values > 0).astype(np.int64)
        if self.kind == "grey":
            return (values >= 128).astype(np.int64)
        ignored = (values == NOBODY) | (values == VOC_VOID)
        chosen = values > 0 if self.value is None else values == self.value
        return np.where(ignored, -1, np.where(chosen, values, 0))

    def draw(self, size: int) -> Tensor:
        """See :class:`Mask`."""
        numbers = self.numbers()
        return square_region(np.where(numbers < 0, IGNORED, (numbers > 0) * OBJECT).astype(np.uint8), size)


@dataclass(frozen=True)
class RunLengths:
    """COCO's run lengths: pixels column by column, turns of 0 and 1, beginning with 0.

    Attributes:
        counts: the lengths.
        size: (height, width).
    """

    counts: tuple[int, ...]
    size: tuple[int, int]

    def pixels(self) -> NDArray[np.bool_]:
        """(H, W) bool."""
        values = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(values, self.counts).reshape(self.size[1], self.size[0]).T

    @classmethod
    def read(cls, counts: str | Sequence[int], size: Sequence[int]) -> RunLengths:
        """Read lengths, or the text that COCO packs them into.

        Each number of that text is cut into groups of five bits, lowest first; a sixth bit says that more follow, the
        fifth of the last is the sign, and from the fourth number on they are differences from the last but one.

        Raises:
            ValueError: the lengths do not fill the image.
        """
        numbers: list[int] = []
        if isinstance(counts, str):
            value = shift = 0
            for letter in counts:
                bits = ord(letter) - 48
                value |= (bits & 31) << shift
                shift += 5
                if bits & 32:
                    continue
                if bits & 16:
                    value -= 1 << shift
                numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
                value = shift = 0
        else:
            numbers = [int(number) for number in counts]
        height, width = int(size[0]), int(size[1])
        if sum(numbers) != height * width or min(numbers, default=0) < 0:
            raise ValueError(f"run lengths of {sum(numbers)} pixels do not fill {width} x {height}")
        return cls(tuple(numbers), (height, width))


Outline = tuple[tuple[float, ...], ...] | RunLengths
"""Polygons (x, y, x, y ... in shares of the whole image), or run lengths."""


@dataclass(frozen=True)
class OutlineMask:
    """Objects by their outlines.

    Attributes:
        outlines: of the objects.
        ignored: of regions where nobody may evaluate.
        image: (width, height) of the whole image in pixels.
    """

    outlines: tuple[Outline, ...]
    ignored: tuple[Outline, ...]
    image: tuple[int, int]

    def draw(self, size: int) -> Tensor:
        """See :class:`Mask`."""
        width, height = self.image
        sheet = np.zeros((height, width), np.uint8)
        for outlines, value in ((self.ignored, IGNORED), (self.outlines, OBJECT)):
            for outline in outlines:
                sheet[outline_pixels(outline, width, height)] = value
        return square_region(sheet, size)


def outline_pixels(outline: Outline, width: int, height: int) -> NDArray[np.bool_]:
    """Draw one outline: (height, width) bool; of a polygon, the pixels whose centres lie within."""
    if isinstance(outline, RunLengths):
        pixels = outline.pixels()
        if pixels.shape == (height, width):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))
    drawn = np.zeros((height, width), bool)
    for polygon in outline:
        drawn |= _polygon_pixels(np.array(polygon).reshape(-1, 2) * (width, height), width, height)
    return drawn


def _polygon_pixels(corners: NDArray[np.float64], width: int, height: int) -> NDArray[np.bool_]:
    """Even-odd rule at pixel centres: a pixel lies within if edges cross its row an odd number of times left of it."""
    ends = np.roll(corners, -1, axis=0)
    row = np.arange(height) + 0.5
    crosses = (corners[:, 1:] <= row) != (ends[:, 1:] <= row)
    edge, line = np.nonzero(crosses)
    (x, y), (step_x, step_y) = corners[edge].T, (ends - corners)[edge].T
    column = np.ceil(x + step_x * (row[line] - y) / step_y - 0.5).clip(0, width).astype(np.int64)
    toggles = np.zeros((height, width + 1), np.int64)
    np.add.at(toggles, (line, column), 1)
    return toggles.cumsum(1)[:, :width] % 2 == 1


@dataclass(frozen=True)
class TensorMask:
    """A mask of the square view in memory: (H, W), bool on the object, or a region as uint8."""

    pixels: Tensor

    def draw(self, size: int) -> Tensor:
        """See :class:`Mask`."""
        return square_region(self.pixels.to(torch.uint8).numpy(), size)


@dataclass(frozen=True)
class PackedRegions:
    """Regions (see :class:`Mask`) of many images at two bits a pixel: 12.5 KB an image of 224 x 224.

    Attributes:
        packed: (N, 2, bytes): the object, and where nobody may evaluate.
        size: side of the regions.
    """

    packed: NDArray[np.uint8]
    size: int

    @classmethod
    def pack(cls, regions: Iterable[Tensor], count: int, size: int) -> PackedRegions:
        """Pack ``count`` regions, uint8 (size, size), one after the other."""
        packed = np.zeros((count, 2, (size * size + 7) // 8), np.uint8)
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
        """Draw regions: uint8 (n, size, size) of rows (n,)."""
        bits = np.unpackbits(self.packed[rows.cpu().numpy()], axis=2, count=self.size**2)
        planes = torch.from_numpy(bits).view(-1, 2, self.size, self.size)
        return OBJECT * planes[:, 0] + IGNORED * planes[:, 1]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[torch.tensor([row])][0] for row in range(len(self)))

    def subset(self, rows: Tensor) -> PackedRegions:
        """Return these rows (n,), still packed."""
        return PackedRegions(self.packed[rows.numpy()], self.size)


def box_regions(boxes: Tensor, size: int) -> Tensor:
    """Draw boxes (G, 4) in shares: uint8 (size, size), 1 where a pixel's centre lies in one of them."""
    centre = (torch.arange(size) + 0.5) / size
    left, top, right, bottom = boxes.T[:, :, None]
    across, down = (left <= centre) & (centre <= right), (top <= centre) & (centre <= bottom)
    return (down[:, :, None] & across[:, None, :]).any(0).to(torch.uint8)


def distinct(values: NDArray[np.int64]) -> list[int]:
    """The values, ascending; by counting where that is faster than sorting a whole image."""
    if values.size and values.min() >= 0 and values.max() < 1 << 16:
        return np.flatnonzero(np.bincount(values.ravel())).tolist()
    return np.unique(values).tolist()


def boxes_of_parts(numbers: NDArray[np.int64], is_split: bool) -> list[tuple[float, float, float, float]]:
    """Tight boxes, in shares of the whole image, of objects (H, W) that are told apart by their number.

    Args:
        numbers: as :meth:`FileMask.numbers` gives them.
        is_split: a box for each connected part of an object, corners touching, that has at least a hundredth of the
            pixels of its largest part; else one for all of it.
    """
    from scipy import ndimage

    height, width = numbers.shape
    boxes = []
    for number in distinct(numbers.clip(0)):
        if number == 0:
            continue
        labels = (numbers == number).astype(np.int32)
        if is_split:
            ndimage.label(labels, np.ones((3, 3)), output=labels)
        pixels = np.bincount(labels.ravel())[1:]
        for (down, across), count in zip(ndimage.find_objects(labels), pixels, strict=True):
            if count >= SPECK * pixels.max():
                boxes.append((across.start / width, down.start / height, across.stop / width, down.stop / height))
    return boxes
