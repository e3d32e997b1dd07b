"""A small HTTP service: an image in, class, probabilities, boxes and the map out.

    images.py      bytes in, the classifier's view out, within bounds
    bodies.py      a request's body, counted and timed while it is read
    batching.py    concurrent requests share a batch; one thread asks the classifier
    replies.py     the answer as JSON, PNG or array
    app.py         the addresses, as a FastAPI application
    server.py      connections and their bounds, start and stop, with uvicorn

Everything that a stranger can make large or slow has a bound in :class:`Limits`; beyond it the answer is an error of
one sentence. FastAPI, uvicorn and python-multipart come with ``pip install 'heedmap[serve]'``.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from heedmap.apps.server.limits import Limits
from heedmap.apps.server.listening import listening_socket
from heedmap.errors import OptionError
from heedmap.inference.predictor import Predictor, open_predictor

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Limits", "Predictor", "build_app", "open_predictor", "serve"]

_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def check_installed() -> None:
    """Check that what the service stands on is there.

    Raises:
        OptionError: a package is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"Serving needs {missing[0]}, which is not installed: pip install 'heedmap[serve]'.")


def build_app(predictor: Predictor, limits: Limits | None = None) -> FastAPI:
    """Make the application alone, to mount it in a server of your own; connections are then yours to bound.

    Args:
        predictor: see :func:`open_predictor`.
        limits: None takes the defaults.

    Raises:
        OptionError: a package is missing.
    """
    check_installed()
    from heedmap.apps.server.app import make_app

    return make_app(predictor, limits or Limits())


def serve(
    source: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    device: str = "cpu",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; those under way are finished first.

    Args:
        source: a run folder, or an exported ``.onnx`` file.
        host: the address to listen on; loopback unless told otherwise, since there is no password.
        port: 0 takes a free one.
        limits: None takes the defaults.
        device: where a run's network computes.
        on_ready: called once with the service's address, such as ``http://127.0.0.1:8000``.

    Raises:
        OptionError: a package is missing, or the address cannot be listened on.
        RunError, ModelError: the source cannot be used.
    """
    check_installed()
    listening = _listen(host, port)  # before the weights: a port that is taken is told at once
    try:
        from heedmap.apps.server.server import run_server

        chosen = limits or Limits()
        run_server(build_app(open_predictor(source, device), chosen), chosen, listening, on_ready)
    finally:
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise OptionError(f"port {port} does not exist; name one from 1 to 65535, or 0 for a free one.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return listening_socket(family, host, port, 1024)
    except OSError as error:
        raise OptionError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. Name another --port (0 takes a free one)."
        ) from None
