"""Predictions for images by the million: tables in Parquet, in parts that are written whole or not at all.

    OUT/plan.json                        which images, which options; others are refused
    OUT/predictions/part-000000.parquet  one row an image
    OUT/unreadable/part-000000.parquet   what could not be read, and why; only where there is any
    OUT/manifest.json                    written last: rows of each part

The parts depend on the list of images alone, and a part whose predictions are there is finished. So the same command
continues after an interruption, where only the part under way is computed again, and of several processes each takes
the parts whose number, divided by the number of processes, leaves its own, however many processes there were before.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heedmap.data.loader import Share
from heedmap.errors import DataError, OptionError
from heedmap.files import disk, printable, write_whole
from heedmap.inference.onnx import OnnxClassifier
from heedmap.inference.predictor import Predictor, open_predictor
from heedmap.inference.reading import DecodedImage, Failure, Part, Reader, Sources, find_sources
from heedmap.system import cores
from heedmap.workflows.predict.table import MapKind, Row, TableOptions, place_of, rows_of, schemas

if TYPE_CHECKING:
    import torch

    from heedmap.models.classifier import AttentionClassifier

__all__ = ["MapKind", "PredictOptions", "PredictResult", "Sources", "TableOptions", "find_sources", "predict"]

PLAN, MANIFEST, PREDICTIONS, UNREADABLE = "plan.json", "manifest.json", "predictions", "unreadable"
_AHEAD = 4  # batches that are decoded early


@dataclass(frozen=True)
class PredictOptions:
    """How the work is done; the predictions depend on ``precision`` alone. OptionError for a size below 1."""

    batch_size: int = 64  # images per forward pass
    part_size: int = 2048  # images in a file of the table, and so the most that an interruption costs
    workers: int | None = None  # threads that decode; None takes the machine's cores
    precision: str = "auto"  # or "bf16", "float32"
    share: Share = field(default_factory=Share)  # which of several processes this is; each takes its parts
    cache: Path | None = None  # see heedmap.data.webdataset.index.index_shard

    def __post_init__(self) -> None:
        for name in ("batch_size", "part_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} {getattr(self, name)} is too small; it must be at least 1.")


@dataclass(frozen=True)
class PredictResult:
    """What this process did."""

    count: int  # images predicted now
    unreadable: int  # images, or shards, that could not be read now
    parts_kept: int  # parts that were there already
    seconds: float  # from the first image to the last file
    finished: bool  # the work of all processes is done, and the manifest written


@dataclass
class _Job:
    """What stays the same from part to part, and what adds up."""

    predictor: Predictor
    out: Path
    table: TableOptions
    options: PredictOptions
    schemas: tuple[Any, Any]
    parts: int = 0
    parts_kept: int = 0
    count: int = 0
    unreadable: int = 0
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    waiting: list[DecodedImage] = field(default_factory=list)


_TABLE, _DEFAULTS = TableOptions(), PredictOptions()


def predict(
    classifier: AttentionClassifier | OnnxClassifier | str | Path,
    images: Sources | str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    table: TableOptions = _TABLE,
    device: str | torch.device = "cpu",
    options: PredictOptions = _DEFAULTS,
    on_progress: Callable[[int], None] | None = None,
) -> PredictResult:
    """Predict any number of images into a folder, or continue where that was interrupted.

    Memory holds a few batches and the rows of one part, and the list of names where images are single files.

    Args:
        classifier: a classifier, a run folder or an exported file.
        images: see :func:`find_sources`.
        out: folder to write to.
        table, options: what the table holds, and how the work is done.
        on_progress: called with the number of images predicted by this process, after each batch.

    Raises:
        DataError: nothing to read, or a folder that holds something else or predictions with other options.
        OptionError, RunError: pyarrow is not installed; the folder cannot be written.
    """
    if not isinstance(images, Sources):
        images = find_sources((images,) if isinstance(images, str | Path) else images)
    began = time.monotonic()
    predictor = open_predictor(classifier, device, precision=options.precision, channels_last=True)
    job = _Job(predictor, Path(out), table, options, schemas(predictor, table))
    with disk(job.out):
        _agree(job, images)
        with ThreadPoolExecutor(options.workers or cores()) as pool:
            todo = _todo(job, images.parts(options.part_size, options.cache))
            for part, image in Reader(pool, predictor.image_size).images(todo, _AHEAD * options.batch_size):
                _take(job, part, image)
                if on_progress is not None and not job.waiting:
                    on_progress(job.count)
        finished = _finish(job)
    return PredictResult(job.count, job.unreadable, job.parts_kept, time.monotonic() - began, finished)


def _agree(job: _Job, sources: Sources) -> None:
    """Write down the images and options, or check that they are those of the folder."""
    plan = {
        **{"schema": 1, "images": sources.digest(), "files": len(sources.files), "shards": len(sources.shards)},
        **{"model": job.predictor.fingerprint(), "classes": list(job.predictor.classes)},
        **{"part_size": job.options.part_size, "precision": job.predictor.precision, **asdict(job.table)},
    }
    target = job.out / PLAN
    if not target.is_file():
        others = job.out.is_dir() and any(not path.name.startswith(".") for path in job.out.iterdir())
        if others and not target.is_file():  # another process may have begun between the two looks
            raise DataError(f"{job.out} is not empty and holds no predictions to go on with; name another --out.")
        job.out.mkdir(parents=True, exist_ok=True)
        _put(job, target, json.dumps(plan, indent=1, ensure_ascii=False).encode())
    before = json.loads(target.read_text(encoding="utf-8"))
    other = [name for name in plan if before.get(name) != plan[name]]
    if other:
        what = f"another {' and another '.join(other)} ({PLAN})"
        raise DataError(f"{job.out} holds predictions with {what}; name another --out, or give the same options.")
    for folder in (PREDICTIONS, UNREADABLE):
        (job.out / folder).mkdir(exist_ok=True)


def _todo(job: _Job, parts: Iterable[Part]) -> Iterator[Part]:
    """Yield this process's parts that are not there yet; count all of them."""
    for part in parts:
        job.parts = part.number + 1
        if part.number % job.options.share.world == job.options.share.rank:
            if _file(job, PREDICTIONS, part.number).is_file():
                job.parts_kept += 1
            else:
                yield part


