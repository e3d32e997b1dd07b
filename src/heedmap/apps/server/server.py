"""Connections and their bounds, start and stop, with uvicorn.

uvicorn closes a connection that is idle between requests, but lets a client take its time for a request's head, for a
body that nobody reads any more, and for reading the answer. Here each of these ends after ``Limits.timeout``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from heedmap.apps.server.limits import Limits

_FULL = json.dumps({"error": "Too many connections are open; ask again in 1 s."}).encode()
_FULL_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: " + str(len(_FULL)).encode() + b"\r\n\r\n" + _FULL
)


def bounded_protocol(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with a deadline wherever no request is under way."""

    class Bounded(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(_FULL_ANSWER)
                transport.close()
            self._expect()

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_expecting()  # the application has its own bounds
            elif self._deadline is None:
                self._expect()

        def on_response_complete(self) -> None:
            self._stop_expecting()
            self._expect()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(limits.timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_expecting()
            self._read()
            super().connection_lost(exc)

        def _expect(self) -> None:
            self._deadline = self.loop.call_later(limits.timeout, self.transport.abort)

        def _read(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _stop_expecting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Bounded


class _Server(uvicorn.Server):
    """uvicorn's server; a signal that was obeyed is not raised again, so the process ends with status 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """Return the server, not yet running; requests under way at a stop get ``limits.timeout`` to end."""
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits),
        ws="none",
        log_level="warning",
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(limits.timeout)),
    )
    return _Server(config)


def run_server(
    app: FastAPI, limits: Limits, listening: socket.socket, on_ready: Callable[[str], None] | None = None
) -> None:
    """Answer on a listening socket until SIGINT or SIGTERM; ``on_ready`` is told the address first."""
    host, port = listening.getsockname()[:2]
    if on_ready is not None:
        on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    make_server(app, limits).run(sockets=[listening])
