"""Robustness and transfer of a comparison, over its seeds.

    python experiments/over_seeds.py COMPARISON [--other parametrised]

Each run of ``--other`` must have been evaluated with the control of its seed beside it:

    heedmap evaluate RUN --suite robustness,transfer --transfer DATA --control RUN-OF-THE-CONTROL

Prints means over seeds with their standard deviation, the paired difference with its 95 % interval (Student's t), and
how alike the attention stays to itself.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heedmap.metrics.statistics import paired_difference, spread
from heedmap.runs import EVALUATION

Figures = dict[str, dict[int, dict[str, float]]]  # row -> seed -> model -> figure


def robustness(found: dict[str, Any], seed: int, figures: Figures) -> None:
    """Accuracy under each attack."""
    for model, rows in found["models"].items():
        for row in rows:
            title = f"{row['attack']}, {255 * row['epsilon']:.3g}/255"
            figures[title].setdefault(seed, {})[model] = row["accuracy"]


def stability(found: dict[str, Any], seed: int, figures: Figures) -> None:
    """Rank correlation of each attention with itself under attack; the control's maps are constant and have none."""
    for model, rows in found["models"].items():
        for row in rows:
            if row.get("stability"):
                title = f"{row['attack']}, {255 * row['epsilon']:.3g}/255"
                figures[title].setdefault(seed, {})[model] = row["stability"]["rank"]


def transfer(found: dict[str, Any], seed: int, figures: Figures) -> None:
    """Accuracy of the linear SVM on each data set."""
    for row in found["rows"]:
        figures[Path(row["data"]).name].setdefault(seed, {})[row["model"]] = row["probe"]["accuracy"]


def evaluated(variant: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Seed and suites of each of a variant's runs."""
    for path in sorted(variant.glob(f"seed-*/{EVALUATION}")):
        suites = json.loads(path.read_text(encoding="utf-8")).get("suites", {})
        yield int(path.parent.name.removeprefix("seed-")), suites


def main() -> None:
    """Print one table a suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--other", default="parametrised")
    told = parser.parse_args()
    for suite, read in (("robustness", robustness), ("transfer", transfer)):
        figures: Figures = defaultdict(dict)
        for seed, suites in evaluated(told.comparison / told.other):
            if suite in suites:
                read(suites[suite], seed, figures)
        if not figures:
            print(f"{suite}: no run of {told.other} was evaluated so.")
            continue
        seeds = len(next(iter(figures.values())))
        names = list(next(iter(next(iter(figures.values())).values())))
        if len(names) < 2:
            print(f"{suite}: evaluated without --control; there is nothing to pair.")
            continue
        print(f"\n| {suite}, {seeds} seeds | {' | '.join(names)} | difference (95 % interval) |")
        print("| --- | " + "---: | " * (len(names) + 1))
        for title, by_seed in figures.items():
            columns = [{seed: row[name] for seed, row in by_seed.items()} for name in names]
            means = [spread(list(column.values())) for column in columns]
            paired = paired_difference(columns[1], columns[0])
            cells = [f"{100 * each.mean:.1f} ± {100 * each.sd:.1f}" for each in means]
            interval = f"{100 * paired.mean:+.1f} ({100 * paired.low:.1f} to {100 * paired.high:.1f})"
            print(f"| {title} | {' | '.join(cells)} | {interval} |")
    steady: Figures = defaultdict(dict)
    for seed, suites in evaluated(told.comparison / told.other):
        if "robustness" in suites:
            stability(suites["robustness"], seed, steady)
    if steady:
        print("\n| rank correlation of the attention with itself | mean over seeds |\n| --- | ---: |")
    for title, by_seed in steady.items():
        values = spread([next(iter(row.values())) for row in by_seed.values()])
        print(f"| {title} | {values.mean:.2f} ± {values.sd:.2f} |")


if __name__ == "__main__":
    main()
