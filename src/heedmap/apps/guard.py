"""Who may talk to the explorer and the server: their own pages and programs, under this machine's own name.

A page on the web can make a visitor's browser send requests to 127.0.0.1, and with DNS rebinding can even read the
responses: its own name is made to point to 127.0.0.1, and then the Host header carries that name. So Host has to be
accepted by the address, and a request that a page makes has to come from a page of the same host.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heedmap.apps.address import Address
from heedmap.apps.errors import error_response

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Middleware: refuse requests with a foreign Host or Origin, and set the headers that keep a page to itself.

    Args:
        app: what is guarded.
        address: what it listens on; None accepts any Host, for an app that is mounted in a server of its own.
    """

    def __init__(self, app: ASGIApp, address: Address | None) -> None:
        self._app, self._address = app, address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        app = self._app if refusal is None else error_response(403, refusal)
        await app(scope, receive, send_guarded)

    def _refusal(self, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        host = hosts[0] if hosts else ""
        if self._address is not None and (len(hosts) != 1 or not self._address.accepts(host)):
            return f"The host name {host!r} is not this machine's; use its address, or allow the name by --allow-host."
        if any(urlsplit(origin).netloc != host for origin in headers.getlist("origin")):
            return "Pages of other sites may not send requests here."
        return None
