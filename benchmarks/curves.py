"""Accuracy against minutes of training, from what runs have written down themselves.

    python -m benchmarks.curves PICTURE.png RUN [RUN ...] [--mark "NAME" MINUTES PER_CENT] [--title TEXT]

Lines are the accuracy on the part kept apart for choosing, after each epoch; diamonds the test part, judged once, at
the end. Minutes are those of the epochs, judging included; start-up and the last judging, well below a minute, are not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from heedmap import Run

COLOURS = ("#bc3754", "#1f78b4", "#33a02c", "#ff7f00", "#6a3d9a", "#4d4d4d")
SHORTEST = 0.5  # what the axis leaves out of the first, steep part, as a share of the highest accuracy


def main() -> None:
    """Draw the picture and print its figures."""
    words = argparse.ArgumentParser()
    words.add_argument("picture")
    words.add_argument("runs", nargs="+")
    words.add_argument("--mark", nargs=3, action="append", default=[], metavar=("NAME", "MINUTES", "PER_CENT"))
    words.add_argument("--title", default="")
    given = words.parse_args()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for path, colour in zip(given.runs, itertools.cycle(COLOURS), strict=False):
        run = Run.open(path)
        minutes, accuracies, test = curve(Path(path))
        name = f"{run.options.model}, {run.options.attention}, seed {run.options.seed}"
        axes.plot(minutes, accuracies, color=colour, label=name)
        axes.plot(minutes[-1:], [test], "D", color=colour)
        sys.stdout.write(f"{name}: test {test:.2f} % after {minutes[-1]:.1f} minutes of epochs; by validation ")
        sys.stdout.write(", ".join(_reached(minutes, accuracies, share) for share in (80, 85, 90, 93)) + "\n")
    for name, minutes, accuracy in given.mark:
        axes.plot([float(minutes)], [float(accuracy)], "X", color="black", label=name)
    axes.set(xlabel="minutes", ylabel="accuracy, per cent", title=given.title)
    axes.set_ylim(bottom=SHORTEST * axes.get_ylim()[1])
    axes.grid(color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(given.picture, dpi=110)


def curve(folder: Path) -> tuple[list[float], list[float], float]:
    """Minutes and validation accuracies (per cent) at the end of each epoch, and the test accuracy (per cent)."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    epochs = [line for line in lines if line["kind"] == "epoch"]
    minutes = list(itertools.accumulate(epoch["seconds"] / 60 for epoch in epochs))
    judged = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return minutes, [100 * epoch["validation_accuracy"] for epoch in epochs], 100 * judged["top1"]


def _reached(minutes: list[float], accuracies: list[float], share: float) -> str:
    after = next((at for at, accuracy in zip(minutes, accuracies, strict=True) if accuracy >= share), None)
    return f"{share} % never" if after is None else f"{share} % after {after:.1f}"


if __name__ == "__main__":
    main()
