"""How many files of the package one image set enters on its way through the localization suite.

Counted are the files of which a function is called, in any thread, after everything is imported: from
``evaluate(run, options=...)`` of a finished run to the results. What a reader has to open to follow that way is what is
counted: of images that are in memory and bring their boxes, and of a folder with a table of boxes, which the rooms for
folders, their cache and annotations open first.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

import heedmap
from heedmap import Run, evaluate
from heedmap.data.dataset import Splits, TensorDataset
from heedmap.workflows.evaluate.suites import EvaluateOptions


def files_entered(action: Callable[[], object]) -> dict[str, set[str]]:
    """Path inside the package -> names of the functions that an action calls."""
    package = Path(heedmap.__file__).parent
    entered: dict[str, set[str]] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(package):
            entered.setdefault(str(path.relative_to(package)), set()).add(frame.f_code.co_name)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return entered


def check_trip(run: Run, options: EvaluateOptions, most: int) -> None:
    evaluate(run, options=options)  # what is imported and cached on the way
    entered = files_entered(lambda: evaluate(run, options=options))
    listed = "\n".join(f"{path}: {', '.join(sorted(functions))}" for path, functions in sorted(entered.items()))
    assert len(entered) <= most, f"{len(entered)} files:\n{listed}"


def test_images_that_bring_boxes_enter_few_files(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(finished_run)
    images = torch.randint(0, 255, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classes, boxes = run.architecture.classes, torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(12, 4)
    part = TensorDataset(images, torch.arange(12) % 3, classes, [str(row) for row in range(12)], boxes=boxes)
    splits = Splits("scenes", classes, part, None, part, (), (), False)
    monkeypatch.setattr("heedmap.workflows.evaluate.data.open_data", lambda *_, **__: splits)
    check_trip(run, EvaluateOptions(suites=("localization",), methods=("attention",)), 35)


def test_a_folder_with_a_table_of_boxes_enters_few_files(finished_run: Path, cue_folder: Path, tmp_path: Path) -> None:
    test = cue_folder / "test"
    names = [file.relative_to(test).as_posix() for file in sorted(test.rglob("*.png"))]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("path,left,top,right,bottom\n" + "".join(f"{name},0.1,0.1,0.5,0.5\n" for name in names))
    options = EvaluateOptions(suites=("localization",), methods=("attention",), annotations=str(boxes))
    check_trip(Run.open(finished_run), options, 40)
