"""Pictures: folders, named sets, the embedded digit scenes, decoding, augmentation, loaders, audit.

`open_data` is the door: whatever the data is, out come :class:`Splits`. Names are imported when they are first used, so
that decoding a picture needs no torch: an exported file is run without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heedmap.data.decoding import crop_box, read_picture, square, to_tensor
    from heedmap.data.folders import check_splits, drop_unreadable, open_folder, split_by_class
    from heedmap.data.named import NAMED, open_named
    from heedmap.data.opening import DIGIT_SCENES, open_data
    from heedmap.data.pictures import FilePictures, FolderPictures, Pictures, Splits, TensorPictures, load_many
    from heedmap.data.sharded import open_shards
    from heedmap.data.shards import is_sharded

__all__ = [
    "DIGIT_SCENES",
    "NAMED",
    "FilePictures",
    "FolderPictures",
    "Pictures",
    "Splits",
    "TensorPictures",
    "check_splits",
    "crop_box",
    "drop_unreadable",
    "is_sharded",
    "load_many",
    "open_data",
    "open_folder",
    "open_named",
    "open_shards",
    "read_picture",
    "split_by_class",
    "square",
    "to_tensor",
]

_HOMES = {
    "DIGIT_SCENES": "opening",
    "FilePictures": "pictures",
    "FolderPictures": "pictures",
    "NAMED": "named",
    "Pictures": "pictures",
    "Splits": "pictures",
    "TensorPictures": "pictures",
    "check_splits": "folders",
    "crop_box": "decoding",
    "drop_unreadable": "folders",
    "is_sharded": "shards",
    "load_many": "pictures",
    "open_data": "opening",
    "open_folder": "folders",
    "open_named": "named",
    "open_shards": "sharded",
    "read_picture": "decoding",
    "split_by_class": "folders",
    "square": "decoding",
    "to_tensor": "decoding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heedmap.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"heedmap.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
