"""Evaluating a run: on its own test part, on other folders, and what is kept of it."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CUE_CLASSES, Refusal, write_cue_part
from heedmap.data import loader as loading
from heedmap.data import open_data
from heedmap.data.dataset import FolderDataset, ImageDataset, Splits, TensorDataset
from heedmap.errors import DataError
from heedmap.metrics.prediction import ComputeOptions, DatasetPredictions, predict_dataset
from heedmap.models.classifier import AttentionClassifier
from heedmap.runs import Run
from heedmap.system import cores
from heedmap.types import Audit, EpochReport, Finding
from heedmap.workflows.evaluate.data import EvaluationData, OpeningOptions, cache_of
from heedmap.workflows.evaluate.data import test_part as part_evaluated
from heedmap.workflows.evaluate.evaluate import evaluate, evaluate_accuracy
from heedmap.workflows.evaluate.page import panel_sheet, read_audit, refresh, write_evaluation
from heedmap.workflows.evaluate.suites import EvaluateOptions, Subject

CPU = ComputeOptions(device=torch.device("cpu"))


def predicted(logits: torch.Tensor, labels: list[int]) -> DatasetPredictions:
    return DatasetPredictions(logits, torch.tensor(labels), {}, 2.0, 0.5)


def with_data(**opening: Any) -> EvaluateOptions:
    return EvaluateOptions(opening=OpeningOptions(**opening))


def test_the_run_is_evaluated_on_its_test_part(finished_run: Path, cue_folder: Path) -> None:
    run = Run.open(finished_run)
    found = evaluate(run)
    assert (found.part, found.report.count, found.accuracy["pointing"]) == ("test", 36, None)
    classifier, right = run.classifier(), 0
    for index, name in enumerate(CUE_CLASSES):
        for path in sorted((cue_folder / "test" / name).iterdir()):
            photo = np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BILINEAR))
            image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
            with torch.no_grad():
                right += int(classifier(image).logits.argmax()) == index
    # resizing here is not the package's own, so an image on the edge may fall to the other side
    assert found.report.top1 == pytest.approx(right / 36, abs=0.06)


def test_the_same_folder_is_not_evaluated_on_what_was_trained_on(finished_run: Path, cue_folder: Path) -> None:
    assert evaluate(Run.open(finished_run), str(cue_folder)).report.count == 36
    assert evaluate(Run.open(finished_run), f"{cue_folder}/../{cue_folder.name}").report.count == 36


def test_a_folder_without_parts_is_evaluated_as_a_whole(finished_run: Path, cue_folder: Path) -> None:
    run, folder = Run.open(finished_run), str(cue_folder / "test")
    whole = evaluate(run, folder)
    assert whole.part == f"{folder}, all"
    assert whole.report.count == 36
    assert whole.report.top1 == evaluate(run).report.top1


def test_images_that_the_run_was_trained_on_are_counted(finished_run: Path, cue_folder: Path, tmp_path: Path) -> None:
    run = Run.open(finished_run)
    found = evaluate(run, str(cue_folder / "train"))
    assert (found.learned, found.as_dict()["learned"], found.report.count) == (36, 36, 36)
    assert evaluate(run, str(cue_folder / "test")).learned == evaluate(run, str(cue_folder)).learned == 0
    write_cue_part(tmp_path / "other", 1, 0)
    assert evaluate(run, str(tmp_path / "other")).learned == 0


def test_a_run_finds_its_images_from_another_folder(
    make_cue_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heedmap import TrainOptions, train

    monkeypatch.chdir(make_cue_folder(4, 2).rename(tmp_path / "real").parent)
    Path("images").symlink_to("real")  # the name that the user gave is kept
    run = train(TrainOptions(data="images", out="run", image_size=32, epochs=1, workers=0))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = Run.open(tmp_path / "run")
    assert again.options.data == str(tmp_path / "images")
    assert again.options.root == str(tmp_path / "data")
    assert evaluate(again).report.count == 6
    assert "<title>images, compact with" in (again.path / "report.html").read_text()
    assert run.config["command"].startswith("heedmap train images ")


def test_a_flat_folder_that_the_run_was_trained_on_is_split_as_it_was_then(tmp_path: Path) -> None:
    from heedmap import TrainOptions, train

    write_cue_part(tmp_path / "flat", 10, 0)
    options = TrainOptions(
        data=str(tmp_path / "flat"), out=str(tmp_path / "run"), image_size=32, epochs=1, workers=0, seed=3
    )
    run = train(options)
    kept = run.read_json("evaluation.json")
    found = evaluate(run, str(tmp_path / "flat"))
    assert found.report.count == kept["count"] == 6
    assert found.report.nll == pytest.approx(kept["nll"], abs=1e-6)


def test_classes_are_matched_by_name_not_by_place(finished_run: Path, tmp_path: Path) -> None:
    for name, count in (("blue", 3), ("green", 2), ("red", 1)):
        write_cue_part(tmp_path / "flat", count, 0, (name,))
    run = Run.open(finished_run)
    run.config["architecture"]["classes"] = ["red", "blue", "green"]
    report = evaluate(run, str(tmp_path / "flat")).report
    assert report.classes == ("red", "blue", "green")
    assert report.confusion.sum(1).tolist() == [1, 3, 2]


def test_flips_average_the_logits_of_an_image_and_its_mirror_image(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(finished_run)
    plain, images = evaluate(run), part_evaluated(open_data(run.options.data))
    # Confident and correct for every second image, slightly wrong for the others, whose mirror images are correct.
    right = torch.nn.functional.one_hot(images.labels, len(images.classes)).float()
    sign = torch.ones(len(right), 1)
    sign[1::2] = -1

    def made(*_: object, mirrored: bool = False) -> DatasetPredictions:
        return predicted(right * (2 if mirrored else sign), images.labels.tolist())

    monkeypatch.setattr("heedmap.workflows.evaluate.evaluate.predict_dataset", made)
    found = evaluate(run, options=EvaluateOptions(flips=True))
    assert (found.report.top1, found.top1_with_flips) == (0.5, 1.0)
    assert plain.top1_with_flips is None
    assert "top1_with_flips" not in plain.as_dict()


def test_mirrored_images_are_shown_as_in_a_mirror(finished_run: Path) -> None:
    run = Run.open(finished_run)
    classifier, dataset = run.classifier(), part_evaluated(open_data(run.options.data))
    images = torch.stack([dataset.load(row, classifier.image_size) for row in range(len(dataset))]) / 255
    found = predict_dataset(classifier, dataset, CPU, mirrored=True)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, classifier(images.flip(3)).logits)
        assert not torch.allclose(found.logits, classifier(images).logits)


def test_only_what_is_evaluated_is_decoded_and_checked_once(
    finished_run: Path, cue_folder: Path, tmp_path: Path, decoded: list[str]
) -> None:
    run, options = Run.open(finished_run), with_data(cache=str(tmp_path / "cache"))
    for times in (2, 1):  # to see that it can be read, and to be evaluated
        decoded.clear()
        evaluate(run, options=options)
        assert len(decoded) == times * 36
        assert all(name.startswith("test/") for name in decoded)
    decoded.clear()
    assert evaluate(run, str(cue_folder / "train"), options).report.count == 36
    assert len(decoded) == 2 * 36  # of a folder without parts, all


def test_a_report_written_again_reads_the_test_part_alone(copied_run: Path, tmp_path: Path, decoded: list[str]) -> None:
    run = Run.open(copied_run)
    refresh(run, evaluate(run, options=with_data(cache=str(tmp_path / "cache"))))
    assert decoded
    assert all(name.startswith("test/") for name in decoded)


def test_as_many_threads_decode_as_are_requested(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    original = loading.load_all

    def note(images: ImageDataset, indices: Sequence[int], size: int, workers: int) -> object:
        threads.append(workers)
        return original(images, indices, size, workers)

    monkeypatch.setattr(loading, "load_all", note)
    run = Run.open(finished_run)
    evaluate(run, options=with_data(workers=3))
    run.config["options"]["workers"] = 5
    evaluate(run)
    run.config["options"]["workers"] = None
    evaluate(run)
    assert threads == [3, 5, cores()]


def test_the_time_of_decoding_is_counted_and_that_of_the_network_reported_apart(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, load = Run.open(finished_run), FolderDataset.load
    images = part_evaluated(open_data(run.options.data))

    def slow(self: FolderDataset, index: int, size: int) -> torch.Tensor:
        time.sleep(0.02)
        return load(self, index, size)

    monkeypatch.setattr(FolderDataset, "load", slow)
    for memory in (1.0, 0.0):  # decoded before, and streamed
        found = predict_dataset(run.classifier(), images, replace(CPU, memory=memory, workers=1))
        assert found.seconds - found.network_seconds >= 36 * 0.02
        assert found.network_seconds > 0


def test_a_cache_of_training_that_is_not_on_this_machine_is_skipped(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEEDMAP_CACHE", str(tmp_path / "own"))
    options = Run.open(finished_run).options
    (tmp_path / "here").mkdir()
    assert cache_of(replace(options, cache=str(tmp_path / "here"))) == tmp_path / "here"
    assert cache_of(replace(options, cache="/nowhere/else")) == tmp_path / "own"
    assert cache_of(replace(options, cache="off")) is None
    assert cache_of(replace(options, cache="off"), str(tmp_path / "given")) == tmp_path / "given"


def test_a_number_of_threads_that_cannot_be_is_refused(finished_run: Path, refusal: Refusal) -> None:
    assert "workers = -1" in refusal("evaluate", finished_run, "--workers", "-1")


def test_unknown_and_missing_classes_are_named(cue_folder: Path) -> None:
    splits = open_data(str(cue_folder))
    assert EvaluationData.of_splits(splits, ("red", "blue", "green")).labels.bincount().tolist() == [12, 12, 12]
    with pytest.raises(DataError, match=r"'red'.*'reed'"):
        EvaluationData.of_splits(splits, ("blue", "green", "reed"))
    with pytest.raises(DataError, match="'yellow'"):
        EvaluationData.of_splits(splits, ("blue", "green", "red", "yellow"))


def accuracy_of(classifier: AttentionClassifier, dataset: TensorDataset) -> dict[str, Any]:
    splits = Splits("set", dataset.classes, dataset, None, dataset, (), (), False)
    data = EvaluationData.of_splits(splits, classifier.classes)
    return evaluate_accuracy(Subject(classifier, dataset, data.labels), data, CPU).as_dict()


def test_measures_come_from_the_predictions(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    classifier = Run.open(finished_run).classifier()
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 0, 1, 1])
    made = predicted(logits, labels.tolist())
    monkeypatch.setattr("heedmap.workflows.evaluate.evaluate.predict_dataset", lambda *_: made)
    found = accuracy_of(classifier, TensorDataset(images, labels, classifier.classes, "wxyz"))
    assert found["top1"] == 0.75
    assert (found["images_per_second"], found["network_images_per_second"]) == (2.0, 8.0)
    assert found["pointing"] is None
    assert json.loads(json.dumps(found))["top1"] == 0.75


def test_maps_are_kept_and_pointing_is_measured_where_boxes_are_known(finished_run: Path) -> None:
    classifier = Run.open(finished_run).classifier()
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])
    dataset = TensorDataset(images, torch.tensor([0, 1]), classifier.classes, ("a", "b"), boxes=boxes)
    pointing = accuracy_of(classifier, dataset)["pointing"]
    assert set(pointing) == {"centre", "random", "combined", *classifier.taps}
    assert pointing["random"] == pytest.approx((1 + 0.25) / 2)


def test_what_is_written_is_what_was_found(finished_run: Path, tmp_path: Path) -> None:
    found = evaluate(Run.open(finished_run))
    out = write_evaluation(found, tmp_path / "deep" / "folder")
    assert json.loads((out / "evaluation.json").read_text())["confusion"] == found.report.confusion.tolist()
    with Image.open(out / "confusion.png") as image:
        assert image.width == image.height == 320
    assert not list(out.glob(".*"))


def test_the_audit_comes_back_as_it_was_written(finished_run: Path) -> None:
    run = Run.open(finished_run)
    kept = read_audit(run.read_json("audit.json"))
    assert kept.images == {"train": 36, "test": 36}
    audit = Audit({"train": 1}, {"train": {"a": 1}}, (Finding("odd", ("train",), ("p",), "n"),), 0, 0.5, "full")
    from dataclasses import asdict

    assert read_audit(json.loads(json.dumps(asdict(audit)))) == audit


def test_an_epoch_comes_back_with_what_was_not_a_number(finished_run: Path) -> None:
    record = next(each for each in Run.open(finished_run).read_metrics() if each["kind"] == "epoch")
    assert EpochReport.from_record(record).epoch == 1
    assert math.isnan(EpochReport.from_record({**record, "validation_loss": None}).validation["loss"])


def test_a_sheet_of_panels_is_one_image_a_row(finished_run: Path, cue_folder: Path) -> None:
    import io

    classifier = Run.open(finished_run).classifier()
    images = open_data(str(cue_folder)).train
    heights = []
    for count in (1, 3):
        views = torch.stack([images.load(row, 32) for row in range(count)])
        with Image.open(io.BytesIO(panel_sheet(classifier, views))) as sheet:
            heights.append(sheet.height)
    assert heights[1] == 3 * heights[0]


def test_the_report_of_a_run_states_that_the_test_set_was_used_once(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text()
    assert "once" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for name in CUE_CLASSES:
        assert name in page
