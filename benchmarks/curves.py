"""Accuracy against minutes of training, from what runs have written down themselves.

    python -m benchmarks.curves IMAGE.png RUN [RUN ...] [--mark "NAME" MINUTES PER_CENT] [--title TEXT]
    python -m benchmarks.curves IMAGE.png --point heedmap 4 91.2+-0.2 --point heedmap 8 93.0+-0.1 --point other 9 90

Lines are the accuracy on the part kept apart for choosing, after each epoch; diamonds the test part, evaluated once, at
the end. Minutes are those since the start of training, everything included, summed over resumes; a run from before
that was written down has those of its epochs' steps alone, and the line printed says so.

Points are test accuracies of whole trainings, with a spread where there are several seeds; those of one name are joined
by a line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from heedmap import Run

COLOURS = ("#bc3754", "#1f78b4", "#33a02c", "#ff7f00", "#6a3d9a", "#4d4d4d")
SHORTEST = 0.5  # what the axis leaves out of the first, steep part, as a share of the highest accuracy


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the image and print its figures."""
    given = _asked(arguments)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = itertools.cycle(COLOURS)
    for path in given.runs:
        _draw_run(axes, path, next(colours))
    for name, points in joined(given.point).items():
        minutes, accuracies, spreads = zip(*sorted(points), strict=True)
        style = {"color": next(colours), "marker": "o", "capsize": 3, "label": name}
        axes.errorbar(minutes, accuracies, yerr=spreads if any(spreads) else None, **style)
        told = (f"{per_cent:.2f}{_plus(spread)} % after {at:g} minutes" for at, per_cent, spread in sorted(points))
        sys.stdout.write(f"{name}: test {', '.join(told)}\n")
    for name, minutes, accuracy in given.mark:
        axes.plot([float(minutes)], [float(accuracy)], "X", color="black", label=name)
    axes.set(xlabel="minutes", ylabel="accuracy, per cent", title=given.title)
    if given.runs:
        axes.set_ylim(bottom=SHORTEST * axes.get_ylim()[1])
    axes.grid(color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(given.image, dpi=110)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    words = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    words.formatter_class = argparse.RawDescriptionHelpFormatter
    words.add_argument("image")
    words.add_argument("runs", nargs="*")
    triple = {"nargs": 3, "action": "append", "default": [], "metavar": ("NAME", "MINUTES", "PER_CENT")}
    words.add_argument("--mark", **triple)
    words.add_argument(
        "--point", help="PER_CENT may have a spread, as 93.1+-0.2; given again, NAME is a line", **triple
    )
    words.add_argument("--title", default="")
    given = words.parse_args(arguments)
    if not given.runs and not given.point:
        words.error("name a run, or give a --point")
    return given


def _draw_run(axes: Any, path: str, colour: str) -> None:
    run = Run.open(path)
    minutes, accuracies, test, whole = curve(Path(path))
    recipe = ", fast" if run.options.recipe == "fast" else ""
    name = f"{run.options.model}, {run.options.attention}{recipe}, seed {run.options.seed}"
    axes.plot(minutes, accuracies, color=colour, label=name)
    axes.plot(minutes[-1:], [test], "D", color=colour)
    what = "training" if whole else "the epochs' steps alone (an old run, which did not note more)"
    sys.stdout.write(f"{name}: test {test:.2f} % after {minutes[-1]:.1f} minutes of {what}; by validation ")
    sys.stdout.write(", ".join(_reached(minutes, accuracies, share) for share in (80, 85, 90, 93)) + "\n")


def curve(folder: Path) -> tuple[list[float], list[float], float, bool]:
    """Minutes and validation accuracies (per cent) at the end of each epoch, and the test accuracy (per cent).

    The last value tells whether the minutes are all that training took, or those of its steps alone.
    """
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    epochs = [line for line in lines if line["kind"] == "epoch"]
    whole = all("since_start" in epoch for epoch in epochs)
    seconds = [epoch["since_start"] if whole else epoch["seconds"] for epoch in epochs]
    minutes = [value / 60 for value in (seconds if whole else itertools.accumulate(seconds))]
    evaluated = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return minutes, [100 * epoch["validation_accuracy"] for epoch in epochs], 100 * evaluated["top1"], whole


def joined(points: Sequence[Sequence[str]]) -> dict[str, list[tuple[float, float, float]]]:
    """Name -> (minutes, per cent, spread) of each point of that name; without a spread it is 0."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for name, minutes, accuracy in points:
        per_cent, _, spread = accuracy.partition("+-")
        found.setdefault(name, []).append((float(minutes), float(per_cent), float(spread or 0)))
    return found


def _plus(spread: float) -> str:
    return f" +- {spread:.2f}" if spread else ""


def _reached(minutes: list[float], accuracies: list[float], share: float) -> str:
    after = next((at for at, accuracy in zip(minutes, accuracies, strict=True) if accuracy >= share), None)
    return f"{share} % never" if after is None else f"{share} % after {after:.1f}"


if __name__ == "__main__":
    main()
