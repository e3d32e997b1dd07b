"""Draw what a trained classifier attended to, for any number of images, into a folder to look through.

    OUT/index.html           a page to look through: filter by class, sort by probability
    OUT/predictions.csv      one line an image
    OUT/panels/NAME.png      the image, each tap's map, the combined map, computed ones, with their scales
    OUT/maps/NAME.npz        the raw maps and probabilities, as the network gave them
    OUT/thumbnails/NAME.jpg  what the page shows

Images travel through in batches and are forgotten, so memory does not grow with their number (on one scale for the
whole set their names are kept). One batch is decoded and one predicted while a third is drawn. What cannot be read is
named, counted and skipped. After an interruption what was drawn until then stays, with its rows and its page.
"""

from __future__ import annotations

import csv
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from heedmap.config import counted
from heedmap.data.decoding import crop_box, read_image, square
from heedmap.errors import DataError, ImageError, Stopped
from heedmap.inference.listing import DRAWN, expand_images, remove_drawing
from heedmap.inference.onnx import OnnxClassifier
from heedmap.inference.predictor import (
    TILE,
    Array,
    AttributionOptions,
    Ends,
    OtherQuery,
    PanelOptions,
    Prediction,
    Predictor,
    common_ends,
    open_predictor,
    prediction_panel,
    rescaled,
)
from heedmap.inference.reading import DecodedImage, Reader, Sources, decode, find_sources, named_sources
from heedmap.visualization.heatmap import overlay
from heedmap.visualization.page import page_template
from heedmap.visualization.panel import png
from heedmap.workflows.visualize.options import VisualizeOptions, VisualizeResult

if TYPE_CHECKING:
    import torch

    from heedmap.models.classifier import AttentionClassifier

__all__ = ["AttributionOptions", "Prediction", "Sources", "VisualizeOptions", "VisualizeResult", "expand_images"]
__all__ += ["find_sources", "prediction_panel", "visualize"]

MOST_ON_PAGE = 5000
"""The page shows no more images than this, so that a browser can still open it; the CSV file has all."""

_THREADS = 4
_PART = 1024  # images listed at a time
_LONGEST_NAME = 120
_DEFAULTS = VisualizeOptions()


def visualize(
    classifier: AttentionClassifier | OnnxClassifier | str | Path,
    images: Sources | str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    query: str | Path | None = None,
    methods: Sequence[str] = (),
    device: str | torch.device = "cpu",
    options: VisualizeOptions = _DEFAULTS,
) -> VisualizeResult:
    """Draw the attention of a classifier for each image.

    The truth is the name of an image's folder, or the label that its shard gives it, where that names a class.

    Args:
        classifier: a classifier, a run folder or an exported file.
        images: a file, a folder (all its images), a tar shard, a folder of them, or several of these;
            :func:`find_sources` takes patterns and lists too.
        out: folder to write to.
        query: an image whose global feature is used to attend to all the others; drawn beside the maps with each
            image's own. Where the attention does not depend on a query, the panels say so.
        methods: keys of :data:`heedmap.attribution.METHODS`, computed and drawn beside the learned maps.

    Raises:
        DataError, ImageError: no images, none (or a query) that can be read, or an output folder that is not empty or
            cannot be written.
        ModelError, OptionError: a method, class or layer that does not exist or does not fit this classifier.
        Stopped: interrupted after the first batch; rows and page of what was drawn until then are written.
    """
    attributions = AttributionOptions(tuple(methods), options.target, options.layer)
    predictor = open_predictor(classifier, device, attributions=attributions)
    sources, started, out = named_sources(images), time.monotonic(), Path(out)
    if not options.overwrite and out.is_dir() and any(out.iterdir()):
        raise DataError(f"Output folder {out} is not empty; name another one, or allow it with --overwrite.")
    with _writing(out):
        job = _Job(predictor, out, options, None if query is None else _Query.read(Path(query), predictor))
        if out.exists():
            remove_drawing(out)
        for part in DRAWN:
            (out / part).mkdir(parents=True, exist_ok=True)
        is_whole = _draw_all(job, sources)
        if job.count == 0:
            (path, reason), lost = job.unreadable[0], len(job.unreadable)
            which = f"The only image, {path}," if lost == 1 else f"Each of the {lost} images, such as {path},"
            raise DataError(f"{which} cannot be read: {reason.rstrip('.')}.")
        if options.scale == "set":
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda entry: _redraw(job, entry), job.entries))
        total = sources.count
        done = counted(job.count, "image") if total is None else f"{job.count:,} of {counted(total, 'image')}"
        stopped = "" if is_whole else f"Stopped after {done}"
        notes = [*_notes(job), *([f"{stopped}."] if stopped else [])]
        _write_page(job, notes)
    if stopped:
        raise Stopped(f"{stopped}; what was drawn until then is in {out / 'index.html'}.")
    seconds = time.monotonic() - started
    return VisualizeResult(job.count, tuple(job.unreadable), out / "index.html", tuple(notes), seconds)


