"""``heedmap compare``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from heedmap.cli.commands.arguments import DataFolder
from heedmap.cli.commands.train import only_train_options
from heedmap.cli.console import bold, say, show_comparison, show_next, show_progress
from heedmap.config import Range, TrainOptions, free_name
from heedmap.errors import OptionError
from heedmap.system import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Compare(TrainOptions):
    """Train variants with the same seeds and budget, and report their differences with intervals.

    Attributes:
        variants: What is compared, the baseline first: KEY=VALUE,KEY=VALUE of the options below, or NAME:KEY=VALUE;
            + joins a list (taps=stage2+stage3).
        seeds: Runs of each variant; an interval needs 2, and 5 are better. Their seeds count up from seed.
        parallel: Runs at a time, each in a process of its own with its share of the threads.
        out: Folder for all its runs; one that was begun is continued. Default: the next free
            runs/compare-DATA-NUMBER.
        config: An experiment file (see docs/how-to/compare.md); options on the command line win.
        budget: Which of the experiment's budgets to take.
        resume: A comparison's folder to continue, by its own plan.
        background: Check the plan, then continue without this terminal and write to comparison.log.
    """

    data: DataFolder = ""
    variants: tuple[str, ...] = ("attention=none", "attention=parametrised")
    seeds: Annotated[int, Range(1, 1000)] = 3
    parallel: Annotated[int, Range(1, 1000)] = 1
    config: str | None = None
    budget: str | None = None
    resume: str | None = None
    background: bool = False

    @classmethod
    def from_files(cls, named: Mapping[str, str]) -> Compare | None:
        """Return the values of the experiment file ``config`` with its ``budget``; None where none is named."""
        if "config" not in named:
            return None
        from heedmap.workflows.compare.plan import read_experiment

        experiment = read_experiment(named["config"], named.get("budget"))
        more: dict[str, Any] = {name: experiment[name] for name in ("variants", "seeds") if experiment[name]}
        return cls(**experiment["options"], **more)

    def work(self) -> None:
        """Train what is missing, compare, and print where the page is."""
        from heedmap.workflows.compare import LOG, compare, compare_in_background

        keep_freed_memory()
        plan, out = (None, Path(self.resume)) if self.resume is not None else self._planned()
        with show_progress() as progress:
            if self.background:
                process = compare_in_background(plan, out, parallel=self.parallel, progress=progress).pid
            else:
                comparison = compare(plan, out, parallel=self.parallel, progress=progress)
        if self.background:
            say(f"Comparing in process {process}; stop it with `kill {process}`.")
            show_next(f"tail -f {shlex.quote(str(out / LOG))}")
            return
        page = str(out / "comparison.html")
        show_comparison(comparison)
        say(f"Comparison: {bold(page)}")
        show_next(f"open {shlex.quote(page)}")

    def _planned(self) -> tuple[Any, Path]:
        from heedmap.workflows.compare.plan import make_plan, read_experiment

        if not self.data:
            raise OptionError("Name the data: `heedmap compare DIR`, or `heedmap compare digit-scenes`.")
        experiment = read_experiment(self.config, self.budget) if self.config is not None else {}
        about = {name: experiment.get(name, "") for name in ("title", "published")}
        plan = make_plan(only_train_options(self), self.variants, self.seeds, **about)
        stem = f"compare-{Path(self.config).stem}-{self.budget}" if self.config else f"compare-{Path(self.data).name}"
        return plan, Path(self.out) if self.out else free_name(Path("runs"), stem)
