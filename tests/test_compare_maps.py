"""Where the objects are known: comparisons evaluate the maps, and training can be drawn onto the objects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import write_cue_part
from heedmap import TrainOptions
from heedmap.data.masks import OBJECT
from heedmap.errors import DataError, OptionError
from heedmap.progress import Progress
from heedmap.runs import Run
from heedmap.workflows.compare import compare, make_plan
from heedmap.workflows.compare.plan import Plan
from heedmap.workflows.train.setup import prepare
from heedmap.workflows.train.train import train

SMALL: dict[str, Any] = {"image_size": 32, "epochs": 1, "batch_size": 16, "workers": 0, "precision": "float32"}
VARIANTS = ("attention=none", "drawn:attention=parametrised,map_supervision=1")


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Cue images, and a table of the cues' boxes."""
    folder = tmp_path_factory.mktemp("annotated")
    lines = ["image,left,top,right,bottom"]
    for part, first in (("train", 0), ("test", 1000)):
        for name, box in write_cue_part(folder / "images" / part, 8, first).items():
            lines.append(f"{part}/{name},{','.join(map(str, box))}")
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder / "images", folder / "boxes.csv"


def plan_of(images: Path, boxes: Path | None, seeds: int = 1) -> Plan:
    where = None if boxes is None else str(boxes)
    return make_plan(TrainOptions(data=str(images), annotations=where, **SMALL), VARIANTS, seeds)


@pytest.mark.slow
def test_how_annotations_are_read_reaches_training_and_judging(annotated: tuple[Path, Path], tmp_path: Path) -> None:
    images, boxes = annotated
    lines = boxes.read_text().splitlines()
    named = tmp_path / "named.csv"
    named.write_text("\n".join([f"{lines[0]},class", *(f"{line},red" for line in lines[1:])]))
    options = TrainOptions(data=str(images), annotations=str(named), same_class=True, map_supervision=1.0, **SMALL)
    found = prepare(options, Progress()).splits.notes
    assert "7 of 21 training images have objects for map_supervision." in found  # the red ones alone
    with pytest.raises(DataError, match=r"named\.csv"):
        prepare(replace(options, annotation_format="coco"), Progress())
    compare(make_plan(options, ("attention=none", "attention=parametrised"), 1), tmp_path / "compared")
    for report in (tmp_path / "compared").rglob("evaluation.json"):
        evaluated = json.loads(report.read_text())["suites"]["localization"]
        assert (evaluated["images"], evaluated["left_out"]) == (8, {"annotated without object": 16})
    with pytest.raises(OptionError, match="--annotations"):
        train(replace(options, annotations=None, same_class=False, parts=False, out=str(tmp_path / "never")))
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_a_comparison_tells_where_maps_lie_and_what_maps_come_to_that_know_nothing(
    annotated: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "compared"
    found = compare(plan_of(*annotated), out)
    groups = {each["key"]: each["group"] for each in found["measures"]}
    assert groups["pointing combined"] == "pointing"
    assert groups["IoU grad-cam"] == "overlap"
    assert groups["MaxBoxAcc stage3"] == "boxes"
    control, drawn = (variant["runs"][0] for variant in found["variants"])
    suite = Run.open(out / "drawn" / "seed-0").read_json("evaluation.json")["suites"]["localization"]
    assert drawn["IoU stage3"] == suite["scores"]["attention stage3"]["otsu_iou"]["value"]
    assert "IoU grad-cam" in control
    assert "IoU stage3" not in control  # its maps are even
    (note,) = [note for note in found["notes"] if note.startswith("Baselines of the localization suite")]
    assert f"edges {suite['scores']['edges']['otsu_iou']['value']:.1%}" in note
    assert any(each["measure"] == "IoU grad-cam" for each in found["differences"])
    assert "IoU grad-cam" in (out / "comparison.html").read_text()
    assert "Do maps lie on the object?" in (out / "drawn" / "seed-0" / "report.html").read_text()


@pytest.mark.slow
def test_runs_whose_maps_were_not_judged_yet_are_judged_when_the_comparison_goes_on(
    annotated: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "compared"
    compare(plan_of(*annotated), out)
    path = out / "drawn" / "seed-0" / "evaluation.json"
    content = json.loads(path.read_text())
    whole = content.pop("suites")
    path.write_text(json.dumps(content))
    compare(None, out)
    assert json.loads(path.read_text())["suites"] == whole


def test_annotations_that_fit_nothing_are_told_before_anything_is_trained(
    annotated: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "boxes.csv").write_text("image,left,top,right,bottom\nelsewhere.png,1,1,9,9\n")
    with pytest.raises(DataError, match=r"boxes\.csv"):
        compare(plan_of(annotated[0], tmp_path / "boxes.csv"), tmp_path / "compared")
    assert not list((tmp_path / "compared").glob("*/seed-0"))


def test_training_images_of_a_folder_get_the_masks_of_their_annotations(annotated: tuple[Path, Path]) -> None:
    options = TrainOptions(data=str(annotated[0]), annotations=str(annotated[1]), map_supervision=1.0, **SMALL)
    prepared = prepare(options, Progress())
    masks = prepared.splits.train.masks
    assert masks is not None
    regions = masks[torch.arange(len(prepared.splits.train))]
    assert regions.shape == (len(prepared.splits.train), 32, 32)
    shares = (regions == OBJECT).double().mean((1, 2))
    assert shares.min() > 0.02  # every image has its cue, of the same size
    assert shares.max() < 1.5 * shares.min()
    assert any("training images have objects" in note for note in prepared.splits.notes)


def test_supervision_of_maps_without_known_objects_is_refused(annotated: tuple[Path, Path], tmp_path: Path) -> None:
    from heedmap import train

    options = TrainOptions(data=str(annotated[0]), map_supervision=1.0, out=str(tmp_path / "run"), **SMALL)
    with pytest.raises(DataError, match="--annotations"):
        train(options)
