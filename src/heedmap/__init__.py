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


_HOMES = {
    "Architecture": "heedmap.models.architecture",
    "AttentionClassifier": "heedmap.models.classifier",
    "AttentionMap": "heedmap.types",
    "ExportOptions": "heedmap.config",
    "HeedmapError": "heedmap.errors",
    "OnnxClassifier": "heedmap.inference.onnx",
    "Output": "heedmap.types",
    "Run": "heedmap.runs",
    "TrainOptions": "heedmap.config",
    "attach": "heedmap.models.factory",
    "audit": "heedmap.data.audit.findings",
    "build_classifier": "heedmap.models.factory",
    "combined_map": "heedmap.models.classifier",
    "compare": "heedmap.workflows.compare",
    "evaluate": "heedmap.workflows.evaluate.evaluate",
    "explain": "heedmap.attribution",
    "export": "heedmap.exporters",
    "fit": "heedmap.training.trainer",
    "from_pretrained": "heedmap.hub",
    "open_data": "heedmap.data",
    "predict": "heedmap.workflows.predict",
    "push_to_hub": "heedmap.hub",
    "save_pretrained": "heedmap.hub",
    "train": "heedmap.workflows.train.train",
    "visualize": "heedmap.workflows.visualize",
}

__all__ = [
    "Architecture",
    "AttentionClassifier",
    "AttentionMap",
    "ExportOptions",
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


HTML.update(
    AttentionMap=functools.partial(_shown, "map_html"),
    Output=functools.partial(_shown, "output_html"),
    Run=functools.partial(_shown, "run_html"),
)
