"""The result of a comparison: figures by variant, differences to the baseline, and plain sentences."""

import csv
import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from heedmap._version import __version__
from heedmap.config import counted
from heedmap.errors import RunError
from heedmap.metrics.statistics.paired import PairedDifference, paired_difference, spread, within_seed
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier
from heedmap.runs import EVALUATION, PREDICTIONS, Run
from heedmap.workflows.compare.plan import Plan
from heedmap.workflows.compare.runner import FailedRun, is_finished

BUDGET = ("epochs", "batch_size", "image_size")  # what makes a budget; derived for each variant unless given
BASELINES = ("centre", "random")


@dataclass(frozen=True)
class Measure:
    """One figure of a run.

    Attributes:
        key: in comparison.json.
        name: for people.
        unit: ``share`` (shown in per cent, differences in points) or ``number``.
        better: ``higher``, ``lower``, or empty where neither is.
        group: ``answers``, ``pointing``, ``overlap``, ``boxes`` or ``cost``; each is a table of its own.
    """

    key: str
    name: str
    unit: str
    better: str
    group: str = "answers"


MEASURES = (
    Measure("test_accuracy", "test accuracy", "share", "higher"),
    Measure("validation_accuracy", "validation accuracy", "share", "higher"),
    Measure("ece", "ECE", "share", "lower"),
    Measure("nll", "NLL", "number", "lower"),
)
MAPS = {"pointing": ("pointing", "pointing"), "otsu_iou": ("IoU", "overlap"), "max_box_acc": ("MaxBoxAcc", "boxes")}
"""Metric of the localization suite -> its word in the table, and its group."""
COSTS = (
    Measure("images_per_second", "images/s in training", "number", "", "cost"),
    Measure("minutes", "minutes", "number", "", "cost"),
)


def gather(plan: Plan, folder: Path, failures: Sequence[FailedRun] = (), parallel: int = 1) -> dict[str, Any]:
    """Read the finished runs and compare them.

    Args:
        plan: what was planned.
        folder: the comparison's folder.
        failures: runs that failed.
        parallel: runs at a time, on which timings depend.

    Returns:
        What comparison.json holds; see docs/how-to/compare.md.

    Raises:
        RunError: runs of one seed were evaluated on different images.
    """
    done = [job for job in plan.jobs(folder) if is_finished(job)]
    runs = {(job.variant.name, job.seed): Run.open(job.path) for job in done}
    figures = {key: _figures(run) for key, run in runs.items()}
    names = [variant.name for variant in plan.variants]
    measures = _measures(figures.values())
    variants = [
        {
            "name": variant.name,
            "changes": {k: list(v) if isinstance(v, tuple) else v for k, v in variant.changes.items()},
            **_cost([runs[key] for key in runs if key[0] == variant.name]),
            "summary": _summary([figures[key] for key in figures if key[0] == variant.name], measures),
            "runs": [
                {"seed": job.seed, "folder": job.path.relative_to(folder).as_posix(), **figures[variant.name, job.seed]}
                for job in done
                if job.variant is variant
            ],
        }
        for variant in plan.variants
    ]
    return {
        "schema": 1,
        "heedmap": __version__,
        "title": plan.title or f"{Path(plan.options.data).name}: {', '.join(names)}",
        "published": plan.published,
        "data": plan.options.data,
        "control": names[0],
        "seeds": list(plan.seeds),
        "planned": len(names) * len(plan.seeds),
        "finished": len(done),
        "measures": [asdict(each) for each in measures],
        "variants": variants,
        "differences": _differences(names, figures, measures),
        "within_seed": _within(names, runs, plan.seeds),
        "notes": [
            *_notes(plan, runs, figures, parallel),
            *(f"{each.job.name} failed: {each.reason}" for each in failures),
        ],
    }


def _figures(run: Run) -> dict[str, Any]:
    """Return the figures of one run; NaN where one is not known."""
    found = run.read_json(EVALUATION)
    epochs = [record for record in run.read_metrics() if record.get("kind") == "epoch"]
    best = [record for record in epochs if record["is_best"]]
    validation = best[-1].get("validation_accuracy") if best else None
    figures = {
        "test_accuracy": found["top1"],
        "validation_accuracy": math.nan if validation is None else validation,
        "ece": found["ece"],
        "nll": found["nll"],
        "images_per_second": statistics.median(record["images_per_second"] for record in epochs),
        "minutes": sum(record["seconds"] for record in epochs) / 60,
    }
    figures |= _map_figures(found)
    # The maps of the baseline without attention are uniform: their hottest point is the first one, and means nothing.
    if found.get("pointing") and run.options.attention != "none":
        figures |= {f"pointing {name}": share for name, share in found["pointing"].items() if name not in BASELINES}
    return figures


