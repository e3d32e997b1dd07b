"""What the command line shows: tables, and progress with throughput and time left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from heedmap.config import counted

if TYPE_CHECKING:  # imports torch, for which help and usage errors must not wait
    from heedmap.progress import Progress
    from heedmap.types import Audit, EpochReport, StepReport

GAP = 2  # between the columns of a suite's tables


class _Plain(Console):
    """Leaves a closed pipe to :mod:`heedmap.cli.main`."""

    def on_broken_pipe(self) -> None:
        raise


console = _Plain(highlight=False)
complaints = Console(stderr=True, highlight=False)


class Shown:
    """Draws a progress bar and prints a line an epoch, as a :class:`heedmap.progress.Progress` whose import is slow."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._task = bar.add_task("preparing", total=None, rest="")

    def message(self, text: str) -> None:
        """Print a sentence."""
        self._bar.console.print(escape(text), soft_wrap=True)

    def step(self, report: StepReport) -> None:
        """Move the bar."""
        rest = f"loss {report.loss:.3f}  {report.images_per_second:,.0f} images/s  {clock(report.seconds_left)} left"
        self._bar.update(
            self._task,
            total=report.total_steps,
            completed=report.step,
            description=f"epoch {report.epoch}/{report.epochs}",
            rest=rest,
        )

    def epoch(self, report: EpochReport) -> None:
        """Print the figures of the epoch."""
        evaluated = ""
        if report.validation:
            named = ", ".join(f"{name} {value:.4f}" for name, value in report.validation.items())
            evaluated = f"  validation {named}"
        best = "  [green]best[/]" if report.is_best and evaluated else ""
        self._bar.console.print(
            f"epoch {report.epoch:>3}/{report.epochs}  loss {report.train_loss:.3f}{evaluated}  "
            f"{report.images_per_second:,.0f} images/s{best}"
        )


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a progress with a live bar, where the terminal can draw one."""
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[rest]}"))
    # Disabled, it still prints lines; enabled without a terminal, it would leave an empty one.
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        yield cast(Any, Shown(bar))


@contextmanager
def counting(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """Draw a bar for ``total`` items (None: not known yet); call what is yielded with the number done."""
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    # Disabled, it still prints lines; enabled without a terminal, it would leave an empty one.
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def show_table(head: str, lines: Mapping[str, str], width: int | None = None) -> None:
    """Print names with a sentence each; ``width`` keeps several tables in line."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2), show_header=bool(head))
    table.add_column(head, style="bold", no_wrap=True, min_width=width)
    table.add_column("")
    for name, sentence in lines.items():
        table.add_row(escape(name), escape(sentence))
    console.print(table)


def show_evaluation(found: Mapping[str, Any]) -> None:
    """Print accuracy, calibration, classes, and pointing."""
    from heedmap.metrics.classification import wilson_interval

    interval = wilson_interval(found["top1"], found["count"])
    lines = {
        "top-1": f"{found['top1']:.2%}  (95 % interval {interval[0]:.2%} - {interval[1]:.2%})",
        "top-5": f"{found['top5']:.2%}",
        "calibration": f"ECE {found['ece']:.3f}, NLL {found['nll']:.3f}",
        "throughput": f"{found['images_per_second']:,.0f} images/s",
    }
    if "top1_with_flips" in found:
        lines["top-1 with flips"] = f"{found['top1_with_flips']:.2%}  (image and mirror image averaged)"
    if len(found["per_class"]) <= 5:  # always right
        del lines["top-5"]
    show_table(f"{found['part']}, {counted(found['count'], 'image')}", lines)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2))
    for name in ("class", "images", "precision", "recall", "F1"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in found["per_class"][:40]:
        shares = (f"{row[name]:.1%}" if row["count"] else "-" for name in ("precision", "recall", "f1"))
        table.add_row(escape(row["name"]), f"{row['count']:,}", *shares)
    console.print(table)
    if found.get("pointing"):
        shown = {name: f"{share:.1%}" for name, share in found["pointing"].items()}
        show_table("hottest point inside the object's box", shown)
    if found.get("learned"):
        console.print(
            f"[yellow]The run learned from {found['learned']:,} of these {counted(found['count'], 'image')}: "
            "these figures say nothing about images it has not seen.[/]",
            soft_wrap=True,
        )


def show_sections(suites: Mapping[str, Any]) -> None:
    """Print the tables and notes of the suites that were run."""
    from heedmap.report.sections import sections

    for section in sections(suites):
        console.print(f"[bold]{escape(section.title)}[/] {escape(section.sentence)}", soft_wrap=True)
        for shown in section.tables:
            widths = [max(map(cell_len, column)) + GAP for column in zip(shown.head, *shown.rows, strict=True)]
            for columns in abreast(widths, shown.keys, console.width + GAP):
                table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, GAP, 0, 0))
                for place in columns:
                    is_key = place < shown.keys
                    table.add_column(shown.head[place], justify="left" if is_key else "right", no_wrap=is_key)
                for row in shown.rows:
                    cells = (escape(row[place]) for place in columns)
                    table.add_row(*cells, style="dim" if row[0] in shown.grey else None)
                console.print(table)
        for note in section.notes:
            console.print(f"  {escape(note)}", soft_wrap=True)


