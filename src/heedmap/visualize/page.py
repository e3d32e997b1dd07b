"""The page to look through what was drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from heedmap.visualize.asking import Asker
from heedmap.visualize.sources import printable


def index_page(
    entries: Sequence[dict[str, Any]],
    count: int,
    asker: Asker,
    unreadable: Iterable[tuple[str, str]],
    notes: Iterable[str],
) -> str:
    """Return ``index.html``.

    Args:
        entries: of each picture that is shown: name of its drawings, path, predicted, probability, and label or None.
        count: pictures drawn, those that are not shown included.
        asker: who answered.
        unreadable: (path, reason) of those passed over.
        notes: sentences for the user.
    """
    import jinja2

    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("heedmap", "visualize"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return pages.get_template("index.html.jinja").render(
        entries=entries,
        count=count,
        classes=sorted({entry["predicted"] for entry in entries}),
        wrong=sum(entry["label"] not in (None, entry["predicted"]) for entry in entries),
        known=sum(entry["label"] is not None for entry in entries),
        method=asker.method,
        query=asker.query.name if asker.query else None,
        unreadable=[(printable(path), reason) for path, reason in unreadable],
        notes=notes,
    )
