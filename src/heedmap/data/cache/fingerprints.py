"""By what images in files are known again, without reading them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heedmap.data.cache.folder import digest, state
from heedmap.data.dataset import FileDataset, FolderDataset
from heedmap.data.webdataset.dataset import ShardDataset

__all__ = ["Fingerprints", "fingerprinted", "is_unchanged"]


@dataclass(frozen=True)
class Fingerprints:
    """Images as they are known.

    Attributes:
        root: the folder that they come from.
        fingerprints: for each image a digest of where it lies and of the state
            (:func:`heedmap.data.cache.folder.state`) of its file.
        files: for each image the file that it lies in, seen from ``root``.
        states: of these files.
    """

    root: str
    fingerprints: list[bytes]
    files: list[str]
    states: Mapping[str, str]


def fingerprinted(images: FileDataset) -> Fingerprints | None:
    """Look at the files of images; None where one is gone since it was listed, or they lie in no known kind."""
    try:
        if isinstance(images, FolderDataset):
            files = list(images.names)
            states = {name: state(os.stat(images.path(index))) for index, name in enumerate(files)}  # noqa: PTH116
            words = (f"{name}\0{states[name]}" for name in files)
            root = str(images.root.resolve())
        elif isinstance(images, ShardDataset):
            paths = [path.resolve() for path in images.shards]
            root = str(paths[0].parent) if paths else ""
            states = {str(path): state(path.stat()) for path in paths}
            places = images.places.tolist()
            files = [str(paths[shard]) for shard, _, _ in places]
            words = (
                f"{file}\0{states[file]}\0{offset}\0{size}"
                for file, (_, offset, size) in zip(files, places, strict=True)
            )
        else:
            return None
    except OSError:  # whoever decodes it says so
        return None
    return Fingerprints(root, [digest(word.encode("utf-8", "surrogateescape")) for word in words], files, states)


def is_unchanged(root: str, file: str, before: str) -> bool:
    """Whether a file is still there in the state that it was in."""
    try:
        return state((Path(root) / file).stat()) == before
    except OSError:
        return False