def _map_figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the localization suite's figures of each map, such as ``IoU stage2``; its baselines are in the notes."""
    suite = found.get("suites", {}).get("localization")
    if suite is None:
        return {}
    return {
        f"{word} {name.removeprefix('attention ')}": scores[metric]["value"]
        for metric, (word, _) in MAPS.items()
        for name, scores in suite["scores"].items()
        if name not in suite["baselines"]
    }


def _measures(figures: Iterable[Mapping[str, float]]) -> list[Measure]:
    """Return the measures that any run has, in their order."""
    known = dict.fromkeys(key for each in figures for key, value in each.items() if not math.isnan(value))
    maps = [
        Measure(key, key, "share", "higher", group)
        for word, group in MAPS.values()
        for key in known
        if key.startswith(f"{word} ")
    ]
    return [each for each in (*MEASURES, *maps, *COSTS) if each.key in known]


def _cost(runs: Sequence[Run]) -> dict[str, Any]:
    if not runs:
        return {"parameters": None, "multiply_accumulates": None}
    parameters, work = count_cost(runs[0].architecture)
    return {"parameters": parameters, "multiply_accumulates": work}


@functools.lru_cache(maxsize=256)  # the comparison is written again after each run
def count_cost(architecture: Architecture) -> tuple[int, int]:
    """Return the parameters, and the multiply-accumulates of convolutions and matrix products for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    classifier = build_classifier(architecture).eval()
    image = torch.zeros(1, 3, classifier.image_size, classifier.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(image)
    parameters = sum(each.numel() for each in classifier.parameters())
    return parameters, counter.get_total_flops() // 2


def _summary(figures: Sequence[Mapping[str, float]], measures: Sequence[Measure]) -> dict[str, Any]:
    found = {}
    for each in measures:
        values = [one[each.key] for one in figures if not math.isnan(one.get(each.key, math.nan))]
        if values:
            found[each.key] = asdict(spread(values))
    return found


def _differences(
    names: Sequence[str], figures: Mapping[tuple[str, int], Mapping[str, float]], measures: Sequence[Measure]
) -> list[dict[str, Any]]:
    """Return each variant against the first, for each measure that both have."""
    rows = []
    for measure in measures:
        by_name: dict[str, dict[int, float]] = {name: {} for name in names}
        for (name, seed), values in figures.items():
            if not math.isnan(values.get(measure.key, math.nan)):
                by_name[name][seed] = values[measure.key]
        for name in names[1:]:
            if measure not in COSTS and set(by_name[names[0]]) & set(by_name[name]):
                pair = paired_difference(by_name[names[0]], by_name[name])
                sentence = difference_sentence(names[0], name, measure, pair)
                head = {"variant": name, "measure": measure.key}
                rows.append({**head, **asdict(pair), "holds_zero": pair.holds_zero, "sentence": sentence})
    return rows


def difference_sentence(control: str, other: str, measure: Measure, pair: PairedDifference) -> str:
    """Return what the seeds show, and what they cannot show."""
    amount = signed(pair.mean, measure.unit)
    seeds = counted(len(pair.seeds), "seed")
    start = f"{other}: {measure.name} {amount} against {control} ({seeds}, paired"
    if pair.holds_zero is None:
        return f"{start}; a single seed has no interval, so nothing can be concluded)."
    between = f"{signed(pair.low, measure.unit, False)} to {signed(pair.high, measure.unit)}"
    if pair.holds_zero:
        reach = signed((pair.high - pair.low) / 2, measure.unit).lstrip("+")
        return (
            f"{start}; 95 % interval {between}). The interval holds zero: {seeds} do not distinguish the two; "
            f"they could show a difference of about {reach} or more."
        )
    flip = "" if math.isnan(pair.sign_flip) else f" (exact sign-flip test over {seeds}: p = {pair.sign_flip:.3g})"
    return f"{start}; 95 % interval {between}). The interval does not hold zero{flip}."


def signed(value: float, unit: str, with_unit: bool = True) -> str:
    """Return a difference with its sign; of shares in percentage points."""
    if unit == "share":
        return f"{100 * value:+.2f}{' points' if with_unit else ''}"
    return f"{value:+.3g}"


def _within(names: Sequence[str], runs: Mapping[tuple[str, int], Run], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return comparisons image by image, for each seed that the baseline and the variant both have."""
    predictions = {key: read_predictions(run) for key, run in runs.items()}
    rows = []
    for seed in seeds:
        baseline = predictions.get((names[0], seed))
        for name in names[1:]:
            other = predictions.get((name, seed))
            if baseline is None or other is None:
                continue
            if baseline[0] != other[0]:
                raise RunError(
                    f"{runs[names[0], seed].path} and {runs[name, seed].path} were evaluated on different images; the "
                    "data changed between them. Start the comparison again with another --out."
                )
            pair = within_seed(torch.tensor(baseline[1]), torch.tensor(other[1]))
            rows.append({"variant": name, "seed": seed, **asdict(pair)})
    return rows


