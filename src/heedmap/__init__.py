"""Visual attention: train an image classifier on a folder, see where it looks, and measure whether it is right.

The names below are imported when they are first used, so that ``import heedmap`` and ``heedmap --help`` cost nothing.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from heedmap._version import __version__
from heedmap.types import HTML

if TYPE_CHECKING:
    from heedmap.attribution import explain
    from heedmap.config import ExportOptions, TrainOptions
    from heedmap.data import open_data
    from heedmap.data.audit.findings import audit
    from heedmap.errors import HeedmapError
    from heedmap.exporters import export
    from heedmap.hub import from_pretrained, push_to_hub, save_pretrained
    from heedmap.inference.onnx import OnnxClassifier
    from heedmap.models.architecture import Architecture
    from heedmap.models.classifier import AttentionClassifier, combined_map
    from heedmap.models.factory import attach, build_classifier
    from heedmap.runs import Run
    from heedmap.training.trainer import fit
    from heedmap.types import AttentionMap, Output
    from heedmap.workflows.compare import compare
    from heedmap.workflows.evaluate.evaluate import evaluate
    from heedmap.workflows.predict import predict
    from heedmap.workflows.train.train import train
    from heedmap.workflows.visualize import visualize

_NAMES = {  # by module
    "attribution": "explain",
    "config": "ExportOptions TrainOptions",
    "data": "open_data",
    "data.audit.findings": "audit",
    "errors": "HeedmapError",
    "exporters": "export",
    "hub": "from_pretrained push_to_hub save_pretrained",
    "inference.onnx": "OnnxClassifier",
    "models.architecture": "Architecture",
    "models.classifier": "AttentionClassifier combined_map",
    "models.factory": "attach build_classifier",
    "runs": "Run",
    "training.trainer": "fit",
    "types": "AttentionMap Output",
    "workflows.compare": "compare",
    "workflows.evaluate.evaluate": "evaluate",
    "workflows.predict": "predict",
    "workflows.train.train": "train",
    "workflows.visualize": "visualize",
}
_HOMES = {name: f"heedmap.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = ["Architecture", "AttentionClassifier", "AttentionMap", "ExportOptions", "HeedmapError", "OnnxClassifier"]
__all__ += ["Output", "Run", "TrainOptions", "__version__", "attach", "audit", "build_classifier", "combined_map"]
__all__ += ["compare", "evaluate", "explain", "export", "fit", "from_pretrained", "open_data", "predict"]
__all__ += ["push_to_hub", "save_pretrained", "train", "visualize"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heedmap' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _shown(formatter: str, value: object) -> str:
    """What a notebook shows of a value; the drawing is imported with the first one."""
    make = getattr(importlib.import_module("heedmap.visualization.notebook"), formatter)
    return str(make(value))


for _name, _formatter in {"AttentionMap": "map_html", "Output": "output_html", "Run": "run_html"}.items():
    HTML[_name] = functools.partial(_shown, _formatter)
