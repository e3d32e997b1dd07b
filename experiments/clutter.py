"""Where does attention pay? Accuracy against clutter and object size, from comparisons on digit scenes.

    python experiments/clutter.py COMPARISON ... --out clutter.png

Each comparison (of `heedmap compare digit-scenes-N --config experiments/clutter.yaml`) gives one amount of clutter. Its
variants `none` and `parametrised` are paired by seed: over all test scenes, and over the third with the smallest and
the third with the largest digits. Prints a table; the image shows the differences with their 95 % intervals.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from heedmap.data.digit_scenes import SCENES, digit_scenes
from heedmap.metrics.statistics import PairedDifference, paired_difference, spread
from heedmap.runs import PREDICTIONS

CONTROL, OTHER = "none", "parametrised"
THIRDS = ("all", "smallest", "largest")


def right(run: Path) -> np.ndarray:
    """(N,) whether each test image was answered rightly."""
    with (run / PREDICTIONS).open(encoding="utf-8", newline="") as lines:
        return np.array([row["label"] == row["predicted"] for row in csv.DictReader(lines)])


def thirds(data: str, seed: int, count: int) -> dict[str, np.ndarray]:
    """Which of a seed's test scenes have the smallest and the largest digits, by the root of the box's area."""
    scenes = digit_scenes("test", count, seed, fragments=SCENES[data])
    assert scenes.boxes is not None
    boxes = scenes.boxes.numpy()
    side = 64 * np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    low, high = np.quantile(side, [1 / 3, 2 / 3])
    print(f"{data}, seed {seed}: box sides {side.min():.0f} - {low:.0f} - {high:.0f} - {side.max():.0f} pixels of 64")
    return {"all": side > 0, "smallest": side <= low, "largest": side >= high}


def found_in(comparison: Path) -> tuple[str, dict[str, tuple[str, str, PairedDifference]]]:
    """Data set -> third -> both accuracies in words, and their difference."""
    plan = json.loads((comparison / "comparison.json").read_text(encoding="utf-8"))
    runs = {
        each["name"]: {run["seed"]: comparison / run["folder"] for run in each["runs"]} for each in plan["variants"]
    }
    answers = {name: {seed: right(run) for seed, run in runs[name].items()} for name in (CONTROL, OTHER)}
    chosen = {seed: thirds(plan["data"], seed, len(hits)) for seed, hits in answers[CONTROL].items()}
    found = {}
    for third in THIRDS:
        by_seed = {
            name: {seed: float(hits[chosen[seed][third]].mean()) for seed, hits in seeds.items() if seed in chosen}
            for name, seeds in answers.items()
        }
        words = [spread(list(values.values())) for values in by_seed.values()]
        told = [f"{100 * each.mean:.1f} ± {100 * each.sd:.1f}" for each in words]
        found[third] = (told[0], told[1], paired_difference(by_seed[CONTROL], by_seed[OTHER]))
    return plan["data"], found


def main() -> None:
    """Print the table and draw the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    results = sorted((found_in(each) for each in told.comparisons), key=lambda found: SCENES[found[0]])
    print("\n| fragments, at most | digits | seeds | none | parametrised | difference (95 % interval) |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for data, found in results:
        for third, (none, other, paired) in found.items():
            interval = f"{100 * paired.mean:+.1f} ({100 * paired.low:.1f} to {100 * paired.high:.1f})"
            print(f"| {SCENES[data]} | {third} | {len(paired.seeds)} | {none} | {other} | {interval} |")
    pairs = [each for data, found in results if SCENES[data] for each in found["all"][2].differences]
    ahead = sum(each > 0 for each in pairs)
    p = binomtest(ahead, sum(each != 0 for each in pairs)).pvalue
    print(f"\nAmong fragments attention was ahead in {ahead} of {len(pairs)} pairs (two-sided sign test, p = {p:.2g}).")
    draw(results, told.out)


def draw(results: list[tuple[str, dict[str, tuple[str, str, PairedDifference]]]], out: Path) -> None:
    """Differences with their intervals against clutter, the thirds side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for shift, (third, colour) in enumerate(zip(THIRDS, ("#1c1d1f", "#bc3754", "#2a6fbb"), strict=True)):
        places = [SCENES[data] + 0.25 * (shift - 1) for data, _ in results]
        paired = [found[third][2] for _, found in results]
        middle = [100 * each.mean for each in paired]
        reach = [[100 * (each.mean - each.low) for each in paired], [100 * (each.high - each.mean) for each in paired]]
        label = "all digits" if third == "all" else f"the third with the {third} digits"
        axes.errorbar(places, middle, yerr=reach, fmt="o-", capsize=3, color=colour, label=label)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_xticks([SCENES[data] for data, _ in results])
    axes.set_xlabel("fragments of other digits in a scene, at most")
    axes.set_ylabel("attention - none, points of test accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
