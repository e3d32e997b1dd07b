"""What the command line shows: tables, and progress with throughput and time left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from heedmap.config import counted

if TYPE_CHECKING:  # imports torch, for which help and usage errors must not wait
    from heedmap.progress import Progress
    from heedmap.types import Audit, EpochReport, StepReport


class _Plain(Console):
    def on_broken_pipe(self) -> None:  # main handles it
        raise


console = _Plain(highlight=False)
complaints = Console(stderr=True, highlight=False)


def say(text: str, on: Console = console) -> None:
    """Print a sentence of rich's markup; the terminal wraps it, so that a path stays in one piece."""
    on.print(text, soft_wrap=True)


def bold(value: object) -> str:
    """Return a value as bold text."""
    return f"[bold]{escape(str(value))}[/]"


class Shown:
    """Draws a progress bar and prints a line an epoch, as a :class:`heedmap.progress.Progress` whose import is slow."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._task = bar.add_task("preparing", total=None, rest="")

    def message(self, text: str) -> None:
        """Print a sentence."""
        say(escape(text), self._bar.console)

    def step(self, report: StepReport) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            total=report.total_steps,
            completed=report.step,
            description=f"epoch {report.epoch}/{report.epochs}",
            rest=f"loss {report.loss:.3f}  {report.images_per_second:,.0f} images/s  {clock(report.seconds_left)} left",
        )

    def epoch(self, report: EpochReport) -> None:
        """Print the figures of the epoch."""
        measured = ", ".join(f"{name} {value:.4f}" for name, value in (report.validation or {}).items())
        self._bar.console.print(
            f"epoch {report.epoch:>3}/{report.epochs}  loss {report.train_loss:.3f}"
            f"{f'  validation {measured}' if measured else ''}  {report.images_per_second:,.0f} images/s"
            f"{'  [green]best[/]' if report.is_best and measured else ''}"
        )


@contextmanager
def _bar(last: ProgressColumn) -> Iterator[ProgressBar]:
    """Yield a live bar, where the terminal can draw one."""
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), last)
    # Disabled, it still prints lines; enabled without a terminal, it would leave an empty one.
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        yield bar


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a progress with a live bar."""
    with _bar(TextColumn("{task.fields[rest]}")) as bar:
        yield cast(Any, Shown(bar))


@contextmanager
def counting(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """Draw a bar for ``total`` items (None: not known yet); call what is yielded with the number done."""
    with _bar(TimeElapsedColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _table(*heads: str, head: bool = True) -> Table:
    """Return an empty table: the first column on the left, numbers on the right."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2), show_header=head)
    for place, name in enumerate(heads):
        table.add_column(name, justify="right" if place else "left")
    return table


def show_table(head: str, lines: Mapping[str, str], width: int | None = None) -> None:
    """Print names with a sentence each; ``width`` keeps several tables in line."""
    table = _table(head=bool(head))
    table.add_column(head, style="bold", no_wrap=True, min_width=width)
    table.add_column("")
    for name, sentence in lines.items():
        table.add_row(escape(name), escape(sentence))
    console.print(table)


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print accuracy, calibration, classes, and pointing."""
    from heedmap.metrics.classification import wilson_interval

    images, classes = counted(evaluation["count"], "image"), evaluation["per_class"]
    low, high = wilson_interval(evaluation["top1"], evaluation["count"])
    lines = {"top-1": f"{evaluation['top1']:.2%}  (95 % interval {low:.2%} - {high:.2%})"}
    if len(classes) > 5:  # else always right
        lines["top-5"] = f"{evaluation['top5']:.2%}"
    lines["calibration"] = f"ECE {evaluation['ece']:.3f}, NLL {evaluation['nll']:.3f}"
    lines["throughput"] = f"{evaluation['images_per_second']:,.0f} images/s"
    if "top1_with_flips" in evaluation:
        lines["top-1 with flips"] = f"{evaluation['top1_with_flips']:.2%}  (image and mirror image averaged)"
    show_table(f"{evaluation['part']}, {images}", lines)
    table = _table("class", "images", "precision", "recall", "F1")
    for row in classes[:40]:
        shares = (f"{row[name]:.1%}" if row["count"] else "-" for name in ("precision", "recall", "f1"))
        table.add_row(escape(row["name"]), f"{row['count']:,}", *shares)
    console.print(table)
    if evaluation.get("pointing"):
        hits = {name: f"{share:.1%}" for name, share in evaluation["pointing"].items()}
        show_table("hottest point inside the object's box", hits)
    if evaluation.get("learned"):
        say(
            f"[yellow]The run learned from {evaluation['learned']:,} of these {images}: "
            "these figures say nothing about images it has not seen.[/]"
        )


def show_sections(suites: Mapping[str, Any]) -> None:
    """Print the tables and notes of the suites that were run."""
    from heedmap.report.sections import sections

    for section in sections(suites):
        say(f"{bold(section.title)} {escape(section.sentence)}")
        for shown in section.tables:
            gap = 2  # between the columns
            widths = [max(map(cell_len, column)) + gap for column in zip(shown.head, *shown.rows, strict=True)]
            for columns in abreast(widths, shown.keys, console.width + gap):
                table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, gap, 0, 0))
                for place in columns:
                    is_key = place < shown.keys
                    table.add_column(shown.head[place], justify="left" if is_key else "right", no_wrap=is_key)
                for row in shown.rows:
                    cells = (escape(row[place]) for place in columns)
                    table.add_row(*cells, style="dim" if row[0] in shown.grey else None)
                console.print(table)
        for note in section.notes:
            say(f"  {escape(note)}")


