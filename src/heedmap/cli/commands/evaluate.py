"""``heedmap evaluate``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.markup import escape

from heedmap.cli.commands.arguments import Device, Precision, RunFolder, pick_device
from heedmap.cli.console import bold, say, show_evaluation, show_next, show_progress, show_sections
from heedmap.config import ObjectOptions, Range, free_name, split_names
from heedmap.errors import DataError
from heedmap.system import keep_freed_memory

if TYPE_CHECKING:
    from heedmap.runs import Run
    from heedmap.workflows.evaluate.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True)
class Evaluate(ObjectOptions):
    """Evaluate a run: accuracy and calibration; with suites also its maps, robustness and transfer.

    Attributes:
        data: A folder or a named set with the same classes. Default: the run's own test part.
        suite: Suites to run, with commas between: accuracy, localization, faithfulness, robustness, transfer.
        method: Maps that localization and faithfulness evaluate, with commas between, such as
            attention,rise:count=500+cells=5. Default: attention and Grad-CAM, or Grad-CAM alone for the control.
        transfer: Folders or named sets for the transfer suite.
        control: A run evaluated beside this one for robustness and transfer, such as its matched control.
        flips: Predict the mirrored images too; the accuracy of the averaged logits is reported beside the plain one.
        limit: Images that localization, faithfulness and robustness evaluate, each class with its share; accuracy takes
            all. Default: all; 100 for faithfulness, 200 for robustness.
        deletion_baseline: What deletion (faithfulness) leaves of an image: its own mean colour, that of the data set
            (zero to the network, as RISE does), black, or a blur.
        independent: Randomize each layer alone too, beside all from the top down.
        out: New or empty folder for evaluation.json, confusion.png and, with suites, report.html. Default: suites of
            the run's own test part go into the run's report, others into evaluation-1, -2, ...; without suites print.
        workers: Threads that decode images. Default: the run's, or the machine's cores.
        cache: Folder that records which files were decoded before, or off. Default: the run's, where that exists, or
            else $HEEDMAP_CACHE, or the user's cache folder.
        root: Where named sets lie. Default: as in the run.
        download: Fetch a named set that is missing.
    """

    run: RunFolder
    data: tyro.conf.Positional[str | None] = None
    suite: tuple[str, ...] = ("accuracy",)
    method: tuple[str, ...] = ()
    transfer: tuple[str, ...] = ()
    control: str | None = None
    flips: bool = False
    limit: int | None = None
    deletion_baseline: Literal["mean", "dataset", "black", "blur"] = "mean"
    independent: bool = False
    out: str | None = None
    device: Device = None
    precision: Precision = "auto"
    workers: Annotated[int | None, Range(0, 1024)] = None
    cache: str | None = None
    root: str | None = None
    download: bool = True

    def work(self) -> None:
        """Evaluate and print the tables."""
        from heedmap.data.annotations.annotations import AnnotationOptions
        from heedmap.runs import Run
        from heedmap.workflows.evaluate.data import OpeningOptions
        from heedmap.workflows.evaluate.evaluate import evaluate
        from heedmap.workflows.evaluate.suites import EvaluateOptions

        keep_freed_memory()
        if self.out is not None:
            _check_out(Path(self.out))
        run = Run.open(self.run)
        options = EvaluateOptions(
            suites=split_names("suite", self.suite),
            methods=split_names("method", self.method),
            annotations=self.annotations,
            reading=AnnotationOptions.from_command(self),
            transfer=self.transfer,
            control=None if self.control is None else Run.open(self.control),
            limit=self.limit,
            deletion_baseline=self.deletion_baseline,
            independent=self.independent,
            flips=self.flips,
            device=pick_device(self.device),
            precision=self.precision,
            opening=OpeningOptions(root=self.root, download=self.download, workers=self.workers, cache=self.cache),
        )
        results: list[Evaluation] = []
        try:
            with show_progress() as progress:
                evaluate(run, self.data, options, progress=progress, on_update=results.append)
        finally:  # results before a later suite fails, or Ctrl-C or SIGTERM comes, took long enough
            if results:
                self._show(run, results[-1])
        show_next(f"heedmap visualize {shlex.quote(self.run)} IMAGES")

    def _show(self, run: Run, evaluation: Evaluation) -> None:
        """Print the results, and write them where they belong."""
        from heedmap.workflows.evaluate.page import refresh, write_evaluation

        show_evaluation(evaluation.as_dict())
        show_sections(evaluation.suites)
        out = Path(self.out) if self.out else None
        if evaluation.suites and out is None and self.data is None:
            refresh(run, evaluation)
            say(f"Report: {bold(run.path / 'report.html')}")
        elif evaluation.suites and out is None:
            out = free_name(Path(), "evaluation")
        if out is not None:
            say(f"Written to {escape(str(write_evaluation(evaluation, out)))}")


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"Output folder {out} is a file; name another one.")
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"Output folder {out} is not empty; name another one.")
