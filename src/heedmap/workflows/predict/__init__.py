"""Answers for images by the million: tables in Parquet, in parts that are there whole or not at all.

    OUT/plan.json                        what is asked, of which images; another question is refused
    OUT/predictions/part-000000.parquet  one row an image
    OUT/unreadable/part-000000.parquet   what could not be read, and why; only where there is something to tell
    OUT/manifest.json                    written last: rows of each part

The images are cut into parts in a way that depends on nothing but their list, and a part whose predictions are there
is done. So whoever was killed goes on with the same command, and of several processes each takes the parts whose
number, divided by the number of processes, leaves its own: no image comes twice and none is lost, however many
processes there were before. Only the part under way is computed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from heedmap.data.loader import Share
from heedmap.errors import DataError, OptionError
from heedmap.files import disk, printable, write_whole
from heedmap.inference.sources import Failure, Part, Sources, find_sources
from heedmap.models.classifier import AttentionClassifier
from heedmap.system import cores
from heedmap.training.precision import autocast, resolve
from heedmap.workflows.predict.reading import DecodedImage, read_ahead
from heedmap.workflows.predict.table import MapKind, Row, TableOptions, rows_of, schemas

_PLAIN, _ALONE = TableOptions(), Share()

__all__ = ["MapKind", "PredictResult", "Sources", "TableOptions", "find_sources", "predict"]

PLAN, MANIFEST, PREDICTIONS, UNREADABLE = "plan.json", "manifest.json", "predictions", "unreadable"
_AHEAD = 4  # batches that are read before they are wanted


@dataclass(frozen=True)
class PredictResult:
    """What this process came to.

    Attributes:
        count: images answered now.
        unreadable: images, or shards, that could not be read now.
        kept: parts that were there already.
        seconds: all of it, from the first image to the last file.
        finished: the work of all processes is done, and the manifest written.
    """

    count: int
    unreadable: int
    kept: int
    seconds: float
    finished: bool


@dataclass
class _Job:
    """What stays the same from part to part, and what adds up."""

    classifier: AttentionClassifier
    out: Path
    request: TableOptions
    precision: str
    device: torch.device
    batch_size: int
    share: Share
    tables: tuple[Any, Any]
    parts: int = 0
    kept: int = 0
    count: int = 0
    unreadable: int = 0
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    waiting: list[DecodedImage] = field(default_factory=list)


def predict(
    classifier: AttentionClassifier,
    images: Sources | str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    request: TableOptions = _PLAIN,
    batch_size: int = 64,
    part_size: int = 2048,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    share: Share = _ALONE,
    cache: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> PredictResult:
    """Answer any number of images into a folder, or go on where that was interrupted.

    Memory holds a few batches and the rows of one part, and the list of names where images are single files.

    Args:
        classifier: moved to ``device`` and put in eval mode.
        images: see :func:`find_sources`.
        out: folder to write to.
        question: what the table is to tell.
        batch_size: images per forward pass; the last batch of a part may be smaller.
        part_size: images in a file of the table, and so the most that a death costs.
        workers: threads that decode; None takes the machine's cores.
        device: where the network runs.
        precision: ``auto``, ``bf16`` or ``float32``.
        share: which of several processes this is; each takes its parts.
        cache: see :func:`heedmap.data.webdataset.index.index_shard`.
        on_progress: called with the number of images answered by this process, after each batch.

    Raises:
        DataError: nothing to read, or a folder that holds something else or answers to another question.
        OptionError: a value out of range, or pyarrow is not installed.
        RunError: the folder cannot be written.
    """
    _check(batch_size, part_size, request.threshold)
    if not isinstance(images, Sources):
        images = find_sources((images,) if isinstance(images, str | Path) else images)
    began, place = time.monotonic(), torch.device(device)
    classifier.to(place, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    tables = schemas(classifier, request)
    job = _Job(classifier, Path(out), request, resolve(precision, place), place, batch_size, share, tables)
    with disk(job.out):
        _agree(job, images, part_size)
        with ThreadPoolExecutor(workers or cores()) as pool, torch.inference_mode():
            todo = _todo(job, images.parts(part_size, cache))
            for part, one in read_ahead(todo, pool, classifier.image_size, _AHEAD * batch_size):
                _take(job, part, one)
                if on_progress is not None and not job.waiting:
                    on_progress(job.count)
        finished = _finish(job)
    return PredictResult(job.count, job.unreadable, job.kept, time.monotonic() - began, finished)


def _check(batch_size: int, part_size: int, threshold: float) -> None:
    for name, value in (("batch_size", batch_size), ("part_size", part_size)):
        if value < 1:
            raise OptionError(f"{name} {value} is too small; it must be at least 1.")
    if not 0 < threshold <= 1:
        raise OptionError(f"threshold {threshold} must lie above 0 and not above 1.")


def _agree(job: _Job, sources: Sources, part_size: int) -> None:
    """Write down what is asked, or check that it is what was asked when the work began."""
    plan = {
        "schema": 1,
        "images": sources.digest(),
        "files": len(sources.files),
        "shards": len(sources.shards),
        "model": _weights_digest(job.classifier),
        "classes": list(job.classifier.classes),
        "part_size": part_size,
        "precision": job.precision,
        **asdict(job.request),
    }
    target = job.out / PLAN
    if not target.is_file():
        others = job.out.is_dir() and any(not each.name.startswith(".") for each in job.out.iterdir())
        if others and not target.is_file():  # another process may have begun between the two looks
            raise DataError(f"{job.out} is not empty and holds no predictions to go on with; name another --out.")
        job.out.mkdir(parents=True, exist_ok=True)
        _put(job, target, json.dumps(plan, indent=1, ensure_ascii=False).encode())
    before = json.loads(target.read_text(encoding="utf-8"))
    other = [name for name in plan if before.get(name) != plan[name]]
    if other:
        raise DataError(
            f"{job.out} holds predictions with another {' and another '.join(other)} ({PLAN}); name another --out, or "
            "ask as before to go on."
        )
    for table in (PREDICTIONS, UNREADABLE):
        (job.out / table).mkdir(exist_ok=True)


def _weights_digest(classifier: AttentionClassifier) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(classifier.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _todo(job: _Job, parts: Iterable[Part]) -> Iterator[Part]:
    """This process's parts that are not there yet; counts all of them."""
    for part in parts:
        job.parts = part.number + 1
        if part.number % job.share.world != job.share.rank:
            continue
        if _file(job, PREDICTIONS, part.number).is_file():
            job.kept += 1
        else:
            yield part


