"""A trained classifier as one file that runs without heedmap: images in, probabilities and maps out.

It takes ``images``, uint8 RGB (B, H, W, 3) of any height and width, and returns ``logits``, ``probabilities``,
``map_TAP`` ... and ``map_combined``; the centred square and the normalisation are inside.

Nothing is written before the file has been verified: its outputs for real images are compared with the model's, and
the differences are recorded in its metadata.
"""

import copy
import functools
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from heedmap._version import __version__
from heedmap.attribution import METHODS, explain
from heedmap.config import ExportOptions
from heedmap.data import FolderDataset, open_data
from heedmap.data.decoding import read_image
from heedmap.errors import DataError, ModelError, OptionError
from heedmap.exporters.formats import file_bytes, load_onnx, load_program, program_bytes, quantize, to_onnx, trace
from heedmap.exporters.gradients import INCLUDES, with_gradients
from heedmap.exporters.parity import LIMIT, Named, Parity, Prediction, compare_outputs
from heedmap.exporters.wrapper import Exportable, NamedOutputs
from heedmap.files import disk, write_whole
from heedmap.inference.onnx import MAP, SCHEMA
from heedmap.models.classifier import AttentionClassifier
from heedmap.progress import Progress
from heedmap.runs import Run

__all__ = ["INCLUDES", "ExportOptions", "Exported", "Parity", "export"]

LEAST_AGREEMENT = 0.85  # of eight bits with the model; 14 of 16 images
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """The file that was written, and how closely its outputs agree with the model's."""

    path: Path
    parity: Parity
    megabytes: float
    seconds: float  # from start to file


