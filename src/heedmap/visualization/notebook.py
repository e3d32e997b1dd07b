"""HTML of runs, maps and outputs for a notebook, with the images inside; needs no IPython."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from heedmap.visualization.heatmap import Values, heatmap, peak_text, scale_of

if TYPE_CHECKING:
    from heedmap.runs import Run
    from heedmap.types import AttentionMap, Output

_SIDE = 160
_MOST_ROWS = 8
_ROW = "display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start;margin:4px 0"


def map_html(drawn: AttentionMap) -> str:
    """Show a map on its own scale, with its name, grid, method and peak."""
    height, width = drawn.values.shape[-2:]  # grid_of refuses a map with an axis
    facts = f"{drawn.method}; {peak_text(drawn.values)}; drawn from {drawn.low:.3g} to {drawn.high:.3g}"
    return _figure(drawn.values, drawn.low, drawn.high, f"{drawn.tap}, {height} x {width}", facts)


def output_html(output: Output) -> str:
    """Show each image's most probable classes and its maps, each from zero to its own largest value."""
    probabilities = output.probabilities.detach().float().cpu()
    parts = []
    for row in range(min(len(probabilities), _MOST_ROWS)):
        values, classes = probabilities[row].topk(min(3, probabilities.shape[1]))
        best = ", ".join(f"{at} ({share:.1%})" for at, share in zip(classes.tolist(), values.tolist(), strict=True))
        grids = {tap: maps[row, 0] for tap, maps in output.attention.items()}
        figures = [_figure(grid, *scale_of(grid), tap, peak_text(grid)) for tap, grid in grids.items()]
        parts.append(f"<div>image {row}: class {best}</div><div style='{_ROW}'>{''.join(figures)}</div>")
    more = len(probabilities) - len(parts)
    rest = f"<div>and {more} more</div>" if more else ""
    return f"<div><b>Output</b> of {len(probabilities)} images{''.join(parts)}{rest}</div>"


def run_html(run: Run) -> str:
    """Show a run's options and results."""
    # Late: maps show themselves where there is neither a run nor torch.
    from heedmap.runs import EVALUATION, REPORT

    facts: dict[str, object] = {"folder": run.path, "finished": "yes" if run.is_finished else "not yet"}
    options = run.config.get("options", {})
    facts |= {name: options[name] for name in ("data", "model", "attention", "image_size", "epochs") if name in options}
    evaluation = run.read_json(EVALUATION) or {}
    if evaluation:
        facts["test accuracy"] = f"{evaluation['top1']:.1%} of {evaluation['count']:,} images"
    for name, share in (evaluation.get("pointing") or {}).items():
        facts[f"hottest point in the box, {name}"] = f"{share:.1%}"
    if (run.path / REPORT).is_file():
        facts["report"] = run.path / REPORT
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<div><b>Run</b><table>{rows}</table></div>"


def _figure(values: Values, low: float, high: float, title: str, text: str) -> str:
    file = io.BytesIO()
    heatmap(values, low, high, _SIDE).save(file, "PNG")
    source = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f"<figure style='margin:0;width:{_SIDE}px'><img width='{_SIDE}' height='{_SIDE}' "
        f"src='data:image/png;base64,{source}' alt='Map {escape(title)}: {escape(text)}'>"
        f"<figcaption><b>{escape(title)}</b><br><small>{escape(text)}</small></figcaption></figure>"
    )
