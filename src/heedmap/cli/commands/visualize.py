"""``heedmap visualize``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.markup import escape

from heedmap.cli.commands.arguments import Device, Images, RunOrFile, is_file, pick_device
from heedmap.cli.console import complaints, console, counting, say, show_next
from heedmap.config import Options, Range, counted, free_name, split_names
from heedmap.system import keep_freed_memory

if TYPE_CHECKING:
    from heedmap.inference.onnx import OnnxClassifier
    from heedmap.models.classifier import AttentionClassifier


@dataclass(frozen=True, kw_only=True)
class Visualize(Options):
    """Draw where a trained classifier looks, for any images.

    Attributes:
        out: Folder for the page and its images; created. Default: maps-1, maps-2, ...
        query: Attend with the global feature of this other image.
        method: Further maps to compute and draw, with commas between, such as grad-cam,rise:count=500+cells=5;
            `heedmap list methods` has all, with their settings.
        target: The class that these explain. Default: the one predicted for each image.
        layer: The layer that these read. Default: the last spatial one.
        scale: Each map from zero to its own largest value (image), from its smallest to its largest (range), or all
            on one scale (set).
        batch_size: Images in a batch.
        overwrite: Write into a folder that is not empty.
    """

    run: RunOrFile
    images: Images
    out: str | None = None
    query: str | None = None
    method: tuple[str, ...] = ()
    target: str | None = None
    layer: str | None = None
    scale: Literal["image", "range", "set"] = "image"
    batch_size: Annotated[int, Range(1, 100_000)] = 16
    device: Device = None
    overwrite: bool = False

    def work(self) -> None:
        """Draw, and say where the page is."""
        from heedmap.workflows.visualize import VisualizeOptions, find_sources, visualize

        keep_freed_memory()
        methods = split_names("method", self.method)
        open_it, device = self._opener(methods), pick_device(self.device, self.run)
        sources = find_sources(self.images, sys.stdin)  # a wrong name is reported before the weights are loaded
        network, out = open_it(), Path(self.out) if self.out else free_name(Path(), "maps")
        with counting(sources.count, "drawing") as advance:
            options = VisualizeOptions(self.target, self.layer, self.scale, self.batch_size, self.overwrite, advance)
            result = visualize(network, sources, out, query=self.query, methods=methods, device=device, options=options)
        for path, reason in result.unreadable:
            say(f"[yellow]skipped[/] {escape(path)}: {escape(reason)}", complaints)
        for note in result.notes:
            console.print(escape(note))
        skipped = len(result.unreadable)
        console.print(f"{counted(result.count, 'image')} drawn in {result.seconds:.1f} s, {skipped} skipped.")
        show_next(f"open {shlex.quote(str(result.index))}")

    def _opener(self, methods: tuple[str, ...]) -> Callable[[], AttentionClassifier | OnnxClassifier]:
        """Return what opens the file, without torch, or the run's network, whose methods are checked first."""
        from heedmap.inference.onnx import OnnxClassifier

        if is_file(self.run):
            return lambda: OnnxClassifier(self.run)
        from heedmap.inference.predictor import AttributionOptions
        from heedmap.inference.torch_predictor import checked_methods
        from heedmap.runs import Run

        checked_methods(AttributionOptions(methods, self.target, self.layer))
        return Run.open(self.run).classifier
