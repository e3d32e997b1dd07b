"""Draw what a trained classifier attended to, for any number of images, into a folder to look through.

    OUT/index.html           a page to look through: filter by class, sort by probability
    OUT/predictions.csv      one line an image
    OUT/panels/NAME.png      the image, each tap's map, the combined map, others asked for, with their scales
    OUT/maps/NAME.npz        the raw maps and probabilities, as the network gave them
    OUT/thumbnails/NAME.jpg  what the page shows

Images travel through in batches and are forgotten, so memory does not grow with their number (on one scale for the
whole set their names are kept). One batch is decoded and one asked about while a third is drawn. What cannot be read is
named, counted and passed over. Whoever interrupts keeps what was drawn until then, with its rows and its page.
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from heedmap.config import counted
from heedmap.data.decoding import crop_box, read_image, square
from heedmap.errors import DataError, OptionError, Stopped
from heedmap.files import printable
from heedmap.inference.listing import DRAWN, expand_images, remove_drawing
from heedmap.inference.onnx import OnnxClassifier
from heedmap.inference.onnx_predictor import onnx_predictor
from heedmap.inference.prediction import (
    TILE,
    Ends,
    Prediction,
    Scale,
    Switched,
    check_scale,
    common_ends,
    on_scale,
    packed,
    prediction_panel,
    rescaled,
    unpacked,
    without_values,
)
from heedmap.inference.predictor import Predictor
from heedmap.inference.reading import Read, batches
from heedmap.inference.sources import Item, Sources, find_sources, named_sources
from heedmap.visualization.heatmap import hottest, is_flat, overlay
from heedmap.visualization.png import png
from heedmap.workflows.visualize.page import index_page

if TYPE_CHECKING:
    import torch

    from heedmap.models.classifier import AttentionClassifier

__all__ = [
    "Prediction",
    "Sources",
    "Switched",
    "VisualizeResult",
    "expand_images",
    "find_sources",
    "prediction_panel",
    "visualize",
]

MOST_ON_PAGE = 5000
"""The page shows no more images than this, so that a browser can still open it; the CSV file has all."""

_THREADS = 4

_Drawing = list[Future[tuple[dict[str, Any], dict[str, Any]]]]  # what _keep gives of each image of a batch


@dataclass(frozen=True)
class VisualizeResult:
    """What became of the images.

    Attributes:
        count: images drawn.
        unreadable: (path, reason) of those passed over.
        index: the page to open.
        notes: sentences for the user, such as why a query changes nothing.
        seconds: from the first image to the last file.
    """

    count: int
    unreadable: tuple[tuple[str, str], ...]
    index: Path
    notes: tuple[str, ...]
    seconds: float


@dataclass
class _Job:
    """What stays the same from batch to batch, and what adds up."""

    predictor: Predictor
    out: Path
    scale: Scale
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    under_way: list[str] = field(default_factory=list)
    ends: Ends = field(default_factory=dict)
    likes: tuple[Prediction, Prediction | None] | None = None  # what an answer's maps are called and made by
    count: int = 0


def visualize(
    classifier: AttentionClassifier | OnnxClassifier,
    images: Sources | str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    batch_size: int = 16,
    query: str | Path | None = None,
    methods: Sequence[str] = (),
    target: str | int | None = None,
    layer: str | None = None,
    device: str | torch.device = "cpu",
    scale: Scale = "image",
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> VisualizeResult:
    """Draw the attention of a classifier for each image.

    Where an image lies in a folder with the name of a class, that name is taken for the truth; of an image in a shard
    the label that the shard gives it, where it names a class.

    Args:
        classifier: moved to ``device``; its train flags are left as they were. Or an exported file: then no torch is
            needed, nothing is imported of it, and the maps of gradients that the file holds are drawn in any case.
        images: a file, a folder (all its images), a tar shard, a folder of them, or several of these;
            :func:`find_sources` takes patterns and lists too.
        out: folder to write to.
        batch_size: images per forward pass.
        query: an image whose global feature is used to attend to all the others; drawn beside the maps with each
            image's own. Where the attention does not depend on a query, the panels say so.
        methods: keys of :data:`heedmap.attribution.METHODS`, computed besides, and drawn beside the learned maps.
        target: the class that they are asked about, by name or index; None is the one predicted for each image.
        layer: the layer that they read; None takes the last spatial one.
        device: where the network runs.
        scale: ``image`` draws each map from 0 to its own largest value (sigmoid weights from 0 to 1), ``range`` from
            its smallest to its largest, ``set`` on one scale for all images, ``(low, high)`` on a fixed one.
        overwrite: write into a folder that has something in it; the files of an earlier drawing there are removed
            first, and no others.
        on_progress: called with the number of images done, after each batch.

    Raises:
        DataError: no images, none that can be read, or an output folder that is not empty or cannot be written.
        OptionError: ``batch_size`` is below 1; no such scale; an unknown method or class; something that an exported
            file cannot do.
        ModelError: a method that cannot explain this classifier, or a layer that it does not have.
        ImageError: the query cannot be read.
        Stopped: interrupted after the first batch; rows and page of what was drawn until then are written.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size {batch_size} is too small; it must be at least 1.")
    check_scale(scale)
    asking = _asking(classifier, device, query, methods, target, layer)
    sources = named_sources(images)
    started, out = time.monotonic(), Path(out)
    _refuse_other(out, overwrite)
    with _writing(out), asking as predictor:
        job = _Job(predictor, out, scale)
        _make_folder(out)
        is_whole = _draw_all(job, sources, batch_size, on_progress)
        if job.count == 0:
            raise DataError(_nothing_drawn(job.unreadable))
        if scale == "set":
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda entry: _redraw(job, entry), job.entries))
        stopped = "" if is_whole else f"Stopped after {_so_far(job.count, sources.count)}"
        notes = (*_notes(job), *([f"{stopped}."] if stopped else []))
        page = index_page(job.entries[:MOST_ON_PAGE], job.count, job.predictor, job.unreadable, notes)
        (out / "index.html").write_text(page, encoding="utf-8")
    if stopped:
        raise Stopped(f"{stopped}; what was drawn until then is in {out / 'index.html'}.")
    return VisualizeResult(job.count, tuple(job.unreadable), out / "index.html", notes, time.monotonic() - started)


