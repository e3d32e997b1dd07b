"""``visualize --method``: computed maps beside the learned ones, in panels, files and the table."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heedmap.attribution import METHODS, explain, method_of
from heedmap.cli.main import main
from heedmap.errors import OptionError
from heedmap.inference.predictor import AttributionOptions
from heedmap.inference.reading import decode
from heedmap.inference.torch_predictor import TorchPredictor, checked_methods
from heedmap.runs import Run
from heedmap.workflows.visualize import VisualizeOptions, visualize


def test_named_maps_are_drawn_beside_the_learned_ones_and_kept_raw(
    finished_run: Path, cue_folder: Path, tmp_path: Path
) -> None:
    image, out = cue_folder / "test" / "red" / "000.png", tmp_path / "maps"
    main(["visualize", str(finished_run), str(image), "--method", "grad-cam,", "layer-cam", "--out", str(out)])
    main(["visualize", str(finished_run), str(image), "--out", str(tmp_path / "plain")])

    panels = [folder / "panels" / "000.png" for folder in (out, tmp_path / "plain")]
    wide, narrow = (Image.open(io.BytesIO(panel.read_bytes())).width for panel in panels)
    assert wide - narrow == 2 * (256 + 16)
    classifier = Run.open(finished_run).classifier()
    pixels = decode(image, classifier.image_size).pixels
    with np.load(out / "maps" / "000.npz") as arrays:
        for method in ("grad-cam", "layer-cam"):
            wanted = explain(classifier, torch.from_numpy(pixels)[None].float() / 255, method).values[0, 0]
            np.testing.assert_allclose(arrays[f"map_{method}"], wanted.numpy(), rtol=1e-4, atol=1e-6)
    with (out / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {"grad-cam_x", "grad-cam_y", "layer-cam_x"} <= set(row)


def test_the_class_asked_about_is_named_under_the_image(finished_run: Path, cue_folder: Path) -> None:
    classifier = Run.open(finished_run).classifier()
    pixels = decode(cue_folder / "test" / "red" / "000.png", classifier.image_size).pixels
    attributions = AttributionOptions(("grad-cam", "guided-backprop", "rise"), "green")
    answer = TorchPredictor(classifier, attributions=attributions)(pixels[None])[0]

    lines = answer.notes
    assert len(lines) == 3
    assert lines[0].startswith("grad-cam at backbone.stage3 for green, computed afterwards: ")
    assert METHODS["guided-backprop"].warning in lines[1]
    assert answer.maps["grad-cam"].target == classifier.classes.index("green")
    assert answer.maps["grad-cam"].low == 0
    assert (answer.maps["guided-backprop"].values > answer.maps["guided-backprop"].high).sum() == 11  # of 32 x 32
    assert "99th percentile" in lines[1]
    assert answer.maps["rise"].low == pytest.approx(float(answer.maps["rise"].values.min()))
    assert list(answer.maps)[-3:] == ["grad-cam", "guided-backprop", "rise"]


@pytest.mark.parametrize("scale", ["range", "set"])
def test_every_rule_of_the_scale_and_a_query_go_with_computed_maps(
    scale: str, finished_run: Path, cue_folder: Path, tmp_path: Path
) -> None:
    images = sorted((cue_folder / "test" / "red").iterdir())[:3]
    classifier = Run.open(finished_run).classifier()
    done = visualize(
        classifier,
        images,
        tmp_path / "out",
        methods=["input-x-gradient"],
        query=images[0],
        options=VisualizeOptions(scale=scale),
    )
    assert done.count == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "gradcam"), "Did you mean 'grad-cam'?"),
        (("--method", "attention"), "drawn in any case"),
        (("--target", "red"), "name a method with the target"),
        (("--layer", "stage2"), "name a method that reads one"),
        (("--method", "saliency", "--layer", "stage2"), "name a method that reads one"),
        (("--method", "grad-cam", "--target", "rde"), "Did you mean 'red'?"),
        (("--method", "grad-cam", "--layer", "stage5"), "No layer 'stage5'"),
        (("--method", "cam"), "or take grad-cam"),
        (("--method", "rise:cuont=5"), "Did you mean 'count'?"),
        (("--method", "rise:count=many"), "rise:count=many cannot be read: count is like count=1000."),
        (("--method", "occlusion:window"), "occlusion:window cannot be read: window is like window=8."),
        (("--method", "rise:"), "rise has no setting ''; it has count"),
        (("--method", "rise:count=5+count=6"), "rise:count=5+count=6 gives count twice"),
        (("--method", "rise:count=5,cells=6"), "settings of one are joined by +"),
        (("--method", "cam:relu=true"), "cam has no setting 'relu'; it has none."),
        (("--method", "grad-cam", "--method", "saliency"), "--method is given twice; name all after one: --method A B"),
    ],
)
def test_what_cannot_be_drawn_is_told_and_nothing_is_left(
    words: tuple[str, ...], said: str, finished_run: Path, cue_folder: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    line = refusal("visualize", finished_run, cue_folder / "test" / "red", "--out", tmp_path / "maps", *words)
    assert said in line
    assert not (tmp_path / "maps").exists()


def test_a_class_may_be_given_by_its_index(finished_run: Path) -> None:
    classifier = Run.open(finished_run).classifier()
    view = np.zeros((1, 3, classifier.image_size, classifier.image_size), np.uint8)
    predictor = TorchPredictor(classifier, attributions=AttributionOptions(("grad-cam", "grad-cam"), 1))
    assert predictor.maps[-1:] == ("grad-cam",) != predictor.maps[-2:-1]
    assert predictor(view)[0].maps["grad-cam"].target == 1
    with pytest.raises(OptionError, match="Class 99 "):
        TorchPredictor(classifier, attributions=AttributionOptions(("grad-cam",), 99))
    assert checked_methods(AttributionOptions(("rise", "rise"))) == ("rise",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("grad-cam", ("grad-cam", {})),
        ("grad-cam:relu=false+score=probability", ("grad-cam", {"relu": False, "score": "probability"})),
        ("rise:keep=1+count=20", ("rise", {"keep": 1.0, "count": 20})),
        ("occlusion:window=8+stride=auto", ("occlusion", {"window": 8})),
    ],
)
def test_settings_stand_behind_the_name(words: str, expected: tuple[str, dict[str, Any]]) -> None:
    assert method_of(words) == expected
    assert all(type(value) is type(expected[1][key]) for key, value in method_of(words)[1].items())


def test_one_method_may_be_drawn_with_several_settings(finished_run: Path, cue_folder: Path, tmp_path: Path) -> None:
    image, out = cue_folder / "test" / "red" / "000.png", tmp_path / "maps"
    words = "input-x-gradient,integrated-gradients:steps=3,integrated-gradients:steps=1"
    main(["visualize", str(finished_run), str(image), "--method", words, "--out", str(out)])
    with np.load(out / "maps" / "000.npz") as arrays:
        coarse, fine = (arrays[f"map_integrated-gradients:steps={steps}"] for steps in (1, 3))
    assert not np.allclose(coarse, fine)


def test_the_list_of_methods_can_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "methods"])
    text = capsys.readouterr().out
    assert all(name in text for name in METHODS)


def test_the_page_on_methods_has_a_line_for_each_and_no_other() -> None:
    page = (Path(__file__).parents[1] / "docs" / "concepts" / "map-methods.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| `")]
    assert [(name.strip(" `"), shows.strip(), source.strip()) for name, shows, source in rows] == [
        (name, line.sentence, line.source) for name, line in METHODS.items()
    ]
