"""Put runs and images together, and serve the explorer until somebody stops it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import uvicorn

from heedmap.apps.explorer.app import explorer_app
from heedmap.apps.explorer.asking import Network
from heedmap.apps.explorer.gallery import Folder, Gallery, Source
from heedmap.apps.explorer.guard import Guard
from heedmap.apps.server.listening import listening_socket
from heedmap.data import FolderDataset
from heedmap.errors import HeedmapError, OptionError
from heedmap.runs import Run
from heedmap.workflows.evaluate.data import open_run_data

FIRST_PORT, PORTS = 8470, 20


def assemble(
    runs: Sequence[Run],
    images: Iterable[str | Path] = (),
    *,
    device: str | torch.device = "cpu",
    host: str = "127.0.0.1",
) -> tuple[Guard, tuple[str, ...]]:
    """Return the application, and sentences about what it will not show.

    Args:
        runs: finished runs; the first one's test part is shown too, where its data is at hand.
        images: folders (or files, patterns) to walk through.
        device: where the networks run.
        host: what the application will listen on.

    Raises:
        DataError: a folder that is not there or holds no images.
        RunError: a run that cannot be used.
    """
    networks = [Network(run, device) for run in runs]
    classes = dict.fromkeys(name for network in networks for name in network.classifier.classes)
    sources = [folder_source(path, classes) for path in images]
    tested, missing = test_source(runs[0])
    sources += [tested] if tested else []
    app = explorer_app(networks, Gallery(sources, (network.image_size for network in networks)), host)
    return app, tuple(missing) + tuple(note for source in sources for note in source.notes)


def folder_source(path: str | Path, classes: Iterable[str]) -> Source:
    """A folder to walk through."""
    folder = Folder(path, classes)
    notes = [f"{path}: {folder.left_out} links lead out of the folder; what they point to is not shown."]
    return Source(Path(path).resolve().name, folder, notes if folder.left_out else ())


def test_source(run: Run) -> tuple[Source | None, list[str]]:
    """The run's test part, or the sentence that says why it cannot be shown. Nothing is downloaded."""
    options = run.options
    title = f"{Path(options.data).name}, test part"
    try:
        splits = open_run_data(run)
    except HeedmapError as error:
        return None, [f"The run's test part is not shown: {error}"]
    if splits.test is None:
        return None, [f"{title}: there is none."]
    if not isinstance(splits.test, FolderDataset):
        return Source(title, splits.test), []
    part, root = splits.test, splits.test.root.resolve()
    inside = [place for place, name in enumerate(part.names) if (root / name).resolve().is_relative_to(root)]
    left_out = len(part) - len(inside)
    notes = [f"{title}: {left_out} links lead out of the folder; what they point to is not shown."]
    return (Source(title, part.subset(inside), notes if left_out else ()) if inside else None), []


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens; without a port the first free one from ``FIRST_PORT`` on.

    Raises:
        OptionError: the port is taken, or the host is not an address of this machine.
    """
    trouble = ""
    for tried in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,):
        try:
            family = socket.getaddrinfo(host, tried, type=socket.SOCK_STREAM)[0][0]
            return listening_socket(family, host, tried, 128)
        except OSError as error:
            trouble = error.strerror or str(error)
    wanted = f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}" if port is None else f"port {port}"
    raise OptionError(f"Cannot listen on {host}, {wanted}: {trouble}; name another --port or --host.")


def explorer_server(app: Guard, on_ready: Callable[[str], None]) -> uvicorn.Server:
    """Return a server to ``run(sockets=[...])``; ``on_ready`` is called with the address once it answers."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready(address_of((sockets or [])[0]))

    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=256,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=3,
        server_header=False,
        ws="none",
    )
    return Server(config)


def address_of(bound: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    host, port = bound.getsockname()[:2]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"


def run_explorer(app: Guard, bound: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        app: from :func:`assemble`.
        bound: from :func:`listen`; closed at the end.
        on_ready: see :func:`make_server`.
    """
    with bound:
        explorer_server(app, on_ready).run(sockets=[bound])
