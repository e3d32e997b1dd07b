"""The result of a comparison: figures by variant, differences to the baseline, and plain sentences."""

import csv
import functools
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from heedmap._version import __version__
from heedmap.config import counted
from heedmap.errors import RunError
from heedmap.metrics.statistics import PairedDifference, paired_difference, spread, within_seed
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier
from heedmap.runs import EVALUATION, PREDICTIONS, Run
from heedmap.workflows.compare.plan import Plan
from heedmap.workflows.compare.runner import FailedRun, is_finished

Key: TypeAlias = tuple[str, int]  # name of a variant, and seed
BUDGET = ("epochs", "batch_size", "image_size")  # what makes a budget; derived for each variant unless given
BASELINES = {"centre": "always the centre", "random": "a random point"}
UNKNOWN_COST: dict[str, int | None] = {"parameters": None, "multiply_accumulates": None}


@dataclass(frozen=True)
class Measure:
    """One figure of a run, by its key in comparison.json."""

    key: str
    name: str
    unit: str  # "share" (shown in per cent, differences in points) or "number"
    better: str  # "higher", "lower", or empty where neither is
    group: str = "predictions"  # or "pointing", "overlap", "boxes", "cost"; each is a table of its own


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
    """Read and compare the finished runs; return the content of comparison.json, see docs/how-to/compare.md.

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
            **next((count_cost(runs[key].architecture) for key in runs if key[0] == variant.name), UNKNOWN_COST),
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
        **{"planned": len(names) * len(plan.seeds), "finished": len(done)},
        "measures": [asdict(measure) for measure in measures],
        "variants": variants,
        "differences": _differences(names, figures, measures),
        "within_seed": _within(names, runs, plan.seeds),
        "notes": _notes(plan, runs, figures, parallel) + [f"{run.job.name} failed: {run.reason}" for run in failures],
    }


def _figures(run: Run) -> dict[str, Any]:
    """Return the figures of one run; NaN where one is not known."""
    evaluation = run.read_json(EVALUATION)
    epochs = [record for record in run.read_metrics() if record.get("kind") == "epoch"]
    best = [record for record in epochs if record["is_best"]]
    validation = best[-1].get("validation_accuracy") if best else None
    figures = {
        "test_accuracy": evaluation["top1"],
        "validation_accuracy": math.nan if validation is None else validation,
        **{key: evaluation[key] for key in ("ece", "nll")},
        "images_per_second": statistics.median(record["images_per_second"] for record in epochs),
        "minutes": sum(record["seconds"] for record in epochs) / 60,
    }
    if suite := evaluation.get("suites", {}).get("localization"):
        figures |= {
            f"{word} {name.removeprefix('attention ')}": scores[metric]["value"]
            for metric, (word, _) in MAPS.items()
            for name, scores in suite["scores"].items()
            if name not in suite["baselines"]  # these are in the notes
        }
    # The maps of the baseline without attention are uniform: their hottest point is the first one, and means nothing.
    if pointing := run.options.attention != "none" and evaluation.get("pointing"):
        figures |= {f"pointing {name}": share for name, share in pointing.items() if name not in BASELINES}
    return figures


def _measures(figures: Iterable[Mapping[str, float]]) -> list[Measure]:
    """Return the measures that any run has, in their order."""
    known = dict.fromkeys(key for row in figures for key, value in row.items() if not math.isnan(value))
    words = [(key, group) for word, group in MAPS.values() for key in known if key.startswith(f"{word} ")]
    maps = [Measure(key, key, "share", "higher", group) for key, group in words]
    return [measure for measure in (*MEASURES, *maps, *COSTS) if measure.key in known]


@functools.lru_cache(maxsize=256)  # the comparison is written again after each run
def count_cost(architecture: Architecture) -> dict[str, int | None]:
    """Return the parameters, and the multiply-accumulates of convolutions and matrix products for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    classifier = build_classifier(architecture).eval()
    image = torch.zeros(1, 3, classifier.image_size, classifier.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(image)
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    return {"parameters": parameters, "multiply_accumulates": counter.get_total_flops() // 2}


def _summary(figures: Sequence[Mapping[str, float]], measures: Sequence[Measure]) -> dict[str, Any]:
    columns = {m.key: [row[m.key] for row in figures if not math.isnan(row.get(m.key, math.nan))] for m in measures}
    return {key: asdict(spread(values)) for key, values in columns.items() if values}


def _differences(
    names: Sequence[str], figures: Mapping[Key, Mapping[str, float]], measures: Sequence[Measure]
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
    amount, seeds = signed(pair.mean, measure.unit), counted(len(pair.seeds), "seed")
    start = f"{other}: {measure.name} {amount} against {control} ({seeds}, paired"
    if pair.holds_zero is None:
        return f"{start}; a single seed has no interval, so nothing can be concluded)."
    start += f"; 95 % interval {signed(pair.low, measure.unit, False)} to {signed(pair.high, measure.unit)})"
    if pair.holds_zero:
        reach = signed((pair.high - pair.low) / 2, measure.unit).lstrip("+")
        limit = f"they could show a difference of about {reach} or more"
        return f"{start}. The interval holds zero: {seeds} do not distinguish the two; {limit}."
    flip = "" if math.isnan(pair.sign_flip) else f" (exact sign-flip test over {seeds}: p = {pair.sign_flip:.3g})"
    return f"{start}. The interval does not hold zero{flip}."


def signed(value: float, unit: str, with_unit: bool = True) -> str:
    """Return a difference with its sign; of shares in percentage points."""
    return f"{100 * value:+.2f}{' points' if with_unit else ''}" if unit == "share" else f"{value:+.3g}"


def _within(names: Sequence[str], runs: Mapping[Key, Run], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return comparisons image by image, for each seed that the baseline and the variant both have."""
    predictions = {key: read_predictions(run) for key, run in runs.items()}
    rows = []
    for seed, name in itertools.product(seeds, names[1:]):
        baseline, other = predictions.get((names[0], seed)), predictions.get((name, seed))
        if baseline is None or other is None:
            continue
        if baseline[0] != other[0]:
            both = f"{runs[names[0], seed].path} and {runs[name, seed].path}"
            why = "were evaluated on different images; the data changed between them"
            raise RunError(f"{both} {why}. Start the comparison again with another --out.")
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


def _map_notes(runs: Iterable[Run]) -> list[str]:
    """Return the figures of baselines that use no network, means over runs: of pointing, and of localization."""
    evaluations = [run.read_json(EVALUATION) for run in runs]
    tables = [evaluation["pointing"] for evaluation in evaluations if evaluation.get("pointing")]
    suites = [evaluation.get("suites", {}).get("localization") for evaluation in evaluations]
    suites = [suite for suite in suites if suite is not None]
    notes, lines = [], []
    if tables:
        shares = (f"{words} {spread([t[key] for t in tables]).mean:.1%}" for key, words in BASELINES.items())
        notes.append(f"Beside the maps' pointing: {', '.join(shares)}.")
    if not suites:
        return notes
    for metric, (word, _) in MAPS.items():
        names = suites[0]["baselines"]
        means = (statistics.fmean(suite["scores"][name][metric]["value"] for suite in suites) for name in names)
        lines.append(f"{word}: " + ", ".join(f"{name} {mean:.1%}" for name, mean in zip(names, means, strict=True)))
    of_masks = " Its pointing is at the mask, where there is one." if any(suite["outlined"] for suite in suites) else ""
    return [*notes, f"Baselines of the localization suite, which use no network: {'; '.join(lines)}.{of_masks}"]


def _notes(plan: Plan, runs: Mapping[Key, Run], figures: Mapping[Key, Mapping[str, float]], parallel: int) -> list[str]:
    """Return what a reader has to know to interpret the table."""
    notes = ["Every run was evaluated once on the test part; its best epoch was chosen on images set apart from train."]
    means = {
        variant.name: [figures[key]["validation_accuracy"] for key in figures if key[0] == variant.name]
        for variant in plan.variants
    }
    known = {name: spread(values).mean for name, values in means.items() if values and not math.isnan(sum(values))}
    if len(known) > 1:
        best = [name for name, mean in known.items() if math.isclose(mean, max(known.values()))]
        # On few images two runs often have the same accuracy; the first of them is not better.
        verdict = f"it is highest for {best[0]}" if len(best) == 1 else f"{' and '.join(best)} tie"
        why = "Chosen by the test column, the test figure of the choice would flatter it."
        notes.append(f"To choose a variant, use validation accuracy: {verdict}. {why}")
    if (others := len(plan.variants) - 1) > 1:
        intervals = "each with an interval of its own at 95 %; of twenty such intervals one misses the truth by chance"
        notes.append(f"{others} variants are compared with one baseline, {intervals}.")
    notes += _map_notes(runs.values())
    for name in BUDGET:
        values = {key[0]: getattr(run.options, name) for key, run in runs.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{variant} {value}" for variant, value in values.items())
            notes.append(f"The budgets differ in {name.replace('_', ' ')}: {shown}.")
    if parallel > 1:
        notes.append(f"Minutes and images/s were measured with {parallel} runs at a time.")
    return notes
