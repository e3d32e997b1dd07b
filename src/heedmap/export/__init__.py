"""A trained classifier as one file that runs without heedmap: pictures in, probabilities and maps out.

    pictures          uint8 RGB (B, H, W, 3), any H and W
      squared         centred square at the network's size, as in training
      classifier      normalisation, backbone, attention, head
    logits, probabilities, map_TAP ..., map_combined

Nothing is written before the file has answered real pictures as the model does; how closely is kept in its metadata.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from heedmap.classifier import AttentionClassifier
from heedmap.errors import DataError, ModelError
from heedmap.export.onnx_file import answering, labelled, traced, translated
from heedmap.export.parity import Answer, Named, Parity, compare
from heedmap.export.pictures import pictures_of
from heedmap.export.wrapped import Answering, Exportable
from heedmap.onnx_classifier import SCHEMA
from heedmap.runs import Run, disk, write_whole

__all__ = ["Exported", "Parity", "export"]

LIMIT = 1e-5
SUFFIXES = {"onnx": ".onnx"}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        parity: how closely it answers as the model does.
        megabytes: its size.
        seconds: from start to file.
    """

    path: Path
    parity: Parity
    megabytes: float
    seconds: float


def export(
    model: Run | AttentionClassifier,
    out: str | Path | None = None,
    *,
    to: Literal["onnx"] = "onnx",
    pictures: Iterable[Image.Image] | None = None,
    limit: float = LIMIT,
) -> Exported:
    """Write a classifier into one file, after the proof that the file answers as the classifier does.

    Args:
        model: a finished run, or a classifier; the classifier is left as it was.
        out: the file; None writes ``model.onnx`` into the run's folder.
        to: the format.
        pictures: RGB, for the proof; None takes 16 of the run's test part.
        limit: see :class:`heedmap.export.parity.Parity`.

    Raises:
        DataError: a classifier without pictures, or a run whose data cannot be found.
        ModelError: a package is missing, the network cannot be exported, or the file answers otherwise; nothing is
            written then.
        RunError: the file cannot be written.
    """
    started = time.monotonic()
    path = _target(model, out, SUFFIXES[to])
    shown = _shown(model, pictures)
    classifier = model.classifier() if isinstance(model, Run) else model
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    try:
        content, parity = _proven(classifier, shown, limit)
    finally:
        for module, mode in modes:
            module.training = mode
    with disk(path):
        write_whole(path, content)
    return Exported(path, parity, len(content) / 1e6, time.monotonic() - started)


def _target(model: Run | AttentionClassifier, out: str | Path | None, suffix: str) -> Path:
    if out is not None:
        path = Path(out)
    elif isinstance(model, Run):
        path = model.path / f"model{suffix}"
    else:
        raise DataError("Name the file to export to: a classifier that is not in a run has no folder.")
    if not path.parent.is_dir():
        raise DataError(f"There is no folder {path.parent} to export to.")
    return path


def _shown(model: Run | AttentionClassifier, pictures: Iterable[Image.Image] | None) -> list[Image.Image]:
    if pictures is not None:
        shown = [picture.convert("RGB") for picture in pictures]
    elif isinstance(model, Run):
        shown = pictures_of(model)
    else:
        raise DataError("Name some pictures: a classifier that is not in a run has no test part for the proof.")
    if not shown:
        raise DataError("There are no pictures for the proof; name some.")
    return shown


def _proven(classifier: AttentionClassifier, shown: list[Image.Image], limit: float) -> tuple[bytes, Parity]:
    """The file's bytes, and how closely they answer."""
    module = Exportable(classifier.image_size, Answering(classifier)).eval()
    program = traced(module)
    model_answer = _eager(classifier)
    blank = np.zeros((1, classifier.image_size, classifier.image_size, 3), np.uint8)
    names = list(model_answer(blank))
    model = translated(program, ["pictures"], names)
    metadata = _described(classifier, names)
    file_answer = answering(labelled(model, metadata), names)
    parity = compare(file_answer, model_answer, shown, classifier.image_size, limit)
    if parity.failures:
        name = max(parity.failures, key=lambda each: parity.shares[each])
        raise ModelError(
            f"The exported file answers otherwise than the model: {name} differs by {parity.differences[name]:.2g}, "
            f"and {limit:g} is allowed. Nothing was written."
        )
    return labelled(model, {**metadata, "parity": parity.as_dict()}), parity


def _eager(classifier: AttentionClassifier) -> Answer:
    """The classifier itself, where it lies, in float32."""
    answering = Answering(classifier)
    device = classifier.mean.device

    @torch.no_grad()
    def answer(squares: NDArray[np.uint8]) -> Named:
        images = torch.from_numpy(squares).to(device).permute(0, 3, 1, 2).float() / 255
        return {name: values.cpu().numpy() for name, values in answering(images).items()}

    return answer


def _described(classifier: AttentionClassifier, outputs: list[str]) -> dict[str, Any]:
    from heedmap import __version__

    return {
        "schema": SCHEMA,
        "heedmap": __version__,
        "classes": list(classifier.classes),
        "image_size": classifier.image_size,
        "taps": list(classifier.taps),
        "attention": classifier.attention_name,
        "weights": classifier.weights,
        "input": "pictures: uint8 RGB (batch, height, width, 3), upright, any size",
        "preprocessing": "inside: centred square, antialiased bilinear to image_size, / 255, normalisation",
        "outputs": outputs,
    }
