"""``heedmap predict``."""

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from heedmap.cli.commands.arguments import Device, Images, Precision, RunOrFile, is_file, pick_device
from heedmap.cli.console import bold, counting, say, show_next
from heedmap.config import Options, Range, counted
from heedmap.errors import DataError, OptionError
from heedmap.system import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Predict(Options):
    """Predict any number of images into Parquet tables: classes, probabilities, and where the attention lies.

    Attributes:
        out: Folder for the tables; an interrupted one is continued.
        threshold: Share of a map's largest value from which a position counts as attended, for areas and boxes.
        probabilities: Write the probabilities of all classes.
        maps: Write the maps themselves, in this type.
        batch_size: Images in a batch.
        part_size: Images in one file of the table; an interruption costs no more than one file's work.
        workers: Threads that decode. Default: the machine's cores.
    """

    run: RunOrFile
    images: Images
    out: str = "predictions"
    threshold: float = 0.5
    probabilities: bool = False
    maps: Literal["none", "float16", "float32"] = "none"
    batch_size: Annotated[int, Range(1, 100_000)] = 64
    part_size: Annotated[int, Range(1, 1_000_000)] = 2048
    workers: Annotated[int | None, Range(1, 1024)] = None
    device: Device = None
    precision: Precision = "auto"

    def work(self) -> None:
        """Predict, and print where the tables are."""
        from heedmap.data.loader import Share
        from heedmap.inference.onnx import OnnxClassifier
        from heedmap.runs import Run
        from heedmap.workflows.predict import MANIFEST, PredictOptions, TableOptions, find_sources, predict

        keep_freed_memory()
        # torchrun gives each process these; the processes share nothing.
        share = Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        if share.world > 1 and "-" in self.images:
            raise OptionError("Several processes cannot share standard input; write the list to a file: @list.txt.")
        open_it = (lambda: OnnxClassifier(self.run)) if is_file(self.run) else Run.open(self.run).classifier
        device = pick_device(self.device, self.run)
        if device == "cuda" and share.world > 1:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        sources = find_sources(self.images, sys.stdin)  # a wrong name is reported before the weights are loaded
        total = None if sources.count is None else len(sources.files[share.rank :: share.world])
        options = PredictOptions(self.batch_size, self.part_size, self.workers, self.precision, share)
        out, table = Path(self.out), TableOptions(self.threshold, self.probabilities, self.maps)
        with counting(total, "predicting") as advance:
            result = predict(open_it(), sources, out, table=table, device=device, options=options, on_progress=advance)
        earlier = f", {counted(result.parts_kept, 'part')} were there already" if result.parts_kept else ""
        rate = result.count / max(result.seconds, 1e-9)
        say(
            f"{counted(result.count, 'image')} predicted in {result.seconds:.1f} s ({rate:,.0f} images/s), "
            f"{result.unreadable} could not be read{earlier}."
        )
        if result.unreadable:
            say(f"Reasons: {bold(out / 'unreadable')}")
        written = json.loads((out / MANIFEST).read_text(encoding="utf-8")) if result.finished else {}
        if written.get("images") == 0:
            lost = counted(written["unreadable"], "image")
            raise DataError(
                f"No image was predicted: {lost} could not be read; {out / 'unreadable'} gives the reasons."
            )
        if share.rank == 0:
            show_next(_reading_command(out / "predictions"))


def _reading_command(table: Path) -> str:
    """Return the command that prints the table, in double quotes unless the folder's name needs more than these."""
    program = f"import pyarrow.parquet as p; print(p.read_table({str(table)!r}))"
    return f"python -c {shlex.quote(program)}" if set(program) & set('"$`\\!') else f'python -c "{program}"'
