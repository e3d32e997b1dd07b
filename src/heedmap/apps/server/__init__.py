"""A small HTTP service: an image in, class, probabilities, boxes and the map out.

    batching.py    concurrent requests share a batch; one thread runs the classifier
    responses.py   the prediction as JSON, PNG or array
    app.py         the routes, as a FastAPI application

Everything that a stranger can make large or slow has a limit in :class:`Limits`; beyond it the response is an error of
one sentence. FastAPI, uvicorn and python-multipart come with ``pip install 'heedmap[serve]'``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from heedmap.apps import require_packages
from heedmap.apps.address import Address
from heedmap.apps.limits import Limits
from heedmap.inference.predictor import Predictor, open_predictor

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Address", "Limits", "build_app", "open_predictor", "serve"]

_PACKAGES = ("fastapi", "uvicorn", "python_multipart")


def build_app(predictor: Predictor, limits: Limits | None = None, address: Address | None = None) -> FastAPI:
    """Build the application alone, to mount it in a server of your own; connections are then yours to limit.

    The Host header may have the names of ``address``, or any where that is None. A missing package is an OptionError.
    """
    require_packages("serve", *_PACKAGES)
    # Late: FastAPI and uvicorn are an extra, and what is missing is named before.
    from heedmap.apps.server.app import server_app

    return server_app(predictor, limits or Limits(), address)


def serve(
    source: str | Path,
    address: Address | None = None,
    *,
    limits: Limits | None = None,
    device: str = "cpu",
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve requests until SIGINT or SIGTERM; those under way are finished first.

    Args:
        source: a run folder, or an exported ``.onnx`` file.
        address: None takes 127.0.0.1, port 8000.
        device: where a run's network computes.
        on_ready: called once with the service's address, such as ``http://127.0.0.1:8000``.

    Raises:
        OptionError, RunError, ModelError: a package is missing, or the address or the source cannot be used.
    """
    require_packages("serve", *_PACKAGES)
    # Late: FastAPI and uvicorn are an extra, and what is missing is named before.
    from heedmap.apps.running import AppServer

    address, limits = address or Address(port=8000), limits or Limits()
    with address.listen() as listening:  # before the weights: a port that is taken is reported at once
        app = build_app(open_predictor(source, device), limits, address)
        AppServer(app, limits, on_ready).run(sockets=[listening])
