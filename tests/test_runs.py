"""A run is a folder: whole or not at all, never unpickled, and refused in one line where it cannot be trusted."""

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from heedmap.config import TrainOptions, free_name
from heedmap.errors import RunError
from heedmap.files import refuse_pickle, write_whole
from heedmap.runs import CHECKPOINT, CONFIG, MANIFEST, METRICS, MODEL, Run

Break = Callable[[Path], None]


@pytest.fixture
def empty_run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run")


def edit(run: Path, **values: object) -> None:
    config = yaml.safe_load((run / CONFIG).read_text())
    (run / CONFIG).write_text(yaml.safe_dump({**config, **values}))


def without(path: Path) -> None:
    path.unlink()


def sign_again(run: Path) -> None:
    """What somebody who edits a run and means it would do: write the manifest again."""
    Run.open(run, finished=False).finish()


def full_disk(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
    def no_room(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", no_room)


def test_a_finished_run_answers_as_it_did_when_it_was_judged(finished_run: Path, cue_folder: Path) -> None:
    from heedmap.workflows.evaluate.evaluate import evaluate

    run = Run.open(finished_run)
    classifier = run.classifier()
    assert not classifier.training
    assert classifier.classes == ("blue", "green", "red")
    assert evaluate(run).report.top1 == run.read_json("evaluation.json")["top1"]


def test_a_finished_run_holds_what_was_promised(finished_run: Path) -> None:
    assert {path.name for path in finished_run.iterdir()} == {
        *(CONFIG, METRICS, MODEL, MANIFEST, "audit.json", "evaluation.json", "predictions.csv", "report.html", "panels")
    }
    manifest = json.loads((finished_run / MANIFEST).read_text())
    assert {CONFIG, METRICS, MODEL, "report.html", "audit.json", "evaluation.json", "predictions.csv"} == set(
        manifest["files"]
    )
    assert manifest["files"][MODEL]["bytes"] == (finished_run / MODEL).stat().st_size


def test_the_options_come_back_as_they_were_written(empty_run: Run, finished_run: Path) -> None:
    architecture = Run.open(finished_run).architecture
    options = TrainOptions(data="d", taps=("a", "b"), flip=False, learning_rate=1e-5)
    empty_run.write_config(options, architecture)
    again = Run.open(empty_run.path, finished=False)
    assert again.options == options
    assert again.architecture == architecture


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: without(run / CONFIG), "is not a run: it has no config.yaml"),
        (lambda run: without(run / MODEL), "incomplete: model.safetensors is missing"),
        (lambda run: without(run / MANIFEST), "heedmap train --resume"),
        (lambda run: edit(run, schema=99, heedmap="9.0"), "heedmap 9.0 with layout 99.*Install a newer heedmap"),
        (lambda run: edit(run, schema="one"), "config.yaml is damaged"),
        (lambda run: edit(run, note="mine"), "config.yaml was changed"),
        (lambda run: (run / MODEL).write_bytes(bytes(99)), "model.safetensors was changed"),
        (lambda run: (run / CONFIG).write_text("- a\n- b\n"), "config.yaml is damaged: it holds no"),
        (lambda run: (run / CONFIG).write_text("a: [\n"), "config.yaml is damaged"),
        (lambda run: (run / CONFIG).write_bytes(b"\xff\xfe"), "config.yaml is damaged"),
        (lambda run: (run / MANIFEST).write_text("{"), "manifest.json is damaged"),
        (lambda run: (run / MANIFEST).write_text("[]"), "manifest.json is damaged"),
        (lambda run: (run / MANIFEST).write_text('{"files": {"config.yaml": 3}}'), "manifest.json is damaged"),
    ],
)
def test_a_run_that_cannot_be_trusted_is_refused(copied_run: Path, break_it: Break, said: str) -> None:
    break_it(copied_run)
    with pytest.raises(RunError, match=said):
        Run.open(copied_run)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: edit(run, architecture=None), "no part 'architecture'"),
        (lambda run: edit(run, architecture={"model": "compact"}), "does not describe an architecture"),
        (lambda run: (run / MODEL).write_bytes(b""), "model.safetensors is damaged"),
        (lambda run: (run / MODEL).write_bytes((run / MODEL).read_bytes()[:-99]), "model.safetensors is damaged"),
        (
            lambda run: (run / MODEL).write_bytes(save({"a": torch.zeros(3)})),
            "another version of heedmap",
        ),
        (lambda run: torch.save({"a": torch.zeros(3)}, run / MODEL), "model.safetensors is a pickle"),
        (lambda run: (run / MODEL).write_bytes(pickle.dumps({"a": 1})), "model.safetensors is a pickle"),
    ],
)
def test_weights_and_architecture_are_checked_even_under_a_right_manifest(
    copied_run: Path, break_it: Break, said: str
) -> None:
    break_it(copied_run)
    sign_again(copied_run)
    with pytest.raises(RunError, match=said):
        Run.open(copied_run).classifier()