def read_predictions(run: Run) -> tuple[list[tuple[str, str]], list[bool]] | None:
    """Return images with their labels, and whether each prediction was right; None where the run has none."""
    path = run.path / PREDICTIONS
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [(row["image"], row["label"]) for row in rows], [row["label"] == row["predicted"] for row in rows]


def _baselines(runs: Iterable[Run]) -> str:
    """Return the scores of pointing at the centre and at random, means over runs."""
    tables = [run.read_json(EVALUATION).get("pointing") for run in runs]
    known = [table for table in tables if table]
    words = {"centre": "always the centre", "random": "a random point"}
    means = {key: spread([table[key] for table in known]).mean for key in BASELINES if known}
    return ", ".join(f"{words[key]} {share:.1%}" for key, share in means.items())


def _map_notes(runs: Iterable[Run]) -> list[str]:
    """Return the figures of the localization suite's baselines, means over runs."""
    found = [run.read_json(EVALUATION).get("suites", {}).get("localization") for run in runs]
    suites = [suite for suite in found if suite is not None]
    if not suites:
        return []
    lines = []
    for metric, (word, _) in MAPS.items():
        names = suites[0]["baselines"]
        means = (statistics.fmean(suite["scores"][name][metric]["value"] for suite in suites) for name in names)
        lines.append(f"{word}: " + ", ".join(f"{name} {mean:.1%}" for name, mean in zip(names, means, strict=True)))
    of_masks = " Its pointing is at the mask, where there is one." if any(suite["outlined"] for suite in suites) else ""
    return [f"Baselines of the localization suite, which use no network: {'; '.join(lines)}.{of_masks}"]


def _notes(
    plan: Plan,
    runs: Mapping[tuple[str, int], Run],
    figures: Mapping[tuple[str, int], Mapping[str, float]],
    parallel: int,
) -> list[str]:
    """Return what a reader has to know to interpret the table."""
    notes = [
        "Every run was evaluated once on the test part; its best epoch was chosen on images set apart from train.",
    ]
    means = {
        variant.name: [figures[key]["validation_accuracy"] for key in figures if key[0] == variant.name]
        for variant in plan.variants
    }
    known = {name: spread(values).mean for name, values in means.items() if values and not math.isnan(sum(values))}
    if len(known) > 1:
        best = [name for name, mean in known.items() if math.isclose(mean, max(known.values()))]
        # On few images two runs often have the same accuracy; the first of them is not better.
        verdict = f"it is highest for {best[0]}" if len(best) == 1 else f"{' and '.join(best)} tie"
        notes.append(
            f"To choose a variant, use validation accuracy: {verdict}. "
            "Chosen by the test column, the test figure of the choice would flatter it."
        )
    if len(plan.variants) > 2:
        notes.append(
            f"{len(plan.variants) - 1} variants are compared with one baseline, each with an interval of its own at "
            "95 %; of twenty such intervals one misses the truth by chance."
        )
    if baselines := _baselines(runs.values()):
        notes.append(f"Beside the maps' pointing: {baselines}.")
    notes += _map_notes(runs.values())
    for name in BUDGET:
        values = {key[0]: getattr(run.options, name) for key, run in runs.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{variant} {value}" for variant, value in values.items())
            notes.append(f"The budgets differ in {name.replace('_', ' ')}: {shown}.")
    if parallel > 1:
        notes.append(f"Minutes and images/s were measured with {parallel} runs at a time.")
    return notes