def export(
    model: Run | AttentionClassifier,
    out: str | Path | None = None,
    options: ExportOptions | None = None,
    *,
    images: Iterable[Image.Image] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a classifier into one file, after verifying that the file's outputs are the classifier's.

    Args:
        model: a finished run, or a classifier; the classifier is left as it was.
        out: the file, with the suffix ``.onnx`` or ``.pt2`` that the format has; None writes ``model.onnx`` or
            ``model.pt2`` into the run's folder.
        options: format and content. Maps that it includes are for the class in the file's input ``target``, -1 for the
            predicted one, and equal to those of :func:`heedmap.explain`. With ``int8`` the file has to predict the same
            class for all but one in seven images; how far it is off is reported.
        images: RGB, to compare file and model with; None takes 16 of the run's test part.
        progress: receives a message when each long stage begins.

    Raises:
        DataError: a classifier without images, a run whose data cannot be found, or an ``out`` that is there already.
        ModelError: a package is missing, the network cannot be exported, or the outputs differ; nothing is written.
        OptionError, RunError: a suffix of another format; a file that cannot be written.
    """
    started = time.monotonic()
    options, progress = options or ExportOptions(), progress or Progress()
    path = _target(model, out, options.to, overwrite)
    progress.message("Reading the images of the comparison ...")
    examples = _examples(model, images)
    # A copy: tracing moves it to the CPU and changes its flags.
    classifier = model.classifier() if isinstance(model, Run) else copy.deepcopy(model)
    with torch.inference_mode(False):
        content, parity = _verified(classifier.cpu().float().eval(), examples, options, progress)
    with disk(path):
        write_whole(path, content)
    return Exported(path, parity, len(content) / 1e6, time.monotonic() - started)


def _target(model: Run | AttentionClassifier, out: str | Path | None, to: str, overwrite: bool) -> Path:
    """Return the file to write, checked before the work of minutes."""
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
        way = "allow it with --overwrite (overwrite=True in Python)"
        raise DataError(f"{path} exists already; name another --out, or {way}.")
    return path


def _examples(model: Run | AttentionClassifier, images: Iterable[Image.Image] | None) -> list[Image.Image]:
    if images is not None:
        examples = [image.convert("RGB") for image in images]
    elif isinstance(model, Run):
        examples = _images_of(model)
    else:
        raise DataError("Name some images: a classifier that is not in a run has no test part to be compared on.")
    if not examples:
        raise DataError("There are no images for the comparison; name some.")
    return examples


def _images_of(run: Run, count: int = 16) -> list[Image.Image]:
    """Return up to ``count`` images spread evenly over the test part; files in full size, others in the network's."""
    own = run.options
    try:
        data = open_data(own.data, root=own.root, download=False, seed=own.seed, test_share=own.test)
    except DataError as error:
        raise DataError(f"{error} Or name images with --images.") from None
    part = data.test if data.test is not None else data.train
    rows = np.linspace(0, len(part) - 1, min(count, len(part))).astype(int).tolist()
    if isinstance(part, FolderDataset):
        return [read_image(part.path(row)) for row in rows]
    size = run.architecture.image_size
    return [Image.fromarray(part.load(row, size).permute(1, 2, 0).numpy()) for row in rows]


def _verified(
    classifier: AttentionClassifier, examples: list[Image.Image], options: ExportOptions, progress: Progress
) -> tuple[bytes, Parity]:
    """Return the file's bytes, and how closely its outputs agree with the classifier's."""
    size, include = classifier.image_size, options.include
    reference = _eager(classifier, include)
    names = list(reference(np.zeros((1, size, size, 3), np.uint8)))
    module: Any = NamedOutputs(classifier)
    layer = ""
    progress.message("Tracing the network ...")
    if include:
        module, layer = with_gradients(module, size, include)
    program = trace(Exportable(size, module).eval(), takes_target=bool(include))
    metadata = {**_description(classifier, names), "int8": options.int8, "methods": _methods(include, layer)}
    if options.to == "onnx":
        progress.message("Writing it as ONNX ...")
        model = to_onnx(program, ["images", "target"][: 1 + bool(include)], names)
        to_bytes = functools.partial(file_bytes, quantize(model) if options.int8 else model)
        file = load_onnx(to_bytes(metadata), names)
    else:
        to_bytes = functools.partial(program_bytes, program)
        file = load_program(to_bytes(metadata), takes_target=bool(include))
    progress.message("Comparing the file with the network ...")
    parity = compare_outputs(file, reference, examples, size, LIMIT)
    _check_parity(parity, options.int8)
    return to_bytes({**metadata, "parity": asdict(parity)}), parity


def _check_parity(parity: Parity, int8: bool) -> None:
    if int8:
        if not parity.agreement >= LEAST_AGREEMENT:
            what = f"another class for {1 - parity.agreement:.0%} of {parity.images} images"
            raise ModelError(f"In eight bits the file predicts {what}. Nothing was written; leave --int8 out.")
    elif parity.failures:
        name = max(parity.failures, key=lambda each: parity.beyond[each])
        what = f"{name} differs by {parity.differences[name]:.2g}, and {parity.limit:g} is allowed"
        raise ModelError(f"The outputs of the exported file are not the model's: {what}. Nothing was written.")


def _eager(classifier: AttentionClassifier, include: tuple[str, ...]) -> Prediction:
    """Return the classifier itself as a function, with maps of gradients by :func:`heedmap.explain`."""
    module = NamedOutputs(classifier)

    def predict(squares: NDArray[np.uint8]) -> Named:
        images = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            outputs = module(images)
        outputs |= {f"{MAP}{name}": explain(classifier, images, INCLUDES[name]).values for name in include}
        return {name: values.numpy() for name, values in outputs.items()}

    return predict


def _methods(include: tuple[str, ...], layer: str) -> dict[str, dict[str, Any]]:
    """Return what legends need of the included maps where the table of methods is not at hand."""
    content = {}
    for name in include:
        method = METHODS[INCLUDES[name]]
        words = {"method": INCLUDES[name], "layer": layer if method.needs_layer else ""}
        content[name] = {**words, "sentence": method.sentence, "is_peaked": method.is_peaked}
    return content


def _description(classifier: AttentionClassifier, outputs: list[str]) -> dict[str, Any]:
    return {
        **{"schema": SCHEMA, "heedmap": __version__, "classes": list(classifier.classes)},
        **{"image_size": classifier.image_size, "taps": list(classifier.taps)},
        **{"attention": classifier.attention_name, "attention_weights": classifier.attention_weights},
        "input": "images: uint8 RGB (batch, height, width, 3), upright, any size",
        "preprocessing": "inside: centred square, antialiased bilinear to image_size, / 255, normalisation",
        "outputs": outputs,
    }
