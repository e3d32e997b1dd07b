"""Trainable visual attention for image classifiers: train on a folder, see where it looks, judge whether that is right.

The names below are imported when they are first used, so that ``import heedmap`` and ``heedmap --help`` cost nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "heedmap.classifier",
    "AttentionClassifier": "heedmap.classifier",
    "AttentionMap": "heedmap.records",
    "HeedmapError": "heedmap.errors",
    "Output": "heedmap.records",
    "Run": "heedmap.runs",
    "TrainOptions": "heedmap.options",
    "attach": "heedmap.classifier",
    "audit": "heedmap.data.audit",
    "build_classifier": "heedmap.classifier",
    "combined_map": "heedmap.classifier",
    "evaluate": "heedmap.evaluate",
    "fit": "heedmap.training.fit",
    "open_data": "heedmap.data",
    "train": "heedmap.train",
    "visualize": "heedmap.visualize",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heedmap' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
