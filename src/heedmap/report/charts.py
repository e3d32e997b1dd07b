"""Lines and shaded squares as SVG text; colours come from the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 16, 38


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
    """Draw lines with axes; each point tells its numbers when the pointer rests on it.

    Args:
        title: read out in place of the picture.
        series: lines without a single finite point are left out.
        x_name: written under the x axis.
        is_share: y values are shares, written in per cent.
        from_zero: the y axis starts at zero.
        mark: x of a dotted upright line, for the epoch that was kept.

    Returns:
        An ``<svg>`` element, or an empty string where there is nothing to draw.
    """
    drawn = [(place, one) for place, one in enumerate(series) if one.known]
    if not drawn:
        return ""
    xs = [x for _, one in drawn for x, _ in one.known]
    ys = [y for _, one in drawn for _, y in one.known]
    y_ticks = nice_ticks(0.0 if from_zero else min(ys), max(ys))
    x_ticks = [tick for tick in nice_ticks(min(xs), max(xs), 7) if tick == int(tick) and min(xs) <= tick <= max(xs)]
    frame = _Frame((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]), is_share)
    parts = [frame.y_tick(tick) for tick in y_ticks] + [frame.x_tick(tick) for tick in x_ticks]
    if mark is not None:
        x = frame.x(mark)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    parts += [frame.line(place, one, x_name) for place, one in drawn]
    parts.append(
        f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>'
    )
    return _svg(title, _WIDTH, _HEIGHT, parts, "chart")


@dataclass(frozen=True)
class _Frame:
    """Where a number lies on the sheet."""

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

    def y_tick(self, value: float) -> str:
        y = self.y(value)
        line = f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        return f'{line}<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{self.text(value)}</text>'

    def x_tick(self, value: float) -> str:
        return f'<text x="{self.x(value)}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{value:g}</text>'

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
