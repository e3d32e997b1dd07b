"""From a traced program to the bytes of a ``.pt2`` file, and from the bytes to answers."""

from __future__ import annotations

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
    """Return the file's bytes; ``heedmap.json`` among its extra files says what it is."""
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={f"{KEY}.json": json.dumps(metadata, ensure_ascii=False)})
    return content.getvalue()


def program_answering(content: bytes, *, takes_target: bool) -> Prediction:
    """Run the bytes of a file as ``torch.export.load`` gives them."""
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    @torch.no_grad()
    def answer(images: NDArray[np.uint8]) -> Named:
        targets = (torch.full((len(images),), -1),) * takes_target
        found = module(torch.from_numpy(np.array(images)), *targets)
        return {name: values.numpy() for name, values in found.items()}

    return answer
