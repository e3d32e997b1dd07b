"""``heedmap export``."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from heedmap.cli.commands.arguments import RunFolder
from heedmap.cli.console import say, show_next, show_progress, show_table
from heedmap.config import ExportOptions, counted


@dataclass(frozen=True, kw_only=True)
class Export(ExportOptions):
    """Write a run into one file that returns probabilities and maps, without heedmap and without torch.

    Attributes:
        out: The file. Default: model.onnx or model.pt2 in the run's folder.
        images: Files, folders or patterns for the comparison with the network. Default: 16 of the run's test part.
        overwrite: Replace a file that is there.
    """

    run: RunFolder
    out: str | None = None
    images: tuple[str, ...] | None = None
    overwrite: bool = False

    def work(self) -> None:
        """Export, and print how close the file comes to the network."""
        from heedmap.data.decoding import read_image
        from heedmap.exporters import export
        from heedmap.runs import Run
        from heedmap.workflows.visualize import expand_images

        run = Run.open(self.run)
        named = expand_images(self.images, sys.stdin)[:64] if self.images else None
        with show_progress() as progress:
            exported = export(
                run,
                Path(self.out) if self.out else None,
                ExportOptions(to=self.to, include=self.include, int8=self.int8),
                images=None if named is None else [read_image(path) for path in named],
                overwrite=self.overwrite,
                progress=progress,
            )
        parity = exported.parity
        say(
            f"Against the model, {counted(parity.images, 'image')} in batches of "
            f"{', '.join(map(str, parity.batches))}: the same class for {parity.agreement:.0%}; largest difference:"
        )
        resized = "where the file resizes the image itself"
        differences = parity.differences.items()
        show_table("", {name: f"{value:.1e}   ({parity.resized[name]:.1e} {resized})" for name, value in differences})
        for name, share in parity.beyond.items():
            if share and not self.int8:
                say(
                    f"{name} differs by more than is allowed at {share:.2%} of its positions, where rounding "
                    "switches a ReLU or a maximum; one in a hundred may."
                )
        path = str(exported.path)
        say(f"{escape(path)}: {exported.megabytes:.1f} MB in {exported.seconds:.0f} s")
        if self.to == "onnx":
            show_next(f"heedmap serve {shlex.quote(path)}")
