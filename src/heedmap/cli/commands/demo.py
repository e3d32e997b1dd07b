"""``heedmap demo``."""

from dataclasses import dataclass
from typing import Annotated

from heedmap.cli.console import bold, say, show_next, show_progress, show_result
from heedmap.config import Options, Range
from heedmap.system import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    """Train on the embedded digit scenes, and draw maps of unseen ones: a few minutes, no download.

    Attributes:
        out: Folder for the run and its images.
        seed: Seed of the scenes, the order, the augmentation and the weights.
    """

    out: str = "demo"
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0

    def work(self) -> None:
        """Train, draw, and print where the report and the maps are."""
        from heedmap.workflows.demo import demo

        keep_freed_memory()
        with show_progress() as progress:
            run, page = demo(self.out, seed=self.seed, progress=progress)
        show_result(run.path)
        say(f"Maps of unseen scenes: {bold(page)}")
        show_next("heedmap train DIR, with DIR/CLASS/* your own images")
