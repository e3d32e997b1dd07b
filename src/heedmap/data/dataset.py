"""Datasets of labelled, named images, in files of a folder or in memory, and their parts: train, validation, test."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from heedmap.config import counted
from heedmap.data.decoding import crop_box, read_image, square, to_tensor
from heedmap.data.masks import PackedRegions
from heedmap.errors import DataError, ImageError, OptionError

MOST_UNREADABLE = 0.02


class ImageDataset(Protocol):
    """One part (train, validation, test) of a dataset.

    Attributes:
        classes: class names, which the labels are indices of.
        labels: (N,) int64.
        names: N paths relative to the data folder with ``/``, or generated ones such as ``test/000123``.
        boxes: (N, 4) float32 ``left, top, right, bottom`` of the object, in fractions of the square view, or None.
        masks: (N, H, W) bool, the object's pixels in the square view, or packed regions, or None.
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
    """Images in files below the folder ``root``, decoded on access. See :class:`ImageDataset` for the attributes.

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
        """Return the square view of one image, or raise as :func:`heedmap.data.decoding.read_image` does."""
        return to_tensor(square(read_image(self.path(index), short_side=size), size))

    def subset(self, indices: Tensor | Sequence[int]) -> FolderDataset:
        """Return these images, in this order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        masks = self.masks.subset(rows) if isinstance(self.masks, PackedRegions) else _rows(self.masks, rows)
        return FolderDataset(
            self.root, [self.names[row] for row in rows.tolist()], self.labels[rows], self.classes, masks
        )

    def with_masks(self, masks: Tensor | PackedRegions) -> FolderDataset:
        """Return the same images with the masks of their objects."""
        return FolderDataset(self.root, self.names, self.labels, self.classes, masks)


class TensorDataset:
    """Images in memory, not copied. See :class:`ImageDataset` for the attributes.

    ``images`` are uint8 RGB (M, 3, H, W), and ``indices`` (N,) the rows of them that these images are, so that subsets
    share one block of memory; None means all of them in order, M = N.

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
        squares = rows[:, :, top:bottom, left:right]
        if squares.shape[2:] == (size, size):
            return squares
        if not len(squares):
            return squares.new_zeros(0, 3, size, size)
        scaled = interpolate(squares.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
        return scaled.round_().clamp_(0, 255).to(torch.uint8)

    def subset(self, indices: Tensor | Sequence[int]) -> TensorDataset:
        """Return these images, in this order, sharing the memory of the pixels."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        boxes, masks = _rows(self.boxes, rows), _rows(self.masks, rows)
        names = [self.names[row] for row in rows.tolist()]
        return TensorDataset(self.images, self.labels[rows], self.classes, names, boxes, masks, self.indices[rows])


