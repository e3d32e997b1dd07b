"""Put runs and images together to the explorer's application."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from fastapi import FastAPI

from heedmap.apps.address import Address
from heedmap.apps.explorer.app import explorer_app
from heedmap.apps.explorer.gallery import Gallery, ImageSource
from heedmap.apps.explorer.network import Network
from heedmap.apps.limits import Limits
from heedmap.data.decoding import MAX_PIXELS
from heedmap.errors import HeedmapError
from heedmap.runs import Run
from heedmap.workflows.evaluate.data import open_run_data

LIMITS = Limits(max_pixels=MAX_PIXELS, timeout=60.0, connections=256)


def build_explorer(
    runs: Sequence[Run],
    images: Iterable[str | Path] = (),
    *,
    device: str | torch.device = "cpu",
    address: Address | None = None,
    limits: Limits = LIMITS,
) -> tuple[FastAPI, tuple[str, ...]]:
    """Return the application, and sentences about what it will not show.

    Args:
        runs: finished runs; the first one's test set is shown too, where its data is at hand.
        images: folders (or files, patterns) to browse.
        device: where the networks run.
        address: where the application will listen; None takes the default.
        limits: of requests.

    Raises:
        DataError: a folder that is not there or holds no images.
        RunError: a run that cannot be used.
    """
    networks = [Network(run, device) for run in runs]
    classes = dict.fromkeys(name for network in networks for name in network.classifier.classes)
    sources = [ImageSource.of_folder(path, classes) for path in images]
    test, missing = _test_source(runs[0])
    sources += [test] if test else []
    gallery = Gallery(sources, (network.image_size for network in networks), limits.max_pixels)
    app = explorer_app(networks, gallery, limits, address or Address())
    return app, tuple(missing) + tuple(note for source in sources for note in source.notes)


def _test_source(run: Run) -> tuple[ImageSource | None, list[str]]:
    """Return the run's test set, or the sentence that says why it cannot be shown. Nothing is downloaded."""
    title = f"{Path(run.options.data).name}, test set"
    try:
        test = open_run_data(run).test
    except HeedmapError as error:
        return None, [f"The run's test set is not shown: {error}"]
    if test is None:
        return None, [f"{title}: there is none."]
    source = ImageSource.of_dataset(title, test)
    return (source, []) if source.names else (None, list(source.notes))
