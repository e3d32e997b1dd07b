"""Images: folders, named sets, the embedded digit scenes, decoding, augmentation, loaders, audit.

`open_data` is the door: whatever the data is, out come :class:`Splits`. Names are imported when they are first used, so
that decoding an image needs no torch: an exported file is run without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heedmap.data.dataset import FileDataset, FolderDataset, ImageDataset, Splits, TensorDataset, load_many
    from heedmap.data.decoding import crop_box, read_image, square, to_tensor
    from heedmap.data.folders import check_splits, drop_unreadable, open_folder, split_by_class
    from heedmap.data.open import DIGIT_SCENES, open_data
    from heedmap.data.torchvision_sets import NAMED, open_named
    from heedmap.data.webdataset.dataset import open_shards
    from heedmap.data.webdataset.index import is_sharded

__all__ = [
    "DIGIT_SCENES",
    "NAMED",
    "FileDataset",
    "FolderDataset",
    "ImageDataset",
    "Splits",
    "TensorDataset",
    "check_splits",
    "crop_box",
    "drop_unreadable",
    "is_sharded",
    "load_many",
    "open_data",
    "open_folder",
    "open_named",
    "open_shards",
    "read_image",
    "split_by_class",
    "square",
    "to_tensor",
]

_HOMES = {
    "DIGIT_SCENES": "open",
    "FileDataset": "dataset",
    "FolderDataset": "dataset",
    "NAMED": "torchvision_sets",
    "ImageDataset": "dataset",
    "Splits": "dataset",
    "TensorDataset": "dataset",
    "check_splits": "folders",
    "crop_box": "decoding",
    "drop_unreadable": "folders",
    "is_sharded": "webdataset.index",
    "load_many": "dataset",
    "open_data": "open",
    "open_folder": "folders",
    "open_named": "torchvision_sets",
    "open_shards": "webdataset.dataset",
    "read_image": "decoding",
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
