"""Shards as a dataset, read and written.

They are packed byte for byte, in an order that has all classes everywhere:

OUT/train/000000.tar ...   CLASS/NAME.jpg with CLASS/NAME.cls, the class's number, after it
OUT/classes.txt            class names; the line, from 0, is that number
OUT/sha256sums.txt         for `sha256sum -c`; written last, so a folder without it is incomplete
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from heedmap.config import counted
from heedmap.data.cache.folder import write_shared
from heedmap.data.dataset import FileDataset, Splits
from heedmap.data.decoding import IMAGE_SUFFIXES, PARTS, natural, read_image, square, to_tensor
from heedmap.data.folders import find_parts
from heedmap.data.webdataset.index import (
    CLASSES,
    ShardIndex,
    expand_shards,
    index_shard,
    is_numbered,
    listed_classes,
    read_member,
)
from heedmap.errors import DataError, ImageError

SUMS = "sha256sums.txt"
_UNSAFE = str.maketrans(dict.fromkeys('\\:*?"<>|', "_"))


class ShardDataset:
    """Images in tar files, decoded on access. See :class:`heedmap.data.dataset.ImageDataset` for the attributes.

    ``places`` is (N, 3) int64: which shard, offset, and size in bytes. Names are ``SHARD/MEMBER``.
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
        """Return the file of one image; see :func:`read_member` for errors."""
        shard, offset, size = self.places[index].tolist()
        return read_member(self.shards[shard], offset, size, self.names[index])

    def length(self, index: int) -> int:
        """Return the number of bytes of that file."""
        return int(self.places[index, 2])

    def load(self, index: int, size: int) -> Tensor:
        """Return the square view of one image, or raise as :func:`heedmap.data.decoding.read_image` does."""
        stream = _NamedBytes(self.data(index))
        stream.name = self.names[index]
        return to_tensor(square(read_image(stream, short_side=size), size))

    def subset(self, indices: Tensor | Sequence[int]) -> ShardDataset:
        """Return these images, in this order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        names = [self.names[row] for row in rows.tolist()]
        return ShardDataset(self.shards, self.places[rows], names, self.labels[rows], self.classes)


class _NamedBytes(io.BytesIO):
    """Bytes with a name for error messages."""

    name: str


def open_shards(data: str | Path, *, test: float = 0.2, seed: int = 0, cache: Path | None = None) -> Splits:
    """Read the index of each shard and form parts and classes from them.

    The part of a shard is its folder (``DIR/train/*.tar``) or the beginning of its name (``DIR/train-*.tar``); shards
    without either are all to learn from, and a share of each class is set apart as the test part.

    Args:
        data: a folder, a tar file, or a pattern such as ``shards/train-{000..009}.tar``.
        test, seed: share in (0, 1) to set apart, and seed of that draw.
        cache: see :func:`heedmap.data.webdataset.index.index_shard`.

    Raises:
        DataError: no shards, a damaged one, images without labels, labels that do not fit the classes, or one class.
        OptionError: ``test`` does not lie between 0 and 1.
    """
    indexes = {part: [index_shard(path, cache) for path in shards] for part, shards in _parts(data).items()}
    every = [index for of_part in indexes.values() for index in of_part]
    for index in every:
        _check_complete(index)
    classes, numbered = _classes(Path(data), indexes)
    opened = {part: _images(indexes[part], classes, numbered) for part in indexes}
    notes = [
        f"{part}: {counted(len(images), 'image')} in {counted(len(indexes[part]), 'shard')}."
        for part, images in opened.items()
    ]
    if skipped := sum(index.skipped for index in every):
        notes.append(f"Members of shards that are neither image nor label, skipped: {skipped:,}.")
    if "test" not in opened and "validation" in opened:
        opened["test"] = opened.pop("validation")
        notes.append("There are no test shards, so those of validation are the test part.")
    train = opened["train"]
    _check_train(train, str(data))
    splits = Splits(str(data), classes, train, opened.get("validation"), opened.get("test"), notes=tuple(notes))
    return splits.with_test_part(test, seed)


def _parts(data: str | Path) -> dict[str, list[Path]]:
    path = Path(data).expanduser()
    if not path.is_dir():
        return {"train": expand_shards(data)}
    if folders := find_parts(path):
        return {part: expand_shards(folder) for part, folder in folders.items()}
    shards = expand_shards(path)
    parts: dict[str, list[Path]] = {}
    others: list[Path] = []
    for shard in shards:
        part = PARTS.get(re.split(r"[-_.\d]", shard.name.lower(), maxsplit=1)[0])
        (others if part is None else parts.setdefault(part, [])).append(shard)
    if "train" not in parts:
        return {"train": shards}
    if others:
        raise DataError(f"{path}: the name of shard {others[0].name} names no part, unlike others; move it away.")
    return parts


def _check_complete(index: ShardIndex) -> None:
    if index.trouble:
        raise DataError(f"Shard {index.path}: {index.trouble}; copy or pack it again, or leave it out.")
    if None in index.labels:
        name = index.names[index.labels.index(None)]
        raise DataError(f"Shard {index.path}: image {name} has no label; give it a .cls, .json or .txt, or a folder.")


def _classes(data: Path, indexes: Mapping[str, Sequence[ShardIndex]]) -> tuple[tuple[str, ...], bool]:
    """Return the class names, and whether labels are their numbers."""
    words = {str(label) for of_part in indexes.values() for index in of_part for label in index.labels}
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
    number_of = {str(number) if numbered else name: number for number, name in enumerate(classes)}
    labels = [int(str(label)) if numbered else number_of[str(label)] for index in indexes for label in index.labels]
    numbers = torch.tensor(places, dtype=torch.int64).reshape(-1, 3), torch.tensor(labels, dtype=torch.int64)
    return ShardDataset([index.path for index in indexes], numbers[0], names, numbers[1], classes)


def _check_train(train: ShardDataset, data: str) -> None:
    if len(train) == 0:
        raise DataError(f"The shards {data} hold no images.")
    labels = set(train.labels.tolist())
    if len(labels) < 2:
        raise DataError(f"The shards {data} hold one class only; a classifier needs two or more.")
    if missing := [name for number, name in enumerate(train.classes) if number not in labels]:
        raise DataError(f"The shards {data} hold no image to train class {missing[0]!r}; pack some, or leave it out.")


@dataclass(frozen=True)
class Packed:
    """What was written: images and shards of each part, and the bytes of all shards."""

    images: dict[str, int]
    shards: dict[str, int]
    size: int


def pack(
    splits: Splits,
    out: str | Path,
    *,
    shard_bytes: int = 128 * 10**6,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Packed:
    """Write the parts of a dataset as shards in WebDataset layout.

    The same images, sizes and seed give the same bytes. Each shard is written under another name and renamed.

    Args:
        splits: a folder or shards; the pixels of sets in memory have no files to copy.
        out: folder to make.
        shard_bytes: size at which a shard, which is held in memory, is full.
        seed: of the order, in which a reader that goes straight through meets all classes.
        on_progress: called with the number of images written.

    Raises:
        DataError: a set without files, a folder that is not empty or cannot be written, or a file that cannot be read.
    """
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; name another folder for the shards.")
    done, size = 0, 0
    images, shards = dict[str, int](), dict[str, int]()
    sums, used = list[str](), set[str]()
    try:
        for part, dataset in splits.parts.items():
            if not isinstance(dataset, FileDataset):
                raise DataError(f"{splits.name} has no image files to pack; name a folder.")
            (folder / part).mkdir(parents=True)
            images[part], shards[part] = len(dataset), 0
            for number, (content, count) in enumerate(_packed(dataset, shard_bytes, seed, used)):
                target = folder / part / f"{number:06d}.tar"
                write_shared(target, content)
                sums.append(f"{hashlib.sha256(content).hexdigest()}  {part}/{target.name}")
                shards[part], done, size = number + 1, done + count, size + len(content)
                if on_progress is not None:
                    on_progress(done)
        write_shared(folder / CLASSES, "".join(f"{name}\n" for name in splits.classes).encode())
        write_shared(folder / SUMS, "".join(f"{line}\n" for line in sums).encode())
    except OSError as error:
        raise DataError(f"Cannot pack into {folder}: {error.filename or ''} {error.strerror or error}.") from None
    return Packed(images, shards, size)


def _packed(images: FileDataset, shard_bytes: int, seed: int, used: set[str]) -> Iterator[tuple[bytes, int]]:
    """Yield the content of each shard and how many images it holds; ``used`` are the keys written so far."""
    todo = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()[::-1]
    while todo:
        content, count = io.BytesIO(), 0
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
            while todo and content.tell() < shard_bytes:
                index = todo.pop()
                label = int(images.labels[index])
                try:
                    data = images.data(index)
                except (OSError, ImageError) as error:
                    raise DataError(f"{images.names[index]} cannot be packed: {error}.") from None
                key, suffix = _key(images.classes[label], images.names[index], used)
                _add(tar, f"{key}{suffix}", data)
                _add(tar, f"{key}.cls", str(label).encode())
                count += 1
        yield content.getvalue(), count


def _key(class_name: str, path: str, used: set[str]) -> tuple[str, str]:
    """Return a new key, class and file name without dots, which would begin the extension; and the suffix."""
    stem, suffix = posixpath.splitext(posixpath.basename(path))
    suffix = suffix.lower() if suffix.lower() in IMAGE_SUFFIXES else ".jpg"
    folder = class_name.translate(_UNSAFE).replace("/", "_").lstrip(".") or "_"
    first = f"{folder}/{stem.translate(_UNSAFE).replace('.', '_') or '_'}"
    key, number = first, 2
    while key in used:
        key, number = f"{first}-{number}", number + 1
    used.add(key)
    return key, suffix


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # without owner, rights and time of the file: the same images give the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