@dataclass(frozen=True)
class _Query:
    """The image whose query is used: its file's name, its square, and its query where that changes the maps."""

    name: str
    view: Image.Image
    vector: Array | None

    @classmethod
    def read(cls, path: Path, predictor: Predictor) -> _Query:
        try:
            image = decode(path, predictor.image_size, TILE)
        except ImageError as error:
            raise ImageError(f"Query {error}") from None
        assert image.view is not None
        return cls(path.name, image.view, None if predictor.query_note else predictor.query(image.pixels))


class DrawingNames:
    """Names for the drawings of images, no two alike, also where a file system does not tell ``A`` from ``a``."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}  # in lower case, with the last number behind

    def __call__(self, wish: str) -> str:
        """Return the wish, made safe for a link, with a number behind where it is taken."""
        stem = re.sub(r"[^\w.-]+", "_", wish)[:_LONGEST_NAME].lstrip("-.") or "image"
        name, number = stem, self._taken.get(stem.casefold(), 0)
        while name.casefold() in self._taken:
            number = max(number, 1) + 1
            name = f"{stem}-{number}"
        self._taken[stem.casefold()] = number  # a thousand shards may each have a 000000.jpg
        self._taken.setdefault(name.casefold(), 0)
        return name


@dataclass
class _Job:
    """What stays the same from batch to batch, and what adds up."""

    predictor: Predictor
    out: Path
    options: VisualizeOptions
    query: _Query | None
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    names: DrawingNames = field(default_factory=DrawingNames)
    unfinished: list[str] = field(default_factory=list)  # names of images being drawn
    ends: Ends = field(default_factory=dict)
    count: int = 0


_Drawings = list[Future[tuple[dict[str, Any], dict[str, Any]]]]  # of each image its entry on the page and its row


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    # What goes wrong in reading is an ImageError by then, so an OSError is about the output.
    is_new = not out.exists()
    try:
        yield
    except BaseException as error:
        if is_new and not any(out.glob("panels/*")):  # nothing was drawn, so an empty folder would only be in the way
            shutil.rmtree(out, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise DataError(f"Cannot write to {error.filename or out}: {error.strerror}. Name another folder.") from error


def _draw_all(job: _Job, sources: Sources) -> bool:
    """Draw batch by batch and write the table; return False where the user interrupted after the first batch."""
    with (
        (job.out / "predictions.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        table = csv.DictWriter(file, _columns(job))
        table.writeheader()
        current: _Drawings = []
        try:
            reader = Reader(pool, job.predictor.image_size, TILE)
            for batch, failures in reader.batches(sources.parts(_PART), job.options.batch_size):
                job.unreadable += [(failure.item.name, failure.reason) for failure in failures]
                begun = _begin(job, pool, batch) if batch else []  # while the batch before is still being drawn
                _end(job, current, table)
                current = begun
            _end(job, current, table)
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # these were predicted already
                _end(job, current, table, is_interrupted=True)
            pool.shutdown(cancel_futures=True)  # a file that is being written is finished first
            for name in job.unfinished:  # they have no row in the table
                for part, suffix in DRAWN.items():
                    (job.out / part / f"{name}{suffix}").unlink(missing_ok=True)
            if job.count == 0:
                (job.out / "predictions.csv").unlink()
                raise
            return False
    return True


def _begin(job: _Job, pool: ThreadPoolExecutor, batch: list[DecodedImage]) -> _Drawings:
    """Predict a batch, then have the images drawn and written by threads."""
    pixels = np.stack([image.pixels for image in batch])
    own = list(job.predictor(pixels))
    vector = None if job.query is None else job.query.vector
    other = [None] * len(batch) if vector is None else list[Prediction | None](job.predictor(pixels, vector))
    if job.options.scale == "set":
        job.ends = common_ends((prediction for prediction in (*own, *other) if prediction is not None), job.ends)
    names = [job.names(image.item.stem) for image in batch if image.item is not None]
    job.unfinished += names
    return [pool.submit(_write, job, *row) for row in zip(names, batch, own, other, strict=True)]


def _end(job: _Job, current: _Drawings, table: csv.DictWriter[str], *, is_interrupted: bool = False) -> None:
    """Wait until the images of a batch are drawn, and give them their rows."""
    if not current:
        return
    finished = [future.result() for future in current]
    job.unfinished = job.unfinished[len(finished) :]
    job.count += len(finished)
    room = len(finished) if job.options.scale == "set" else max(0, MOST_ON_PAGE - len(job.entries))
    job.entries += [entry for entry, _ in finished[:room]]
    table.writerows(row for _, row in finished)
    current.clear()  # an interruption from here on must not count it again
    if job.options.on_progress is not None and not is_interrupted:
        job.options.on_progress(job.count)


def _columns(job: _Job) -> list[str]:
    names = ["path", "label", "predicted", "probability", "second", "second_probability", "third", "third_probability"]
    names += [f"{name}_{axis}" for name in job.predictor.maps for axis in "xy"]
    return names + ["query_predicted", "query_probability"] * (job.query is not None and job.query.vector is not None)


def _write(
    job: _Job, name: str, image: DecodedImage, own: Prediction, other: Prediction | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write an image's files; return its entry on the page and its row in the table."""
    classes, item = job.predictor.classes, image.item
    assert item is not None
    box = crop_box(*image.size)
    arrays = own.packed() | (other.packed("query_") if other is not None else {})
    facts = {"predicted": own.predicted, "classes": classes, "crop_box": box, "size": image.size}
    arrays |= {key: np.array(value) for key, value in facts.items()}
    target = job.out / "maps" / f"{name}.npz"
    np.savez_compressed(target, **arrays)  # type: ignore[arg-type]  # numpy takes no array named allow_pickle
    label = Path(item.path).parent.name if item.member is None else item.label
    label = label if label in classes else None
    entry: dict[str, Any] = {"name": name, "path": item.name, "label": label}
    entry |= {"predicted": classes[own.predicted], "probability": float(own.probabilities.max())}
    if job.options.scale == "set":
        entry |= {"item": item, "own": own.without_values(), "other": other and other.without_values()}
    else:
        assert image.view is not None
        _draw(job, entry, image.view, own, other)
    row = {"path": item.name, "label": label or "", **own.table_row(classes, box)}
    if other is not None:
        row |= {"query_predicted": classes[other.predicted], "query_probability": f"{other.probabilities.max():.6f}"}
    return entry, row