def _file(job: _Job, table: str, number: int) -> Path:
    return job.out / table / f"part-{number:06d}.parquet"


def _take(job: _Job, part: Part, image: DecodedImage | Failure | None) -> None:
    """Take an image in; predict when a batch is full or the part ends, and write when it ends."""
    if isinstance(image, Failure):
        job.failures.append(image)
        return
    if image is not None:
        job.waiting.append(image)
    if job.waiting and (image is None or len(job.waiting) == job.options.batch_size):
        predictions = job.predictor(np.stack([waiting.pixels for waiting in job.waiting]))
        job.rows += rows_of(predictions, job.waiting, job.predictor.image_size, job.table)
        job.count += len(job.waiting)
        job.waiting.clear()
    if image is None:
        _write(job, part)


def _write(job: _Job, part: Part) -> None:
    """Write a part; the predictions come last, for they are the sign that it is complete."""
    failures = [*part.failures, *job.failures]
    if failures:
        rows = [{**place_of(failure.item), "reason": printable(failure.reason)} for failure in failures]
        _put_table(job, _file(job, UNREADABLE, part.number), rows, job.schemas[1])
    _put_table(job, _file(job, PREDICTIONS, part.number), job.rows, job.schemas[0])
    job.unreadable += len(failures)
    job.rows, job.failures = [], []


def _put_table(job: _Job, target: Path, rows: list[Row], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = []
    for column in schema:
        values = [row[column.name] for row in rows]
        if isinstance(column.type, pa.FixedShapeTensorType):
            plain = pa.array([value.reshape(-1) for value in values], column.type.storage_type)
            arrays.append(pa.ExtensionArray.from_storage(column.type, plain))
        else:
            arrays.append(pa.array(values, column.type))
    content = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), content, compression="zstd")
    _put(job, target, content.getvalue().to_pybytes())


def _put(job: _Job, target: Path, content: bytes) -> None:
    """Write a file whole, although another process may be writing the same one."""
    own = target.with_name(f".{target.name}.{job.options.share.rank}")
    write_whole(own, content)
    own.replace(target)


def _rows(file: Path) -> int:
    """Return the number of rows of a table that was written before."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        hint = "remove it and start again: only its part is computed again"
        raise DataError(f"{file} is damaged ({error}); {hint}.") from None


def _finish(job: _Job) -> bool:
    """Write the manifest when the last part is there; whichever process comes last does, and twice does no harm."""
    files = [_file(job, PREDICTIONS, number) for number in range(job.parts)]
    if not all(file.is_file() for file in files):
        return False
    rows = [_rows(file) for file in files]
    lost = [file for number in range(job.parts) if (file := _file(job, UNREADABLE, number)).is_file()]
    content = {"parts": len(files), "images": sum(rows), "unreadable": sum(map(_rows, lost)), "rows": rows}
    _put(job, job.out / MANIFEST, json.dumps(content, indent=1).encode())
    for folder in (PREDICTIONS, UNREADABLE):
        for left in (job.out / folder).glob(".*"):  # of processes that were killed
            with contextlib.suppress(FileNotFoundError):
                left.unlink()
    return True
