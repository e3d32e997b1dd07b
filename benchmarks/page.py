"""The figures of benchmarks/results: raw tables beside them, a table of ratios and a plot for the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PLOT = DOCS / "results" / "performance.md", DOCS / "images" / "performance.png"
BEGIN, END = "<!-- figures: python -m benchmarks --page -->", "<!-- end of figures -->"
ABOUT = ("part", "day", "machine", "ceiling", "ceiling before", "ceiling after", "clock")
_SHARES = "share of the bare step"
_TRUNK = "over the plain trunk"
_JPEG = "JPEG folder, 150 x 150"
_SMALL = "small images, 32 x 32, whitened as for CIFAR-10"


class Bar(NamedTuple):
    """A bar of the plot.

    Attributes:
        title: beside it.
        part: whose record it is from.
        way: keys that lead to the figures there.
        mine: key of the ratio.
        inverse: the figure is what something costs more, as a share: drawn is how many times as fast it is.
    """

    title: str
    part: str
    way: tuple[str, ...]
    mine: str
    inverse: bool = False


BARS = (
    Bar("VGG-att3 step / reference", "training-step", (), "heedmap / reference"),
    Bar("VGG-att3 with maps / reference", "training-step", ("inference with maps",), "heedmap / reference"),
    *(
        Bar(f"train, {what} / bare step, {title.split(',')[0]}", "end-to-end", ("training", title, _SHARES), key)
        for title in (_JPEG, _SMALL)
        for what, key in {
            "steps": "training steps alone",
            "and records": "loading, steps, records, panels, checkpoints",
            "everything": "the same, and evaluating the validation part",
        }.items()
    ),
    *(Bar(f"visualize / grad-cam, {job}", "drawing", (), f"visualize / {job}") for job in ("same job", "one map")),
    *(
        Bar(f"with maps / plain, {title}", "learned-maps", ("networks", title, _TRUNK), "parametrised", inverse=True)
        for title in ("compact, 144 px", "whitened, 32 px", "paper-vgg, 32 px")
    ),
)


def write_page() -> Path:
    """Write the raw tables, the page's table of ratios and its plot from benchmarks/results/*.json; returns the page.

    Raises:
        ValueError: the page has lost its marks.
    """
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    text = PAGE.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{PAGE} lacks the marks {BEGIN} and {END}; put them back.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    for part, record in records.items():
        if "machine" in record:
            (RESULTS / f"{part}.md").write_text(_raw_table(record), encoding="utf-8")
    PAGE.write_text(f"{before}{BEGIN}\n\n{_ratio_table(records)}\n\n{END}{after}", encoding="utf-8")
    _plot(records)
    return PAGE


def _raw_table(record: Mapping[str, Any]) -> str:
    """All figures of one part, as a page of its own."""
    machine = record["machine"]
    clock = record.get("clock", machine.get("clock", "wall"))
    where = f"{machine.get('gpu', machine['processor'])}, {machine['threads']} of {machine['cores']} cores"
    units = ", ".join(machine["bf16 units"]) or "no bf16 units"
    lines = [
        f"# Raw figures: {record['part']}",
        "",
        f"{record['day']}; {where}, {units}; torch {machine['torch']}; {clock} clock; load {machine['load']}.",
        f"Written by `python -m benchmarks {record['part']}`.",
        "",
        "| figure | median | lowest | highest |",
        "| --- | ---: | ---: | ---: |",
    ]
    shown = {name: value for name, value in record.items() if name not in ABOUT or name.startswith("ceiling")}
    return "\n".join([*lines, *_rows(shown)]) + "\n"


def _ratio_table(records: Mapping[str, Any]) -> str:
    """The bars of the plot as a table, each with the lowest and highest round."""
    lines = ["| times as fast | median | lowest | highest |", "| --- | ---: | ---: | ---: |"]
    spreads = {bar.title: spread for bar in BARS if (spread := _spread(records, bar))}
    rows = [f"| {title} | {' | '.join(f'{value:.2f}' for value in spread)} |" for title, spread in spreads.items()]
    return "\n".join([*lines, *rows])


def _rows(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        title = f"{above}{name}"
        if isinstance(value, Mapping) and set(value) == {"median", "low", "high"}:
            yield f"| {title} | {value['median']:.4g} | {value['low']:.4g} | {value['high']:.4g} |"
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{title}: ")
        else:
            yield f"| {title} | {value:.4g} | | |" if isinstance(value, float) else f"| {title} | {value} | | |"


def _spread(records: Mapping[str, Any], bar: Bar) -> tuple[float, ...]:
    """Median, lowest and highest of a bar; empty where nothing was kept that it could be drawn from."""
    figures: Any = records.get(bar.part, {})
    for step in bar.way:
        figures = figures.get(step, {}) if isinstance(figures, Mapping) else {}
    value = figures.get(bar.mine)
    if not isinstance(value, Mapping):  # nothing, or a note that there was no memory
        return ()
    median, low, high = (value[name] for name in ("median", "low", "high"))
    return (1 / (1 + median), 1 / (1 + high), 1 / (1 + low)) if bar.inverse else (median, low, high)


def _plot(records: Mapping[str, Any]) -> None:
    """Ratios as bars, on an axis where twice as fast and half as fast lie equally far from even."""
    from matplotlib.figure import Figure

    medians = {bar.title: spread[0] for bar in BARS if (spread := _spread(records, bar))}
    names, ratios = list(medians), list(medians.values())
    figure = Figure(figsize=(9, 0.45 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [ratio - 1 for ratio in ratios], left=1, color="#bc3754")
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, 1, 2, 4, 8], ["1/2", "1", "2", "4", "8"])
    axes.axvline(1, color="#1c1d1f", linewidth=0.8)
    for place, ratio in enumerate(ratios):
        axes.annotate(f" {ratio:.2f}", (max(ratio, 1), place), va="center")
    axes.set_xlabel("times as fast (medians)")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110)
