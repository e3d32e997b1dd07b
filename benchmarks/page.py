"""docs/performance.md: the figures that were kept, as tables between two marks of the page, and one plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PLOT = PAGE.parent / "images" / "performance.png"
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
    """Write tables and plot anew from benchmarks/results/*.json; returns the page.

    Raises:
        ValueError: the page has lost its marks.
    """
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    text = PAGE.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{PAGE} lacks the marks {BEGIN} and {END}; put them back.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    tables = "\n\n".join(_table(record) for record in records.values() if "machine" in record)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
    _plot(records)
    return PAGE


def _table(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    clock = record.get("clock", machine.get("clock", "wall"))
    where = f"{machine.get('gpu', machine['processor'])}, {machine['threads']} of {machine['cores']} cores"
    units = ", ".join(machine["bf16 units"]) or "no bf16 units"
    lines = [
        f"### {record['part']}",
        "",
        f"{record['day']}; {where}, {units}; torch {machine['torch']}; {clock} clock; load {machine['load']}.",
        "",
        "| figure | median | lowest | highest |",
        "| --- | ---: | ---: | ---: |",
    ]
    shown = {name: value for name, value in record.items() if name not in ABOUT or name.startswith("ceiling")}
    return "\n".join([*lines, *_rows(shown)])


def _rows(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        title = f"{above}{name}"
        if isinstance(value, Mapping) and set(value) == {"median", "low", "high"}:
            yield f"| {title} | {value['median']:.4g} | {value['low']:.4g} | {value['high']:.4g} |"
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{title}: ")
        else:
            yield f"| {title} | {value:.4g} | | |" if isinstance(value, float) else f"| {title} | {value} | | |"


def _ratio(records: Mapping[str, Any], bar: Bar) -> float | None:
    """The height of a bar; None where nothing was kept that it could be drawn from."""
    figures: Any = records.get(bar.part, {})
    for step in bar.way:
        figures = figures.get(step, {}) if isinstance(figures, Mapping) else {}
    ratio = _median(figures.get(bar.mine))
    if ratio is None:
        return None
    return 1 / (1 + ratio) if bar.inverse else ratio


def _median(value: Any) -> Any:
    """A number, or the median of a spread; None for anything else, such as a note that there was no memory."""
    value = value.get("median") if isinstance(value, Mapping) else value
    return value if isinstance(value, int | float) else None


def _plot(records: Mapping[str, Any]) -> None:
    """Ratios as bars, on an axis where twice as fast and half as fast lie equally far from even."""
    from matplotlib.figure import Figure

    found = {bar.title: ratio for bar in BARS if (ratio := _ratio(records, bar)) is not None}
    names, ratios = list(found), list(found.values())
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
