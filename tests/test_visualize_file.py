"""An exported file is drawn as its run is, by the same command, on a machine that has no torch."""

import csv
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Refusal, cue_image
from heedmap import ExportOptions, OnnxClassifier, Run, export, visualize
from heedmap.cli.main import main
from heedmap.data import read_image, square
from heedmap.errors import OptionError
from heedmap.workflows.visualize import VisualizeOptions

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "accelerate", "safetensors"):
            raise ImportError(f"there is no {name} here")

sys.meta_path.insert(0, Refuse())
from heedmap.cli.main import main
from heedmap.data import read_image, square
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def file(_finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    views = [cue_image(name, 3)[0] for name in ("red", "blue", "green")]
    target = tmp_path_factory.mktemp("file") / "model.onnx"
    return export(Run.open(_finished_run), target, ExportOptions(include=("grad_cam", "saliency")), images=views).path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images" / "red"
    folder.mkdir(parents=True)
    cue_image("red", 5, side=90)[0].resize((140, 90)).save(folder / "wide.jpg", quality=92)
    cue_image("blue", 6)[0].save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_a_file_is_drawn_without_torch_as_its_run_is_drawn_with_it(finished_run, file, images, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(images / "wide.jpg", "red/wide.jpg")
    words = ["visualize", str(file), str(images), str(tmp_path / "s.tar"), "--out", str(tmp_path / "file")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "3 images drawn" in done.stdout
    assert "broken.png" in done.stderr
    classifier = Run.open(finished_run).classifier()
    visualize(classifier, [images, tmp_path / "s.tar"], tmp_path / "run", methods=("grad-cam", "saliency"))
    for name in ("wide", "small", "s_red_wide"):
        with (
            np.load(tmp_path / "file" / "maps" / f"{name}.npz") as one,
            np.load(tmp_path / "run" / "maps" / f"{name}.npz") as other,
        ):
            assert sorted(one) == sorted(other)
            for key in other:
                same = np.array_equal if other[key].dtype.kind in "iU" else lambda a, b: np.allclose(a, b, 1e-3, 1e-5)
                assert same(one[key], other[key]), key
        first, second = (Image.open(tmp_path / kind / "panels" / f"{name}.png") for kind in ("file", "run"))
        assert first.size == second.size
        assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).mean() < 0.1  # legends and all
    for one, other in zip(rows(tmp_path / "file"), rows(tmp_path / "run"), strict=True):
        assert list(one) == list(other)
        assert one["predicted"] == other["predicted"]
        assert one["label"] == other["label"] == "red"
        assert one["combined_x"] == other["combined_x"]
    page = (tmp_path / "file" / "index.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "run" / "index.html").read_text(encoding="utf-8")


def test_a_target_by_name_is_asked_about(file, images, tmp_path):
    main(["visualize", str(file), str(images / "wide.jpg"), "--out", str(tmp_path / "out"), "--target", "green"])
    with np.load(tmp_path / "out" / "maps" / "wide.npz") as arrays:
        found = arrays["map_grad-cam"]
    read = OnnxClassifier(file)
    side = read.image_size
    view = np.asarray(square(read_image(images / "wide.jpg", short_side=side), side))[None]
    place = read.classes.index("green")
    assert np.array_equal(found, read(view, place)["maps"]["grad_cam"][0, 0])
    assert not np.array_equal(found, read(view, (place + 1) % 3)["maps"]["grad_cam"][0, 0])


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"query": "small.png"}, "attends with each image's own query"),
        ({"layer": "stage2"}, "has its layer inside"),
        ({"methods": ("gradcam",)}, "holds no map 'gradcam'.*Did you mean 'grad-cam'"),
        ({"target": "grean"}, "No class 'grean'.*Did you mean 'green'"),
        ({"target": 3}, "Class 3 does not exist"),
    ],
)
def test_what_a_file_cannot_do_is_refused_before_anything_is_drawn(wish, words, file, images, tmp_path):
    query = images / wish["query"] if "query" in wish else None
    options = VisualizeOptions(target=wish.get("target"), layer=wish.get("layer"))
    methods = wish.get("methods", ())
    with pytest.raises(OptionError, match=words):
        visualize(OnnxClassifier(file), images, tmp_path / "out", query=query, methods=methods, options=options)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_another_device_and_a_file_that_is_not_there(refusal: Refusal, file, images):
    assert "computes on the CPU here" in refusal("visualize", str(file), str(images), "--device", "cuda")
    assert "There is no file" in refusal("visualize", "none.onnx", str(images))