def abreast(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """Split columns, of ``widths`` with their gaps, into tables of ``room``: the first ``keys`` and others each."""
    parts = [list(range(keys))]
    for place in range(keys, len(widths)):
        if len(parts[-1]) > keys and sum(widths[column] for column in (*parts[-1], place)) > room:
            parts.append(list(range(keys)))
        parts[-1].append(place)
    return parts


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the variants' figures, a sentence on each difference of accuracy, and the notes."""
    from heedmap.report.comparison import GROUPS, amounts, cell

    for group in GROUPS:
        measures = [measure for measure in comparison["measures"] if measure["group"] == group]
        if not measures and group != "cost":
            continue
        more = ("parameters", "multiply-adds") if group == "cost" else ()
        table = _table("variant", *(measure["name"] for measure in measures), *more)
        table.columns[0].style, table.columns[0].min_width = "bold", 12
        for variant in comparison["variants"]:
            cells = [cell(variant["summary"].get(measure["key"]), measure["unit"]) for measure in measures]
            table.add_row(escape(variant["name"]), *cells, *(amounts(variant).values() if more else ()))
        console.print(table)
    for difference in comparison["differences"]:
        if difference["measure"] == "test_accuracy":
            say(escape(difference["sentence"]))
    for note in comparison["notes"]:
        say(f"[dim]{escape(note)}[/]")


def show_audit(report: Audit, most: int) -> None:
    """Print counts, and the first ``most`` findings of each kind."""
    counts = ", ".join(f"{name} {count:,}" for name, count in report.images.items())
    console.print(f"{counts} images; {report.depth} audit in {report.seconds:.1f} s")
    for kind in dict.fromkeys(finding.kind for finding in report.findings):
        findings = [finding for finding in report.findings if finding.kind == kind]
        console.print(f"[bold]{kind}[/]: {len(findings)}")
        for finding in findings[:most]:
            say(f"  {escape(finding.sentence)}")
        if len(findings) > most:
            console.print(f"  and {len(findings) - most} more (--show N, --json FILE)")
    if not report.findings:
        console.print("[green]Nothing found.[/]")
    if report.leaked:
        verb = "has" if report.leaked == 1 else "have"
        console.print(f"[yellow]{counted(report.leaked, 'test image')} {verb} a duplicate in train.[/]")


def show_result(run: Path) -> None:
    """Print the figures of a finished run."""
    show_evaluation(json.loads((run / "evaluation.json").read_text(encoding="utf-8")))
    say(f"Report: {bold(run / 'report.html')}")


def show_next(command: str) -> None:
    """Print the next useful command."""
    say(f"Next: {bold(command)}")
