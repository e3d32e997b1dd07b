"""``heedmap demo``."""

from __future__ import annotations

from dataclasses import dataclass

from rich.markup import escape

from heedmap.cli.console import console, show_next, show_progress, show_result
from heedmap.system import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train on the embedded digit scenes, draw maps, and open the way to the report: a few minutes, no download.

    Attributes:
        out: Folder for the run and its images.
        seed: Of scenes, order, views and weights.
    """

    out: str = "demo"
    seed: int = 0

    def work(self) -> None:
        """Train, draw, and say where to look."""
        from heedmap.workflows.demo import demo

        keep_freed_memory()
        with show_progress() as progress:
            run, page = demo(self.out, seed=self.seed, progress=progress)
        show_result(run.path)
        console.print(f"Maps of unseen scenes: [bold]{escape(str(page))}[/]", soft_wrap=True)
        show_next("heedmap train DIR, with DIR/CLASS/* your own images")
