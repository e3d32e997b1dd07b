"""A trained classifier as one file that runs without heedmap: images in, probabilities and maps out.

    images          uint8 RGB (B, H, W, 3), any H and W
      squared         centred square at the network's size, as in training
      classifier      normalisation, backbone, attention, head
    logits, probabilities, map_TAP ..., map_combined

Nothing is written before the file has answered real images as the model does; how closely is kept in its metadata.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from heedmap._version import __version__
from heedmap.attribution import METHODS, explain
from heedmap.errors import DataError, ModelError, OptionError, nearest
from heedmap.exporters.calibration import images_of
from heedmap.exporters.gradients import INCLUDES, with_gradients
from heedmap.exporters.onnx import answering, labelled, quantised, traced, translated
from heedmap.exporters.parity import Named, Parity, Prediction, compare_outputs
from heedmap.exporters.torch_program import program_answering, program_bytes
from heedmap.exporters.wrapper import Answering, Exportable
from heedmap.files import disk, write_whole
from heedmap.inference.onnx import MAP, SCHEMA
from heedmap.models.classifier import AttentionClassifier
from heedmap.progress import Progress
from heedmap.runs import Run

__all__ = ["INCLUDES", "Exported", "Parity", "export"]

LIMIT = 1e-5
LEAST_AGREEMENT = 0.85  # of eight bits with the model, on the images of the proof; 14 of 16
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
_PROOF = "Proving that the file answers as the network does ..."


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
    to: Literal["onnx", "torch-export"] = "onnx",
    include: Sequence[str] = (),
    int8: bool = False,
    images: Iterable[Image.Image] | None = None,
    limit: float = LIMIT,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a classifier into one file, after the proof that the file answers as the classifier does.

    Args:
        model: a finished run, or a classifier; the classifier is left as it was.
        out: the file, with the suffix ``.onnx`` or ``.pt2`` that the format has; None writes ``model.onnx`` or
            ``model.pt2`` into the run's folder.
        to: ``onnx``, or ``torch-export`` for ``torch.export.load``.
        include: ``grad_cam``, ``saliency`` or both, computed inside the file for the class that its input ``target``
            names, -1 for the predicted one; the same as :func:`heedmap.explain` computes.
        int8: keep the weights, and compute their products, in eight bits (ONNX only). Such a file is held to naming
            the same class for all but one in seven images, not to ``limit``; how far it is off is told.
        images: RGB, for the proof; None takes 16 of the run's test part.
        limit: see :class:`heedmap.exporters.parity.Parity`.
        overwrite: replace a file that is there.
        progress: told when each long stage begins.

    Raises:
        DataError: a classifier without images, a run whose data cannot be found, or an ``out`` that is there already.
        ModelError: a package is missing, the network cannot be exported, or the file answers otherwise; nothing is
            written then.
        OptionError: an unknown format or map, a suffix of another format, or eight bits for another format than ONNX.
        RunError: the file cannot be written.
    """
    started = time.monotonic()
    _check(to, include, int8)
    path = _target(model, out, to, overwrite)
    progress = progress or Progress()
    progress.message("Reading the images of the proof ...")
    shown = _shown(model, images)
    # A copy, for tracing moves it to the CPU and changes its flags.
    classifier = model.classifier() if isinstance(model, Run) else copy.deepcopy(model)
    with torch.inference_mode(False):
        content, parity = _proven(classifier.cpu().float().eval(), shown, to, tuple(include), int8, limit, progress)
    with disk(path):
        write_whole(path, content)
    return Exported(path, parity, len(content) / 1e6, time.monotonic() - started)


def _check(to: str, include: Sequence[str], int8: bool) -> None:
    for what, word, known in [("format", to, SUFFIXES), *(("map to include", each, INCLUDES) for each in include)]:
        if word not in known:
            raise OptionError(f"Unknown {what} {word!r}; it can be {', '.join(known)}.{nearest(word, known)}")
    if int8 and to != "onnx":
        raise OptionError("int8 is made for ONNX files only; leave it out, or export to onnx.")