def _so_far(count: int, total: int | None) -> str:
    return counted(count, "image") if total is None else f"{count:,} of {counted(total, 'image')}"


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    # What goes wrong in reading is a ImageError by then, so an OSError is about the output.
    is_new = not out.exists()
    try:
        yield
    except BaseException as error:
        if is_new and not any(out.glob("panels/*")):  # nothing was drawn, so an empty folder would only be in the way
            shutil.rmtree(out, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise DataError(f"Cannot write to {error.filename or out}: {error.strerror}. Name another folder.") from error


def _asking(
    classifier: AttentionClassifier | OnnxClassifier,
    device: str | torch.device,
    query: str | Path | None,
    methods: Sequence[str],
    target: str | int | None,
    layer: str | None,
) -> AbstractContextManager[Predictor]:
    """Check what is asked; what comes back asks."""
    if isinstance(classifier, OnnxClassifier):
        return nullcontext(onnx_predictor(classifier, query, methods, target, layer))
    # Here, because an exported file is drawn where there is no torch.
    from heedmap.inference.attributions import attribution_options
    from heedmap.inference.torch_predictor import torch_predictor

    asked = attribution_options(classifier.classes, methods, target, layer)
    return torch_predictor(classifier, device, None if query is None else Path(query), asked)


def _refuse_other(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise DataError(
            f"Output folder {out} is not empty; name another one, or allow it with --overwrite "
            "(overwrite=True in Python)."
        )


def _make_folder(out: Path) -> None:
    remove_drawing(out)
    for part in DRAWN:
        (out / part).mkdir(parents=True, exist_ok=True)


def _draw_all(job: _Job, sources: Sources, batch_size: int, on_progress: Callable[[int], None] | None) -> bool:
    """Draw batch by batch and write the table; returns False where the user interrupted after the first batch."""
    with (
        (job.out / "predictions.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        table = csv.DictWriter(file, _columns(job))
        table.writeheader()
        drawing: _Drawing = []
        try:
            for batch, failures in batches(pool, sources, job.predictor.image_size, batch_size):
                job.unreadable += [(each.item.name, each.reason) for each in failures]
                begun = _begin(job, pool, batch) if batch else []  # while the batch before is still being drawn
                _end(job, drawing, table, on_progress)
                drawing = begun
            _end(job, drawing, table, on_progress)
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # the network was asked for these already
                _end(job, drawing, table, None)
            pool.shutdown(cancel_futures=True)  # whoever writes a file ends it first
            _forget(job.out, job.under_way)
            if job.count == 0:
                (job.out / "predictions.csv").unlink()
                raise
            return False
    return True


def _forget(out: Path, names: Sequence[str]) -> None:
    """Remove the files of images that have no row in the table yet."""
    for name in names:
        for part, suffix in DRAWN.items():
            (out / part / f"{name}{suffix}").unlink(missing_ok=True)


def _begin(job: _Job, pool: ThreadPoolExecutor, batch: list[Read]) -> _Drawing:
    """Ask once, then have the images drawn and written by threads."""
    own, switched = job.predictor(np.stack([one.image for one in batch]))
    if job.scale == "set":
        job.ends = common_ends([*_held(job.ends, own[0]), *own, *(switched or ())])
        job.likes = job.likes or (without_values(own[0]), without_values(switched[0]) if switched else None)
    other: Sequence[Prediction | None] = switched or [None] * len(batch)
    job.under_way += [one.name for one in batch]
    return [pool.submit(_keep, job, *each) for each in zip(batch, own, other, strict=True)]


def _end(job: _Job, drawing: _Drawing, table: csv.DictWriter[str], on_progress: Callable[[int], None] | None) -> None:
    """Wait until the images of a batch are drawn, and give them their rows."""
    if not drawing:
        return
    drawn = [future.result() for future in drawing]
    job.under_way = job.under_way[len(drawn) :]
    job.count += len(drawn)
    room = len(drawn) if job.scale == "set" else max(0, MOST_ON_PAGE - len(job.entries))
    job.entries += [entry for entry, _ in drawn[:room]]
    table.writerows(row for _, row in drawn)
    drawing.clear()  # an interruption from here on must not count it again
    if on_progress is not None:
        on_progress(job.count)


def _held(ends: Ends, like: Prediction) -> list[Prediction]:
    return [on_scale(like, ends)] if ends else []


def _keep(job: _Job, one: Read, own: Prediction, other: Prediction | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write an image's files; returns its entry on the page and its row in the table."""
    classes = job.predictor.classes
    box = crop_box(*one.size)
    arrays = packed(own) | (packed(other, "query_") if other is not None else {})
    arrays |= {"predicted": np.array(own.predicted), "classes": np.array(classes)}
    arrays |= {"crop_box": np.array(box), "size": np.array(one.size)}
    target = job.out / "maps" / f"{one.name}.npz"
    np.savez_compressed(target, **arrays)  # type: ignore[arg-type]  # numpy takes no array named allow_pickle
    label = _label(one.item, classes)
    entry = {
        "name": one.name,
        "path": printable(one.item.name),
        "predicted": classes[own.predicted],
        "probability": float(own.probabilities.max()),
        "label": label,
    }
    if job.scale == "set":
        entry |= {"source": one.item}
    else:
        _draw(job, entry, one.view, own, other)
    return entry, _row(one, own, other, classes, label, box)


def _label(item: Item, classes: tuple[str, ...]) -> str | None:
    name = Path(item.path).parent.name if item.member is None else item.label
    return name if name in classes else None


def _redraw(job: _Job, entry: dict[str, Any]) -> None:
    """Draw an image on the scale of the whole set, from the maps in its file."""
    assert job.likes is not None
    like, like_other = job.likes
    with np.load(job.out / "maps" / f"{entry['name']}.npz") as arrays:
        own = on_scale(unpacked(arrays, like), job.ends)
        other = like_other and on_scale(unpacked(arrays, like_other, "query_"), job.ends)
    view = square(read_image(entry["source"].open(), short_side=TILE), TILE)
    _draw(job, entry, view, own, other)


def _draw(job: _Job, entry: dict[str, Any], view: Image.Image, own: Prediction, other: Prediction | None) -> None:
    query = job.predictor.query
    switched = Switched(query.view, query.name, other) if query and other else None
    drawn = prediction_panel(
        view,
        own,
        job.predictor.classes,
        label=entry["label"],
        name=entry["path"],
        scale=job.scale,
        switched=switched,
        remark=query.remark if query else "",
        notes=job.predictor.lines(own),
    )
    (job.out / "panels" / f"{entry['name']}.png").write_bytes(png(drawn))
    maps = rescaled([own], job.scale)[0].maps
    shown = maps.get("combined") or next(iter(maps.values()))
    thumbnail = overlay(view, shown.values, shown.low, shown.high)
    thumbnail.save(job.out / "thumbnails" / f"{entry['name']}.jpg", quality=88)


def _columns(job: _Job) -> list[str]:
    query = job.predictor.query
    names = ["path", "label", "predicted", "probability", "second", "second_probability", "third", "third_probability"]
    names += [f"{tap}_{axis}" for tap in job.predictor.maps for axis in "xy"]
    return names + ["query_predicted", "query_probability"] * (query is not None and not query.remark)


def _row(
    one: Read,
    own: Prediction,
    other: Prediction | None,
    classes: tuple[str, ...],
    label: str | None,
    box: tuple[int, ...],
) -> dict[str, Any]:
    """A line of ``predictions.csv``; the hottest points are pixels of the original image, empty on a flat map."""
    row: dict[str, Any] = {"path": one.item.name, "label": label or ""}
    for place, (name, probability) in zip(("", "second", "third"), own.top(classes), strict=False):
        row |= {place or "predicted": name, f"{place}_probability".lstrip("_"): f"{probability:.6f}"}
    for tap, drawn in own.maps.items():
        if is_flat(drawn.values):  # rounding alone would choose the place; the cell stays empty
            continue
        x, y = hottest(drawn.values)
        row |= {
            f"{tap}_x": round(box[0] + x * (box[2] - box[0]), 1),
            f"{tap}_y": round(box[1] + y * (box[3] - box[1]), 1),
        }
    if other is not None:
        row |= {"query_predicted": classes[other.predicted], "query_probability": f"{other.probabilities.max():.6f}"}
    return row


def _nothing_drawn(unreadable: list[tuple[str, str]]) -> str:
    path, reason = unreadable[0]
    if len(unreadable) == 1:
        return f"The only image, {path}, cannot be read: {reason.rstrip('.')}."
    return f"None of the {len(unreadable)} images can be read; the first is {path}: {reason.rstrip('.')}."


def _notes(job: _Job) -> tuple[str, ...]:
    query = job.predictor.query
    notes = [query.remark] if query and query.remark else []
    if job.unreadable:
        notes.append(f"{len(job.unreadable)} of {len(job.unreadable) + job.count} images cannot be read.")
    if job.count > len(job.entries[:MOST_ON_PAGE]):
        notes.append(f"The page shows the first {MOST_ON_PAGE:,} of {job.count:,} images; predictions.csv has all.")
    return tuple(notes)
