"""``heedmap train`` and ``heedmap demo``, which trains too."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from heedmap.cli.commands.arguments import DataFolder
from heedmap.cli.console import bold, say, show_next, show_progress, show_result
from heedmap.config import Options, Range, TrainOptions, read_config
from heedmap.errors import OptionError
from heedmap.system import keep_freed_memory


def only_train_options(options: TrainOptions) -> TrainOptions:
    """Return the options of training alone, of a command that has more."""
    return TrainOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(TrainOptions)})


@dataclass(frozen=True, kw_only=True)
class Train(TrainOptions):
    """Train an attention classifier on a folder of images or a named set.

    Attributes:
        config: A YAML file of options, such as the config.yaml of a run; options on the command line win.
        resume: An unfinished run folder to continue, with its own options.
    """

    data: DataFolder = ""
    config: str | None = None
    resume: str | None = None

    @classmethod
    def from_files(cls, named: Mapping[str, str]) -> Train | None:
        """Return the values of ``config``, over those of the run to ``resume``; None where neither is named."""
        values: dict[str, Any] = {}
        if "resume" in named:
            from heedmap.runs import Run

            values = dataclasses.asdict(Run.open(named["resume"], finished=False).options)
        if "config" in named:
            values |= read_config(named["config"])
        return cls(**values) if values else None

    def work(self) -> None:
        """Train, and print the figures and the next command."""
        from heedmap.workflows.train.train import refuse_changes, train

        keep_freed_memory()
        if self.resume is None and not self.data:
            raise OptionError("Name the data: `heedmap train DIR`, or `heedmap train digit-scenes`, which is embedded.")
        options = only_train_options(self)
        if self.resume is not None:
            refuse_changes(self.resume, options)
        with show_progress() as progress:
            run = train(options, resume=self.resume, progress=progress, command=shlex.join(["heedmap", *sys.argv[1:]]))
        if int(os.environ.get("RANK", "0")) == 0:
            show_result(run.path)
            show_next(f"heedmap visualize {shlex.quote(str(run.path))} IMAGES")


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    """Train on the embedded digit scenes, and draw maps of unseen ones: a few minutes, no download.

    Attributes:
        out: Folder for the run and its images.
        seed: Seed of the scenes, the order, the augmentation and the weights.
    """

    out: str = "demo"
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0

    def work(self) -> None:
        """Train, draw, and print where the report and the maps are."""
        from heedmap.workflows.demo import demo

        keep_freed_memory()
        with show_progress() as progress:
            run, page = demo(self.out, seed=self.seed, progress=progress)
        show_result(run.path)
        say(f"Maps of unseen scenes: {bold(page)}")
        show_next("heedmap train DIR, with DIR/CLASS/* your own images")
