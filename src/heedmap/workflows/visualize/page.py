"""The page to look through what was drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from heedmap.files import printable
from heedmap.inference.predictor import Predictor
from heedmap.report import page_template


def index_page(
    entries: Sequence[dict[str, Any]],
    count: int,
    predictor: Predictor,
    unreadable: Iterable[tuple[str, str]],
    notes: Iterable[str],
) -> str:
    """Return ``index.html``.

    Args:
        entries: of each image that is shown: name of its drawings, path, predicted, probability, and label or None.
        count: images drawn, those that are not shown included.
        asker: who answered.
        unreadable: (path, reason) of those passed over.
        notes: sentences for the user.
    """
    return page_template("index.html.jinja", "workflows/visualize").render(
        entries=entries,
        count=count,
        classes=sorted({entry["predicted"] for entry in entries}),
        wrong=sum(entry["label"] not in (None, entry["predicted"]) for entry in entries),
        known=sum(entry["label"] is not None for entry in entries),
        method=predictor.method,
        query=predictor.query.name if predictor.query else None,
        unreadable=[(printable(path), reason) for path, reason in unreadable],
        notes=notes,
    )
