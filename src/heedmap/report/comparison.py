"""One self-contained page about a comparison of variants, and its plot as a file of its own."""

import math
from collections.abc import Mapping
from typing import Any

from heedmap.visualization.charts import DotRow, dot_chart
from heedmap.visualization.page import page_template

GROUPS = ("predictions", "pointing", "overlap", "boxes", "cost")
PLOT_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#63666b}.row{fill:#1c1d1f;font-weight:600}.grid{stroke:#e3e3df}"
    ".zero{stroke:#1c1d1f}.bar{stroke:var(--c);stroke-width:5;stroke-linecap:round;opacity:.35}"
    ".mean{stroke:var(--c);stroke-width:3}.dot{fill:var(--c);fill-opacity:.55}"
    ".s0{--c:#932667}.s1{--c:#e8701a}.s2{--c:#2f6f9f}.s3{--c:#4d7c0f}.s4{--c:#6b6f76}"
)


def comparison_page(found: Mapping[str, Any]) -> str:
    """Return the page from the content of ``comparison.json``."""
    return page_template("comparison.html.jinja").render(
        found=found,
        tables=[_table(found, group) for group in GROUPS],
        accuracy=_accuracy_chart(found),
        difference=difference_chart(found),
        first=[each for each in found["differences"] if each["measure"] == "test_accuracy"],
        others=[each for each in found["differences"] if each["measure"] != "test_accuracy"],
    )


def comparison_plot(found: Mapping[str, Any]) -> str:
    """Return the plot as an SVG file: differences to the control, or accuracies where there is no pair yet."""
    drawn = difference_chart(found) or _accuracy_chart(found)
    if not drawn:
        return '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>'
    start, _, rest = drawn.partition(">")
    head = start.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="960"', 1)
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}><style>{PLOT_STYLE}</style>{ground}{rest}"


def difference_chart(found: Mapping[str, Any]) -> str:
    """Return the chart of differences in test accuracy to the control: a dot a seed, the mean, its 95 % interval."""
    names = [variant["name"] for variant in found["variants"]]
    rows = [
        DotRow(
            pair["variant"],
            tuple(pair["differences"]),
            pair["mean"],
            pair["low"],
            pair["high"],
            colour=names.index(pair["variant"]),
        )
        for pair in found["differences"]
        if pair["measure"] == "test_accuracy"
    ]
    unit = f"points of test accuracy over {found['control']}"
    return dot_chart("Differences to the control with 95 % intervals", rows, unit=unit, scale=100, zero=True)


def _accuracy_chart(found: Mapping[str, Any]) -> str:
    rows = []
    for place, variant in enumerate(found["variants"]):
        mean = variant["summary"].get("test_accuracy", {}).get("mean", math.nan)
        dots = tuple(run["test_accuracy"] for run in variant["runs"])
        rows.append(DotRow(variant["name"], dots, mean, colour=place))
    return dot_chart("Test accuracy of each seed", rows, unit="test accuracy, %", scale=100)


def _table(found: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return head and rows of the variants' figures of one group; the network's own costs are among the costs."""
    measures = [each for each in found["measures"] if each["group"] == group]
    more = ("parameters", "multiply-adds") if group == "cost" else ()
    rows = []
    for variant in found["variants"]:
        cells = [cell(variant["summary"].get(each["key"]), each["unit"]) for each in measures]
        costs = list(amounts(variant).values()) if more else []
        rows.append({"name": variant["name"], "seeds": len(variant["runs"]), "cells": cells + costs})
    arrows = {"higher": " \u2191", "lower": " \u2193"}
    return {"heads": [each["name"] + arrows.get(each["better"], "") for each in measures] + list(more), "rows": rows}


def cell(summary: Mapping[str, float] | None, unit: str) -> str:
    """Return mean ± standard deviation, as a table shows it."""
    if summary is None:
        return "-"
    factor, digits = (100, 2) if unit == "share" else (1, _digits(summary["mean"]))
    mean, sd = factor * summary["mean"], factor * summary["sd"]
    return f"{mean:,.{digits}f}" if math.isnan(sd) else f"{mean:,.{digits}f} ± {sd:,.{digits}f}"


def amounts(variant: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters and multiply-accumulates in millions."""
    counts = {"parameters": variant["parameters"], "work": variant["multiply_accumulates"]}
    return {name: "-" if count is None else f"{count / 1e6:,.2f} M" for name, count in counts.items()}


def _digits(value: float) -> int:
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
