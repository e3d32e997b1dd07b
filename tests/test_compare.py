"""Comparing variants: reading plans, running, resuming after a death, and the report."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from conftest import Refusal
from heedmap import TrainOptions
from heedmap.cli.main import COMMANDS, main
from heedmap.errors import HeedmapError, ModelError, OptionError, RunError, Stopped
from heedmap.files import locked
from heedmap.metrics.statistics import paired_difference
from heedmap.progress import Progress
from heedmap.runs import Run
from heedmap.system import term_as_interrupt
from heedmap.types import StepReport
from heedmap.visualization.charts import DotRow, dot_chart
from heedmap.workflows.compare import (
    LOG,
    compare,
    compare_in_background,
    make_plan,
    read_experiment,
    read_plan,
    read_variant,
)
from heedmap.workflows.compare.plan import Plan, write_variant
from heedmap.workflows.compare.results import MEASURES, difference_sentence, gather
from heedmap.workflows.compare.runner import start_heedmap
from heedmap.workflows.train.setup import with_absolute_paths

SMALL: dict[str, Any] = {"image_size": 32, "epochs": 1, "batch_size": 16, "workers": 0, "precision": "float32"}
VARIANTS = ("attention=none", "dot:attention=dot,taps=stage3")


def plan_of(folder: Path, seeds: int = 2, variants: tuple[str, ...] = VARIANTS, **changes: Any) -> Plan:
    return make_plan(TrainOptions(data=str(folder), **{**SMALL, **changes}), variants, seeds)


@pytest.fixture(scope="module")
def finished(_cue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison; read it, do not change it."""
    out = tmp_path_factory.mktemp("comparison") / "whole"
    compare(plan_of(_cue_folder), out)
    return out


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return found


# ---- variants and plans


@pytest.mark.parametrize(
    ("text", "name", "changes"),
    [
        ("attention=none", "attention=none", {"attention": "none"}),
        ("attention=dot,taps=stage3", "attention=dot,taps=stage3", {"attention": "dot", "taps": ("stage3",)}),
        ("two taps:taps=stage2+stage3", "two taps", {"taps": ("stage2", "stage3")}),
        ("slow:learning-rate=1e-3, epochs=4", "slow", {"learning_rate": 1e-3, "epochs": 4}),
        ("flip=no", "flip=no", {"flip": False}),
        ("plain:", "plain", {}),
        ("model=hf-hub:some/net", "model=hf-hub:some/net", {"model": "hf-hub:some/net"}),
    ],
)
def test_a_variant_is_read_as_written(text: str, name: str, changes: dict[str, Any]) -> None:
    assert read_variant(text) == (name, changes)
    assert read_variant(write_variant("again", changes)) == ("again", changes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("attenton=none", "Unknown option 'attenton' in variant 'attenton=none'. Did you mean 'attention'?"),
        ("attention", "'attention' in variant 'attention' is not of the form KEY=VALUE"),
        ("epochs=many", "'epochs' in variant 'epochs=many' cannot be 'many'; give a whole number"),
        ("seed=3", "'seed' in variant 'seed=3' must be the same for all variants"),
        ("a:data=other", "'data' in variant 'a' must be the same"),
        ("", "changes nothing"),
    ],
)
def test_a_variant_that_cannot_be_meant_is_refused(text: str, told: str) -> None:
    with pytest.raises(OptionError, match=re.escape(told)):
        read_variant(text)


def test_a_plan_needs_two_different_variants_with_values_that_exist() -> None:
    options = TrainOptions()
    for variants, told in (
        (["attention=none"], "needs two variants or more"),
        (["attention=none", "none:attention=none"], "'attention=none' and 'none' are the same"),
        (["a:attention=none", "a:attention=dot"], "Two variants are called 'a'"),
        (["attention=none", "attention=dott"], "Variant 'attention=dott': attention = 'dott' is not one of"),
    ):
        with pytest.raises(OptionError, match=re.escape(told)):
            make_plan(options, variants, 2)
    with pytest.raises(OptionError, match="seeds = 0 is out of range"):
        make_plan(options, VARIANTS, 0)


def test_runs_come_seed_by_seed_into_folders_of_their_own() -> None:
    plan = make_plan(TrainOptions(seed=7), ["a B:", "a-b:flip=no", "attention=none"], 2)
    jobs = plan.jobs(Path("out"))
    assert [(job.seed, job.options.seed) for job in jobs] == [(7, 7)] * 3 + [(8, 8)] * 3
    folders = [job.path.parent.name for job in jobs[:3]]
    assert folders == ["a-B", "a-b-2", "attention-none"]  # a file system may not tell a-B from a-b
    assert jobs[0].options.out == str(jobs[0].path) == str(Path("out/a-B/seed-7"))
    assert jobs[1].options.flip is False


