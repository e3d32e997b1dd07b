"""The pictures of a run, opened again as they were for its training."""

from __future__ import annotations

import hashlib
from pathlib import Path

from heedmap.data import Splits, open_data
from heedmap.data.kept import cache_folder
from heedmap.errors import DataError
from heedmap.options import TrainOptions
from heedmap.runs import Run


def digests(splits: Splits) -> dict[str, str]:
    """Part -> SHA-256 of its pictures' names, in their order."""
    return {
        part: hashlib.sha256("\n".join(pictures.names).encode("utf-8", "surrogateescape")).hexdigest()
        for part, pictures in splits.parts.items()
    }


def open_own(run: Run, *, root: str | None = None, download: bool = False, cache: Path | None = None) -> Splits:
    """Open the data that a run was trained and judged on.

    Args:
        run: the run; those of earlier versions do not know their pictures' names, and nothing is checked.
        root: where named sets lie; None takes the run's.
        download: fetch a named set that is not there.
        cache: see :func:`heedmap.data.opening.open_data`.

    Raises:
        DataError: the data is not there; or its test part is drawn anew each time from a folder that has changed since,
            so that the one drawn now would hold pictures that the run has learned from.
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
    before = run.config.get("pictures", {}).get("test")
    if splits.drawn and before is not None and digests(splits)["test"] != before:
        raise DataError(
            f"{options.data} has changed since {run.path} was trained: the test part drawn from it now is another than "
            "was kept apart then, with pictures that the run has learned from. Put the pictures back as they were, or "
            "name others to judge on."
        )
    return splits


def kept_at(options: TrainOptions, cache: str | None = None) -> Path | None:
    """Where is kept which files were decoded before: as told, or as for training where that folder is there."""
    own = options.cache
    is_here = own is not None and (own == "off" or Path(own).expanduser().is_dir())
    return cache_folder(own if cache is None and is_here else cache)
