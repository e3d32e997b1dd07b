"""Where the explorer or the server listens, and the names under which it may be reached."""

import ipaddress
import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from heedmap.errors import OptionError

_FREE_PORTS = range(8470, 8490)
_BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class Address:
    """A host and a port of this machine; an OptionError where there is no such port.

    Attributes:
        host: to listen on; other machines can reach all but a loopback address, and there is no password.
        port: 0 takes any free port, None the first free one from 8470 on.
        names: more host names to accept, such as a proxy's; see :meth:`accepts`.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port <= 65535:
            raise OptionError(f"port {self.port} does not exist; name one from 1 to 65535, or 0 for a free one.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def accepts(self, host: str) -> bool:
        """Return whether a Host header (``name``, ``name:port``, ``[address]:port``) names this machine.

        Any IP address does, as DNS cannot redirect one; of names ``localhost``, ``host``, this machine's, ``names``.
        """
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
            return name in {known.lower() for known in ("localhost", self.host, socket.gethostname(), *self.names)}
        return True

    def listen(self) -> socket.socket:
        """Return a socket that listens here; an OptionError where the port is taken or the host not this machine's."""
        reason = ""
        for port in _FREE_PORTS if self.port is None else (self.port,):
            try:
                return _listening(self.host, port)
            except OSError as error:
                reason = error.strerror or str(error)
        ports = f"ports {_FREE_PORTS[0]} to {_FREE_PORTS[-1]}" if self.port is None else f"port {self.port}"
        raise OptionError(f"Cannot listen on {self.host}, {ports}: {reason}; name another --port (0: any) or --host.")


def _listening(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    # With the protocol spelt out: only then asyncio switches Nagle's delay off, and responses go out 40 ms earlier.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def url_of(listening: socket.socket) -> str:
    """Return the address to open on this machine, such as ``http://127.0.0.1:8000``."""
    host, port = listening.getsockname()[:2]
    name = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"