def abreast(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """Split the columns of a wide table into tables that fit, each with the key columns.

    Args:
        widths: of the columns, with the gaps between them.
        keys: how many columns, from the left, each part repeats.
        room: width of a part; it has at least one column beside the keys.
    """
    parts = [list(range(keys))]
    for place in range(keys, len(widths)):
        if len(parts[-1]) > keys and sum(widths[each] for each in (*parts[-1], place)) > room:
            parts.append(list(range(keys)))
        parts[-1].append(place)
    return parts


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the variants' figures, a sentence on each difference of accuracy, and the notes."""
    from heedmap.report.comparison import GROUPS, amounts, cell

    for group in GROUPS:
        measures = [each for each in found["measures"] if each["group"] == group]
        if not measures and group != "cost":
            continue
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2))
        table.add_column("variant", style="bold", min_width=12)
        more = ("parameters", "multiply-adds") if group == "cost" else ()
        for name in (*(each["name"] for each in measures), *more):
            table.add_column(name, justify="right")
        for variant in found["variants"]:
            cells = [cell(variant["summary"].get(each["key"]), each["unit"]) for each in measures]
            table.add_row(escape(variant["name"]), *cells, *(amounts(variant).values() if more else ()))
        console.print(table)
    for each in found["differences"]:
        if each["measure"] == "test_accuracy":
            console.print(escape(each["sentence"]), soft_wrap=True)
    for note in found["notes"]:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def show_audit(found: Audit, most: int) -> None:
    """Print counts, and the first findings of each kind."""
    counts = ", ".join(f"{name} {count:,}" for name, count in found.images.items())
    console.print(f"{counts} images; {found.depth} audit in {found.seconds:.1f} s")
    kinds = defaultdict(list)
    for finding in found.findings:
        kinds[finding.kind].append(finding)
    for kind, findings in kinds.items():
        console.print(f"[bold]{kind}[/]: {len(findings)}")
        for finding in findings[:most]:
            console.print(f"  {escape(finding.sentence)}", soft_wrap=True)
        if len(findings) > most:
            console.print(f"  and {len(findings) - most} more (--show N, --json FILE)")
    if not found.findings:
        console.print("[green]Nothing found.[/]")
    if found.leaked:
        verb = "has" if found.leaked == 1 else "have"
        console.print(f"[yellow]{counted(found.leaked, 'test image')} {verb} a duplicate in train.[/]")


def show_result(run: Path) -> None:
    """Print the figures of a finished run."""
    show_evaluation(json.loads((run / "evaluation.json").read_text(encoding="utf-8")))
    console.print(f"Report: [bold]{escape(str(run / 'report.html'))}[/]", soft_wrap=True)


def show_next(command: str) -> None:
    """Print the next useful command."""
    console.print(f"Next: [bold]{escape(command)}[/]", soft_wrap=True)
