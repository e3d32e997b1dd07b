"""Lines, dots with intervals, and shaded squares as SVG text; colours come from the page's style."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 16, 38
_ROW = 46  # height of a row of dots, its name included


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name and its points; points whose y is NaN are left out."""

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def known(self) -> tuple[tuple[float, float], ...]:
        """The points that can be drawn."""
        return tuple(point for point in self.points if math.isfinite(point[1]))


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers (1, 2, 2.5 or 5 times a power of ten apart) from at most ``low`` to at least ``high``."""
    span = high - low or abs(high) or 1.0
    rough = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    count = max(1, math.ceil(high / step - 1e-9) - first)
    return [round((first + number) * step, 12) for number in range(count + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str = "epoch",
    is_share: bool = False,
    from_zero: bool = False,
    mark: float | None = None,
) -> str:
    """Draw lines with axes; each point shows its numbers on hover.

    Args:
        title: read out in place of the image.
        series: lines without a single finite point are left out.
        x_name: written under the x axis.
        is_share: y values are shares, written in per cent.
        from_zero: the y axis starts at zero.
        mark: x of a dotted vertical line, for the best epoch.

    Returns:
        An ``<svg>`` element, or an empty string where there is nothing to draw.
    """
    points = [point for line in series for point in line.known]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    y_ticks = nice_ticks(0.0 if from_zero else min(ys), max(ys))
    x_ticks = [tick for tick in nice_ticks(min(xs), max(xs), 7) if tick == int(tick) and min(xs) <= tick <= max(xs)]
    frame = _Frame((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]), is_share)
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{frame.text(tick)}</text>')
    parts += [_x_label(frame.x(tick), _HEIGHT, tick) for tick in x_ticks]
    if mark is not None:
        parts.append(_upright("mark", frame.x(mark), _HEIGHT))
    parts += [frame.line(place, line, x_name) for place, line in enumerate(series) if line.known]
    return _svg(title, _WIDTH, _HEIGHT, [*parts, _x_name(x_name, _HEIGHT)], "chart")


def _x_label(x: float, height: int, value: float) -> str:
    return f'<text x="{x}" y="{height - _BOTTOM + 17}" text-anchor="middle">{value:g}</text>'


def _x_name(name: str, height: int) -> str:
    return f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{height - 4}" text-anchor="end">{escape(name)}</text>'


def _upright(kind: str, x: float, height: int) -> str:
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'


@dataclass(frozen=True)
class _Frame:
    """Map numbers to places on the sheet."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    is_share: bool

    def x(self, value: float) -> float:
        low, high = self.x_range
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def text(self, value: float, digits: int = 3) -> str:
        return f"{100 * value:.{digits}g} %" if self.is_share else f"{value:.{digits}g}"

    def line(self, place: int, series: Series, x_name: str) -> str:
        points = [(self.x(x), self.y(y)) for x, y in series.known]
        course = " ".join(f"{x},{y}" for x, y in points)
        radius = 2.6 if len(points) <= 60 else 1.2
        dots = "".join(
            f'<circle cx="{x}" cy="{y}" r="{radius}"/><circle class="touch" cx="{x}" cy="{y}" r="7">'
            f"<title>{escape(series.name)}, {escape(x_name)} {at:g}: {self.text(value, 4)}</title></circle>"
            for (x, y), (at, value) in zip(points, series.known, strict=True)
        )
        return f'<g class="s{place % 5}"><polyline points="{course}"/>{dots}</g>'


@dataclass(frozen=True)
class DotRow:
    """One row of a dot chart.

    Attributes:
        name: written at its left.
        dots: single values, such as one a seed.
        mean, low, high: the larger mark and the ends of its bar; NaN where there is none.
        colour: place in the palette.
    """

    name: str
    dots: tuple[float, ...]
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    colour: int = 0


def dot_chart(title: str, rows: Sequence[DotRow], *, unit: str = "", scale: float = 1.0, zero: bool = False) -> str:
    """Draw values side by side on one horizontal axis: dots for single values, a mark with a bar for their mean.

    Args:
        title: read out in place of the image.
        rows: from top to bottom.
        unit: written behind the axis.
        scale: by which values are multiplied before they are shown.
        zero: the axis holds zero, with a vertical line there.

    Returns:
        As :func:`line_chart`.
    """
    ends = [scale * x for row in rows for x in (*row.dots, row.mean, row.low, row.high) if math.isfinite(x)]
    if not ends:
        return ""
    ticks = nice_ticks(min(*ends, 0.0) if zero else min(ends), max(*ends, 0.0) if zero else max(ends))
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def across(value: float) -> float:
        return round(_LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_WIDTH - _LEFT - _RIGHT), 1)

    parts = []
    for tick in ticks:
        parts.append(_upright("zero" if zero and tick == 0 else "grid", across(tick), height))
        parts.append(_x_label(across(tick), height, tick))
    for place, row in enumerate(rows):
        y = _TOP + _ROW * place
        parts.append(f'<text class="row" x="{_LEFT}" y="{y + 14}">{escape(row.name)}</text>')
        parts.append(_dots(row, y + 30, scale, across))
    return _svg(title, _WIDTH, height, [*parts, _x_name(unit, height)], "chart dots")


def _dots(row: DotRow, y: float, scale: float, across: Callable[[float], float]) -> str:
    parts = []
    if math.isfinite(row.low) and math.isfinite(row.high):
        low, high = across(scale * row.low), across(scale * row.high)
        parts.append(f'<line class="bar" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>')
    for value in row.dots:
        if math.isfinite(value):
            shown = f"<title>{escape(row.name)}: {scale * value:.4g}</title>"
            parts.append(f'<circle class="dot" cx="{across(scale * value)}" cy="{y}" r="4">{shown}</circle>')
    if math.isfinite(row.mean):
        x = across(scale * row.mean)
        shown = f"<title>{escape(row.name)}, mean: {scale * row.mean:.4g}</title>"
        parts.append(f'<line class="mean" x1="{x}" x2="{x}" y1="{y - 9}" y2="{y + 9}">{shown}</line>')
    return f'<g class="s{row.colour % 5}">{"".join(parts)}</g>'


def matrix(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Draw a confusion matrix of many classes as shaded squares: rows are truths, shaded by share of the row."""
    size = len(names)
    cell = max(2.0, min(16.0, 640 / size))
    parts = [f'<rect class="ground" width="{size * cell:g}" height="{size * cell:g}"/>']
    for row, line in enumerate(counts):
        total = sum(line) or 1
        parts += [
            f'<rect class="{"hit" if row == column else "miss"}" x="{column * cell:g}" y="{row * cell:g}" '
            f'width="{cell:g}" height="{cell:g}" fill-opacity="{0.15 + 0.85 * count / total:.2f}">'
            f"<title>{escape(names[row])} called {escape(names[column])}: {count}</title></rect>"
            for column, count in enumerate(line)
            if count
        ]
    return _svg(title, size * cell, size * cell, parts, "matrix")


def _svg(title: str, width: float, height: float, parts: Sequence[str], kind: str) -> str:
    head = f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"
