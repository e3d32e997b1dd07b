"""A run that was killed and resumed ends as one that never was: bit for bit.

Processes come from a server that has imported torch once and computed nothing with it, so that each costs only its
training; the slow test starts the real command.
"""

import contextlib
import csv
import importlib.metadata
import io
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import CUE_CLASSES, cue_image
from heedmap.config import TrainOptions
from heedmap.data.dataset import TensorDataset
from heedmap.data.decoding import to_tensor
from heedmap.data.loader import Store, TrainingBatches, plain_batches
from heedmap.data.transforms import Augmentation
from heedmap.errors import ModelError, OptionError, RunError, Stopped
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.progress import Progress
from heedmap.runs import CHECKPOINT, METRICS, MODEL, Run
from heedmap.training.trainer import Fitting, fit, make_accelerator
from heedmap.types import EpochReport, StepReport
from heedmap.workflows.train import checkpointing as tracking
from heedmap.workflows.train.checkpointing import Checkpointer, Trackers
from heedmap.workflows.train.train import train

State = tuple[dict[str, Tensor], dict[str, Any]]

SETTINGS: dict[str, Any] = {
    "image_size": 16,
    "epochs": 10,
    "batch_size": 8,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 5e-4,
    "cutmix": 0.5,
    "workers": 1,
    "precision": "float32",
    "attention": "dot",
}
STEPS = 40  # 36 training images, 3 of which are held out


def test_attention_is_not_added_to_the_logits_of_a_network_with_random_weights(
    cue_folder: Path, tmp_path: Path
) -> None:
    options = TrainOptions(
        data=str(cue_folder), out=str(tmp_path / "run"), model="resnet18", head="residual", image_size=32
    )
    with pytest.raises(ModelError, match="resnet18"):
        train(options)
    assert not (tmp_path / "run").exists()


# --- in one process -------------------------------------------------------------------------------------------------


def drawn(count: int, first_seed: int) -> TensorDataset:
    images = torch.stack([to_tensor(cue_image(CUE_CLASSES[i % 3], first_seed + i)[0]) for i in range(count)])
    return TensorDataset(images, torch.arange(count) % 3, CUE_CLASSES, [str(i) for i in range(count)])


def dropping(model: str = "compact") -> AttentionClassifier:
    """A net with dropout in it, whose numbers come from torch's global generator."""
    torch.manual_seed(3)
    classifier = build_classifier(Architecture(model, "dot", None, "concat", None, 16, CUE_CLASSES))
    classifier.head.linear = nn.Sequential(nn.Dropout(0.3), classifier.head.linear)
    return classifier


def fitting_of(options: TrainOptions, state: State | None = None, on_step: Any = None) -> Fitting:
    batches = TrainingBatches(Store(drawn(26, 0), 18, 1, 1e9), 16, 8, Augmentation("crop", True), 1)
    held_out = Store(drawn(9, 70), 16, 1, 1e9)
    classifier = dropping(options.model or "compact")
    fitting = fit(classifier, batches, lambda: plain_batches(held_out, 4), options, on_step=on_step)
    if state is not None:
        fitting.load_state(*state)
    return fitting


