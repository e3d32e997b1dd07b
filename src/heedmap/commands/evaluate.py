"""``heedmap evaluate``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.markup import escape

from heedmap.commands.device import pick_device
from heedmap.terminal import console, show_evaluation, show_next


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judge a run: accuracy, classes, calibration, throughput, and pointing where boxes are known.

    Attributes:
        run: The run folder.
        data: A folder or a named set with the same classes. Default: the run's own test part.
        out: Folder for evaluation.json and confusion.png. Default: only print.
        device: Where to compute. Default: a GPU where there is one.
        precision: Arithmetic of the network.
        root: Where named sets lie. Default: as in the run.
        download: Fetch a named set that is not there.
    """

    run: tyro.conf.Positional[str]
    data: tyro.conf.Positional[str | None] = None
    out: str | None = None
    device: str | None = None
    precision: Literal["auto", "bf16", "float32"] = "auto"
    root: str | None = None
    download: bool = True

    def work(self) -> None:
        """Judge and print the tables."""
        from heedmap.evaluate import evaluate, write_evaluation
        from heedmap.runs import Run

        run = Run.open(self.run)
        found = evaluate(
            run,
            self.data,
            device=pick_device(self.device),
            precision=self.precision,
            root=self.root,
            download=self.download,
        )
        show_evaluation(found.as_dict())
        if self.out:
            console.print(f"Written to {escape(str(write_evaluation(found, Path(self.out))))}", soft_wrap=True)
        show_next(f"heedmap visualize {shlex.quote(self.run)} PICTURES")