def load_many(
    dataset: ImageDataset, indices: Tensor | Sequence[int], size: int, workers: int
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Load the square views of N images in a pool of threads, at least one (Pillow decodes without Python's lock).

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
    """Load images as :func:`load_many` does, or raise ``DataError`` where one cannot be decoded (any more)."""
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


def _check_labels(count: int, labels: Tensor, classes: tuple[str, ...]) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise DataError(f"labels must be int64 ({count},), not {labels.dtype} {tuple(labels.shape)}.")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise DataError(f"labels must lie in 0 .. {len(classes) - 1}, one for each class name.")


@dataclass(frozen=True)
class Splits:
    """A dataset in its parts.

    Attributes:
        name: ``digit-scenes``, a named set, or the folder.
        classes: class names in natural order (``class2`` before ``class10``).
        validation: the images that choose the best epoch; where None, they are taken from ``train``.
        test: the images that are used once, at the end.
        unreadable: (path, reason) of the images left out because they cannot be decoded.
        notes: what was done with the data, in plain sentences.
        flippable: a mirrored image keeps its class. False for digits.
        drawn: the test part is a share of the training images.
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

    def with_test_part(self, share: float, seed: int) -> Splits:
        """Set a share of each class of train apart as the test part, where there is none (:func:`split_by_class`)."""
        if self.test is not None:
            return self
        train, test = split_by_class(self.train.labels, share, seed)
        drawn = f"There is no test part, so {share:.0%} of each class was set apart as one with seed {seed}"
        notes = [*self.notes, f"{drawn}: {_sizes(len(train), len(test))}"]
        counts = torch.bincount(self.train.labels, minlength=len(self.classes)).tolist()
        if single := ", ".join(name for name, count in zip(self.classes, counts, strict=True) if count == 1):
            notes.append(f"One image only, so none to test on: class {single}.")
        return replace(
            self, train=self.train.subset(train), test=self.train.subset(test), notes=tuple(notes), drawn=True
        )

    def without(self, failures: Mapping[str, Sequence[tuple[int, str]]]) -> Splits:
        """Leave out images, part -> (index, reason), and record them in ``unreadable``.

        Raises:
            DataError: a class of train, or the whole of another part, has no readable image left.
        """
        parts, unreadable = self.parts, list(self.unreadable)
        for name, failed in failures.items():
            images, indices = parts[name], {index for index, _ in failed}
            unreadable += [(images.names[index], reason) for index, reason in failed]
            parts[name] = images.subset([index for index in range(len(images)) if index not in indices])
            if failed and name != "train" and not len(parts[name]):
                reason = failed[0][1]
                raise DataError(f"{self.name}: no image of the {name} part can be read; the first says: {reason}.")
        missing = sorted(set(range(len(self.classes))) - set(parts["train"].labels.tolist()))
        if failures.get("train") and missing:
            empty = self.classes[missing[0]]
            raise DataError(f"{self.name}: no image of class {empty!r} can be read; mend its files or leave it out.")
        notes = self.notes
        if self.test is not None:  # the sizes that the note of the draw gives have to be those that are left
            before, after = _sizes(len(self.train), len(self.test)), _sizes(len(parts["train"]), len(parts["test"]))
            notes = tuple(note.replace(before, after) for note in notes)
        named: dict[str, Any] = dict(parts)
        return replace(self, **named, unreadable=tuple(unreadable), notes=notes)

    def check_trainable(self, allow_unreadable: bool = False) -> None:
        """Raise ``DataError`` where more than one image in fifty was left out, or the test part is empty."""
        if self.test is not None and not len(self.test):
            raise DataError(f"{self.name}: no class has two images, so none is left to test on; add some, or 'test'.")
        lost = len(self.unreadable)
        total = lost + sum(map(len, self.parts.values()))
        if lost > MOST_UNREADABLE * total and not allow_unreadable:
            path, reason = self.unreadable[0]
            raise DataError(
                f"{lost} of {total} images cannot be read, the first is {path} ({reason}). `heedmap audit "
                f"{shlex.quote(self.name)}` lists them; --allow-unreadable goes on without them."
            )


def split_by_class(labels: Tensor, share: float, seed: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Set a share of each class of labels (N,) apart, the same one for the same seed.

    At least one image of a class is set apart and never all; a class with a single image keeps it. ``most`` lowers the
    share so that about this many are taken in all. Return ascending int64 indices of those that stay and the others.

    Raises:
        OptionError: ``share`` does not lie between 0 and 1.
    """
    if not 0 < share < 1:
        raise OptionError(f"The share to set apart must lie between 0 and 1, not {share}.")
    if most is not None:
        share = min(share, most / max(1, len(labels)))
    generator = torch.Generator().manual_seed(seed)
    is_taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        indices = (labels == label).nonzero().flatten()
        count = min(max(int(share * len(indices) + 0.5), 1), len(indices) - 1)
        is_taken[indices[torch.randperm(len(indices), generator=generator)[:count]]] = True
    return (~is_taken).nonzero().flatten(), is_taken.nonzero().flatten()


def _sizes(train: int, test: int) -> str:
    return f"{counted(train, 'image')} to learn from, {test:,} to test on."
