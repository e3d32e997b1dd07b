"""``heedmap export``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape

from heedmap.cli.commands.arguments import RunFolder
from heedmap.cli.console import console, show_next, show_progress, show_table
from heedmap.config import Options, counted


@dataclass(frozen=True, kw_only=True)
class Export(Options):
    """Write a run into one file that returns probabilities and maps, without heedmap and without torch.

    Attributes:
        run: The run folder.
        to: The format.
        out: The file. Default: model.onnx or model.pt2 in the run's folder.
        include: Maps of a target class, computed inside the file: grad_cam, saliency.
        int8: Weights in eight bits: smaller, and close rather than equal (ONNX only).
        images: Files, folders or patterns for the comparison with the network. Default: 16 of the run's test part.
        overwrite: Replace a file that is there.
    """

    run: RunFolder
    to: Literal["onnx", "torch-export"] = "onnx"
    out: str | None = None
    include: tuple[str, ...] = ()
    int8: bool = False
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
            made = export(
                run,
                Path(self.out) if self.out else None,
                to=self.to,
                include=self.include,
                int8=self.int8,
                images=None if named is None else [read_image(path) for path in named],
                overwrite=self.overwrite,
                progress=progress,
            )
        parity = made.parity
        sizes = ", ".join(map(str, parity.batches))
        console.print(
            f"Against the model, {counted(parity.images, 'image')}, in batches of {sizes}: the same class for "
            f"{parity.agreement:.0%}; largest difference:"
        )
        lines = {
            name: f"{difference:.1e}   ({parity.resized[name]:.1e} where the file resizes the image itself)"
            for name, difference in parity.differences.items()
        }
        show_table("", lines)
        for name in () if self.int8 else [name for name, share in parity.beyond.items() if share]:
            console.print(
                f"{name} differs by more than is allowed at {parity.beyond[name]:.2%} of its places, where rounding "
                "switches a ReLU or a maximum; one in a hundred may.",
                soft_wrap=True,
            )
        console.print(f"{escape(str(made.path))}: {made.megabytes:.1f} MB in {made.seconds:.0f} s", soft_wrap=True)
        if self.to == "onnx":
            show_next(f"heedmap serve {shlex.quote(str(made.path))}")
