"""A run's images are those it was trained on; a run's folder is one process's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heedmap import Run, TrainOptions, evaluate, train
from heedmap.cli.main import main
from heedmap.errors import DataError, ModelError, OptionError, RunError, Stopped, TrainingError
from heedmap.files import locked
from heedmap.progress import Progress
from heedmap.runs import CHECKPOINT, MANIFEST

SMALL: dict[str, Any] = {"image_size": 32, "epochs": 1, "batch_size": 8, "validation": 0.2, "workers": 0}


@pytest.fixture
def flat(make_cue_folder: Callable[..., Path]) -> Path:
    """DIR/CLASS/*, from which a test part is drawn."""
    return make_cue_folder(train=10, test=0) / "train"


@pytest.fixture
def drawn_run(flat: Path, tmp_path: Path) -> Run:
    return train(TrainOptions(data=str(flat), out=str(tmp_path / "run"), **SMALL))


def double(folder: Path) -> None:
    for image in list(folder.rglob("*.png")):
        shutil.copy(image, image.with_name(f"a-{image.name}"))


def test_a_test_part_that_would_be_drawn_anew_from_a_changed_folder_is_refused(
    flat: Path, drawn_run: Run, tmp_path: Path
) -> None:
    assert evaluate(drawn_run).learned == 0
    double(flat)
    for data in (None, str(flat)):
        with pytest.raises(DataError, match=r"train has changed since .*run"):
            evaluate(drawn_run, data)
    with pytest.raises(DataError, match="has changed since"):  # how many of these were learned from cannot be told
        evaluate(drawn_run, str(Path(shutil.copytree(flat, flat / "0" / "copies"))))
    beside = shutil.copytree(flat, tmp_path / "elsewhere")
    shutil.rmtree(beside / "0")
    assert evaluate(drawn_run, str(beside)).report.count > 30


def test_a_test_folder_of_its_own_may_grow(make_cue_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_cue_folder(train=8, test=4)
    run = train(TrainOptions(data=str(folder), out=str(tmp_path / "run"), **SMALL))
    double(folder / "test")
    assert evaluate(run).report.count == 24


def test_a_run_is_not_taken_up_with_as_many_other_images(flat: Path, tmp_path: Path) -> None:
    out = begun(flat, tmp_path)
    image = next(flat.rglob("*.png"))
    image.rename(image.with_name("other.png"))
    with pytest.raises(RunError, match=r"began with other images of .*, though as many"):
        train(TrainOptions(), resume=out)


def begun(folder: Path, where: Path) -> Path:
    """A run that stopped after its first checkpoint."""

    class Stopping(Progress):
        def epoch(self, report: Any) -> None:
            raise Stopped("enough")

    options = TrainOptions(data=str(folder), out=str(where / "begun"), save_every=0, **{**SMALL, "epochs": 2})
    with pytest.raises(Stopped):
        train(options, progress=Stopping())
    return where / "begun"


def test_a_folder_that_is_worked_on_is_left_to_the_one_that_works(flat: Path, tmp_path: Path) -> None:
    out = begun(flat, tmp_path)
    partial = out / ".model.safetensors.1.partial"
    partial.write_bytes(b"of the living")
    with locked(out), pytest.raises(RunError, match="another process"):
        train(TrainOptions(), resume=out)
    assert partial.exists()
    assert train(TrainOptions(), resume=out).is_finished
    assert not partial.exists()


def test_a_finished_run_outlives_what_happens_afterwards(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    def lost(_: object) -> None:
        if (tmp_path / "run" / MANIFEST).is_file():
            raise KeyboardInterrupt

    monkeypatch.setattr(Accelerator, "wait_for_everyone", lost)
    with pytest.raises(KeyboardInterrupt):
        train(TrainOptions(data=str(flat), out=str(tmp_path / "run"), **SMALL))
    assert Run.open(tmp_path / "run").classifier().classes


def test_a_folder_of_the_users_stays_when_training_fails(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(OptionError, match="batch_size"):
        train(TrainOptions(data=str(flat), out=str(tmp_path / "mine"), **{**SMALL, "batch_size": 1}))
    assert list((tmp_path / "mine").iterdir()) == []


def test_one_image_a_class_is_refused_before_training_and_by_the_audit(
    make_cue_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = make_cue_folder(train=1, test=0) / "train"
    with pytest.raises(DataError, match="no class has two images"):
        train(TrainOptions(data=str(folder), out=str(tmp_path / "run"), **SMALL))
    assert not (tmp_path / "run").exists()
    main(["audit", str(folder)])
    told = capsys.readouterr().out
    assert "heedmap train would refuse" in told
    assert "Next:" not in told


def test_names_that_are_no_text_are_kept_as_they_are(flat: Path, tmp_path: Path) -> None:
    for image in list(flat.rglob("*.png")):  # so that some are in the test part, and in its answers
        try:
            image.rename(image.with_name(f"caf\udce9-{image.name}"))  # as a file system gives Latin-1
        except OSError:
            pytest.skip("the file system takes names in UTF-8 only")
    main(["audit", str(flat), "--json", str(tmp_path / "found.json")])
    run = train(TrainOptions(data=str(flat), out=str(tmp_path / "run"), **SMALL))
    json.loads((run.path / "audit.json").read_text("utf-8"))
    assert evaluate(run).report.count == 6


def test_a_class_that_cannot_be_shown_is_named(flat: Path, tmp_path: Path) -> None:
    (flat / "blue").rename(flat / "blue\n2")
    with pytest.raises(DataError, match=r"'blue\\n2' cannot be shown as the name of a class"):
        train(TrainOptions(data=str(flat), **SMALL))


def test_a_link_to_the_data_is_no_class(flat: Path) -> None:
    from heedmap import open_data

    (flat / "loop").symlink_to(".")
    (flat / "up").symlink_to("..")
    with pytest.raises(DataError, match="no images of class 'loop', 'up'"):
        open_data(str(flat))


def test_diverging_weights_are_neither_best_nor_drawn(flat: Path, tmp_path: Path) -> None:
    options = TrainOptions(data=str(flat), out=str(tmp_path / "r"), optimizer="sgd", learning_rate=1000, **SMALL)
    with pytest.raises(TrainingError, match=r"not finite|The loss is"):
        train(options)


def test_the_rate_that_is_told_is_the_one_that_was_set(flat: Path, tmp_path: Path) -> None:
    options = TrainOptions(data=str(flat), out=str(tmp_path / "run"), model="whitened", learning_rate=0.01, **SMALL)
    rates = [line["learning_rate"] for line in train(options).read_metrics()]
    assert rates
    assert 0 < max(rates) <= 0.01


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "1"), "--seed is 0 there, not 1"),
        (("--attention", "dot"), "--attention is 'parametrised' there, not 'dot'"),
        (("--out", "elsewhere"), "--out is "),
        (("--validation", "0.1"), "--validation is 0.2 there, not 0.1"),  # the default, told
    ],
)
def test_what_is_told_beside_resume_is_not_passed_over(
    cue_folder: Path, tmp_path: Path, refusal: Callable[..., str], words: tuple[str, ...], said: str
) -> None:
    begun_run = begun(cue_folder, tmp_path)
    assert said in refusal("train", "--resume", begun_run, *words)
    assert (begun_run / CHECKPOINT).is_file()
    main(["train", "--resume", str(begun_run), "--out", str(begun_run)])
    assert Run.open(begun_run).is_finished


@pytest.mark.parametrize(("changed", "said"), [({"taps": ()}, "taps"), ({"out": "a\0b"}, "a zero byte")])
def test_options_that_mean_nothing_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        TrainOptions(data="images", **changed)


def test_a_name_that_is_too_long_is_one_line(refusal: Callable[..., str], cue_folder: Path) -> None:
    assert "name" in refusal("train", "a" * 300)
    assert "too long" in refusal("train", cue_folder, "--out", "a" * 300)


def test_bytes_are_no_images(finished_run: Path) -> None:
    import torch

    with pytest.raises(ModelError, match="divide bytes by 255"):
        Run.open(finished_run).classifier()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("scale", ["images", (0.0, 0.0), (1.0, 0.0)])
def test_an_unknown_scale_is_refused(scale: Any) -> None:
    from heedmap.workflows.visualize import VisualizeOptions

    with pytest.raises(OptionError, match="is none of image, range, set"):
        VisualizeOptions(scale=scale)
