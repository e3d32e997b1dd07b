"""Trainable visual attention for image classifiers: train on a folder, see where it looks, judge whether that is right.

The names below are imported when they are first used, so that ``import heedmap`` and ``heedmap --help`` cost nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heedmap.classifier import Architecture, AttentionClassifier, attach, build_classifier, combined_map
    from heedmap.compare import compare
    from heedmap.data import open_data
    from heedmap.data.audit import audit
    from heedmap.errors import HeedmapError
    from heedmap.evaluate import evaluate
    from heedmap.export import export
    from heedmap.maps import explain
    from heedmap.onnx_classifier import OnnxClassifier
    from heedmap.options import TrainOptions
    from heedmap.predict import predict
    from heedmap.records import AttentionMap, Output
    from heedmap.runs import Run
    from heedmap.sharing import from_pretrained, push_to_hub, save_pretrained
    from heedmap.train import train
    from heedmap.training.fit import fit
    from heedmap.visualize import visualize

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "heedmap.classifier",
    "AttentionClassifier": "heedmap.classifier",
    "AttentionMap": "heedmap.records",
    "HeedmapError": "heedmap.errors",
    "OnnxClassifier": "heedmap.onnx_classifier",
    "Output": "heedmap.records",
    "Run": "heedmap.runs",
    "TrainOptions": "heedmap.options",
    "attach": "heedmap.classifier",
    "audit": "heedmap.data.audit",
    "build_classifier": "heedmap.classifier",
    "combined_map": "heedmap.classifier",
    "compare": "heedmap.compare",
    "evaluate": "heedmap.evaluate",
    "explain": "heedmap.maps",
    "export": "heedmap.export",
    "fit": "heedmap.training.fit",
    "from_pretrained": "heedmap.sharing",
    "open_data": "heedmap.data",
    "predict": "heedmap.predict",
    "push_to_hub": "heedmap.sharing",
    "save_pretrained": "heedmap.sharing",
    "train": "heedmap.train",
    "visualize": "heedmap.visualize",
}

__all__ = [
    "Architecture",
    "AttentionClassifier",
    "AttentionMap",
    "HeedmapError",
    "OnnxClassifier",
    "Output",
    "Run",
    "TrainOptions",
    "__version__",
    "attach",
    "audit",
    "build_classifier",
    "combined_map",
    "compare",
    "evaluate",
    "explain",
    "export",
    "fit",
    "from_pretrained",
    "open_data",
    "predict",
    "push_to_hub",
    "save_pretrained",
    "train",
    "visualize",
]


class _Door(types.ModuleType):
    """This module, where ``train``, ``evaluate`` and others are functions although rooms have these names.

    Python puts each submodule under its name into the package as soon as anything imports it. Without this class
    ``heedmap.evaluate`` would be a function or a module, depending on what was imported before.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heedmap' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