def test_a_plan_comes_back_from_its_file(tmp_path: Path, cue_folder: Path) -> None:
    plan = plan_of(cue_folder, variants=(*VARIANTS, "taps=stage2+stage3"), seed=3, learning_rate=1e-3)
    (tmp_path / "plan.yaml").write_text(plan.as_text())
    assert read_plan(tmp_path / "plan.yaml") == plan
    (tmp_path / "plan.yaml").write_text("seeds: []\n")
    with pytest.raises(OptionError, match="is damaged"):
        read_plan(tmp_path / "plan.yaml")


EXPERIMENT = """
title: A title
published: 94 %
options: {data: digit-scenes, image_size: 32}
variants:
  control: {attention: none}
  two: {attention: dot, taps: [stage2, stage3]}
seeds: 3
budgets:
  short: {epochs: 1, seeds: 2}
  full: {epochs: 9}
"""


def test_an_experiment_gives_the_options_that_are_not_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(EXPERIMENT)
    made: list[Any] = []
    monkeypatch.setattr(COMMANDS["compare"], "work", lambda command: made.append(command))
    main(["compare", "--config", str(path), "--budget", "short", "--image-size", "48"])
    (command,) = made
    assert (command.data, command.epochs, command.seeds, command.image_size) == ("digit-scenes", 1, 2, 48)
    plan, out = command._planned()
    assert out == Path("runs/compare-small-short-1")
    assert (plan.title, plan.published) == ("A title", "94 %")
    assert [dict(each.changes) for each in plan.variants] == [
        {"attention": "none"},
        {"attention": "dot", "taps": ("stage2", "stage3")},
    ]
    assert read_experiment(path, "full")["seeds"] == 3
    monkeypatch.undo()
    assert "short, full" in refusal("compare", "--config", path)
    assert "no budget 'shrot'" in refusal("compare", "--config", path, "--budget", "shrot")
    path.write_text(EXPERIMENT + "variant: {}\n")
    assert "Did you mean 'variants'?" in refusal("compare", "--config", path, "--budget", "full")


# ---- running


def test_pairs_share_split_order_and_test_part_and_runs_are_ordinary(finished: Path, cue_folder: Path) -> None:
    found = read(finished)
    assert (found["planned"], found["finished"], found["seeds"], found["control"]) == (4, 4, [0, 1], "attention=none")
    for folder in (each["folder"] for variant in found["variants"] for each in variant["runs"]):
        run = Run.open(finished / folder)
        assert run.config["command"].startswith("heedmap train ")
        assert (run.path / "report.html").is_file()
    runs = {name: Run.open(finished / name / "seed-1") for name in ("attention-none", "dot")}
    first, second = (run.read_json("audit.json")["images"] for run in runs.values())
    assert first == second
    rows = [(run.path / "predictions.csv").read_text().splitlines() for run in runs.values()]
    assert [line.rsplit(",", 2)[0] for line in rows[0]] == [line.rsplit(",", 2)[0] for line in rows[1]]
    assert len(rows[0]) == 37


def test_the_figures_are_those_of_the_runs(finished: Path) -> None:
    found = read(finished)
    for variant in found["variants"]:
        values = []
        for run in variant["runs"]:
            written = Run.open(finished / run["folder"]).read_json("evaluation.json")
            assert (run["test_accuracy"], run["nll"], run["ece"]) == (written["top1"], written["nll"], written["ece"])
            values.append(written["top1"])
        assert variant["summary"]["test_accuracy"]["mean"] == pytest.approx(sum(values) / 2)
        assert variant["summary"]["test_accuracy"]["count"] == 2
        classifier = Run.open(finished / variant["runs"][0]["folder"]).classifier()
        assert variant["parameters"] == sum(each.numel() for each in classifier.parameters())
        assert variant["multiply_accumulates"] > 1e6
    (accuracy,) = [each for each in found["differences"] if each["measure"] == "test_accuracy"]
    control, other = ([run["test_accuracy"] for run in variant["runs"]] for variant in found["variants"])
    assert accuracy["differences"] == pytest.approx([b - a for a, b in zip(control, other, strict=True)])
    assert [row["seed"] for row in found["within_seed"]] == [0, 1]
    for row, a, b in zip(found["within_seed"], control, other, strict=True):
        assert row["difference"] == pytest.approx(b - a)


