"""Datasets of labelled, named images: in files of a folder, or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from heedmap.data.decoding import crop_box, read_image, square, to_tensor
from heedmap.data.masks import PackedRegions
from heedmap.errors import DataError, ImageError


class ImageDataset(Protocol):
    """One part (train, validation, test) of a dataset.

    Attributes:
        classes: class names; a label is an index into this tuple.
        labels: (N,) int64.
        names: N paths relative to the data folder with ``/``, or generated ones such as ``test/000123``.
        boxes: (N, 4) float32 ``left, top, right, bottom`` of the object in the square view, as fractions in [0, 1];
            None if unknown.
        masks: (N, H, W) bool, the object's pixels in the square view, or packed regions; None if unknown.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def labels(self) -> Tensor: ...  # noqa: D102
    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def boxes(self) -> Tensor | None: ...  # noqa: D102
    @property
    def masks(self) -> Tensor | PackedRegions | None: ...  # noqa: D102

    def __len__(self) -> int: ...

    def load(self, index: int, size: int) -> Tensor:
        """Return the square view of one image: uint8 RGB (3, size, size)."""

    def subset(self, indices: Tensor | Sequence[int]) -> ImageDataset:
        """Return these images, in this order, as a dataset of their own; no pixels are decoded or copied."""


@runtime_checkable
class FileDataset(ImageDataset, Protocol):
    """Images that have a file each, on the disk or inside another file."""

    def data(self, index: int) -> bytes:
        """Return the content of one image's file."""

    def length(self, index: int) -> int:
        """Return the number of its bytes."""