def _redraw(job: _Job, entry: dict[str, Any]) -> None:
    """Draw an image on the scale of the whole set, from the maps in its file."""
    with np.load(job.out / "maps" / f"{entry['name']}.npz") as arrays:
        own = entry["own"].unpacked(arrays).on_scale(job.ends)
        other = entry["other"] and entry["other"].unpacked(arrays, "query_").on_scale(job.ends)
    view = square(read_image(entry["item"].open(), short_side=TILE), TILE)
    _draw(job, entry, view, own, other)


def _draw(job: _Job, entry: dict[str, Any], view: Image.Image, own: Prediction, other: Prediction | None) -> None:
    query, scale = job.query, job.options.scale
    notes = (*own.notes, job.predictor.query_note if query else "")
    drawn = OtherQuery(query.view, query.name, other) if query and other else None
    options = PanelOptions(entry["label"], entry["path"], notes=notes, scale=scale, other=drawn)
    panel = prediction_panel(view, own, job.predictor.classes, options)
    (job.out / "panels" / f"{entry['name']}.png").write_bytes(png(panel))
    maps = rescaled([own], scale)[0].maps
    shown = maps.get("combined") or next(iter(maps.values()))
    thumbnail = overlay(view, shown.values, shown.low, shown.high)
    thumbnail.save(job.out / "thumbnails" / f"{entry['name']}.jpg", quality=88)


def _notes(job: _Job) -> Iterator[str]:
    if job.query and job.query.vector is None:
        yield job.predictor.query_note
    if job.unreadable:
        yield f"{len(job.unreadable)} of {len(job.unreadable) + job.count} images cannot be read."
    if job.count > MOST_ON_PAGE:
        yield f"The page shows the first {MOST_ON_PAGE:,} of {job.count:,} images; predictions.csv has all."


def _write_page(job: _Job, notes: Sequence[str]) -> None:
    entries = job.entries[:MOST_ON_PAGE]
    page = page_template("index.html.jinja", "workflows/visualize").render(
        entries=entries,
        count=job.count,
        classes=sorted({entry["predicted"] for entry in entries}),
        wrong=sum(entry["label"] not in (None, entry["predicted"]) for entry in entries),
        known=sum(entry["label"] is not None for entry in entries),
        method=job.predictor.method,
        query=job.query.name if job.query else None,
        unreadable=job.unreadable,
        notes=notes,
    )
    (job.out / "index.html").write_text(page, encoding="utf-8", errors="backslashreplace")
