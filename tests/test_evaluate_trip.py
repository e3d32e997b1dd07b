"""How many files of the package one image set enters on its way through the localization suite.

Counted are the files of which a function is called, in any thread, after everything is imported: from
``evaluate(run, options=...)`` of a finished run, its own test set with boxes from a CSV, to the results. What a reader
has to open to follow that way is what is counted.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import heedmap
from heedmap import Run, evaluate
from heedmap.workflows.evaluate.suites import EvaluateOptions

MOST = 35


def files_entered(action: Callable[[], object]) -> dict[str, set[str]]:
    """Path inside the package -> names of the functions that an action calls."""
    package, entered = Path(heedmap.__file__).parent, {}

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


def test_one_image_set_enters_few_files(finished_run: Path, cue_folder: Path, tmp_path: Path) -> None:
    test = cue_folder / "test"
    names = [file.relative_to(test).as_posix() for file in sorted(test.rglob("*.png"))]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("path,left,top,right,bottom\n" + "".join(f"{name},0.1,0.1,0.5,0.5\n" for name in names))
    run = Run.open(finished_run)
    options = EvaluateOptions(suites=("localization",), methods=("attention",), annotations=str(boxes))
    evaluate(run, options=options)  # what is imported and cached on the way
    entered = files_entered(lambda: evaluate(run, options=options))
    listed = "\n".join(f"{path}: {', '.join(sorted(functions))}" for path, functions in sorted(entered.items()))
    assert len(entered) <= MOST, f"{len(entered)} files:\n{listed}"
