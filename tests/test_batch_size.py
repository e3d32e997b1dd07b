"""How large a batch memory allows."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from heedmap.config import TrainOptions
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.progress import Progress
from heedmap.training import batch_size as memory
from heedmap.training.batch_size import bytes_per_image, fitting_batch_size, free_bytes, halved_until_it_fits
from heedmap.workflows.train.train import train

CPU = torch.device("cpu")


def compact(size: int = 32) -> AttentionClassifier:
    torch.manual_seed(0)
    return build_classifier(Architecture("compact", "parametrised", None, "concat", None, size, ("a", "b")))


class TwoLayers(nn.Module):
    """Keeps for the backward pass: the images, what the first layer gives, and what the ReLU gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 5, 1), nn.Linear(5, 2)

    def forward(self, images: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.last(self.first(images).relu().mean((2, 3))))


def test_what_is_bytes_per_image_is_counted_by_hand() -> None:
    model: Any = TwoLayers()
    # Float32: 3 x 64 pixels into the convolution, 5 x 64 out of the ReLU, 5 into the linear layer, 2 log-probabilities;
    # the label is an integer of 8 bytes.
    expected = 4 * (3 * 64 + 5 * 64 + 5 + 2) + 8
    assert bytes_per_image(model, 8, "float32", CPU) == expected


def test_saved_bytes_grow_with_the_pixels_and_halve_in_bfloat16() -> None:
    small, large = (bytes_per_image(compact(), size, "float32", CPU) for size in (32, 64))
    assert 3.5 < large / small < 4.5
    assert 0.4 < bytes_per_image(compact(), 64, "bf16", CPU) / large < 0.7


def test_nothing_of_the_classifier_or_of_the_random_numbers_changes() -> None:
    classifier = compact().eval()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    bytes_per_image(classifier, 32, "float32", CPU)
    assert torch.equal(torch.rand(3), expected)
    assert not classifier.training
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("free", "expected"),
    [(math.inf, 48), (48 * memory.PEAK * 10 / memory.USABLE, 48), (900.0, 24), (340.0, 12), (0.0, 3)],
)
def test_a_batch_is_halved_until_it_fits_and_never_to_nothing(free: float, expected: int) -> None:
    assert halved_until_it_fits(48, 10, free) == expected


def test_a_batch_is_left_as_it_is_where_memory_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator: Any = SimpleNamespace(device=CPU, num_processes=2, gather=lambda values: values)
    options = TrainOptions(image_size=32, batch_size=64, precision="float32")
    assert fitting_batch_size(compact(), options, accelerator) == 64
    per_image = bytes_per_image(compact(), 32, "float32", CPU)
    room = 32 / 2 * per_image * memory.PEAK / memory.USABLE  # for 32 images, shared by two processes
    monkeypatch.setattr(memory, "free_bytes", lambda device, processes: room)
    assert fitting_batch_size(compact(), options, accelerator) == 32
    twice = TrainOptions(image_size=32, batch_size=64, precision="float32", map_consistency=1.0)
    assert fitting_batch_size(compact(), twice, accelerator) == 16


def test_a_run_trains_with_the_batches_that_fit_and_reports_it(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Said(Progress):
        def message(self, text: str) -> None:
            told.append(text)

    monkeypatch.setattr(memory, "free_bytes", lambda device, processes: 0.0)  # three images, the least there is
    options = TrainOptions(data=str(cue_folder), out=str(tmp_path / "run"), image_size=16, epochs=1, workers=0)
    run = train(options, progress=Said())
    assert run.options.batch_size is not None
    assert 2 <= run.options.batch_size < 4
    assert any(re.fullmatch(r"Batches of \d images, not of \d+: memory is short\.", text) for text in told)
    steps = [record for record in run.read_metrics() if record["kind"] == "epoch"][-1]["step"]
    assert steps == run.config["sizes"]["train"] // run.options.batch_size
    told_so = replace(options, out=str(tmp_path / "other"), batch_size=9)
    assert train(told_so).options.batch_size == 9


def test_processes_on_one_processor_share_its_memory() -> None:
    alone, shared = free_bytes(CPU, 1), free_bytes(CPU, 4)
    assert 3 < alone / shared < 5
    assert free_bytes(torch.device("mps"), 1) == math.inf
