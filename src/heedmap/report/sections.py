"""Results of the suites as sentences and tables that the terminal and the page share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORDS = {
    "pointing_near": "pointing, near",
    "energy": "energy inside",
    "otsu_iou": "IoU, Otsu",
    "best_iou": "IoU, best threshold",
    "pxap": "PxAP",
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
    "corloc": "CorLoc",
}
"""Metric of localization -> its name in a table's head."""

_LEFT = {
    "mean": "each image's own mean colour",
    "dataset": "the mean colour of the data set, zero to the network",
    "black": "black",
    "blur": "a blur",
}
"""Deletion baseline -> what replaces deleted pixels."""


@dataclass(frozen=True)
class Table:
    """Cells under a head; a cell may end with its interval in parentheses.

    Attributes:
        grey: first cells of the rows that are baselines.
        keys: how many columns, from the left, name the row; repeated where a table is split.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    grey: frozenset[str] = frozenset()
    keys: int = 1


@dataclass(frozen=True)
class Section:
    """One suite: a question as its title, how to read its tables, and notes: how many images, verdicts, warnings."""

    key: str
    title: str
    sentence: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def sections(suites: Mapping[str, Any]) -> list[Section]:
    """Return the sections of the suites that were run, in the order of the page."""
    return [write(suites[key]) for key, write in SECTIONS.items() if key in suites]


def _localization(found: Mapping[str, Any]) -> Section:
    metrics = list(found["metrics"])
    rows = [(name, *(_interval(scores[metric]) for metric in metrics)) for name, scores in found["scores"].items()]
    head = ("map", *(WORDS.get(metric, metric) for metric in metrics))
    left = ", ".join(f"{count:,} {reason}" for reason, count in found["left_out"].items())
    notes = [_sample(found), found["target"], *([f"Left out: {left}."] if left else [])]
    for name, kinds in found["unmeasurable"].items():
        notes += [f"{name}: {kind} in {count:,} images." for kind, count in kinds.items()]
    notes += found["notes"]
    sentence = (
        "Do maps lie where the annotated objects are? In per cent, with the 95 % interval over images; a map that does "
        "not beat the rows of centre and edges shows little."
    )
    table = Table(head, tuple(rows), frozenset(found["baselines"]))
    return Section("localization", "Do maps lie on the object?", sentence, (table,), tuple(notes))


def _faithfulness(found: Mapping[str, Any]) -> Section:
    measures = list(dict.fromkeys(key for row in found["rows"] for key in row["scores"]))
    rows = tuple(
        (row["name"], *(_interval(row["scores"].get(key), "mean", 1, 3) for key in measures)) for row in found["rows"]
    )
    baselines = frozenset(row["name"] for row in found["rows"] if row["chance"] is None or row["name"] == "centre")
    checks = tuple(
        (name, *(_likeness(check["cascading"][-1][key]) for key in ("absolute", "ssim")))
        for name, check in found["randomization"].items()
    )
    randomized = Table(("map, all weights randomized", "rank correlation", "SSIM"), checks, frozenset({"edges"}))
    kinds = {"cascading": "weights randomized, from the top down to", "independent": "this layer alone"}
    stages = [_stages(found["randomization"], check, f"rank correlation; {kind}") for check, kind in kinds.items()]
    notes = [f"Deletion leaves {_LEFT[found.get('deletion_baseline', 'mean')]}.", _sample(found)]
    notes += [row["sentence"] for row in found["rows"] if row["name"] not in baselines]
    notes += [f"{name}: {check['verdict']}" for name, check in found["randomization"].items()]
    sentence = (
        "Does the prediction suffer when a map's hot places are removed? Deletion and average drop: less is better; "
        "insertion, ROAD and increase: more. Random maps of the same grid stand beside."
    )
    table = Table(("map", *(key.replace("_", " ") for key in measures)), rows, baselines)
    tables = (table, randomized, *filter(None, stages))
    return Section("faithfulness", "Do the hot places matter to the prediction?", sentence, tables, tuple(notes))


def _stages(checks: Mapping[str, Any], check: str, head: str) -> Table | None:
    """Return each stage of a randomization, a column for each map; None where it was not made."""
    if not all(found[check] for found in checks.values()):
        return None
    rows = []
    for stages in zip(*(found[check] for found in checks.values()), strict=True):
        layers = stages[0]["layers"]
        name = layers[0] if len(layers) == 1 else f"{layers[0]} ... {layers[-1]} ({len(layers)})"
        rows.append((name, *(_likeness(stage["absolute"]) for stage in stages)))
    return Table((head, *checks), tuple(rows))


def _robustness(found: Mapping[str, Any]) -> Section:
    head = ("classifier", "attack", "epsilon", "accuracy", "fooled", "map rank correlation", "hottest tenth in common")
    rows = []
    for name, lines in found["models"].items():
        for line in lines:
            still = line["stability"]
            maps = ("-", "-") if still is None else (f"{still['rank']:.2f}", f"{still['overlap']:.0%}")
            fooled = "-" if _unknown(line["fooled"]) else f"{line['fooled']:.1%}"
            size = f"{255 * line['epsilon']:g}/255"
            rows.append((name, line["attack"], size, _interval(line, "accuracy"), fooled, *maps))
    notes = [_sample(found), *(f"{name}: {sign}" for name, signs in found["warnings"].items() for sign in signs)]
    sentence = (
        "Accuracy in per cent when every pixel may change by epsilon; fooled: share of the correct "
        "predictions that are wrong then. The last columns: how similar the map stays."
    )
    table = Table(head, tuple(rows), keys=3)
    return Section("robustness", "Does it withstand attacks?", sentence, (table,), tuple(notes))


def _transfer(found: Mapping[str, Any]) -> Section:
    head = ("data", "classifier", "accuracy", "most frequent class", "C", "features", "train", "test")
    rows = []
    for row in found["rows"]:
        probe = row["probe"]
        majority, counts = f"{100 * probe['majority']:.1f}", (f"{probe['train']:,}", f"{probe['test']:,}")
        figures = (_interval(probe, "accuracy"), majority, f"{probe['cost']:g}", str(probe["width"]), *counts)
        rows.append((row["data"], row["model"], *figures))
    slow = [row["data"] for row in found["rows"] if not row["probe"]["converged"]]
    notes = [f"The solver did not converge on {name}." for name in slow]
    sentence = "A linear SVM on the frozen features of this network; C was chosen inside the training part."
    table = Table(head, tuple(rows), keys=2)
    return Section("transfer", "Are the features useful on other data?", sentence, (table,), tuple(notes))


def _sample(found: Mapping[str, Any]) -> str:
    evaluated, count = found["sample"]["evaluated"], found["sample"]["of"]
    if evaluated == count:
        return f"All {count:,} images."
    return f"{evaluated:,} of {count:,} images, each class with its share (--limit N takes more or fewer)."


def _interval(score: Mapping[str, Any] | None, key: str = "value", factor: float = 100, digits: int = 1) -> str:
    """Return a figure with its interval, by default in per cent."""
    if score is None or _unknown(score[key]):
        return "-"
    value, low, high = (
        "" if _unknown(score[name]) else f"{factor * score[name]:.{digits}f}" for name in (key, "low", "high")
    )
    return f"{value} ({low} - {high})" if low else value


def _likeness(value: float | None) -> str:
    return "-" if _unknown(value) else f"{value:.2f}"


def _unknown(value: float | None) -> bool:
    """Whether a figure is NaN, or null as JSON has it."""
    return value is None or math.isnan(value)


SECTIONS = {
    "localization": _localization,
    "faithfulness": _faithfulness,
    "robustness": _robustness,
    "transfer": _transfer,
}
"""Suite -> function that writes its section."""
