"""Several processes on the CPU (gloo): one run folder, all learn from their share, all stop together."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from heedmap.runs import CHECKPOINT, METRICS, MODEL, Run

pytestmark = pytest.mark.slow

WORLD = 2


def words_of(folder: Path, out: Path, **changes: Any) -> list[str]:
    settings = {
        "image_size": 24,
        "epochs": 8,
        "batch_size": 12,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
        "workers": 1,
        "precision": "float32",
        "attention": "dot",
        "save_every": 0,
        **changes,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", str(folder), "--out", str(out), *flags]


def process(rank: int, port: int, words: list[str], log: str, signal_at: int | None) -> None:
    """One process as torchrun starts it."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    from heedmap.cli.main import main
    from heedmap.workflows.train.checkpointing import Checkpointer

    torch.set_num_threads(1)
    if signal_at is not None and rank == 1:  # only one of the two is asked to stop
        original = Checkpointer.on_step

        def on_step(self: Checkpointer, report: Any) -> None:
            if report.step == signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, report)

        Checkpointer.on_step = on_step  # type: ignore[method-assign]
    with Path(log).open("a", encoding="utf-8", buffering=1) as file:
        sys.stdout = sys.stderr = file
        main(words)


def together(words: list[str], log: Path, signal_at: int | None = None) -> list[int | None]:
    """Run the command in two processes; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["heedmap.workflows.train.train", "heedmap.cli.main", "accelerate"])
    started: list[BaseProcess] = []
    for rank in range(WORLD):
        started.append(context.Process(target=process, args=(rank, port, words, f"{log}-{rank}", signal_at)))
        started[-1].start()
    for each in started:
        each.join(120)
    left = [each for each in started if each.is_alive()]
    for each in left:
        each.kill()
        each.join()
    assert not left, f"{len(left)} of {WORLD} processes wait for ever"
    return [each.exitcode for each in started]


def steps_of(run: Path) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [(record["kind"], record["step"]) for record in records]


def test_torchrun_makes_one_finished_run_that_has_learned(cue_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "both"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    done = subprocess.run(
        [*launcher, "-m", "heedmap", *words_of(cue_folder, out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("Report:") == 1
    assert [folder.name for folder in out.parent.iterdir()] == ["both"]
    run = Run.open(out)
    assert run.config["processes"] == WORLD
    assert run.read_json("evaluation.json")["top1"] >= 0.9
    assert steps_of(out) == [("epoch", step) for step in range(2, 17, 2)]
    assert all(value.isfinite().all() for value in run.classifier().state_dict().values())


def test_when_one_process_receives_a_signal_all_stop_after_the_same_step_and_can_resume(
    cue_folder: Path, tmp_path: Path
) -> None:
    whole, out, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert together(words_of(cue_folder, whole, epochs=3), log) == [0, 0]
    assert together(words_of(cue_folder, out, epochs=3, save_every=1e6), log, signal_at=4) == [130, 130]
    assert (out / CHECKPOINT).is_file()
    assert together(["train", "--resume", str(out)], log) == [0, 0]
    assert steps_of(out) == steps_of(whole)
    assert (out / MODEL).read_bytes() == (whole / MODEL).read_bytes()
