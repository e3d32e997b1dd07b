"""Decode each file once to verify that it can be read, and remember it, so that the next start reads none of them.

CACHE/verified/HASH.bin   for each image that was decoded without an error its fingerprint (16 bytes) and the digest of
                          its file's content (16 bytes)
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from heedmap.data.cache.folder import DIGEST, digest, file_state, remove_partials, write_shared
from heedmap.data.dataset import FileDataset, FolderDataset, Splits, load_many
from heedmap.data.webdataset.dataset import ShardDataset
from heedmap.errors import ImageError

_VERSION = "2"
_BLOCK = 4096  # images decoded and then read for their digest, while the system still has them in memory

Failures = list[tuple[int, str]]


@dataclass(frozen=True)
class Fingerprints:
    """What identifies the images of a dataset without reading them."""

    root: str  # the folder that they come from
    digests: list[bytes]  # for each image, of where it lies and of the state of its file
    files: list[str]  # for each image the file that it lies in, relative to ``root`` or absolute
    states: Mapping[str, str]  # file -> its state (:func:`heedmap.data.cache.folder.file_state`)

    @classmethod
    def of(cls, images: FileDataset) -> Fingerprints | None:
        """Look at the files of images; None where one is gone since it was listed, or for unknown kinds of dataset."""
        try:
            if isinstance(images, FolderDataset):
                files = list(images.names)
                states = {name: file_state(os.stat(images.path(row))) for row, name in enumerate(files)}  # noqa: PTH116
                words = [f"{name}\0{states[name]}" for name in files]
                root = str(images.root.resolve())
            elif isinstance(images, ShardDataset):
                paths = [path.resolve() for path in images.shards]
                root = str(paths[0].parent) if paths else ""
                states = {str(path): file_state(path.stat()) for path in paths}
                places = [(str(paths[shard]), offset, size) for shard, offset, size in images.places.tolist()]
                files = [file for file, _, _ in places]
                words = [f"{file}\0{states[file]}\0{offset}\0{size}" for file, offset, size in places]
            else:
                return None
        except OSError:  # decoding it will report it
            return None
        return cls(root, [digest(word.encode("utf-8", "surrogateescape")) for word in words], files, states)


def is_unchanged(root: str, file: str, state: str) -> bool:
    """Return whether a file still exists in this state."""
    try:
        return file_state((Path(root) / file).stat()) == state
    except OSError:
        return False


@dataclass(frozen=True)
class VerifiedSplits:
    """Parts whose files can all be decoded."""

    splits: Splits
    digests: dict[str, list[bytes]]  # part -> digest of each image's file, in order; no entry for images in memory


def verify_images(
    splits: Splits,
    workers: int,
    cache: Path | None = None,
    parts: Sequence[str] = ("train", "validation", "test"),
) -> VerifiedSplits:
    """Decode every file that ``cache`` does not record as decoded, and leave out those that fail; other parts stay.

    Raises:
        DataError: a class of train, or the whole of another part, has no readable image left.
    """
    failures: dict[str, Failures] = {}
    digests: dict[str, list[bytes]] = {}
    for name, images in splits.parts.items():
        if name in parts and isinstance(images, FileDataset):
            failures[name], contents = _verify(images, max(1, workers), cache)
            digests[name] = [content for content in contents if content]
    return VerifiedSplits(splits.without(failures), digests)


def _verify(images: FileDataset, workers: int, cache: Path | None) -> tuple[Failures, list[bytes]]:
    """Return what cannot be decoded, and the digest of each image's file; an empty one where it cannot be decoded."""
    fingerprints = None if cache is None else Fingerprints.of(images)
    if cache is None or fingerprints is None:
        return _decode(images, range(len(images)), workers)
    name = digest(os.fsencode(f"{_VERSION} {fingerprints.root}"), 8).hex()
    record = cache / "verified" / f"{name}.bin"
    for folder in (record.parent, cache / "shards"):
        remove_partials(folder)
    known = _read(record)
    todo = [index for index, fingerprint in enumerate(fingerprints.digests) if fingerprint not in known]
    failures, contents = _decode(images, todo, workers)
    known |= {fingerprints.digests[index]: content for index, content in zip(todo, contents, strict=True) if content}
    if todo:
        with contextlib.suppress(OSError):  # it costs the next start some time, and nothing else
            record.parent.mkdir(parents=True, exist_ok=True)
            write_shared(record, b"".join(fingerprint + content for fingerprint, content in sorted(known.items())))
    return failures, [known.get(fingerprint, b"") for fingerprint in fingerprints.digests]


def _read(record: Path) -> dict[bytes, bytes]:
    with contextlib.suppress(OSError):
        content = record.read_bytes()
        starts = range(0, len(content) - 2 * DIGEST + 1, 2 * DIGEST)
        return {content[start : start + DIGEST]: content[start + DIGEST : start + 2 * DIGEST] for start in starts}
    return {}


def _decode(images: FileDataset, todo: Sequence[int], workers: int) -> tuple[Failures, list[bytes]]:
    failures: Failures = []
    contents: list[bytes] = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(todo), _BLOCK):
            block = todo[start : start + _BLOCK]
            failed = dict(load_many(images, block, 1, workers)[1])  # a JPEG at an eighth, which still reads every byte
            for index, content in zip(block, pool.map(functools.partial(_content, images), block), strict=True):
                if isinstance(content, str):  # gone since it was decoded
                    failed.setdefault(index, content)
                contents.append(b"" if index in failed or isinstance(content, str) else content)
            failures += failed.items()
    return failures, contents


def _content(images: FileDataset, index: int) -> bytes | str:  # the digest of a file's content, or why there is none
    try:
        return digest(images.data(index))
    except (OSError, ImageError) as error:
        return f"it cannot be read ({error})"