def _file(job: _Job, table: str, number: int) -> Path:
    return job.out / table / f"part-{number:06d}.parquet"


def _take(job: _Job, part: Part, one: DecodedImage | Failure | None) -> None:
    """Take an image in; answer when a batch is full or the part ends, and write when it ends."""
    if isinstance(one, Failure):
        job.failures.append(one)
        return
    if one is not None:
        job.waiting.append(one)
    if job.waiting and (one is None or len(job.waiting) == job.batch_size):
        job.rows += _answer(job)
        job.waiting.clear()
    if one is None:
        _write(job, part)


def _answer(job: _Job) -> list[Row]:
    images = torch.stack([image.image for image in job.waiting]).to(job.device).float().div_(255)
    with autocast(job.precision, job.device):
        output = job.classifier(images.contiguous(memory_format=torch.channels_last))
    job.count += len(job.waiting)
    return rows_of(job.classifier, output, job.waiting, job.request)


def _write(job: _Job, part: Part) -> None:
    """Write a part: what could not be read first, for the predictions are the sign that all of it is done."""
    failures = [*part.failures, *job.failures]
    if failures:
        told = [
            {
                **{"path": printable(each.item.path), "key": printable(each.item.key)},
                **{"member": printable(each.item.member), "reason": printable(each.reason)},
            }
            for each in failures
        ]
        _put_table(job, _file(job, UNREADABLE, part.number), told, job.tables[1])
    _put_table(job, _file(job, PREDICTIONS, part.number), job.rows, job.tables[0])
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
    own = target.with_name(f".{target.name}.{job.share.rank}")
    write_whole(own, content)
    own.replace(target)


def _rows(file: Path) -> int:
    """The number of rows of a table that was written before.

    Raises:
        DataError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file} is damaged ({error}); remove it and start again: only its part is made anew."
        ) from None


def _finish(job: _Job) -> bool:
    """Write the manifest when the last part is there; whichever process comes last does, and twice does no harm."""
    files = [_file(job, PREDICTIONS, number) for number in range(job.parts)]
    if not all(file.is_file() for file in files):
        return False
    lost = [_file(job, UNREADABLE, number) for number in range(job.parts)]
    rows = [_rows(file) for file in files]
    missing = [_rows(file) if file.is_file() else 0 for file in lost]
    content = {"parts": len(files), "images": sum(rows), "unreadable": sum(missing), "rows": rows}
    _put(job, job.out / MANIFEST, json.dumps(content, indent=1).encode())
    for folder in (PREDICTIONS, UNREADABLE):
        for left in (job.out / folder).glob(".*"):  # of processes that were killed
            with contextlib.suppress(FileNotFoundError):
                left.unlink()
    return True
