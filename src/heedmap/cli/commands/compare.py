"""``heedmap compare``."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.markup import escape

from heedmap.cli.console import console, show_comparison, show_next, show_progress
from heedmap.config import TrainOptions, free_name
from heedmap.errors import OptionError
from heedmap.system import keep_freed_memory

DEFAULT_VARIANTS = ("attention=none", "attention=parametrised")
MOST_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class Compare(TrainOptions):
    """Train variants with the same seeds and budget, and tell what differs, with intervals.

    Attributes:
        data: A folder of images, digit-scenes, or a named set, as for train.
        variants: What is compared, the control first: KEY=VALUE,KEY=VALUE of the options below, or NAME:KEY=VALUE; a
            list is joined by + (taps=stage2+stage3).
        seeds: Runs of each variant; an interval needs 2, and 5 are better.
        parallel: Runs at a time, each in a process of its own with its share of the threads.
        out: Folder of the comparison, with all its runs; where it has begun, it goes on. Default: the next free
            runs/compare-DATA-NUMBER.
        seed: The first seed.
        config: An experiment file (see docs/comparing.md); options given beside it win.
        budget: Which of the experiment's budgets to take.
        resume: A comparison's folder to go on with, by its own plan.
        background: Check the plan, then go on without this terminal; what would be printed goes into comparison.log.
    """

    data: tyro.conf.Positional[str] = ""
    variants: tuple[str, ...] = DEFAULT_VARIANTS
    seeds: int = 3
    parallel: int = 1
    config: str | None = None
    budget: str | None = None
    resume: str | None = None
    background: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            OptionError: a value out of its range.
        """
        super().__post_init__()
        for name in ("seeds", "parallel"):
            if not 1 <= getattr(self, name) <= MOST_SEEDS:
                raise OptionError(
                    f"{name} = {getattr(self, name)} is out of range: give a value from 1 to {MOST_SEEDS}."
                )

    @classmethod
    def from_config(cls, words: Mapping[str, str]) -> Compare:
        """The values that an experiment file gives, from what the command line says of ``config`` and ``budget``.

        Raises:
            OptionError: the file cannot be read, or has no such budget.
        """
        from heedmap.workflows.compare.plan import read_experiment

        found = read_experiment(words["config"], words.get("budget"))
        more: dict[str, Any] = {"variants": found["variants"]} if found["variants"] else {}
        if found["seeds"] is not None:
            more["seeds"] = int(found["seeds"])
        return cls(**found["options"], **more)

    def work(self) -> None:
        """Train what is missing, compare, and say where the page is."""
        from heedmap.workflows.compare import LOG, compare, compare_in_background

        keep_freed_memory()
        plan, out = (None, Path(self.resume)) if self.resume is not None else self._planned()
        if self.background:
            with show_progress() as progress:
                process = compare_in_background(plan, out, parallel=self.parallel, progress=progress).pid
            told = shlex.quote(str(out / LOG))
            console.print(f"Process {process} compares; stop it with `kill {process}`.", soft_wrap=True)
            show_next(f"tail -f {told}")
            return
        with show_progress() as progress:
            found = compare(plan, out, parallel=self.parallel, progress=progress)
        show_comparison(found)
        console.print(f"Comparison: [bold]{escape(str(out / 'comparison.html'))}[/]", soft_wrap=True)
        show_next(f"open {shlex.quote(str(out / 'comparison.html'))}")

    def _planned(self) -> tuple[Any, Path]:
        from heedmap.workflows.compare.plan import make_plan, read_experiment

        if not self.data:
            raise OptionError("Name the data: `heedmap compare DIR`, or `heedmap compare digit-scenes`.")
        options = TrainOptions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TrainOptions)})
        words = read_experiment(self.config, self.budget) if self.config is not None else {}
        about = {name: words.get(name, "") for name in ("title", "published")}
        plan = make_plan(options, self.variants, self.seeds, **about)
        stem = f"compare-{Path(self.config).stem}-{self.budget}" if self.config else f"compare-{Path(self.data).name}"
        return plan, Path(self.out) if self.out else free_name(Path("runs"), stem)
