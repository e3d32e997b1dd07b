"""Shards as a data set: which part each is, what the labels are, and their images."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from heedmap.config import counted
from heedmap.data.dataset import Splits
from heedmap.data.decoding import read_image, square, to_tensor
from heedmap.data.folders import find_splits, split_by_class
from heedmap.data.parts import PARTS, natural
from heedmap.data.webdataset.index import (
    ShardIndex,
    expand_shards,
    index_shard,
    is_numbered,
    listed_classes,
    read_member,
)
from heedmap.errors import DataError

__all__ = ["ShardDataset", "open_shards"]


class _Named(io.BytesIO):
    """Bytes that errors can call by a name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


class ShardDataset:
    """Images in shards, decoded when asked for. See :class:`heedmap.data.dataset.ImageDataset` for the attributes.

    Args:
        shards: the tar files.
        places: (N, 3) int64: which shard, offset, and size in bytes.
        names: N names, ``SHARD/MEMBER``.
        labels: (N,) int64.
        classes: class names.
    """

    boxes: Tensor | None = None
    masks: Tensor | None = None

    def __init__(
        self, shards: Sequence[Path], places: Tensor, names: Sequence[str], labels: Tensor, classes: Sequence[str]
    ) -> None:
        self.shards, self.places = tuple(shards), places
        self.names, self.labels, self.classes = tuple(names), labels, tuple(classes)

    def __len__(self) -> int:
        return len(self.names)

    def data(self, index: int) -> bytes:
        """Return the file of one image as it stands in the shard.

        Raises:
            ImageError: see :func:`read_member`.
        """
        shard, offset, size = self.places[index].tolist()
        return read_member(self.shards[shard], offset, size, self.names[index])

    def length(self, index: int) -> int:
        """Return the number of bytes of that file."""
        return int(self.places[index, 2])

    def load(self, index: int, size: int) -> Tensor:
        """Return the square view of one image: uint8 RGB (3, size, size).

        Raises:
            ImageError: it cannot be decoded; see :func:`heedmap.data.decoding.read_image`.
        """
        stream = _Named(self.data(index), self.names[index])
        return to_tensor(square(read_image(stream, short_side=size), size))

    def subset(self, indices: Tensor | Sequence[int]) -> ShardDataset:
        """Return these images, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        names = [self.names[index] for index in chosen.tolist()]
        return ShardDataset(self.shards, self.places[chosen], names, self.labels[chosen], self.classes)


def open_shards(data: str | Path, *, test: float = 0.2, seed: int = 0, cache: Path | None = None) -> Splits:
    """Read the index of each shard and make parts and classes of them.

    Parts are told by folder (``DIR/train/*.tar``) or by the beginning of the name (``DIR/train-*.tar``); shards without
    either are all to learn from, and a share of each class is set apart as the test part.

    Args:
        data: a folder, a tar file, or a pattern such as ``shards/train-{000..009}.tar``.
        test: share in (0, 1) of each class to set apart where there is no test part.
        seed: of that draw.
        cache: see :func:`heedmap.data.webdataset.index.index_shard`.

    Raises:
        DataError: no shards, a damaged one, images without labels, labels that do not fit the classes, or one class.
    """
    parts = _parts(data)
    indexes = {part: [index_shard(path, cache) for path in shards] for part, shards in parts.items()}
    _check(indexes)
    classes, numbered = _classes(Path(data), indexes)
    opened = {part: _images(indexes[part], classes, numbered) for part in indexes}
    notes = [
        f"{part}: {counted(len(opened[part]), 'image')} in {counted(len(shards), 'shard')}."
        for part, shards in parts.items()
    ]
    passed = sum(index.passed_over for each in indexes.values() for index in each)
    if passed:
        notes.append(f"Members of shards that are neither image nor label, passed over: {passed:,}.")
    if "test" not in opened and "validation" in opened:
        opened["test"] = opened.pop("validation")
        notes.append("There are no test shards, so those of validation are the test part.")
    train = opened["train"]
    _check_train(train, str(data))
    splits = Splits(str(data), classes, train, opened.get("validation"), opened.get("test"), notes=tuple(notes))
    if splits.test is not None:
        return splits
    kept, taken = split_by_class(train.labels, test, seed)
    notes.append(f"There are no test shards, so {test:.0%} of each class was set apart with seed {seed}.")
    return replace(splits, train=train.subset(kept), test=train.subset(taken), notes=tuple(notes), drawn=True)


def _parts(data: str | Path) -> dict[str, list[Path]]:
    path = Path(data).expanduser()
    if not path.is_dir():
        return {"train": expand_shards(data)}
    if found := find_splits(path):
        return {part: expand_shards(folder) for part, folder in found.items()}
    shards = expand_shards(path)
    begun: dict[str, list[Path]] = {}
    for shard in shards:
        part = PARTS.get(re.split(r"[-_.\d]", shard.name.lower(), maxsplit=1)[0])
        if part is not None:
            begun.setdefault(part, []).append(shard)
    if "train" in begun and sum(map(len, begun.values())) < len(shards):
        other = next(shard for shard in shards if not any(shard in each for each in begun.values()))
        raise DataError(f"{path}: shard {other.name} is named like no part, beside those that are; move it away.")
    return begun if "train" in begun else {"train": shards}


def _check(indexes: Mapping[str, Sequence[ShardIndex]]) -> None:
    for index in (index for each in indexes.values() for index in each):
        if index.trouble:
            raise DataError(f"Shard {index.path}: {index.trouble}; copy or pack it anew, or leave it out.")
        if None in index.labels:
            name = index.names[index.labels.index(None)]
            raise DataError(
                f"Shard {index.path}: image {name} has no label; give it a .cls, .json or .txt of the same key, or a "
                "folder named like its class."
            )


def _classes(data: Path, indexes: Mapping[str, Sequence[ShardIndex]]) -> tuple[tuple[str, ...], bool]:
    """The class names, and whether labels are their numbers."""
    words = {str(label) for each in indexes.values() for index in each for label in index.labels}
    home, numbered = indexes["train"][0].path.parent, is_numbered(words)
    listed = listed_classes(*((data,) if data.is_dir() else (home, home.parent)))
    if listed is not None:
        place, names = listed
        numbered = numbered and not words <= set(names)
        unknown = sorted(w for w in words if (int(w) >= len(names) if numbered else w not in names))
        if unknown:
            raise DataError(f"{place} has {len(names)} names, and label {unknown[0]!r} is none of them.")
        return names, numbered
    if numbered:
        return tuple(map(str, range(max(map(int, words), default=-1) + 1))), True
    return tuple(sorted(words, key=natural)), False


def _images(indexes: Sequence[ShardIndex], classes: tuple[str, ...], numbered: bool) -> ShardDataset:
    places = [(n, *place) for n, index in enumerate(indexes) for place in zip(index.offsets, index.sizes, strict=True)]
    names = [f"{index.path.name}/{name}" for index in indexes for name in index.names]
    place_of = {str(number) if numbered else name: number for number, name in enumerate(classes)}
    labels = [int(str(label)) if numbered else place_of[str(label)] for index in indexes for label in index.labels]
    return ShardDataset(
        [index.path for index in indexes],
        torch.tensor(places, dtype=torch.int64).reshape(-1, 3),
        names,
        torch.tensor(labels, dtype=torch.int64),
        classes,
    )


def _check_train(train: ShardDataset, data: str) -> None:
    if len(train) == 0:
        raise DataError(f"The shards {data} hold no images.")
    counts = Counter(train.labels.tolist())
    if len(counts) < 2:
        raise DataError(f"The shards {data} hold one class only; a classifier needs two or more.")
    missing = [name for number, name in enumerate(train.classes) if number not in counts]
    if missing:
        raise DataError(
            f"The shards {data} hold no image to learn class {missing[0]!r} from; pack some, or leave it out."
        )
