"""The socket on which a service or the explorer listens."""

from __future__ import annotations

import os
import socket


def listening_socket(family: socket.AddressFamily, host: str, port: int, backlog: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        OSError: the port is taken, or the host is not an address of this machine.
    """
    # With the protocol spelt out: only then asyncio switches Nagle's delay off, and answers go out 40 ms earlier.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(backlog)
    except OSError:
        bound.close()
        raise
    return bound
