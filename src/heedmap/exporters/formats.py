"""From the module to the bytes of an ONNX or ``.pt2`` file, and from the bytes to predictions."""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heedmap.errors import ModelError
from heedmap.exporters.parity import Named, Prediction
from heedmap.exporters.wrapper import Exportable
from heedmap.inference.onnx import KEY

OPSET = 18
LARGEST = 20_000  # pixels along a side, as the graph's bounds promise


def trace(module: Exportable, *, takes_target: bool = False) -> torch.export.ExportedProgram:
    """Trace the module with dynamic batch, height and width."""
    names = [torch.export.Dim(name, min=1, max=LARGEST) for name in ("batch", "height", "width")]
    size = module.squared.size
    example = torch.zeros(2, size + 6, size + 16, 3, dtype=torch.uint8)  # neither square nor of the network's size
    examples, shapes = (example, torch.zeros(2, dtype=torch.int64)), (dict(enumerate(names)), {0: names[0]})
    count = 1 + takes_target
    with quiet():
        # Not strict is the default of later versions; the strict tracing of torch 2.6 knows no `dict |= dict`.
        return torch.export.export(module, examples[:count], dynamic_shapes=shapes[:count], strict=False)


def to_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Return an ``onnx.ModelProto`` without paths of this machine; ModelError where an operation has no translation."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(f"ONNX export needs {error.name}, which is missing: pip install 'heedmap[onnx]'") from None
    try:
        with quiet():
            names: dict[str, Any] = {"input_names": [*inputs], "output_names": [*outputs]}
            made = torch.onnx.export(program, (), dynamo=True, verbose=False, opset_version=OPSET, **names)
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(f"This network cannot be written as ONNX: {str(error).strip().splitlines()[0]}") from None
    assert made is not None  # no file was named
    model = made.model_proto
    _forget_sources(model)
    for axes, values in ((("batch", "height", "width"), model.graph.input), (("batch",), model.graph.output)):
        for value in values:
            for axis, name in zip(value.type.tensor_type.shape.dim, axes, strict=False):
                axis.dim_param = name
    return model


def _forget_sources(model: Any) -> None:
    """Remove the exporter's notes on each node: lines of source with their paths."""
    for part in (model.graph, *model.functions):
        del part.metadata_props[:]
        for item in (*part.node, *part.value_info):
            del item.metadata_props[:]
            item.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def file_bytes(model: Any, metadata: dict[str, Any]) -> bytes:
    """Return the file's bytes, with its description."""
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=json.dumps(metadata, ensure_ascii=False))
    return model.SerializeToString()


def quantize(model: Any) -> Any:
    """Return the model with its weights in eight bits; activations are quantised as they come (dynamically)."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del model.graph.value_info[:]  # shapes of weights that are transposed here; they are inferred again
    with quiet(), tempfile.TemporaryDirectory() as folder:  # its interface takes files only
        path = Path(folder) / "int8.onnx"
        # Unsigned: onnxruntime has no convolution of signed weights on a CPU.
        quantize_dynamic(model, path, weight_type=QuantType.QUInt8)
        return onnx.load(path)


def load_onnx(content: bytes, names: Sequence[str]) -> Prediction:
    """Return a function that runs the bytes of a file as :class:`heedmap.inference.onnx.OnnxClassifier` does."""
    try:
        import onnxruntime
    except ImportError:
        raise ModelError("The comparison needs onnxruntime, which is missing: pip install 'heedmap[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    takes = {tensor.name for tensor in session.get_inputs()}

    def predict(images: NDArray[np.uint8]) -> Named:
        feed: dict[str, Any] = {"images": images, "target": np.full(len(images), -1, np.int64)}
        outputs = session.run(list(names), {name: value for name, value in feed.items() if name in takes})
        return dict(zip(names, outputs, strict=True))

    return predict


def program_bytes(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """Return the file's bytes; ``heedmap.json`` among its extra files describes it."""
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={f"{KEY}.json": json.dumps(metadata, ensure_ascii=False)})
    return content.getvalue()


def load_program(content: bytes, *, takes_target: bool) -> Prediction:
    """Return a function that runs the bytes of a file after ``torch.export.load``."""
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    @torch.no_grad()
    def predict(images: NDArray[np.uint8]) -> Named:
        targets = (torch.full((len(images),), -1),) * takes_target
        outputs = module(torch.from_numpy(np.array(images)), *targets)
        return {name: values.numpy() for name, values in outputs.items()}

    return predict


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters: deprecations among their own parts, and their progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")]
    with warnings.catch_warnings(), contextlib.ExitStack() as undo:
        warnings.simplefilter("ignore")
        for logger in loggers:
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield
