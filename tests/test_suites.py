"""The suites: what is evaluated, on which images, and where it is written."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Refusal
from heedmap.cli.console import abreast
from heedmap.cli.main import main
from heedmap.errors import ModelError, OptionError
from heedmap.metrics.prediction import DatasetPredictions
from heedmap.progress import Progress
from heedmap.report.sections import SECTIONS, sections
from heedmap.runs import Run
from heedmap.workflows.evaluate.evaluate import evaluate
from heedmap.workflows.evaluate.page import ranked_panels, refresh
from heedmap.workflows.evaluate.suites import (
    SUITES,
    EvaluateOptions,
    Subject,
    control_of,
    map_functions,
    spread_rows,
)


def test_each_class_keeps_its_share_and_its_rows_are_spread() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 20)[
        torch.randperm(80, generator=torch.Generator().manual_seed(0))
    ]
    rows = spread_rows(labels, 20)
    assert labels[rows].bincount().tolist() == [10, 5, 5]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert spread_rows(labels, None).tolist() == spread_rows(labels, 100).tolist() == list(range(80))
    assert spread_rows(torch.zeros(10), 5).tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": ("robustnes",)}, "'robustnes'.*'robustness'"),
        ({"methods": ("gradcam",)}, "'gradcam'.*'grad-cam'"),
        ({"suites": ("transfer",)}, "--suite transfer --transfer DIR"),
        ({"transfer": ("images",)}, "--transfer .* --suite transfer"),
        ({"annotations": "masks"}, "--annotations .* --suite localization"),
        ({"limit": 5}, "--limit .* localization and faithfulness and robustness"),
        ({"suites": ("robustness",), "methods": ("grad-cam",)}, "--method .* localization and faithfulness"),
        ({"suites": ("robustness",), "limit": 1}, "limit = 1"),
        ({"deletion_baseline": "black"}, "--deletion-baseline .* faithfulness"),
        ({"independent": True}, "--independent .* faithfulness"),
        ({"suites": ("faithfulness",), "deletion_baseline": "datset"}, "'datset'.*'dataset'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EvaluateOptions(**changes)


def test_learned_attention_is_evaluated_at_each_tap_and_combined_and_the_control_has_none(finished_run: Path) -> None:
    classifier = Run.open(finished_run).classifier()
    assert map_functions(EvaluateOptions(), classifier, "parametrised") == {}  # accuracy needs none
    options = EvaluateOptions(suites=("faithfulness",))
    functions = map_functions(options, classifier, "parametrised")
    assert list(functions) == ["attention stage2", "attention stage3", "attention combined", "grad-cam"]
    assert list(map_functions(options, classifier, "none")) == ["grad-cam"]
    with pytest.raises(ModelError, match="control"):
        map_functions(EvaluateOptions(suites=("faithfulness",), methods=("attention",)), classifier, "none")
    images, targets = torch.rand(2, 3, 32, 32), torch.tensor([0, 2])
    for function in functions.values():
        assert function(classifier, images, targets).shape[0] == 2


def test_a_method_is_evaluated_with_its_settings(finished_run: Path) -> None:
    classifier = Run.open(finished_run).classifier()
    options = EvaluateOptions(suites=("localization",), methods=("grad-cam", "grad-cam:relu=false"))
    images, targets = torch.rand(2, 3, 32, 32), torch.tensor([0, 2])
    functions = map_functions(options, classifier, "parametrised")
    cut, whole = (function(classifier, images, targets) for function in functions.values())
    torch.testing.assert_close(whole.clamp(min=0), cut)
    assert whole.min() < 0


def test_a_control_must_see_the_same_images(finished_run: Path, copied_run: Path) -> None:
    from heedmap.errors import RunError

    run, other = Run.open(finished_run), Run.open(copied_run)
    assert control_of(other, run.classifier()).classes == run.classifier().classes
    other.config["architecture"]["classes"] = ["red", "green", "blue"]
    with pytest.raises(RunError, match=r"classes .*'red'"):
        control_of(other, run.classifier())


@pytest.fixture(scope="module")
def evaluated(_finished_run: Path, _cue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in whose report the quick suites were put, and what the command printed."""
    import contextlib
    import io

    from heedmap.cli.console import console

    run = Path(shutil.copytree(_finished_run, tmp_path_factory.mktemp("evaluated") / "run"))
    said = io.StringIO()
    words = ["--suite", "faithfulness,robustness,transfer", "--transfer", str(_cue_folder), "--limit", "4"]
    with contextlib.redirect_stdout(said):
        console.file = said
        try:
            main(["evaluate", str(run), *words, "--method", "attention,grad-cam", "--control", str(_finished_run)])
        finally:
            console.file = None  # type: ignore[assignment]
    return run, said.getvalue()


def test_suites_are_printed_saved_and_shown_in_the_report(evaluated: tuple[Path, str]) -> None:
    path, said = evaluated
    run = Run.open(path)
    kept = run.read_json("evaluation.json")
    assert set(kept["suites"]) == {"faithfulness", "robustness", "transfer"}
    assert kept["suites"]["faithfulness"]["sample"] == {"evaluated": 4, "of": 36}
    assert {"this run", "control"} == set(kept["suites"]["robustness"]["models"])
    assert "NaN" not in (path / "evaluation.json").read_text()
    page = (path / "report.html").read_text()
    for text in (said.replace("\n", " "), page):
        assert "4 of 36 images" in text
        assert "Does this map depend on what the network learned?" in text
        assert "Are the features useful on other data?" in text
        assert "Do maps lie on the object?" not in text  # not requested
    assert "nothing was chosen by it" in page
    assert "<script src" not in page  # nothing is loaded from elsewhere
    top1 = json.loads((path / "evaluation.json").read_text())["top1"]
    assert top1 == Run.open(path).read_json("evaluation.json")["top1"]


def test_a_run_that_was_evaluated_again_is_still_complete(evaluated: tuple[Path, str], finished_run: Path) -> None:
    before, after = (Run.open(path).read_json("evaluation.json") for path in (finished_run, evaluated[0]))
    suites = after.pop("suites")
    assert before == after
    assert {section.key for section in sections(suites)} == set(suites)
    shown = {row[0] for row in sections(suites)[0].tables[0].rows}
    assert {"attention stage2", "grad-cam", "centre"} <= shown


def test_later_suites_stand_beside_earlier_ones(evaluated: tuple[Path, str], tmp_path: Path) -> None:
    run = Run.open(Path(shutil.copytree(evaluated[0], tmp_path / "run")))
    found = evaluate(run, options=EvaluateOptions(suites=("robustness",), limit=3))
    refresh(run, found)
    kept = run.read_json("evaluation.json")["suites"]
    assert set(kept) == {"faithfulness", "robustness", "transfer"}
    assert kept["robustness"]["sample"]["evaluated"] == 3
    assert "control" not in kept["robustness"]["models"]


def test_other_data_is_written_to_a_folder_of_its_own(
    finished_run: Path, cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (finished_run / "evaluation.json").read_bytes()
    main(["evaluate", str(finished_run), str(cue_folder / "test"), "--suite", "robustness", "--limit", "3"])
    assert (finished_run / "evaluation.json").read_bytes() == before
    assert "Does it withstand attacks?" in (tmp_path / "evaluation-1" / "report.html").read_text()
    assert "robustness" in json.loads((tmp_path / "evaluation-1" / "evaluation.json").read_text())["suites"]


def test_without_suites_nothing_new_is_written(finished_run: Path) -> None:
    before = (finished_run / "evaluation.json").read_bytes()
    main(["evaluate", str(finished_run)])
    assert (finished_run / "evaluation.json").read_bytes() == before


def test_slips_of_the_pen_are_reported(finished_run: Path, refusal: Refusal) -> None:
    assert "Did you mean 'faithfulness'?" in refusal("evaluate", finished_run, "--suite", "accuracy,faithfullness")
    assert "--transfer DIR" in refusal("evaluate", finished_run, "--suite", "transfer")
    assert "heedmap train" in refusal("evaluate", finished_run, "--suite", "robustness", "--control", "nowhere")


def test_a_folder_with_something_in_it_is_left_alone_and_refused_before_any_work(
    finished_run: Path, copied_run: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedmap.workflows.evaluate.evaluate.predict_dataset", lambda *_: pytest.fail("it predicts"))
    before = {path: path.stat().st_mtime_ns for path in copied_run.iterdir()}
    line = refusal("evaluate", finished_run, "--suite", "robustness", "--out", copied_run)
    assert str(copied_run) in line
    assert {path: path.stat().st_mtime_ns for path in copied_run.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refusal("evaluate", finished_run, "--out", tmp_path / "file")


def test_every_input_is_checked_before_the_first_suite_works(
    finished_run: Path, cue_folder: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedmap.workflows.evaluate.evaluate.predict_dataset", lambda *_: pytest.fail("it predicts"))
    line = refusal("evaluate", finished_run, "--suite", "faithfulness,transfer", "--transfer", "nothere")
    assert "nothere" in line
    line = refusal("evaluate", finished_run, "--suite", "transfer", "--transfer", cue_folder, "--limit", 5)
    assert "--limit" in line
    line = refusal("evaluate", finished_run, "--suite", "robustness,localization", "--annotations", "nothere")
    assert "nothere" in line
    assert "--control is used by robustness and transfer" in refusal(
        "evaluate", finished_run, "--control", finished_run
    )


@pytest.mark.parametrize("fault", [ModelError("It broke."), KeyboardInterrupt()])
def test_results_of_earlier_suites_outlive_a_later_one(
    fault: BaseException, copied_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("heedmap.metrics.faithfulness.evaluation.evaluate_faithfulness", fails)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(copied_run), "--suite", "robustness,faithfulness", "--limit", "3"])
    assert ended.value.code == (130 if isinstance(fault, KeyboardInterrupt) else 2)
    said = capsys.readouterr()
    assert "Does it withstand attacks?" in said.out
    assert ("It broke." if isinstance(fault, ModelError) else "Stopped.") in said.err
    assert "Next:" not in said.out
    assert set(Run.open(copied_run).read_json("evaluation.json")["suites"]) == {"robustness"}


def test_every_suite_has_a_name_and_a_section() -> None:
    assert [suite.name for suite in SUITES.values()] == list(SUITES)
    assert {"accuracy", *SECTIONS} == set(SUITES)


def test_a_wide_table_is_split_and_each_part_has_the_key_columns() -> None:
    assert abreast([10, 5, 5, 5], 1, 80) == [[0, 1, 2, 3]]
    assert abreast([10, 5, 5, 5], 1, 20) == [[0, 1, 2], [0, 3]]
    assert abreast([10, 5, 8, 8, 8], 2, 25) == [[0, 1, 2], [0, 1, 3], [0, 1, 4]]
    assert abreast([10, 90, 8], 1, 20) == [[0, 1], [0, 2]]


def test_the_terminal_shows_intervals_and_repeats_attack_and_epsilon(evaluated: tuple[Path, str]) -> None:
    lines = evaluated[1].splitlines()
    assert max(map(len, (line for line in lines if line.startswith(("this run", "attention", "random"))))) <= 80
    heads = [line.split()[:3] for line in lines if line.startswith("classifier")]
    assert heads == [["classifier", "attack", "epsilon"]] * 2
    assert sum(bool(re.match(r"this run +pgd +8/255 ", line)) for line in lines) == 2
    assert re.search(r"^this run +noise +0/255 +[\d.]+ \([\d.]+ - [\d.]+\)", evaluated[1], re.MULTILINE)
    assert re.search(r"^grad-cam +[\d.]+ \(-?[\d.]+ - [\d.]+\)", evaluated[1], re.MULTILINE)


def test_maps_are_compared_with_the_boxes_that_the_images_bring(corner_scenes: Subject) -> None:
    found = computed(corner_scenes, suites=("localization",), limit=6)
    assert found["sample"] == {"evaluated": 6, "of": 8}
    assert {"attention stage2", "grad-cam", "centre", "edges"} <= set(found["scores"])
    (section,) = sections({"localization": found})
    assert section.tables[0].grey == frozenset(found["baselines"])


@pytest.fixture
def corner_scenes(finished_run: Path) -> Subject:
    """Eight images with an object in the left upper quarter."""
    from heedmap.data.dataset import TensorDataset

    classifier = Run.open(finished_run).classifier()
    images = torch.randint(0, 255, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, boxes = torch.arange(8) % 3, torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(8, 4)
    dataset = TensorDataset(images, labels, classifier.classes, [str(row) for row in range(8)], boxes=boxes)
    return Subject(classifier, dataset, labels)


def computed(subject: Subject, **options: Any) -> dict[str, Any]:
    """The results of one suite."""
    chosen = EvaluateOptions(**options)
    subject = replace(subject, maps=map_functions(chosen, subject.classifier, "parametrised"))
    unused = DatasetPredictions(torch.empty(0), torch.empty(0), {}, 0.0, 0.0)
    return SUITES[chosen.suites[0]](subject, chosen).compute(unused, Progress())


@pytest.mark.parametrize(
    ("methods", "ranked"),
    [
        ((), "attention combined"),
        (("grad-cam", "attention"), "attention combined"),
        (("layer-cam", "grad-cam"), "layer-cam"),
    ],
)
def test_images_are_ranked_by_the_combined_attention_or_the_first_map_requested(
    methods: tuple[str, ...], ranked: str, corner_scenes: Subject
) -> None:
    found = computed(corner_scenes, suites=("localization",), methods=methods)["ranked"]
    assert found["map"] == ranked
    assert {kind: len(rows) for kind, rows in found["rows"].items()} == {"best": 3, "median": 3, "worst": 3}
    figures = [found["figures"][row] for row in found["rows"]["best"] + found["rows"]["worst"]]
    assert figures == sorted(figures, reverse=True)


def test_the_map_that_was_ranked_is_drawn_and_named_with_all_boxes(
    corner_scenes: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heedmap.workflows.visualize import prediction_panel

    drawn = []

    def seen(*args: Any, **kept: Any) -> Any:
        drawn.append((args[1], args[3]))
        return prediction_panel(*args, **kept)

    monkeypatch.setattr("heedmap.workflows.evaluate.page.prediction_panel", seen)
    boxes = [[0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]]
    for name, tile in (("attention combined", "combined"), ("attention stage2", "stage2"), ("grad-cam", "grad-cam")):
        drawn.clear()
        kept = {"map": name, "rows": {"best": [4]}, "boxes": {"4": boxes}, "figures": {"4": 0.345}}
        panels = ranked_panels({"ranked": kept}, corner_scenes)
        ((prediction, options),) = drawn
        assert tile in prediction.maps
        assert options.boxes == [tuple(box) for box in boxes]
        assert options.notes == (f"Ranked by the map {name}: IoU 0.34 with the object, cut at Otsu's threshold.",)
        assert [panel.path for panel in panels["best"]] == ["4"]
    assert prediction.maps["grad-cam"].target == 1  # the true class, as in the suite
    assert ranked_panels(None, corner_scenes) == {}


@pytest.fixture
def boxes_of_cues(cue_folder: Path, tmp_path: Path) -> Path:
    lines = [
        f"{file.relative_to(cue_folder / 'test').as_posix()},0.1,0.1,0.5,0.5,{file.parent.name}\n"
        for file in sorted((cue_folder / "test").rglob("*.*"))
    ]
    (tmp_path / "boxes.csv").write_text("path,left,top,right,bottom,class\n" + "".join(lines))
    return tmp_path / "boxes.csv"


def test_best_and_worst_are_shown_for_other_data_too(
    finished_run: Path, cue_folder: Path, boxes_of_cues: Path, tmp_path: Path
) -> None:
    words = ["--suite", "localization", "--annotations", str(boxes_of_cues), "--limit", "10", "--method", "grad-cam"]
    main(["evaluate", str(finished_run), str(cue_folder / "test"), *words, "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<figure class="panel">') == 9
    for kind in ("best", "median", "worst"):
        assert f'<span class="badge {kind}">{kind}</span> of the maps' in page
    assert "were read as fractions" in page


def test_best_and_worst_of_an_earlier_suite_stay_in_the_report(copied_run: Path, boxes_of_cues: Path) -> None:
    words = ["--suite", "localization", "--annotations", str(boxes_of_cues), "--limit", "10", "--method", "attention"]
    main(["evaluate", str(copied_run), *words])
    main(["evaluate", str(copied_run), "--suite", "robustness", "--limit", "2"])
    page = (copied_run / "report.html").read_text()
    assert page.count("of the maps</h3>") == 3


def test_how_annotations_are_read_can_be_set_on_the_command_line(
    finished_run: Path, cue_folder: Path, boxes_of_cues: Path, tmp_path: Path, refusal: Refusal
) -> None:
    one_class = next(iter(sorted(path.name for path in (cue_folder / "test").iterdir())))
    lines = boxes_of_cues.read_text().splitlines()
    boxes_of_cues.write_text("\n".join([lines[0], *(f"{line.rpartition(',')[0]},{one_class}" for line in lines[1:])]))
    words = [finished_run, cue_folder / "test", "--suite", "localization", "--annotations", boxes_of_cues]
    evaluated = {}
    for flag in ("--same-class", "--no-same-class"):
        out = tmp_path / flag
        main([*map(str, ["evaluate", *words, flag, "--method", "grad-cam", "--out", out])])
        found = json.loads((out / "evaluation.json").read_text())["suites"]["localization"]
        evaluated[flag] = found["images"], any("same_class takes only" in note for note in found["notes"])
    assert evaluated == {"--same-class": (12, False), "--no-same-class": (36, True)}
    assert "mask_kind" in refusal("evaluate", *words, "--mask-kind", "grey")
    assert "boxes.csv" in refusal("evaluate", *words, "--annotation-format", "coco")
    assert "red" in refusal("evaluate", *words, "--class-values", "red")
    line = refusal("evaluate", finished_run, "--suite", "localization", "--same-class")
    assert "--annotations" in line


def test_a_map_that_this_run_cannot_give_is_refused_before_data_is_opened(
    finished_run: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = lambda *_, **__: pytest.fail("it opens the data")  # noqa: E731
    monkeypatch.setattr("heedmap.workflows.evaluate.data.open_run_data", fail)
    line = refusal("evaluate", finished_run, "--suite", "faithfulness", "--method", "grad-cam,attention-rollout")
    assert "--method attention-rollout cannot be evaluated on this run:" in line
    line = refusal("evaluate", finished_run, "--suite", "faithfulness", "--method", "rise:keep=2")
    assert "--method rise:keep=2 cannot be evaluated on this run:" in line
    for option in ("--suite", "--method"):
        assert f"{option} names nothing" in refusal("evaluate", finished_run, option, " , ")


@pytest.mark.slow
def test_what_deletion_leaves_and_each_layer_alone_can_be_requested(
    finished_run: Path, corner_scenes: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heedmap.metrics.faithfulness import evaluation

    given, real = [], evaluation.evaluate_faithfulness

    def seen(*args: Any, **kept: Any) -> Any:
        given.append(kept["options"].deletion_baseline)
        return real(*args, **kept)

    monkeypatch.setattr("heedmap.metrics.faithfulness.evaluation.evaluate_faithfulness", seen)
    options = {"suites": ("faithfulness",), "methods": ("attention",), "limit": 2}
    plain = computed(corner_scenes, **options)
    found = computed(corner_scenes, **options, deletion_baseline="dataset", independent=True)
    assert given[0] == "mean"
    torch.testing.assert_close(given[1], corner_scenes.classifier.mean.flatten())
    (section,), (before,) = sections({"faithfulness": found}), sections({"faithfulness": plain})
    assert "Deletion leaves the mean colour of the data set, zero to the network." in section.notes
    assert "Deletion leaves each image's own mean colour." in before.notes
    cascade, alone = section.tables[2:]
    assert len(before.tables) == 3
    assert "from the top down to" in cascade.head[0]
    assert cascade.head[1:] == tuple(found["randomization"])
    stages = found["randomization"]["edges"]["cascading"]
    assert len(cascade.rows) == len(stages) == len(alone.rows)
    assert [row[1] for row in cascade.rows] == [
        f"{stage['absolute']:.2f}" for stage in found["randomization"]["attention stage2"]["cascading"]
    ]
