"""The images of a run, opened again as they were for its training."""

from __future__ import annotations

import hashlib
from pathlib import Path

from heedmap.config import TrainOptions
from heedmap.data import Splits, open_data
from heedmap.data.cache.folder import cache_folder
from heedmap.errors import DataError
from heedmap.runs import Run


def digests(splits: Splits) -> dict[str, str]:
    """Part -> SHA-256 of its images' names, in their order."""
    return {
        part: hashlib.sha256("\n".join(images.names).encode("utf-8", "surrogateescape")).hexdigest()
        for part, images in splits.parts.items()
    }


def open_run_data(run: Run, *, root: str | None = None, download: bool = False, cache: Path | None = None) -> Splits:
    """Open the data that a run was trained and evaluated on.

    Args:
        run: the run; those of earlier versions do not know their images' names, and nothing is checked.
        root: where named sets lie; None takes the run's.
        download: fetch a named set that is not there.
        cache: see :func:`heedmap.data.open.open_data`.

    Raises:
        DataError: the data is not there; or its test part is drawn anew each time from a folder that has changed since,
            so that the one drawn now would hold images that the run has learned from.
    """
    options = run.options
    splits = open_data(
        options.data,
        root=root or options.root,
        download=download,
        seed=options.seed,
        test_share=options.test,
        cache=cache,
    )
    before = run.config.get("images", {}).get("test")
    if splits.drawn and before is not None and digests(splits)["test"] != before:
        raise DataError(
            f"{options.data} has changed since {run.path} was trained: the test part drawn from it now is another than "
            "was kept apart then, with images that the run has learned from. Put the images back as they were, or "
            "name others to evaluate on."
        )
    return splits


def cache_of(options: TrainOptions, cache: str | None = None) -> Path | None:
    """Where is kept which files were decoded before: as told, or as for training where that folder is there."""
    own = options.cache
    is_here = own is not None and (own == "off" or Path(own).expanduser().is_dir())
    return cache_folder(own if cache is None and is_here else cache)
