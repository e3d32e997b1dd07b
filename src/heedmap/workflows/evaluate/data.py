"""The images of an evaluation: a run's own test set opened again, or other images with the same classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heedmap.config import TrainOptions
from heedmap.data import DIGIT_SCENES, NAMED, FolderDataset, ImageDataset, Splits, open_data
from heedmap.data.cache.folder import cache_folder
from heedmap.data.cache.verified import verify_images
from heedmap.data.folders import find_parts
from heedmap.errors import DataError, nearest
from heedmap.runs import Run
from heedmap.system import threads


@dataclass(frozen=True, kw_only=True)
class OpeningOptions:
    """How data is opened; where None, as the run opened its own."""

    root: str | None = None  # where named sets lie
    download: bool = True  # fetch a named set that is missing
    workers: int | None = None  # threads that decode
    cache: str | None = None  # see heedmap.data.cache.folder; the run's own only where that is on this machine

    def arguments(self, own: TrainOptions) -> dict[str, Any]:
        """Return the arguments of :func:`heedmap.data.open.open_data` beside a run's own options."""
        home = cache_of(own, self.cache)
        where = {"root": self.root or own.root, "download": self.download, "cache": home and home / "shards"}
        return {**where, "seed": own.seed, "test_share": own.test}


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """The images that are evaluated."""

    images: ImageDataset
    labels: Tensor  # (N,) in the order of the run's classes
    splits: Splits  # all parts
    part: str = "test"  # or the data, and which part of it
    trained_on: int = 0  # images that the run was trained on, or chosen by

    @classmethod
    def of_splits(
        cls, splits: Splits, classes: tuple[str, ...], part: str = "test", *, whole: bool = False
    ) -> EvaluationData:
        """Take the test part, or with ``whole`` all images of a folder that has no parts."""
        _check_classes(splits.classes, classes)
        images = (whole_folder(splits) if whole else None) or test_part(splits)
        places = torch.tensor([classes.index(name) for name in splits.classes])
        return cls(images, places[torch.as_tensor(images.labels)], splits, part)

    @classmethod
    def open(cls, run: Run, data: str | None, classes: tuple[str, ...], options: OpeningOptions) -> EvaluationData:
        """Open a run's own test part (None), or the test part of other data; a folder without parts as a whole."""
        own = run.options
        # The rest of the run's own folder is what it was trained on; evaluated as a whole it would flatter.
        is_own = data is None or data == own.data
        if data is not None and not is_named(data) and not is_named(own.data):
            is_own = Path(data).resolve() == Path(own.data).resolve()
        splits = open_run_data(run, options) if is_own else open_data(str(data), **options.arguments(own))
        _check_classes(splits.classes, classes)
        whole = not is_own and whole_folder(splits) is not None
        workers = threads(own.workers if options.workers is None else options.workers)
        parts = ("train", "test") if whole else ("test",)
        splits = verify_images(splits, workers, cache_of(own, options.cache), parts).splits
        part = "test" if data is None else f"{data}, {'all' if whole else 'test'}"
        opened = cls.of_splits(splits, classes, part, whole=whole)
        return replace(opened, trained_on=count_trained_on(opened.images, run))


def digests(splits: Splits) -> dict[str, str]:
    """Return part -> SHA-256 of its images' names, in their order."""
    names = {part: "\n".join(images.names).encode("utf-8", "surrogateescape") for part, images in splits.parts.items()}
    return {part: hashlib.sha256(text).hexdigest() for part, text in names.items()}


OFFLINE = OpeningOptions(download=False)


def open_run_data(run: Run, options: OpeningOptions = OFFLINE) -> Splits:
    """Open the data that a run was trained and evaluated on.

    Raises:
        DataError: the data is missing; or its test part is drawn again each time from a folder that has changed since,
            so that the one drawn now would hold images that the run was trained on.
    """
    own = run.options
    splits = open_data(own.data, **options.arguments(own))
    before = run.config.get("images", {}).get("test")  # missing from runs of earlier versions
    if splits.drawn and before is not None and digests(splits)["test"] != before:
        what = "the test part drawn from it now differs from the one set apart then, and has images of its training"
        way = "Put the images back as they were, or name others to evaluate on."
        raise DataError(f"{own.data} has changed since {run.path} was trained: {what}. {way}")
    return splits


def cache_of(options: TrainOptions, cache: str | None = None) -> Path | None:
    """Return the folder that records decoded files: the one given, or that of training where it exists."""
    own = options.cache
    exists = own is not None and (own == "off" or Path(own).expanduser().is_dir())
    return cache_folder(own if cache is None and exists else cache)


def count_trained_on(images: ImageDataset, run: Run) -> int:
    """Count the files that lie in the parts of the run's own folder that it was trained on, or chosen by."""
    own = Path(run.options.data).resolve()
    if not isinstance(images, FolderDataset) or is_named(run.options.data) or not own.is_dir():
        return 0
    root = images.root.resolve()
    if not (root.is_relative_to(own) or own.is_relative_to(root)):
        return 0
    splits = open_run_data(run)
    parts = [part for part in (splits.train, splits.validation) if isinstance(part, FolderDataset)]
    trained_on = {part.root.resolve() / name for part in parts for name in part.names}
    return sum(root / name in trained_on for name in images.names)


def is_named(data: str) -> bool:
    """Whether the data is a named set; a folder of that name then does not count."""
    return data in (*DIGIT_SCENES, *NAMED)


def whole_folder(splits: Splits) -> FolderDataset | None:
    """Return all images of a folder that has no parts of its own; None where the data came in parts."""
    train, test = splits.train, splits.test
    if not isinstance(train, FolderDataset) or not isinstance(test, FolderDataset) or find_parts(train.root):
        return None
    labels = torch.cat((train.labels, test.labels))
    return FolderDataset(train.root, train.names + test.names, labels, splits.classes)


def test_part(splits: Splits) -> ImageDataset:
    """Return the test part; raise DataError where there is none."""
    if splits.test is None:
        raise DataError(f"{splits.name} has no test part; add a folder 'test' beside 'train'.")
    return splits.test


def _check_classes(present: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise DataError unless the data has the run's classes, in whatever order."""
    for name in present:
        if name not in known:
            raise DataError(
                f"Class {name!r} is unknown to the run, which has {', '.join(known)}.{nearest(name, known)}"
            )
    for name in known:
        if name not in present:
            raise DataError(f"The data has no class {name!r}, which the run was trained on; add a folder of that name.")
