"""``heedmap train``."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass

import tyro

from heedmap.cli.console import show_next, show_progress, show_result
from heedmap.config import TrainOptions
from heedmap.errors import OptionError
from heedmap.system import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Train(TrainOptions):
    """Train an attention classifier on a folder of images or a named set.

    Attributes:
        data: A folder of images (DIR/train/CLASS/* with a test part beside it, or DIR/CLASS/*), digit-scenes, or a
            named set: cifar10, cifar100, svhn, stl10, mnist, fashion-mnist.
        config: A YAML file of options, as config.yaml of a run has them; options given beside it win.
        resume: An unfinished run folder to go on with, by its own options.
    """

    data: tyro.conf.Positional[str] = ""
    config: str | None = None
    resume: str | None = None

    def work(self) -> None:
        """Train, and say what to do next."""
        from heedmap.workflows.train.train import refuse_changes, train

        keep_freed_memory()
        if self.resume is None and not self.data:
            raise OptionError(
                "Name the data: `heedmap train DIR`, or `heedmap train digit-scenes` for the embedded set."
            )
        names = [field.name for field in dataclasses.fields(TrainOptions)]
        options = TrainOptions(**{name: getattr(self, name) for name in names})
        if self.resume is not None:
            refuse_changes(self.resume, options)
        with show_progress() as progress:
            run = train(options, resume=self.resume, progress=progress, command=shlex.join(["heedmap", *sys.argv[1:]]))
        if int(os.environ.get("RANK", "0")) == 0:
            show_result(run.path)
            show_next(f"heedmap visualize {shlex.quote(str(run.path))} IMAGES")
