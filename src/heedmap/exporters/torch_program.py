"""From a traced program to the bytes of a ``.pt2`` file, and from the bytes to predictions."""

import io
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heedmap.exporters.onnx import quiet
from heedmap.exporters.parity import Named, Prediction
from heedmap.inference.onnx import KEY


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