class FolderDataset:
    """Images in files below a folder, decoded on access. See :class:`ImageDataset` for the attributes.

    Args:
        root: the data folder.
        names: N paths relative to ``root``.
        labels: (N,) int64.
        classes: class names.
        masks: (N, S, S) bool, the objects' pixels in the square view, or packed regions, or None.

    Raises:
        DataError: names and labels differ in number, or a label lies outside the classes.
    """

    boxes: Tensor | None = None

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str],
        labels: Tensor,
        classes: Sequence[str],
        masks: Tensor | PackedRegions | None = None,
    ) -> None:
        self.root, self.names, self.labels, self.classes = Path(root), tuple(names), labels, tuple(classes)
        self.masks = masks
        _check_labels(len(self.names), labels, self.classes)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.root / self.names[index]

    def data(self, index: int) -> bytes:
        """Return the content of one image's file, or raise ``OSError``."""
        return self.path(index).read_bytes()

    def length(self, index: int) -> int:
        """Return the number of its bytes, or raise ``OSError``."""
        return self.path(index).stat().st_size

    def load(self, index: int, size: int) -> Tensor:
        """Return the square view of one image: uint8 RGB (3, size, size).

        Raises:
            ImageError: the file cannot be decoded; see :func:`heedmap.data.decoding.read_image`.
        """
        return to_tensor(square(read_image(self.path(index), short_side=size), size))

    def subset(self, indices: Tensor | Sequence[int]) -> FolderDataset:
        """Return these images, in this order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        masks = self.masks.subset(rows) if isinstance(self.masks, PackedRegions) else _rows(self.masks, rows)
        return FolderDataset(self.root, _names(self.names, rows), self.labels[rows], self.classes, masks)

    def with_masks(self, masks: Tensor | PackedRegions) -> FolderDataset:
        """Return the same images with the masks of their objects."""
        return FolderDataset(self.root, self.names, self.labels, self.classes, masks)


class TensorDataset:
    """Images in memory, not copied. See :class:`ImageDataset` for the attributes.

    Args:
        images: uint8 RGB (M, 3, H, W).
        labels: (N,) int64.
        classes: class names.
        names: N names.
        boxes: (N, 4) fractions in [0, 1], or None.
        masks: (N, h, w) bool, or None.
        indices: (N,) int64, the rows of ``images`` that these images are, so that subsets share one block of memory;
            None means all of them in order, M = N.

    Raises:
        DataError: ``images`` is not uint8 (M, 3, H, W), sizes disagree, a label lies outside the classes, or boxes or
            masks come with images that are not square (they describe the square view).
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        names: Sequence[str],
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise DataError(f"images must be uint8 (N, 3, H, W), not {images.dtype} {tuple(images.shape)}.")
        self.images, self.labels, self.classes, self.names = images, labels, tuple(classes), tuple(names)
        self.boxes, self.masks = boxes, masks
        self.indices = torch.arange(len(images)) if indices is None else indices
        _check_labels(len(self.indices), labels, self.classes)
        for word, values in (("names", self.names), ("boxes", boxes), ("masks", masks)):
            if values is not None and len(values) != len(labels):
                raise DataError(f"{len(values)} {word} do not fit {len(labels)} labels; give one for each image.")
        if (boxes is not None or masks is not None) and images.shape[2] != images.shape[3]:
            raise DataError(f"boxes and masks need square images, not {tuple(images.shape[2:])}.")

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, size: int) -> Tensor:
        """Return the square view of one image: uint8 RGB (3, size, size), bilinear antialiased where sizes differ."""
        return self.load_rows([index], size)[0]

    def load_rows(self, indices: Tensor | Sequence[int], size: int) -> Tensor:
        """Return the square views of several images at once: uint8 (n, 3, size, size)."""
        rows = self.images[self.indices[torch.as_tensor(indices, dtype=torch.int64)]]
        left, top, right, bottom = crop_box(rows.shape[3], rows.shape[2])
        return _resized(rows[:, :, top:bottom, left:right], size)

    def subset(self, indices: Tensor | Sequence[int]) -> TensorDataset:
        """Return these images, in this order, sharing the memory of the pixels."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        boxes, masks = _rows(self.boxes, rows), _rows(self.masks, rows)
        names, labels, indices = _names(self.names, rows), self.labels[rows], self.indices[rows]
        return TensorDataset(self.images, labels, self.classes, names, boxes, masks, indices)


def load_many(
    dataset: ImageDataset, indices: Tensor | Sequence[int], size: int, workers: int
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Load the square views of many images, in a pool of threads (Pillow decodes without Python's lock).

    Args:
        dataset: where they come from.
        indices: N indices into ``dataset``.
        size: side in pixels.
        workers: threads; 0 is taken for one.

    Returns:
        uint8 (N, 3, size, size) in the order of ``indices`` and in memory format channels_last; and for each image that
        cannot be decoded its index with the reason: its row is black and not to be used.
    """
    chosen = torch.as_tensor(indices, dtype=torch.int64)
    if isinstance(dataset, TensorDataset):
        images = empty_images(len(chosen), size)
        for rows, block in zip(images.split(256), chosen.split(256), strict=True):
            rows.copy_(dataset.load_rows(block, size))
        return images, []
    images = empty_images(len(chosen), size).zero_()
    rows = images.numpy()  # numpy copies an image on this thread alone; torch would wake its own pool for each

    def load(row: int, index: int) -> str | None:
        try:
            rows[row] = dataset.load(index, size).numpy()
        except ImageError as error:
            path = dataset.path(index) if isinstance(dataset, FolderDataset) else dataset.names[index]
            return str(error).removeprefix(f"{path}: ")
        return None

    reasons: list[str | None] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for block in torch.arange(len(chosen)).split(4096):  # Ctrl-C waits for one block, not for a million files
            reasons += pool.map(load, block.tolist(), chosen[block].tolist())
    return images, [(index, reason) for index, reason in zip(chosen.tolist(), reasons, strict=True) if reason]


def load_all(dataset: ImageDataset, indices: Tensor | Sequence[int], size: int, workers: int) -> Tensor:
    """Load images that could be decoded when the data was opened; see :func:`load_many`.

    Raises:
        DataError: one of them cannot be decoded any more.
    """
    images, failed = load_many(dataset, indices, size, workers)
    if failed:
        index, reason = failed[0]
        raise DataError(f"{dataset.names[index]}: {reason}. Remove the file and start again.")
    return images


def empty_images(count: int, size: int) -> Tensor:
    """Return uninitialized images: uint8 (count, 3, size, size) in memory format channels_last."""
    return torch.empty((count, 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _names(names: Sequence[str], rows: Tensor) -> list[str]:
    return [names[row] for row in rows.tolist()]


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[2:] == (size, size):
        return images
    if len(images) == 0:
        return images.new_zeros(0, 3, size, size)
    scaled = interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def _check_labels(count: int, labels: Tensor, classes: tuple[str, ...]) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise DataError(f"labels must be int64 ({count},), not {labels.dtype} {tuple(labels.shape)}.")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise DataError(f"labels must lie in 0 .. {len(classes) - 1}, one for each class name.")