def test_a_run_of_a_comparison_is_what_train_makes_alone(finished: Path, cue_folder: Path, tmp_path: Path) -> None:
    from heedmap import train

    options = TrainOptions(
        data=str(cue_folder), **SMALL, attention="dot", taps=("stage3",), seed=1, out=str(tmp_path / "alone")
    )
    alone = train(options)
    assert (alone.path / "model.safetensors").read_bytes() == (finished / "dot/seed-1/model.safetensors").read_bytes()


def test_started_again_it_trains_nothing_and_takes_more_seeds_and_variants(
    finished: Path, cue_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    progress = Messages()
    found = compare(plan_of(cue_folder), folder, progress=progress)
    assert progress.messages == ["4 of 4 runs are finished already."]
    assert found["finished"] == 4
    found = compare(plan_of(cue_folder, 1, (*VARIANTS, "attention=additive")), folder)
    assert (found["finished"], found["planned"], len(found["variants"])) == (6, 6, 3)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(OptionError, match="epochs = 1, not 2"):
        compare(plan_of(cue_folder, epochs=2), folder)
    with pytest.raises(OptionError, match="image_size = 32, not left open"):
        compare(plan_of(cue_folder, image_size=None), folder)
    with pytest.raises(OptionError, match=r"learning_rate left open, not 0\.1"):
        compare(plan_of(cue_folder, learning_rate=0.1), folder)
    with pytest.raises(OptionError, match="'dot'"):
        compare(plan_of(cue_folder, variants=("attention=none", "dot:attention=dot")), folder)
    with pytest.raises(OptionError, match="'attention=none', not 'dot'"):
        compare(plan_of(cue_folder, variants=tuple(reversed(VARIANTS))), folder)
    main(["compare", "--resume", str(folder)])
    text = capsys.readouterr().out
    assert "6 of 6 runs are finished already." in text
    assert "attention=additive" in text


class Messages(Progress):
    """Records the messages, and sends SIGTERM at a step."""

    def __init__(self, at: int | None = None) -> None:
        self.messages: list[str] = []
        self.steps, self.at = 0, at

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, report: StepReport) -> None:
        self.steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_stopped_in_the_middle_it_resumes_and_ends_the_same(finished: Path, cue_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    progress = Messages(at=3)  # each run has two steps
    with pytest.raises(Stopped, match=rf"heedmap compare --resume {re.escape(str(out))}"):
        compare(plan_of(cue_folder), out, progress=progress)
    half = read(out)
    assert (half["finished"], half["planned"]) == (1, 4)
    assert (out / "dot/seed-0/checkpoint.safetensors").is_file()
    again = Messages()
    compare(None, out, progress=again)
    assert "Run 1 of 3: dot, seed 0, resumed." in again.messages
    for path in finished.rglob("model.safetensors"):
        assert (out / path.relative_to(finished)).read_bytes() == path.read_bytes()


def test_a_run_that_died_before_its_first_line_starts_again_and_other_files_are_left_alone(
    cue_folder: Path, tmp_path: Path
) -> None:
    plan = plan_of(cue_folder, 1)
    (tmp_path / "out" / "dot" / "seed-0").mkdir(parents=True)
    with pytest.raises(RunError, match=str(tmp_path / "out")):
        compare(plan, tmp_path / "out")
    saved = replace(plan, options=with_absolute_paths(plan.options))
    (tmp_path / "out" / "comparison.yaml").write_text(saved.as_text())
    (tmp_path / "out" / "dot" / "seed-0" / ".config.yaml.partial").write_text("half")
    found = compare(plan, tmp_path / "out")
    assert found["finished"] == 2
    assert "a single seed has no interval" in found["differences"][0]["sentence"]
    other = tmp_path / "out" / "attention-none" / "seed-1"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"mine\.txt"):
        compare(plan_of(cue_folder, 2), tmp_path / "out")


