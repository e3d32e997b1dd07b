"""``heedmap list``."""

import itertools
from dataclasses import dataclass
from typing import Literal

import tyro
from rich.markup import escape

from heedmap.cli.console import console, say, show_next, show_table
from heedmap.config import Options
from heedmap.errors import OptionError, nearest


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
        """Print the tables, or raise an OptionError where no name contains the word."""
        word, tables = self.match or "", self._tables()
        library: tuple[str, ...] = ()
        if self.what == "models" or (self.what == "all" and self.match is not None):  # these take a while to list
            from heedmap.backbones.registry import list_library_models

            library = list_library_models()
        matches = {kind: {name: line for name, line in lines.items() if word in name} for kind, lines in tables.items()}
        models = [name for name in library if word in name]
        if not models and not any(matches.values()):
            known = [*itertools.chain(*tables.values()), *(name.partition("/")[2] for name in library)]
            kinds = " or ".join(kind.removesuffix("s") for kind in tables)
            raise OptionError(f"No {kinds} has {word!r} in its name.{nearest(word, known)}")
        for kind, lines in matches.items():
            if lines:
                show_table(kind.removesuffix("s"), lines)
        for name in models:
            say(escape(name))
        if self.what == "all" and self.match is None:
            console.print("and any timm or torchvision name: [bold]heedmap list models --match resnet[/]")
        show_next("heedmap train DIR --model NAME --attention NAME")

    def _tables(self) -> dict[str, dict[str, str]]:
        """Return kind -> name -> sentence."""
        from heedmap.attention import ATTENTIONS
        from heedmap.attribution import METHODS
        from heedmap.backbones import OWN_BACKBONES
        from heedmap.data import DIGIT_SCENES
        from heedmap.data.open import NAMED

        sets = {"digit-scenes": "embedded: real handwritten digits among clutter, boxes known; no download"}
        for name in DIGIT_SCENES[1:]:
            sets[name] = f"the same, with {name.rpartition('-')[2]} pieces of clutter at most"
        methods = {}
        for name, method in METHODS.items():
            settings = "+".join(f"{key}={'auto' if value is None else value}" for key, value in method.settings.items())
            methods[name] = f"{method.sentence} ({settings})" if settings else method.sentence
        tables = {
            "attentions": {name: options.sentence() for name, options in ATTENTIONS.items()},
            "methods": methods,
            "sets": sets | dict.fromkeys(NAMED, "through torchvision, from --root"),
            "models": OWN_BACKBONES,
        }
        return tables if self.what == "all" else {self.what: tables[self.what]}
