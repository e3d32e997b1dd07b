"""Connections and their limits, start and stop, with uvicorn.

uvicorn closes a connection that is idle between requests, but lets a client take its time for a request's head, for a
body that nobody reads any more, and for reading the response. Here each of these ends after ``Limits.timeout``.
"""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from heedmap.apps.address import url_of
from heedmap.apps.limits import Limits
from heedmap.system import signals_handled

_FULL = json.dumps({"error": "Too many connections are open; try again in 1 s."}).encode()
_FULL_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: " + str(len(_FULL)).encode() + b"\r\n\r\n" + _FULL
)


def _bounded_protocol(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with a deadline wherever no request is under way."""

    class Bounded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            self._timers: dict[str, asyncio.TimerHandle] = {}
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(_FULL_RESPONSE)
                transport.close()
            self._start("request")

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop("request")  # the application has its own limits
            elif "request" not in self._timers:
                self._start("request")

        def on_response_complete(self) -> None:
            self._start("request")
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._start("reading")

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("reading")

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in tuple(self._timers):
                self._stop(timer)
            super().connection_lost(exc)

        def _start(self, timer: str) -> None:
            self._stop(timer)
            self._timers[timer] = self.loop.call_later(limits.timeout, self.transport.abort)

        def _stop(self, timer: str) -> None:
            if handle := self._timers.pop(timer, None):
                handle.cancel()

    return Bounded


class AppServer(uvicorn.Server):
    """uvicorn's server within ``connections`` and ``timeout`` of the limits; not yet running.

    A signal that was obeyed is not raised again, so the process ends with status 0. ``on_ready`` receives the address
    once it replies; ``grace`` is the seconds for requests under way at a stop, None for ``limits.timeout``.
    """

    def __init__(
        self,
        app: FastAPI,
        limits: Limits,
        on_ready: Callable[[str], None] = lambda url: None,
        grace: float | None = None,
    ) -> None:
        self._on_ready = on_ready
        config = uvicorn.Config(
            app, http=_bounded_protocol(limits), ws="none", log_level="warning", server_header=False
        )
        config.timeout_keep_alive = 5
        config.timeout_graceful_shutdown = max(1, round(limits.timeout if grace is None else grace))
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and report the address of the first socket."""
        await super().startup(sockets)
        if sockets and not self.should_exit:
            self._on_ready(url_of(sockets[0]))

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Stop on SIGINT and SIGTERM."""
        return signals_handled(self.handle_exit, signal.SIGINT, signal.SIGTERM)