def _target(model: Run | AttentionClassifier, out: str | Path | None, to: str, overwrite: bool) -> Path:
    """The file to write, looked at before the work of minutes."""
    suffix = SUFFIXES[to]
    if out is not None:
        path = Path(out)
    elif isinstance(model, Run):
        path = model.path / f"model{suffix}"
    else:
        raise DataError("Name the file to export to: a classifier that is not in a run has no folder.")
    if not path.parent.is_dir():
        raise DataError(f"There is no folder {path.parent} to export to.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it, such as {path / f'model{suffix}'}.")
    if path.suffix.lower() != suffix:
        raise OptionError(f"A file of the format {to} ends in {suffix}; name {path.with_suffix(suffix)}.")
    if path.exists() and not overwrite:
        raise DataError(
            f"{path} exists already; name another --out, or allow it with --overwrite (overwrite=True in Python)."
        )
    return path


def _shown(model: Run | AttentionClassifier, images: Iterable[Image.Image] | None) -> list[Image.Image]:
    if images is not None:
        shown = [image.convert("RGB") for image in images]
    elif isinstance(model, Run):
        shown = images_of(model)
    else:
        raise DataError("Name some images: a classifier that is not in a run has no test part for the proof.")
    if not shown:
        raise DataError("There are no images for the proof; name some.")
    return shown


def _proven(
    classifier: AttentionClassifier,
    shown: list[Image.Image],
    to: str,
    include: tuple[str, ...],
    int8: bool,
    limit: float,
    progress: Progress,
) -> tuple[bytes, Parity]:
    """The file's bytes, and how closely they answer."""
    size, honest = classifier.image_size, _eager(classifier, include)
    names = list(honest(np.zeros((1, size, size, 3), np.uint8)))
    module, layer = Answering(classifier), ""
    progress.message("Tracing the network ...")
    if include:
        traceable, layer = with_gradients(module, size, include)
    program = traced(Exportable(size, traceable if include else module).eval(), takes_target=bool(include))
    metadata = {**_described(classifier, names), "int8": int8, "methods": _methods(include, layer)}
    if to == "onnx":
        progress.message("Writing it as ONNX ...")
        model = translated(program, ["images", "target"][: 1 + bool(include)], names)
        model = quantised(model) if int8 else model
        progress.message(_PROOF)
        parity = compare_outputs(answering(labelled(model, metadata), names), honest, shown, size, limit)
        _evaluate(parity, int8)
        return labelled(model, {**metadata, "parity": parity.as_dict()}), parity
    content = program_bytes(program, metadata)
    progress.message(_PROOF)
    parity = compare_outputs(program_answering(content, takes_target=bool(include)), honest, shown, size, limit)
    _evaluate(parity, int8)
    return program_bytes(program, {**metadata, "parity": parity.as_dict()}), parity


def _evaluate(parity: Parity, int8: bool) -> None:
    if int8:
        if not parity.agreement >= LEAST_AGREEMENT:
            raise ModelError(
                f"In eight bits the file names another class for {1 - parity.agreement:.0%} of {parity.images} "
                "images. Nothing was written; leave --int8 out."
            )
    elif parity.failures:
        name = max(parity.failures, key=lambda each: parity.beyond[each])
        raise ModelError(
            f"The exported file answers otherwise than the model: {name} differs by {parity.differences[name]:.2g}, "
            f"and {parity.limit:g} is allowed. Nothing was written."
        )


def _eager(classifier: AttentionClassifier, include: tuple[str, ...]) -> Prediction:
    """The classifier itself, with maps of gradients as :func:`heedmap.explain` computes them."""
    module = Answering(classifier)

    def answer(squares: NDArray[np.uint8]) -> Named:
        images = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            found = module(images)
        found |= {f"{MAP}{name}": explain(classifier, images, INCLUDES[name]).values for name in include}
        return {name: values.numpy() for name, values in found.items()}

    return answer


def _methods(include: tuple[str, ...], layer: str) -> dict[str, dict[str, Any]]:
    """What is to be said of the maps of gradients where they are drawn, without the table of methods at hand."""
    return {
        name: {
            "method": INCLUDES[name],
            "layer": layer if METHODS[INCLUDES[name]].needs_layer else "",
            "sentence": METHODS[INCLUDES[name]].sentence,
            "is_peaked": METHODS[INCLUDES[name]].is_peaked,
        }
        for name in include
    }


def _described(classifier: AttentionClassifier, outputs: list[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "heedmap": __version__,
        "classes": list(classifier.classes),
        "image_size": classifier.image_size,
        "taps": list(classifier.taps),
        "attention": classifier.attention_name,
        "attention_weights": classifier.attention_weights,
        "input": "images: uint8 RGB (batch, height, width, 3), upright, any size",
        "preprocessing": "inside: centred square, antialiased bilinear to image_size, / 255, normalisation",
        "outputs": outputs,
    }