def test_a_checkpoint_that_is_a_pickle_is_not_loaded(empty_run: Run) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {empty_run.path / 'ran'}",)

    for content in (pickle.dumps(Trap()), pickle.dumps(Trap(), protocol=0)):
        (empty_run.path / CHECKPOINT).write_bytes(content)
        with pytest.raises(RunError, match=r"checkpoint.safetensors is (a pickle|damaged)"):
            empty_run.load_checkpoint()
    torch.save(Trap(), empty_run.path / CHECKPOINT)
    with pytest.raises(RunError, match=r"checkpoint.safetensors is a pickle"):
        empty_run.load_checkpoint()
    assert not (empty_run.path / "ran").exists()


def test_weights_whose_header_has_any_length_are_loaded(empty_run: Run) -> None:
    # The first byte of a safetensors file is the low byte of its header's length; 0x80 also starts a pickle.
    first_bytes = set()
    for length in range(0, 260, 4):
        empty_run.save_checkpoint({"a" * (length + 1): torch.ones(2)}, {"step": length})
        first_bytes.add((empty_run.path / CHECKPOINT).read_bytes()[0])
        found = empty_run.load_checkpoint()
        assert found is not None
        assert found[1] == {"step": length}
    assert 0x80 in first_bytes


def test_a_checkpoint_comes_back_bit_for_bit(empty_run: Run, generator: torch.Generator) -> None:
    tensors: dict[str, Tensor] = {
        "weight": torch.randn(3, 4, generator=generator),
        "halves": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(7),
    }
    empty_run.save_checkpoint(tensors, {"step": 3, "best": None})
    found = empty_run.load_checkpoint()
    assert found is not None
    assert found[1] == {"step": 3, "best": None}
    assert all(torch.equal(found[0][name], value) for name, value in tensors.items())
    assert {name: value.dtype for name, value in found[0].items()} == {n: v.dtype for n, v in tensors.items()}


def test_what_is_not_a_pickle_is_not_called_one(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(save({"a": torch.zeros(2)}))
    refuse_pickle(tmp_path / "weights")
    with pytest.raises(RunError, match="absent"):
        refuse_pickle(tmp_path / "absent")


def test_a_run_folder_is_not_put_where_something_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    Run.create(tmp_path / "run")
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"run exists already; name another --out\.$"):
        Run.create(tmp_path / "run")
    (tmp_path / "run" / CONFIG).touch()
    with pytest.raises(RunError, match=r"`heedmap train --resume \S+/run`"):
        Run.create(tmp_path / "run")
    (tmp_path / "run" / MANIFEST).touch()
    with pytest.raises(RunError, match=r"exists already as a finished run; name another --out\.$"):
        Run.create(tmp_path / "run")
    with pytest.raises(RunError, match="exists already"):
        Run.create(tmp_path / "run" / "thesis.tex")
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "run" / "thesis.tex" / "below")


def test_a_path_in_a_proposed_command_is_quoted(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "my run")
    run.write(CONFIG, b"schema: 1")
    with pytest.raises(RunError, match=r"`heedmap train --resume '.*/my run'`"):
        Run.open(run.path)
    with pytest.raises(RunError, match=r"`heedmap train --resume '.*/my run'`"):
        Run.refuse_existing(run.path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    empty_run: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    empty_run.save_checkpoint({"a": torch.zeros(2)}, {"step": 1})
    before = (empty_run.path / CHECKPOINT).read_bytes()
    full_disk(monkeypatch, number)
    with pytest.raises(
        RunError,
        match=r"checkpoint.safetensors: the disk.*--resume",
    ):
        empty_run.save_checkpoint({"a": torch.ones(2)}, {"step": 2})
    assert (empty_run.path / CHECKPOINT).read_bytes() == before
    assert [path.name for path in empty_run.path.iterdir()] == [CHECKPOINT]


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(RunError, match="run: no permission to write there"):
        Run.create(tmp_path / "run")


def test_a_file_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_whole(target, b"old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append((target.read_bytes(), len(list(tmp_path.iterdir())))))
    write_whole(target, b"new")
    assert seen == [(b"old", 2)]
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_sudden_death_left_is_swept_away(empty_run: Run) -> None:
    (empty_run.path / ".checkpoint.safetensors.partial").write_bytes(b"half")
    (empty_run.path / "panels").mkdir()
    (empty_run.path / "panels" / ".epoch-0001.jpg.partial").write_bytes(b"half")
    empty_run.write("keep.json", b"{}")
    empty_run.clean()
    assert [path.name for path in empty_run.path.rglob("*") if path.is_file()] == ["keep.json"]


def test_metrics_are_lines_of_json_even_where_a_number_is_none(empty_run: Run) -> None:
    empty_run.append_metrics({"step": 1, "loss": float("nan"), "peaks": {"a": float("inf"), "b": 1.0}})
    assert (empty_run.path / METRICS).read_text() == '{"step": 1, "loss": null, "peaks": {"a": null, "b": 1.0}}\n'


def test_a_line_of_metrics_cut_off_by_a_death_is_passed_over(empty_run: Run) -> None:
    empty_run.append_metrics({"step": 1})
    with (empty_run.path / METRICS).open("a") as lines:
        lines.write('{"step": 2, "lo')
    assert empty_run.read_metrics() == [{"step": 1}]


def test_a_free_name_is_the_first_that_is_free(tmp_path: Path) -> None:
    (tmp_path / "maps-1").mkdir()
    (tmp_path / "maps-2").touch()
    assert free_name(tmp_path, "maps") == tmp_path / "maps-3"
