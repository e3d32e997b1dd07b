"""A data set turned into tar shards: files byte for byte, in an order that has all classes everywhere.

OUT/train/000000.tar ...   CLASS/NAME.jpg with CLASS/NAME.cls, the class's number, after it
OUT/classes.txt            class names; the line, from 0, is that number
OUT/sha256sums.txt         for `sha256sum -c`; written last, so a folder without it is not whole
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from heedmap.data.dataset import FileDataset, Splits
from heedmap.data.decoding import IMAGE_SUFFIXES
from heedmap.data.webdataset.index import CLASSES
from heedmap.errors import DataError, ImageError

__all__ = ["SUMS", "Packed", "pack"]

SUMS = "sha256sums.txt"
_UNSAFE = str.maketrans(dict.fromkeys('\\:*?"<>|', "_"))


@dataclass(frozen=True)
class Packed:
    """What was packed: images and shards of each part, and the bytes of all shards."""

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
    """Write the parts of a data set as shards in WebDataset layout.

    The same images, sizes and seed give the same bytes. Each shard is written beside its place and renamed into it.

    Args:
        splits: a folder or shards; the pixels of sets in memory have no files to copy.
        out: folder to make.
        shard_bytes: size at which a shard is full; an image is never divided. One shard is held in memory.
        seed: of the order, in which a reader that goes straight through meets all classes.
        on_progress: called with the number of images packed.

    Raises:
        DataError: a set without files, a folder that has something in it or cannot be written, or a file that cannot
            be read.
    """
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; name another folder for the shards.")
    done, size = 0, 0
    images: dict[str, int] = {}
    shards: dict[str, int] = {}
    sums: list[str] = []
    taken: set[str] = set()
    try:
        for part, some in splits.parts.items():
            if not isinstance(some, FileDataset):
                raise DataError(f"{splits.name} has no image files to pack; name a folder.")
            (folder / part).mkdir(parents=True)
            images[part], shards[part] = len(some), 0
            for number, (content, count) in enumerate(_shards(some, shard_bytes, seed, taken)):
                target = folder / part / f"{number:06d}.tar"
                _write(target, content)
                sums.append(f"{hashlib.sha256(content).hexdigest()}  {part}/{target.name}")
                shards[part], done, size = number + 1, done + count, size + len(content)
                if on_progress is not None:
                    on_progress(done)
        _write(folder / CLASSES, "".join(f"{name}\n" for name in splits.classes).encode())
        _write(folder / SUMS, "".join(f"{line}\n" for line in sums).encode())
    except OSError as error:
        raise DataError(f"Cannot pack into {folder}: {error.filename or ''} {error.strerror or error}.") from None
    return Packed(images, shards, size)


def _shards(images: FileDataset, shard_bytes: int, seed: int, taken: set[str]) -> Iterator[tuple[bytes, int]]:
    """The content of each shard and how many images it holds; keys differ from those taken."""
    content, count = io.BytesIO(), 0
    tar = tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  closed below, many times
    for place in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist():
        data = _data(images, place)
        label = int(images.labels[place])
        key, suffix = _key(images.classes[label], images.names[place], taken)
        _add(tar, f"{key}{suffix}", data)
        _add(tar, f"{key}.cls", str(label).encode())
        count += 1
        if content.tell() >= shard_bytes:
            tar.close()
            yield content.getvalue(), count
            content, count = io.BytesIO(), 0
            tar = tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
    tar.close()
    if count:
        yield content.getvalue(), count


def _data(images: FileDataset, place: int) -> bytes:
    try:
        return images.data(place)
    except (OSError, ImageError) as error:
        raise DataError(f"{images.names[place]} cannot be packed: {error}.") from None


def _key(name: str, path: str, taken: set[str]) -> tuple[str, str]:
    """A key of its own: class and file name without dots, which would begin the kind, and with a number where taken."""
    stem, suffix = posixpath.splitext(posixpath.basename(path))
    suffix = suffix.lower() if suffix.lower() in IMAGE_SUFFIXES else ".jpg"
    folder = name.translate(_UNSAFE).replace("/", "_").lstrip(".") or "_"
    first = f"{folder}/{stem.translate(_UNSAFE).replace('.', '_') or '_'}"
    key, number = first, 2
    while key in taken:
        key, number = f"{first}-{number}", number + 1
    taken.add(key)
    return key, suffix


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # without owner, rights and time of the file: the same images give the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _write(target: Path, content: bytes) -> None:
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
