"""``heedmap list``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro
from rich.markup import escape

from heedmap.cli.console import console, show_next, show_table
from heedmap.config import Options
from heedmap.errors import OptionError, nearest

if TYPE_CHECKING:
    from heedmap.attribution import Method

_LISTED = {
    "all": "model, attention, map method or set",
    "models": "model",
    "attentions": "attention",
    "methods": "map method",
    "sets": "set",
}


@dataclass(frozen=True, kw_only=True)
class List(Options):
    """Show the models, attentions, map methods and data sets there are.

    Attributes:
        what: models, attentions, methods, sets, or all of them.
        match: Only names that contain this word, of timm and torchvision models too.
    """

    what: tyro.conf.Positional[Literal["all", "models", "attentions", "methods", "sets"]] = "all"
    match: str | None = None

    def work(self) -> None:
        """Print the tables.

        Raises:
            OptionError: no name contains the word.
        """
        tables = self._tables()
        shown = {
            head: {name: line for name, line in lines.items() if self._fits(name)} for head, lines in tables.items()
        }
        foreign = self._library_models()
        fitting = [name for name in foreign if self._fits(name)]
        if not fitting and not any(shown.values()):
            known = [name for lines in tables.values() for name in lines]
            hint = nearest(str(self.match), [*known, *(name.partition("/")[2] for name in foreign)])
            raise OptionError(f"No {_LISTED[self.what]} has {self.match!r} in its name.{hint}")
        for head, lines in shown.items():
            if lines:
                show_table(head, lines)
        for name in fitting:
            console.print(escape(name), soft_wrap=True)
        if self.what == "all" and self.match is None:
            console.print("and any timm or torchvision name: [bold]heedmap list models --match resnet[/]")
        show_next("heedmap train DIR --model NAME --attention NAME")

    def _fits(self, name: str) -> bool:
        return self.match is None or self.match in name

    def _tables(self) -> dict[str, dict[str, str]]:
        """Return head of the table -> name -> sentence."""
        from heedmap.attention import ATTENTIONS
        from heedmap.attribution import METHODS
        from heedmap.backbones import OWN_BACKBONES
        from heedmap.data import DIGIT_SCENES
        from heedmap.data.open import NAMED

        scenes = {"digit-scenes": "embedded: real handwritten digits among clutter, boxes known; no download"}
        scenes |= {
            name: f"the same, with {name.rpartition('-')[2]} pieces of clutter at most" for name in DIGIT_SCENES[1:]
        }
        tables = {
            "attention": {name: options.sentence() for name, options in ATTENTIONS.items()},
            "method": {
                name: f"{line.sentence}{f' ({settings})' if (settings := _settings(line)) else ''}"
                for name, line in METHODS.items()
            },
            "data": {**scenes, **dict.fromkeys(NAMED, "through torchvision, from --root")},
            "model": OWN_BACKBONES,
        }
        heads = {"attentions": "attention", "methods": "method", "sets": "data", "models": "model"}
        return tables if self.what == "all" else {heads[self.what]: tables[heads[self.what]]}

    def _library_models(self) -> Sequence[str]:
        """Return the names of timm and torchvision, which take a while to list."""
        if self.what not in ("all", "models") or (self.what == "all" and self.match is None):
            return ()
        from heedmap.backbones.registry import list_library_models

        return list_library_models()


def _settings(method: Method) -> str:
    """Return a method's settings with their defaults, as they are written behind its name."""
    return "+".join(f"{name}={'auto' if value is None else value}" for name, value in method.settings.items())
