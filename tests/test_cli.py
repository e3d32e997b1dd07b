"""The command line: help at once, every option described, each command ends with the next one."""

import dataclasses
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from conftest import Refusal
from heedmap import __version__
from heedmap.cli.commands.train import Train
from heedmap.cli.console import show_evaluation
from heedmap.cli.main import COMMANDS, main
from heedmap.cli.parser import parse
from heedmap.config import TrainOptions
from heedmap.errors import Stopped
from heedmap.runs import Run

Captured = pytest.CaptureFixture[str]
SMALL = ("--image-size", 32, "--epochs", 1, "--batch-size", 16, "--workers", 0)


def printed(capsys: Captured, *words: object) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


# ---- help


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_describes_every_option_in_words(capsys: Captured, name: str) -> None:
    text = printed(capsys, name, "--help")
    assert text == printed(capsys, name, "-h")
    for field in dataclasses.fields(COMMANDS[name]):
        word, lines = field.name.rstrip("_").replace("_", "-"), text.splitlines()
        (line,) = [line for line in lines if re.match(rf"(--{word}|\[?{word.upper()})[\] ,]", line)]
        assert len(line.strip().split("  ")[-1].split()) > 2, line
    assert "None" not in text


@pytest.mark.usefixtures("wide")
def test_the_choices_and_defaults_of_an_option_are_in_its_help(capsys: Captured) -> None:
    text = printed(capsys, "train", "--help")
    for name, hint in typing.get_type_hints(TrainOptions).items():
        (line,) = [
            line for line in text.splitlines() if re.match(rf"(--|\[){name.replace('_', '-')}(?!-)\b", line, re.I)
        ]
        choices = [c for part in (hint, *typing.get_args(hint)) for c in typing.get_args(part) if isinstance(c, str)]
        assert all(choice in line for choice in choices), line
        value = TrainOptions.__dataclass_fields__[name].default
        if isinstance(value, int | float | str) and not isinstance(value, bool) and name != "data":
            assert f"Default: {value}." in line
        if value is None:
            assert "Default: " in line


@pytest.mark.parametrize("name", ["train", "compare"])
def test_the_help_groups_the_options_by_the_classes_that_they_come_from(capsys: Captured, name: str) -> None:
    lines = printed(capsys, name, "--help").splitlines()
    titles = [line.strip() for line in lines if re.fullmatch(r"[a-z]+ *", line)]
    assert titles == ["options", "data", "run", "image", "model", "training", "map", "object", "machine"]
    groups = {title: lines.index(next(line for line in lines if line.strip() == title)) for title in titles}
    place = next(number for number, line in enumerate(lines) if line.startswith("--learning-rate "))
    assert groups["training"] < place < groups["map"]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(capsys: Captured, words: list[str]) -> None:
    text = printed(capsys, *words)
    assert all(f"heedmap {name} " in text for name in COMMANDS)


def test_the_version_is_printed(capsys: Captured) -> None:
    assert printed(capsys, "--version") == f"heedmap {__version__}\n"


