"""How many files one image travels through: what a reader has to open who follows it."""

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image

import heedmap
from heedmap import Architecture, build_classifier, visualize

ROOT = str(Path(heedmap.__file__).parent)


def test_one_image_is_visualized_through_at_most_seventeen_files(tmp_path: Path) -> None:
    classifier = build_classifier(Architecture("compact", "parametrised", "softmax", "concat", None, 32, ("a", "b")))
    image = tmp_path / "image.png"
    Image.new("RGB", (60, 40), (200, 30, 30)).save(image)
    visualize(classifier, image, tmp_path / "first")  # imports are no part of the trip
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(ROOT) and name.endswith(".py"):
            files.add(name.removeprefix(ROOT + "/"))

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        visualize(classifier, image, tmp_path / "second")
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    assert len(files) <= 17, sorted(files)  # aim: 12
    assert {"inference/predictor.py", "inference/reading.py", "modules.py"} <= files