def test_what_cannot_be_built_is_an_error_before_anything_is_trained(cue_folder: Path, tmp_path: Path) -> None:
    for variant, named in (("taps=stage9", "Variant 'taps=stage9': "), ("model=resnet1818", "Variant 'model=resnet18")):
        with pytest.raises(ModelError, match=named):
            compare(plan_of(cue_folder, 1, ("attention=none", variant)), tmp_path / "out")
    wrong = plan_of(cue_folder, 1, ("attention=none", "model=torchvision/resnet18,taps=layer9"))
    with pytest.raises(HeedmapError, match="layer9"):
        compare(wrong, tmp_path / "out")
    with pytest.raises(OptionError, match=r"Variant 'model=paper-vgg,optimizer=muon': .* a normalisation"):
        compare(plan_of(cue_folder, 1, ("attention=none", "model=paper-vgg,optimizer=muon")), tmp_path / "out")
    with pytest.raises(HeedmapError, match="nothere"):
        compare(plan_of(tmp_path / "nothere", 1), tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_run_that_fails_does_not_end_the_others(cue_folder: Path, tmp_path: Path) -> None:
    plan = plan_of(cue_folder, 1, (*VARIANTS, "wild:learning-rate=1000,optimizer=sgd,epochs=40"))
    with pytest.raises(RunError, match=r"1 of 3 runs failed.* wild, seed 0"):
        compare(plan, tmp_path / "out")
    found = read(tmp_path / "out")
    assert found["finished"] == 2
    assert any(note.startswith("wild, seed 0 failed: ") for note in found["notes"])


def test_two_processes_do_not_work_on_one_comparison(finished: Path, tmp_path: Path, cue_folder: Path) -> None:
    import fcntl

    lock = os.open(finished, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(RunError, match="another process"):
        compare(None, finished)
    os.close(lock)


def test_a_process_locks_the_folder_when_its_parent_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    folder = tmp_path / "comparison"
    folder.mkdir()
    with locked(folder) as lock, (tmp_path / "output").open("wb") as output:
        process = start_heedmap(["train"], output, lock=lock)
    try:
        with pytest.raises(RunError, match="another process"), locked(folder):
            pass
    finally:
        process.kill()
        process.wait()
    with locked(folder):
        pass


def test_a_signal_between_two_runs_prints_how_to_resume(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = sys.modules["heedmap.workflows.compare"]
    monkeypatch.setattr(room, "run_all", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    out = tmp_path / "out"
    with term_as_interrupt(), pytest.raises(Stopped, match=f"heedmap compare --resume {out}"):
        compare(plan_of(cue_folder, 1), out)


def waiting_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_and_started_again_beside_each_other_it_ends_the_same(
    finished: Path, cue_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "workers"]
    words = [sys.executable, "-m", "heedmap", "compare", str(cue_folder), *flags, "--seeds", "2", "--workers", "0"]
    words += ["--out", str(out), "--parallel", "2", "--variants", *VARIANTS]
    master = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    waiting_for(lambda: len(list(out.rglob("config.yaml"))) >= 1)
    master.send_signal(signal.SIGTERM)
    _, complaint = master.communicate(timeout=120)
    assert master.returncode == 130, complaint
    assert "heedmap compare --resume" in complaint
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(out.rglob("*.log"))
    for path in finished.rglob("predictions.csv"):  # by fewer threads, which add up in another order
        rows, others = (
            [line.rsplit(",", 1) for line in csv.read_text().splitlines()[1:]]
            for csv in (path, out / path.relative_to(finished))
        )
        assert [row[0] for row in rows] == [row[0] for row in others]
        assert [float(row[1]) for row in rows] == pytest.approx([float(row[1]) for row in others], abs=1e-3)
    assert "with 2 runs at a time" in done.stdout.replace("\n", " ")


# ---- the report


def test_a_sentence_has_the_number_of_seeds_and_whether_the_interval_holds_zero() -> None:
    accuracy = MEASURES[0]
    pair = paired_difference({0: 0.5, 1: 0.5, 2: 0.5}, {0: 0.51, 1: 0.50, 2: 0.53})
    sentence = difference_sentence("none", "dot", accuracy, pair)
    assert (
        "dot: test accuracy +1.33 points against none (3 seeds, paired; 95 % interval -2.46 to +5.13 points)"
        in sentence
    )
    assert "The interval holds zero: 3 seeds" in sentence
    assert "3.79 points or more" in sentence
    pair = paired_difference({0: 0.5, 1: 0.5, 2: 0.5}, {0: 0.51, 1: 0.511, 2: 0.512})
    sentence = difference_sentence("none", "dot", accuracy, pair)
    assert "does not hold zero (exact sign-flip test over 3 seeds: p = 0.25)" in sentence
    assert "significant" not in sentence


def test_runs_of_one_seed_that_were_evaluated_on_different_images_are_not_paired(
    finished: Path, tmp_path: Path, cue_folder: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    path = folder / "dot" / "seed-1" / "predictions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(RunError, match="different images"):
        gather(read_plan(folder / "comparison.yaml"), folder)


def test_the_page_is_complete_in_itself_and_holds_the_numbers(finished: Path) -> None:
    page, found = (finished / "comparison.html").read_text(), read(finished)
    assert "src=" not in page
    assert "http" not in page
    assert "<script" not in page
    for each in found["differences"]:
        if each["measure"] == "test_accuracy":
            assert each["sentence"] in page
    for variant in found["variants"]:
        assert f"{100 * variant['summary']['test_accuracy']['mean']:.2f}" in page
        for run in variant["runs"]:
            assert f'href="{run["folder"]}/report.html"' in page
    plot = (finished / "comparison.svg").read_text()
    assert plot.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    ElementTree.fromstring(plot)
    ElementTree.fromstring(dot_chart("t", [DotRow("a <&> b", (1.0, math.nan), 1.0, 0.5, 2.0)], zero=True))
    assert dot_chart("t", [DotRow("a", (math.nan,))]) == ""


def test_no_variant_is_called_the_best_where_they_tie(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    for number, run in enumerate(sorted({path.parent for path in folder.rglob("metrics.jsonl")})):
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for record in records:
            record |= {"validation_accuracy": (0.1, 0.7, 0.7, 0.1)[number]} if record.get("kind") == "epoch" else {}
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (note,) = [each for each in gather(read_plan(folder / "comparison.yaml"), folder)["notes"] if "To choose" in each]
    assert "attention=none and dot tie" in note


def test_different_budgets_are_noted(finished: Path, tmp_path: Path) -> None:
    plan = read_plan(finished / "comparison.yaml")
    notes = " ".join(gather(plan, finished)["notes"])
    assert "budgets differ" not in notes
    assert "validation accuracy" in notes
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    for seed in (0, 1):
        config = folder / "dot" / f"seed-{seed}" / "config.yaml"
        config.write_text(config.read_text().replace("epochs: 1", "epochs: 7"))
        manifest = config.with_name("manifest.json")
        written = json.loads(manifest.read_text())
        written["files"]["config.yaml"]["sha256"] = hashlib.sha256(config.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(written))
    notes = " ".join(gather(plan, folder)["notes"])
    assert "The budgets differ in epochs: attention=none 1, dot 7." in notes


def test_variants_may_not_be_launched_by_torchrun(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="without torchrun"):
        compare(plan_of(cue_folder), tmp_path / "out")


def test_the_options_of_a_saved_plan_have_absolute_paths(finished: Path, cue_folder: Path) -> None:
    assert read_plan(finished / "comparison.yaml").options.data == str(cue_folder)
    assert replace(read_plan(finished / "comparison.yaml").options, data="x").seed == 0


# ---- the experiments of the repository

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("budget", ["short", "full"])
def test_an_experiment_of_the_repository_is_a_plan_with_a_baseline(path: Path, budget: str) -> None:
    found = read_experiment(path, budget)
    plan = make_plan(TrainOptions(**found["options"]), found["variants"], found["seeds"], title=found["title"])
    assert plan.variants[0].changes["attention"] == "none"
    assert len(plan.seeds) >= 2
    assert f"`{path.name}`" in (ROOT / "experiments" / "README.md").read_text()


def test_the_commands_of_the_experiments_page_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made: list[Any] = []
    for command in COMMANDS.values():
        monkeypatch.setattr(command, "work", lambda command: made.append(command))
    lines = re.findall(r"^heedmap (.+)$", (ROOT / "experiments" / "README.md").read_text(), re.MULTILINE)
    for line in lines:
        main(line.split())
    assert len(made) == len(lines) >= 8


def test_in_the_background_it_is_checked_first_and_run_by_a_process_of_its_own(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="stage9"):
        compare_in_background(plan_of(cue_folder, 1, ("attention=none", "taps=stage9")), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    started: list[tuple[Any, Any]] = []

    def start(words: list[str], **how: Any) -> Any:
        started.append((words, how))
        return SimpleNamespace(pid=77)

    monkeypatch.setattr(subprocess, "Popen", start)
    out = tmp_path / "out"
    assert compare_in_background(plan_of(cue_folder), out, parallel=2).pid == 77
    ((words, how),) = started
    assert words[1:] == ["-m", "heedmap", "compare", "--resume", str(out), "--parallel", "2"]
    assert how["start_new_session"]
    assert how["stdout"].name == str(out / LOG)
    assert read_plan(out / "comparison.yaml").seeds == plan_of(cue_folder).seeds


@pytest.mark.slow
def test_a_comparison_in_the_background_finishes(cue_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compare_in_background(plan_of(cue_folder, 1), out).wait() == 0
    assert read(out)["finished"] == read(out)["planned"] == 2, (out / LOG).read_text()
    assert "comparison.html" in (out / LOG).read_text()
