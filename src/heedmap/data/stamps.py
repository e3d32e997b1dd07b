"""By what pictures in files are known again, without reading them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heedmap.data.kept import digest, state
from heedmap.data.pictures import FilePictures, FolderPictures
from heedmap.data.sharded import ShardPictures

__all__ = ["Stamped", "is_unchanged", "stamped"]


@dataclass(frozen=True)
class Stamped:
    """Pictures as they are known.

    Attributes:
        root: the folder that they come from.
        stamps: for each picture a digest of where it lies and of the state (:func:`heedmap.data.kept.state`) of its
            file.
        files: for each picture the file that it lies in, seen from ``root``.
        states: of these files.
    """

    root: str
    stamps: list[bytes]
    files: list[str]
    states: Mapping[str, str]


def stamped(pictures: FilePictures) -> Stamped | None:
    """Look at the files of pictures; None where one is gone since it was listed, or they lie in no known kind."""
    try:
        if isinstance(pictures, FolderPictures):
            files = list(pictures.names)
            states = {name: state(os.stat(pictures.path(index))) for index, name in enumerate(files)}  # noqa: PTH116
            words = (f"{name}\0{states[name]}" for name in files)
            root = str(pictures.root.resolve())
        elif isinstance(pictures, ShardPictures):
            paths = [path.resolve() for path in pictures.shards]
            root = str(paths[0].parent) if paths else ""
            states = {str(path): state(path.stat()) for path in paths}
            places = pictures.places.tolist()
            files = [str(paths[shard]) for shard, _, _ in places]
            words = (
                f"{file}\0{states[file]}\0{offset}\0{size}"
                for file, (_, offset, size) in zip(files, places, strict=True)
            )
        else:
            return None
    except OSError:  # whoever decodes it says so
        return None
    return Stamped(root, [digest(word.encode("utf-8", "surrogateescape")) for word in words], files, states)


def is_unchanged(root: str, file: str, before: str) -> bool:
    """Whether a file is still there in the state that it was in."""
    try:
        return state((Path(root) / file).stat()) == before
    except OSError:
        return False
