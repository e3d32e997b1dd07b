"""Fingerprints of image files: what identifies an image without reading it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heedmap.data.cache.folder import digest, file_state
from heedmap.data.dataset import FileDataset, FolderDataset
from heedmap.data.webdataset.dataset import ShardDataset


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of the images of a dataset.

    Attributes:
        root: the folder that they come from.
        digests: for each image a digest of where it lies and of the state of its file
            (:func:`heedmap.data.cache.folder.file_state`).
        files: for each image the file that it lies in, relative to ``root`` or absolute.
        states: file -> its state.
    """

    root: str
    digests: list[bytes]
    files: list[str]
    states: Mapping[str, str]

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
                places = images.places.tolist()
                files = [str(paths[shard]) for shard, _, _ in places]
                words = [
                    f"{file}\0{states[file]}\0{offset}\0{size}"
                    for file, (_, offset, size) in zip(files, places, strict=True)
                ]
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
