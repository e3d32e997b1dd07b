"""What a part of a data set is to the rest of the package: images with labels and names, loaded as squares."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from heedmap.data.decoding import crop_box, read_image, square, to_tensor
from heedmap.data.masks import PackedRegions
from heedmap.errors import DataError, ImageError

__all__ = ["FileDataset", "FolderDataset", "ImageDataset", "Splits", "TensorDataset", "empty_images", "load_many"]


class ImageDataset(Protocol):
    """One part (train, validation, test) of a data set.

    Attributes:
        classes: class names; a label is a place in this tuple.
        labels: (N,) int64.
        names: N paths relative to the data folder with ``/``, or made up ones such as ``test/000123``.
        boxes: (N, 4) float32 ``left, top, right, bottom`` of the object in the square view, as shares in [0, 1];
            None where they are not known.
        masks: (N, H, W) bool, the object's pixels in the square view, or packed regions; None where they are not known.
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
        """Return these images, in this order, as a part of their own; nothing is decoded or copied needlessly."""


@runtime_checkable
class FileDataset(ImageDataset, Protocol):
    """Images that have a file each, on the disk or within another file."""

    def data(self, index: int) -> bytes:
        """Return the content of one image's file."""

    def length(self, index: int) -> int:
        """Return the number of its bytes."""


class FolderDataset:
    """Images in files under a folder, decoded when asked for. See :class:`ImageDataset` for the attributes."""

    boxes: Tensor | None = None

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str],
        labels: Tensor,
        classes: Sequence[str],
        masks: Tensor | PackedRegions | None = None,
    ) -> None:
        """Keep the list.

        Args:
            root: the data folder.
            names: N paths relative to ``root``.
            labels: (N,) int64.
            classes: class names.
            masks: (N, S, S) bool, the objects' pixels in the square view, or packed regions, or None.

        Raises:
            DataError: names and labels differ in number, or a label lies outside the classes.
        """
        self.root = Path(root)
        self.names = tuple(names)
        self.labels = labels
        self.classes = tuple(classes)
        self.masks = masks
        _check_labels(len(self.names), labels, self.classes)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.root / self.names[index]

    def data(self, index: int) -> bytes:
        """Return the content of one image's file.

        Raises:
            OSError: it cannot be read.
        """
        return self.path(index).read_bytes()

    def length(self, index: int) -> int:
        """Return the number of its bytes.

        Raises:
            OSError: it is not there.
        """
        return self.path(index).stat().st_size

    def load(self, index: int, size: int) -> Tensor:
        """Return the square view of one image: uint8 RGB (3, size, size).

        Raises:
            ImageError: the file cannot be decoded; see :func:`heedmap.data.decoding.read_image`.
        """
        return to_tensor(square(read_image(self.path(index), short_side=size), size))

    def subset(self, indices: Tensor | Sequence[int]) -> FolderDataset:
        """Return these images, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        names = [self.names[index] for index in chosen.tolist()]
        masks = self.masks.subset(chosen) if isinstance(self.masks, PackedRegions) else self.masks
        masks = masks[chosen] if isinstance(masks, Tensor) else masks
        return FolderDataset(self.root, names, self.labels[chosen], self.classes, masks)

    def outlined(self, masks: Tensor | PackedRegions) -> FolderDataset:
        """Return the same images with the masks of their objects."""
        return FolderDataset(self.root, self.names, self.labels, self.classes, masks)


class TensorDataset:
    """Images in memory. See :class:`ImageDataset` for the attributes."""

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
        """Keep the tensors, without a copy.

        Args:
            images: uint8 RGB (M, 3, H, W).
            labels: (N,) int64.
            classes: class names.
            names: N names.
            boxes: (N, 4) shares in [0, 1], or None.
            masks: (N, h, w) bool, or None.
            indices: (N,) int64, the rows of ``images`` that these images are (subsets share one block of memory);
                None means all of them in order, M = N.

        Raises:
            DataError: ``images`` is not uint8 (M, 3, H, W), sizes disagree, a label lies outside the classes, or boxes
                or masks come with images that are not square (they describe the square view).
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise DataError(f"images must be uint8 (N, 3, H, W), not {images.dtype} {tuple(images.shape)}.")
        self.images = images
        self.labels = labels
        self.classes = tuple(classes)
        self.names = tuple(names)
        self.boxes = boxes
        self.masks = masks
        self.indices = torch.arange(len(images)) if indices is None else indices
        _check_labels(len(self.indices), labels, self.classes)
        self._check_companions()

    def _check_companions(self) -> None:
        for word, thing in (("names", self.names), ("boxes", self.boxes), ("masks", self.masks)):
            if thing is not None and len(thing) != len(self.labels):
                raise DataError(f"{len(thing)} {word} do not fit {len(self.labels)} labels; give one for each image.")
        located = self.boxes is not None or self.masks is not None
        if located and self.images.shape[2] != self.images.shape[3]:
            raise DataError(f"boxes and masks need square images, not {tuple(self.images.shape[2:])}.")

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
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        names = [self.names[index] for index in chosen.tolist()]
        boxes = None if self.boxes is None else self.boxes[chosen]
        masks = None if self.masks is None else self.masks[chosen]
        labels, rows = self.labels[chosen], self.indices[chosen]
        return TensorDataset(self.images, labels, self.classes, names, boxes, masks, rows)


@dataclass(frozen=True)
class Splits:
    """A data set in its parts.

    Attributes:
        name: ``digit-scenes``, a named set, or the folder.
        classes: class names in natural order (``class2`` before ``class10``).
        train: the images to learn from.
        validation: the images to choose the model by, where the data set brings such a part; else None, and they are
            taken from ``train`` (:func:`heedmap.data.folders.split_by_class`).
        test: the images that are touched once, at the end.
        unreadable: (path, reason) of the images left out because they cannot be decoded.
        notes: what was done with the data, in plain sentences.
        flippable: a mirrored image keeps its class. False for digits.
        drawn: the test part is a share of images that came without one.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset | None
    unreadable: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    flippable: bool = True
    drawn: bool = False

    @property
    def parts(self) -> dict[str, ImageDataset]:
        """The parts that exist: ``train``, ``validation``, ``test`` -> images."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}


def load_many(
    dataset: ImageDataset, indices: Tensor | Sequence[int], size: int, workers: int
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Load the square views of many images, in a pool of threads (Pillow decodes without Python's lock).

    Args:
        images: where they come from.
        indices: N places in ``images``.
        size: side in pixels.
        workers: threads, 1 or more.

    Returns:
        uint8 (N, 3, size, size) in the order of ``indices``, a pixel's channels side by side (channels_last); and for
        each image that cannot be decoded its place in ``images`` with the reason; its row is black and not to be
        used.
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
            return reason_without_path(error, path)
        return None

    reasons: list[str | None] = []
    with ThreadPoolExecutor(workers) as pool:
        for block in torch.arange(len(chosen)).split(4096):  # Ctrl-C waits for one block, not for a million files
            reasons += pool.map(load, block.tolist(), chosen[block].tolist())
    return images, [(index, reason) for index, reason in zip(chosen.tolist(), reasons, strict=True) if reason]


def empty_images(count: int, size: int) -> Tensor:
    """Return room for images: uint8 (count, 3, size, size), a pixel's channels side by side (channels_last)."""
    return torch.empty((count, 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)


def reason_without_path(error: ImageError, path: str | Path) -> str:
    """Return the reason alone out of the ``<file>: <reason>`` of an image that could not be decoded."""
    return str(error).removeprefix(f"{path}: ")


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