def test_help_is_not_cut_by_a_narrow_window_or_eaten_as_markup(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = printed(capsys, "train", "--help")
    assert text.startswith("heedmap train [DATA] --OPTION ...\n")
    assert "--allow-unreadable" in text


# ---- options


def test_options_beside_a_config_file_win(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({"data": "images", "epochs": 9, "seed": 4, "taps": ["a", "b"], "flip": True}))
    from heedmap.cli.main import _default

    for words in (["--config", str(path)], [f"--config={path}"]):
        words += ["--epochs", "2", "--no-flip", "--taps", "c"]
        made = parse(Train, "train", words, _default(Train, words))
        assert (made.data, made.epochs, made.seed, made.taps, made.flip) == ("images", 2, 4, ("c",), False)
    assert parse(Train, "train", ["other", *words], _default(Train, words)).data == "other"


def test_a_switch_that_is_open_takes_yes_no_and_nothing() -> None:
    assert parse(Train, "train", ["d"]).flip is None
    assert parse(Train, "train", ["d", "--flip"]).flip is True
    assert parse(Train, "train", ["d", "--no-flip"]).flip is False


def test_options_may_be_written_with_underscores_and_stand_before_the_data() -> None:
    made = parse(Train, "train", ["--batch_size=8", "--learning-rate", "1e-3", "d"])
    assert (made.batch_size, made.learning_rate, made.data) == (8, 1e-3, "d")


# ---- commands


def test_train_prints_its_plan_and_ends_with_the_next_command(
    cue_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "my run"
    words = [str(word) for word in ("train", cue_folder, "--out", out, *SMALL)]
    monkeypatch.setattr(sys, "argv", ["heedmap", *words])
    text = printed(capsys, *words)
    plan = text.splitlines()[0]
    assert re.match(
        r"compact, \d\.\d\d M parameters, parametrised attention at stage2, stage3; 32 px, 1 epoch, batch size 16", plan
    )
    assert "images: train 33, validation 3, test 36." in plan
    assert "epoch   1/1" in text
    assert "36 images" in text
    assert last_line(text) == f"Next: heedmap visualize '{out}' IMAGES"
    assert Run.open(out).config["command"].startswith("heedmap train ")


def test_train_writes_to_the_next_free_folder(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        main([str(word) for word in ("train", cue_folder, *SMALL)])
        assert (tmp_path / "runs" / f"{cue_folder.name}-compact-parametrised-{number}" / "manifest.json").is_file()


def test_a_resumed_run_refuses_other_options_than_its_own(copied_run: Path, cue_folder: Path, refusal: Refusal) -> None:
    (copied_run / "manifest.json").unlink()
    line = refusal("train", "--resume", copied_run, "--epochs", 50)
    assert "--epochs is 2 there, not 50" in line
    line = refusal("train", cue_folder, "--resume", copied_run, "--seed", 3)
    assert "--seed is 0 there, not 3" in line
    line = refusal("train", cue_folder.parent, "--resume", copied_run)
    assert f"the data is '{cue_folder}' there, not '{cue_folder.parent}'" in line


def test_evaluate_prints_and_writes_the_same(
    finished_run: Path, tmp_path: Path, capsys: Captured, cue_folder: Path
) -> None:
    text = printed(capsys, "evaluate", finished_run, "--out", tmp_path / "evaluated")
    written = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert written["top1"] == Run.open(finished_run).read_json("evaluation.json")["top1"]
    assert f"{written['top1']:.2%}" in text
    assert "test, 36 images" in text
    assert (tmp_path / "evaluated" / "confusion.png").is_file()
    assert last_line(text) == f"Next: heedmap visualize {finished_run} IMAGES"
    assert "top-5" not in text  # of three classes
    assert "The run learned from" not in text
    learned = printed(capsys, "evaluate", finished_run, cue_folder / "train")
    assert "The run learned from 36 of these 36 images" in learned
    assert f"{cue_folder}, test, 36 images" in printed(capsys, "evaluate", finished_run, cue_folder).replace("\n", " ")


def test_a_class_without_images_has_no_scores(finished_run: Path, capsys: Captured) -> None:
    found = Run.open(finished_run).read_json("evaluation.json")
    found["per_class"][0] |= {"count": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    show_evaluation(found)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("blue"))
    assert line.split() == ["blue", "0", "-", "-", "-"]


def test_audit_prints_and_writes_its_findings(cue_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    text = printed(capsys, "audit", cue_folder, "--json", tmp_path / "findings.json")
    assert "train 36, test 36 images; full audit" in text
    assert json.loads((tmp_path / "findings.json").read_text())["images"] == {"train": 36, "test": 36}
    assert last_line(text) == f"Next: heedmap train {cue_folder}"
    printed(capsys, "audit", cue_folder, "--json", tmp_path / "findings.json")  # an earlier audit is replaced


def test_audit_names_the_files(make_cue_folder: typing.Any, capsys: Captured) -> None:
    folder = make_cue_folder(train=4, test=2)
    (folder / "train" / "red" / "broken.png").write_bytes(b"")
    (folder / "test" / "red" / "copy.png").write_bytes((folder / "train" / "red" / "000.png").read_bytes())
    text = printed(capsys, "audit", folder, "--depth", "cheap").replace("\n", " ")
    assert "train/red/broken.png: the file is empty (0 bytes)" in text
    assert "train/red/000.png, test/red/copy.png: " in text
    assert "1 test image has a duplicate in train" in text


def test_visualize_takes_a_list_from_standard_input(
    finished_run: Path, cue_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted((cue_folder / "test" / "red").iterdir())[:3]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(str, files)) + "\n"))
    text = printed(capsys, "visualize", finished_run, "-")
    assert "3 images drawn" in text
    assert last_line(text) == "Next: open maps-1/index.html"
    assert len(list((tmp_path / "maps-1" / "panels").iterdir())) == 3
    image, pattern = files[0], cue_folder / "test" / "blue" / "00[01].png"
    assert "3 images drawn" in printed(capsys, "visualize", finished_run, image, pattern)
    assert (tmp_path / "maps-2" / "predictions.csv").is_file()


def test_visualize_looks_for_the_images_before_it_loads_the_weights(
    finished_run: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "classifier", lambda _: pytest.fail("the weights were loaded"))
    assert "absent.jpg" in refusal("visualize", finished_run, tmp_path / "absent.jpg")


def test_visualize_explains_why_a_query_changes_nothing(
    finished_run: Path, cue_folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    red, blue = (cue_folder / "test" / name / "000.png" for name in ("red", "blue"))
    text = printed(capsys, "visualize", finished_run, red, "--query", blue, "--out", tmp_path / "maps")
    assert "query" in text


def test_demo_draws_unseen_scenes_and_ends_with_the_next_command(
    finished_run: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[TrainOptions] = []

    def trained(options: TrainOptions, **_: object) -> Run:
        received.append(options)
        return Run.open(finished_run)

    demo = importlib.import_module("heedmap.workflows.demo")
    monkeypatch.setattr(demo, "train", trained)
    monkeypatch.setattr(demo, "DRAWN", 3)
    text = printed(capsys, "demo", "--out", tmp_path / "demo", "--seed", 5)
    assert [(options.data, options.out, options.seed) for options in received] == [
        ("digit-scenes", str(tmp_path / "demo" / "run"), 5)
    ]
    assert len(list((tmp_path / "demo" / "scenes").rglob("*.png"))) == 3
    assert len(list((tmp_path / "demo" / "maps" / "panels").iterdir())) == 3
    assert str(tmp_path / "demo" / "maps" / "index.html") in text
    assert last_line(text).startswith("Next: heedmap train DIR")


def test_list_shows_models_attentions_and_sets(capsys: Captured) -> None:
    text = printed(capsys, "list")
    for word in ("compact", "paper-vgg", "parametrised", "feature-dense", "digit-scenes", "fashion-mnist", "Next: "):
        assert word in text
    assert "compact" not in printed(capsys, "list", "sets")


def test_list_finds_models_by_a_part_of_their_name(capsys: Captured, refusal: Refusal) -> None:
    text = printed(capsys, "list", "models", "--match", "squeezenet")
    assert "torchvision/squeezenet1_1" in text
    assert "resnet18" not in text
    assert "compact" not in text
    line = refusal("list", "models", "--match", "resnt18")
    assert line == "No model has 'resnt18' in its name. Did you mean 'resnet18'?"


def test_list_filters_every_table(capsys: Captured, refusal: Refusal) -> None:
    text = printed(capsys, "list", "sets", "--match", "cifar")
    assert "cifar100" in text
    assert "mnist" not in text
    assert "No attention has 'dott' in its name. Did you mean 'dot'?" in refusal(
        "list", "attentions", "--match", "dott"
    )


# ---- endings


def test_a_stop_exits_with_status_130(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object) -> None:
        raise Stopped("Stopped at epoch 1 of 2; go on with `heedmap train --resume r`.")

    monkeypatch.setattr(COMMANDS["list"], "work", stop)
    assert refusal("list", status=130).startswith("Stopped at epoch 1 of 2; go on with `heedmap train --resume r`")


def test_an_impatient_user_sees_no_traceback(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["list"], "work", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="pipes break otherwise on this system")
def test_a_pipe_that_closes_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "heedmap"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # rich, from some version on, chooses 1


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["train", "--help"], 0), (["list"], 0)])
def test_a_pipe_that_is_closed_early_is_no_error_for_what_only_prints(words: list[str], status: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "heedmap", *words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_an_output_that_is_full_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "heedmap", "train", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: Standard output cannot be written: No space left on device.\n"


def test_sigterm_ends_a_command_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys.modules["heedmap.cli.main"], "_run", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "Stopped."
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_experiment_is_no_config_of_one_run(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "e.yaml").write_text("title: t\nvariants: {none: {attention: none}}\n")
    assert "heedmap compare --config" in refusal("train", "--config", tmp_path / "e.yaml")
