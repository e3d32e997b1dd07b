"""Who may talk to the explorer: pages that it served itself, asked for by this machine's own name.

A page on the web can make a visitor's browser send requests to 127.0.0.1, and with DNS rebinding can even read the
replies: its own name is made to point to 127.0.0.1, and then the Host header carries that name. So Host has to be an
address, ``localhost``, this machine's name, or what ``--host`` said; and a request that a page makes has to come from
a page of the same host.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Refuse requests with a foreign Host or Origin, and set the headers that keep the page to itself.

    Args:
        app: what is guarded.
        host: what the explorer listens on, as the user wrote it.
    """

    def __init__(self, app: App, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets here
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                added = [pair for pair in HEADERS if pair[0] not in given]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if len(hosts) != 1 or not self.is_own(hosts[0]):
            await _refuse(send_guarded, "This address is not one that the explorer answers to; see --host.")
        elif any(urlsplit(origin).netloc != hosts[0] for origin in origins):
            await _refuse(send_guarded, "Only the explorer's own page may ask it.")
        else:
            await self._app(scope, receive, send_guarded)

    def is_own(self, host: str) -> bool:
        """Whether a Host header (``name``, ``name:port``, ``[address]:port``) is this explorer."""
        try:
            parts = urlsplit(f"//{host}")
            name = (parts.hostname or "").rstrip(".").lower()
        except ValueError:
            return False
        if parts.netloc != host or "@" in host or not name:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True  # an address cannot be rebound


async def _refuse(send: Send, message: str) -> None:
    body = json.dumps({"message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
