"""Datasets: folders, shards, named sets and digit scenes; decoding, transforms, loaders, annotations, audit.

Start with :func:`open_data`, which turns whatever the data is into :class:`Splits`. Names are imported on first use, so
that decoding an image, as an exported model needs it, imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; at run time the table below does it
    from heedmap.data.cache.verified import *  # noqa: F403
    from heedmap.data.dataset import *  # noqa: F403
    from heedmap.data.decoding import *  # noqa: F403
    from heedmap.data.folders import *  # noqa: F403
    from heedmap.data.open import *  # noqa: F403
    from heedmap.data.webdataset.dataset import *  # noqa: F403
    from heedmap.data.webdataset.index import *  # noqa: F403

_NAMES_OF = {
    "dataset": (
        *("FileDataset", "FolderDataset", "ImageDataset", "TensorDataset"),
        *("Splits", "load_many", "split_by_class"),
    ),
    "decoding": ("crop_box", "read_image", "square", "to_tensor"),
    "folders": ("open_folder",),
    "open": ("DIGIT_SCENES", "NAMED", "open_data", "open_named"),
    "cache.verified": ("verify_images",),
    "webdataset.dataset": ("open_shards",),
    "webdataset.index": ("is_sharded",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'heedmap.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"heedmap.data.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