@pytest.mark.parametrize(
    ("optimizer", "model"), [("sgd", "compact"), ("adamw", "compact"), ("muon", "compact"), ("muon", "whitened")]
)
def test_a_training_resumed_at_any_step_ends_with_the_same_weights(optimizer: Any, model: str) -> None:
    changes = {"epochs": 4, "optimizer": optimizer, "model": model, "patience": 0, "learning_rate": 0.01}
    options = TrainOptions(**{**SETTINGS, **changes})
    states: dict[int, State] = {}
    whole: Fitting

    def keep(report: StepReport) -> None:
        if report.step in (1, 5, 6, 11):  # the first, in the middle, at the end of an epoch, in the last one
            states[report.step] = whole.state()

    whole = fitting_of(options, on_step=keep)
    reports = list(whole)
    assert set(states) == {1, 5, 6, 11}
    end = whole.state()[0]
    for step, state in states.items():
        rest = fitting_of(options, state)
        seen = list(rest)
        assert [report.epoch for report in seen] == list(range((step - 1) // 3 + 1, 5))
        for one, other in zip(seen, reports[-len(seen) :], strict=True):
            assert (one.train_loss, one.validation, one.is_best) == (
                other.train_loss, other.validation, other.is_best,
            )  # fmt: skip
        weights = rest.classifier.state_dict()
        for name, value in whole.classifier.state_dict().items():
            assert torch.equal(weights[name], value), (step, name)
        assert all(torch.equal(value, end[name]) for name, value in rest.state()[0].items())


def test_a_training_resumed_after_its_last_epoch_only_loads_the_best_weights() -> None:
    options = TrainOptions(**{**SETTINGS, "epochs": 1})
    whole = fitting_of(options)
    list(whole)
    rest = fitting_of(options, whole.state())
    assert list(rest) == []
    for name, value in whole.classifier.state_dict().items():
        assert torch.equal(rest.classifier.state_dict()[name], value)


def test_a_state_of_another_model_or_another_length_is_refused() -> None:
    options = TrainOptions(**{**SETTINGS, "epochs": 1})
    tensors, progress = fitting_of(options).state()
    lacking = {name: value for name, value in tensors.items() if name != "model.head.linear.1.bias"}
    with pytest.raises(RunError, match="this model"):
        fitting_of(options, (lacking, progress))
    with pytest.raises(RunError, match=r"3 steps.* 6"):
        fitting_of(TrainOptions(**{**SETTINGS, "epochs": 2}), (tensors, progress))


# --- runs in this process -------------------------------------------------------------------------------------------


class StopsAt(Progress):
    """Runs an action at a step: a signal, or a sudden death."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.at, self.action = step, action

    def step(self, report: StepReport) -> None:
        if report.step == self.at:
            self.action()


class Death(BaseException):
    """Stands for a process that is gone: nothing of heedmap catches it."""


def die() -> None:
    raise Death


def options_for(folder: Path, out: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(**{**SETTINGS, "data": str(folder), "out": str(out), "save_every": 1e6, **changes})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, _cue_folder: Path) -> Run:
    """A run that nothing happened to, made by a process like those that are killed."""
    out = tmp_path_factory.mktemp("reference") / "run"
    process = start(words_of(_cue_folder, out), out.parent / "log")
    process.join()
    assert process.exitcode == 0, (out.parent / "log").read_text()
    return Run.open(out)


def lines(run: Path) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [(record["kind"], record["step"]) for record in records]


def expected_lines() -> list[tuple[str, int]]:
    steps = [("step", step) for step in range(20, STEPS + 1, 20)]
    epochs = [("epoch", step) for step in range(4, STEPS + 1, 4)]
    return sorted(steps + epochs, key=lambda line: (line[1], line[0] == "epoch"))


def test_a_run_that_died_before_its_first_checkpoint_starts_again_without_lines_twice(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = options_for(cue_folder, out, epochs=6)
    monkeypatch.setattr(Run, "save_checkpoint", lambda *_: None)  # it never comes to one
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a dead process removes nothing
    with pytest.raises(Death):
        train(options, progress=StopsAt(23, die))
    assert ("step", 20) in lines(out)
    monkeypatch.undo()
    train(options, resume=out)
    assert lines(out) == [line for line in expected_lines() if line[1] <= 24]


def test_lines_after_the_checkpoint_are_written_once(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = options_for(cue_folder, out, epochs=6, save_every=0)
    original = Run.save_checkpoint

    def dies_at_the_epochs_checkpoint(run: Run, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        if progress["evaluated"] == 5:  # the line of epoch 5 is written, its step is saved, its evaluation is not
            raise Death
        original(run, tensors, progress)

    monkeypatch.setattr(Run, "save_checkpoint", dies_at_the_epochs_checkpoint)
    with pytest.raises(Death):
        train(options)
    assert lines(out)[-2:] == [("step", 20), ("epoch", 20)]
    with (out / METRICS).open("a") as file:
        file.write('{"kind": "st')  # and a line that was cut off
    monkeypatch.undo()
    train(options, resume=out)
    assert lines(out) == [line for line in expected_lines() if line[1] <= 24]


def test_an_epoch_gets_a_checkpoint_where_that_costs_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], []

    class Slow(Run):
        def save_checkpoint(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
            now[0] += 2.0
            written.append(now[0])

    monkeypatch.setattr("heedmap.workflows.train.checkpointing.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    alone: Any = types.SimpleNamespace(is_main_process=True, num_processes=1)
    checkpointer = Checkpointer(Trackers(()), alone, Progress())
    checkpointer.load(Slow(tmp_path, {}))
    fitting: Any = types.SimpleNamespace(step=0, state=lambda: ({}, {}), options=TrainOptions(data="x"))
    checkpointer.start(fitting)
    for epoch, ends in enumerate((1, 100, 202, 204, 300), start=1):  # the first costs nobody knows what
        now[0] = float(ends)
        checkpointer.on_epoch(EpochReport(epoch, 6, 1.0, 0.1, 10.0, 1.0), None)
    assert written == [3, 206]  # 199 seconds after the first are too few, 201 are enough
    checkpointer.on_epoch(EpochReport(6, 6, 1.0, 0.1, 10.0, 1.0), None)
    assert len(written) == 3  # the last, for the test part is evaluated next


def test_the_time_since_the_start_continues_where_it_was(cue_folder: Path, tmp_path: Path) -> None:
    def times() -> list[float]:
        records = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
        return [record["since_start"] for record in records if record["kind"] == "epoch"]

    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(
            options_for(cue_folder, out, epochs=3),
            progress=StopsAt(9, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
    before = times()
    assert 0 < before[0] < before[1]
    train(TrainOptions(), resume=out)
    assert times()[:2] == before
    assert times()[2] > before[1]


def test_a_signal_during_the_evaluation_of_an_epoch_stops_after_it(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = options_for(cue_folder, out, epochs=1)

    class Signals(Progress):
        def epoch(self, report: EpochReport) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=f"heedmap train --resume {out}"):
        train(options, progress=Signals())
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (out / MODEL).exists()
    assert train(options, resume=out).is_finished


def test_a_run_is_not_resumed_with_other_images(make_cue_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = make_cue_folder(), tmp_path / "run"
    options = options_for(folder, out, epochs=2)
    with pytest.raises(Stopped):
        train(options, progress=StopsAt(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    (folder / "train" / "red" / "000.png").unlink()
    with pytest.raises(RunError, match=str(folder)):
        train(options, resume=out)


def test_the_command_to_resume_is_quoted(tmp_path: Path) -> None:
    checkpointer: Any = types.SimpleNamespace(run=Run(tmp_path / "my run", {}))
    report: Any = types.SimpleNamespace(epoch=1, epochs=2)
    assert f"`heedmap train --resume '{tmp_path / 'my run'}'`" in str(Checkpointer._stopped(checkpointer, report))


def test_a_run_is_resumed_from_another_folder(
    make_cue_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_cue_folder(4, 2).parent)
    with pytest.raises(Stopped):
        train(
            options_for(Path("images"), Path("run"), epochs=1),
            progress=StopsAt(1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train(TrainOptions(), resume="../run").is_finished


def test_a_new_run_that_fails_before_its_first_checkpoint_leaves_no_folder(cue_folder: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        train(options_for(cue_folder, tmp_path / "run"), progress=StopsAt(2, fail))
    assert not (tmp_path / "run").exists()


def test_a_run_whose_audit_was_never_written_can_be_resumed(cue_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = options_for(cue_folder, out, epochs=1)
    with pytest.raises(Stopped):
        train(options, progress=StopsAt(1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    (out / "audit.json").unlink()
    assert train(options, resume=out).is_finished


def test_trackers_have_every_step_once_after_a_death(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    options = options_for(cue_folder, out, epochs=6, track=("tensorboard", "csv"))
    monkeypatch.setattr("heedmap.workflows.train.checkpointing.RECORD_STEPS", 1)
    with pytest.raises(Death):
        train(options, progress=StopsAt(15, die))  # its last checkpoint is that of epoch 3
    train(options, resume=out)
    events = accumulators.EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 25))
    assert [event.step for event in events.Scalars("epoch/validation_accuracy")] == list(range(4, 25, 4))
    assert events.Images("maps")[-1].step == 24
    with (out / "metrics.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [int(row["step"]) for row in rows if row["metric"] == "step/loss"] == list(range(1, 25))
    (last,) = [row for row in rows if row["metric"] == "epoch/validation_accuracy" and row["step"] == "24"]
    assert float(last["value"]) == Run.open(out).read_metrics()[-1]["validation_accuracy"]


def test_every_tracker_receives_the_metrics_and_those_with_images_the_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[tuple[str, str, Any]] = []

    class Recorder(tracking.WandBTracker):  # type: ignore[misc]  # stands for Weights & Biases, and below for MLflow
        def __init__(self, project: str, **_: Any) -> None:
            self.project = project

        @property
        def tracker(self) -> None:
            return None

        def start(self) -> None:
            received.append(("wandb", "start", self.project))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            received.append(("wandb", "config", values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            received.append(("wandb", "log", (values, step)))

        def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            received.append(("wandb", "images", ({name: image.shape for name, image in values.items()}, step)))

        def finish(self) -> None:
            received.append(("wandb", "finish", None))

    monkeypatch.setattr(tracking, "WandBTracker", Recorder)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.0")
    trackers = Trackers(("wandb", "csv", "wandb"))
    trackers.start(make_accelerator(), Run(tmp_path, {"options": {"epochs": 2}}), 0)
    trackers.log("epoch", {"loss": 0.5, "rate": math.nan, "step": 3}, 3)
    content = io.BytesIO()
    cue_image("red", 1)[0].save(content, "PNG")
    trackers.log_image("maps", content.getvalue(), 3)
    trackers.finish()
    assert received == [
        ("wandb", "start", "heedmap"),
        ("wandb", "config", {"epochs": "2"}),
        ("wandb", "log", ({"epoch/loss": 0.5}, 3)),
        ("wandb", "images", ({"maps": (1, 40, 40, 3)}, 3)),
        ("wandb", "finish", None),
    ]
    assert (tmp_path / "metrics.csv").read_text() == "step,metric,value\n3,epoch/loss,0.5\n"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_names_its_extra_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(OptionError, match=rf"heedmap\[{name}\]"):
        train(TrainOptions(data=str(tmp_path / "absent"), track=(name,)))


# --- processes that are killed --------------------------------------------------------------------------------------


def words_of(folder: Path, out: Path) -> list[str]:
    """The command's words, those of SETTINGS included."""
    words = ["train", str(folder), "--out", str(out), "--save-every", "0.05"]
    for name, value in SETTINGS.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def command(words: list[str], log: str, signal_at: tuple[int, int] | None = None) -> None:
    """What a process does: the command line, its words to a file; a signal comes while a step is shown."""
    from heedmap.cli.console import Shown
    from heedmap.cli.main import main

    torch.set_num_threads(1)
    if signal_at is not None:
        number, step = signal_at
        Shown.step = lambda _, report: os.kill(os.getpid(), number) if report.step == step else None  # type: ignore[method-assign]
    with (
        Path(log).open("a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        main(words)


def start(words: list[str], log: Path, signal_at: tuple[int, int] | None = None) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["heedmap.workflows.train.train", "heedmap.cli.main", "accelerate", "test_resume"])
    process = context.Process(target=command, args=(words, str(log), signal_at))
    process.start()
    return process


def written(run: Path) -> float:
    """A number that grows while the run does."""
    try:
        return sum(file.stat().st_mtime for file in (run / METRICS, run / CHECKPOINT) if file.exists())
    except FileNotFoundError:
        return 0.0


def wait_for_progress(process: BaseProcess | subprocess.Popen[bytes], run: Path) -> None:
    def is_alive() -> bool:
        return process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None

    before, until = written(run), time.monotonic() + 120
    while written(run) == before and is_alive():
        assert time.monotonic() < until, "no progress in two minutes"
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_weights_of_a_run_never_killed(
    cue_folder: Path, tmp_path: Path, reference: Run
) -> None:
    out, log, dice = tmp_path / "run", tmp_path / "log", random.Random(5)
    words, killed = words_of(cue_folder, out), 0
    while killed < 2:
        process = start(words, log)
        wait_for_progress(process, out)
        time.sleep(dice.uniform(0.0, 0.12))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"it ended before it was killed: {log.read_text()}"
        killed += 1
        words = ["train", "--resume", str(out)]
    process = start(words, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert (out / MODEL).read_bytes() == (reference.path / MODEL).read_bytes()
    assert lines(out) == lines(reference.path) == expected_lines()
    assert not (out / CHECKPOINT).exists()
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_it_evaluates_it_prints_how_to_resume_and_does(
    number: signal.Signals, cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = options_for(cue_folder, out, epochs=1)
    module = sys.modules["heedmap.workflows.train.train"]  # the package's attribute of that name is the function
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs it in the background
    with monkeypatch.context() as patched:
        patched.setattr(module, "complete", lambda *_, **__: os.kill(os.getpid(), number))
        with pytest.raises(Stopped, match=f"--resume {out}"):
            train(options)
    signal.signal(signal.SIGINT, before)
    assert (out / CHECKPOINT).is_file()
    assert train(options, resume=out).is_finished


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_saves_prints_how_to_resume_and_does(
    number: signal.Signals, cue_folder: Path, tmp_path: Path, reference: Run
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    process = start(words_of(cue_folder, out), log, (number, 14))
    process.join()
    output = " ".join(log.read_text().split())
    assert process.exitcode == 130, output
    assert "heedmap train --resume" in output
    assert "Traceback" not in output
    process = start(["train", "--resume", str(out)], log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert (out / MODEL).read_bytes() == (reference.path / MODEL).read_bytes()
    assert lines(out) == expected_lines()


@pytest.mark.slow
def test_the_command_killed_five_times_ends_with_the_weights_of_one_never_killed(
    cue_folder: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(words: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "heedmap", *words], env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    whole, out, dice = tmp_path / "whole", tmp_path / "run", random.Random(11)
    longer = ["--epochs", "40", "--save-every", "0"]
    assert run([*words_of(cue_folder, whole), *longer]).wait() == 0
    words, killed = [*words_of(cue_folder, out), *longer], 0
    while killed < 5:
        process = run(words)
        wait_for_progress(process, out)
        time.sleep(dice.uniform(0.0, 0.8))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        killed += 1
        words = ["train", "--resume", str(out)]
    assert run(words).wait() == 0
    assert (out / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert lines(out) == lines(whole)
