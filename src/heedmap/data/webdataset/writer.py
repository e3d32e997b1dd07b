"""Write a dataset as tar shards: files byte for byte, in an order that has all classes everywhere.

OUT/train/000000.tar ...   CLASS/NAME.jpg with CLASS/NAME.cls, the class's number, after it
OUT/classes.txt            class names; the line, from 0, is that number
OUT/sha256sums.txt         for `sha256sum -c`; written last, so a folder without it is incomplete
"""

import hashlib
import io
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from heedmap.data.cache.folder import write_shared
from heedmap.data.dataset import FileDataset, Splits
from heedmap.data.decoding import IMAGE_SUFFIXES
from heedmap.data.webdataset.index import CLASSES
from heedmap.errors import DataError, ImageError

SUMS = "sha256sums.txt"
_UNSAFE = str.maketrans(dict.fromkeys('\\:*?"<>|', "_"))


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
            for number, (content, count) in enumerate(_shards(dataset, shard_bytes, seed, used)):
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


def _shards(images: FileDataset, shard_bytes: int, seed: int, used: set[str]) -> Iterator[tuple[bytes, int]]:
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
