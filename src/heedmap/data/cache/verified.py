"""Each file decoded once to see that it can be read, and remembered, so that the next start reads none of them.

CACHE/checked/HASH.bin    of each image that was decoded without an error its fingerprint, 16 bytes, and the digest of
                          its file's content, 16 bytes
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from heedmap.data.cache.fingerprints import fingerprinted
from heedmap.data.cache.folder import DIGEST, digest, remove_partials, write_kept
from heedmap.data.dataset import FileDataset, Splits, load_many
from heedmap.data.folders import drop_unreadable
from heedmap.errors import ImageError

__all__ = ["Checked", "check_once", "check_splits_once"]

_VERSION = "2"
_BLOCK = 4096  # images decoded and then read for their digest, while the system still has them in memory

Bad = list[tuple[int, str]]


@dataclass(frozen=True)
class Checked:
    """Parts whose files can all be decoded.

    Attributes:
        splits: the parts.
        digests: part -> digest of each image's file, in the order of the part; no entry for images in memory.
    """

    splits: Splits
    digests: dict[str, list[bytes]]


def check_splits_once(
    splits: Splits, workers: int, cache: Path | None, parts: Sequence[str] = ("train", "validation", "test")
) -> Splits:
    """Decode every file that was not decoded before, and leave out those that fail; see :func:`check_once`."""
    return check_once(splits, workers, cache, parts).splits


def check_once(
    splits: Splits, workers: int, cache: Path | None, parts: Sequence[str] = ("train", "validation", "test")
) -> Checked:
    """Decode every file that was not decoded before, and leave out those that fail.

    Args:
        splits: the parts.
        workers: threads; 0 is taken for one.
        cache: where is kept what was decoded; None decodes all.
        parts: which of them are looked at; the others stay as they are.

    Raises:
        DataError: see :func:`heedmap.data.folders.drop_unreadable`.
    """
    failures: dict[str, Bad] = {}
    digests: dict[str, list[bytes]] = {}
    for name, images in splits.parts.items():
        if name in parts and isinstance(images, FileDataset):
            failures[name], found = _look(images, max(1, workers), cache)
            digests[name] = [each for each in found if each]
    return Checked(drop_unreadable(splits, failures), digests)


def _look(images: FileDataset, workers: int, cache: Path | None) -> tuple[Bad, list[bytes]]:
    """What cannot be decoded, and a digest of each image's file; an empty one where it cannot be decoded."""
    seen = None if cache is None else fingerprinted(images)
    if cache is None or seen is None:
        return _decode(images, range(len(images)), workers)
    name = digest(os.fsencode(f"{_VERSION} {seen.root}"), 8).hex()
    kept = cache / "checked" / f"{name}.bin"
    for folder in (kept.parent, cache / "shards"):
        remove_partials(folder)
    known = _read(kept)
    todo = [index for index, fingerprint in enumerate(seen.fingerprints) if fingerprint not in known]
    failed, found = _decode(images, todo, workers)
    known |= {seen.fingerprints[index]: each for index, each in zip(todo, found, strict=True) if each}
    if todo:
        with contextlib.suppress(OSError):  # it costs the next start some time, and nothing else
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_kept(kept, b"".join(fingerprint + each for fingerprint, each in sorted(known.items())))
    return failed, [known.get(fingerprint, b"") for fingerprint in seen.fingerprints]


def _read(kept: Path) -> dict[bytes, bytes]:
    with contextlib.suppress(OSError):
        content = kept.read_bytes()
        starts = range(0, len(content) - 2 * DIGEST + 1, 2 * DIGEST)
        return {content[at : at + DIGEST]: content[at + DIGEST : at + 2 * DIGEST] for at in starts}
    return {}


def _decode(images: FileDataset, todo: Sequence[int], workers: int) -> tuple[Bad, list[bytes]]:
    failed: Bad = []
    found: list[bytes] = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(todo), _BLOCK):
            block = todo[start : start + _BLOCK]
            bad = dict(load_many(images, block, 1, workers)[1])
            for index, content in zip(block, pool.map(functools.partial(_content, images), block), strict=True):
                if index not in bad and isinstance(content, str):  # gone since it was decoded
                    bad[index] = content
                found.append(b"" if index in bad or isinstance(content, str) else content)
            failed += bad.items()
    return failed, found


def _content(images: FileDataset, index: int) -> bytes | str:
    """The digest of a file's content, or why there is none."""
    try:
        return digest(images.data(index))
    except (OSError, ImageError) as error:
        return f"it cannot be read ({error})"
