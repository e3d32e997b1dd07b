"""Clients that take their time are cut off, at every point where they could keep the service busy."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from test_serve import Still, image

pytest.importorskip("uvicorn")

from heedmap.apps.running import AppServer
from heedmap.apps.server import Address, Limits, build_app

TIMEOUT = 0.8
HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[str, int]]:
    """Where a server with little patience listens, in a thread of this process."""
    limits = Limits(timeout=TIMEOUT, connections=130)
    server = AppServer(build_app(Still(), limits, Address()), limits)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()[:2]
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def reply(line: socket.socket) -> bytes:
    """Read a whole response."""
    received = b""
    while piece := line.recv(65536):
        received += piece
        if b"\r\n\r\n" in received:
            head, _, body = received.partition(b"\r\n\r\n")
            length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
            if len(body) >= int(length.split(b":")[1]):
                break
    return received


def is_served(place: tuple[str, int]) -> bool:
    with socket.create_connection(place, timeout=10) as line:
        content = image()
        line.sendall(HEAD % len(content) + content)
        return reply(line).startswith(b"HTTP/1.1 200")


def drip(place: tuple[str, int], start: bytes) -> tuple[bytes, float]:
    """Send a byte now and then after ``start``; return what came back and after how long the line was closed."""
    began, received = time.monotonic(), b""
    with socket.create_connection(place, timeout=0.1) as line:
        line.sendall(start)
        while time.monotonic() - began < 10:
            try:
                with contextlib.suppress(TimeoutError):
                    piece = line.recv(1000)
                    if not piece:
                        break
                    received += piece
                line.sendall(b"x")
            except ConnectionError:  # closed with a byte of ours still unread
                break
    return received, time.monotonic() - began


def test_a_client_that_drips_its_body_is_cut_off_and_others_are_served_meanwhile(place: tuple[str, int]) -> None:
    with contextlib.ExitStack() as open_lines:
        lines = [open_lines.enter_context(socket.create_connection(place, timeout=10)) for _ in range(100)]
        for line in lines:
            line.sendall(HEAD % 100_000 + b"\xff\xd8")
        assert is_served(place)
        received, seconds = drip(place, HEAD % 100_000)
        assert received.startswith(b"HTTP/1.1 408")
        assert b'{"error":"' in received
        assert b"0.8 s" in received
        assert seconds < 5
        for line in lines:
            assert reply(line).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("start", [b"", b"POST /predict HTTP/1.1\r\nX-Slow: "])
def test_a_client_that_drips_its_head_or_sends_nothing_is_cut_off(place: tuple[str, int], start: bytes) -> None:
    received, seconds = drip(place, start)
    assert seconds < 5
    assert not received.startswith(b"HTTP/1.1 200")


def test_a_client_that_drips_on_after_it_was_refused_is_cut_off(place: tuple[str, int]) -> None:
    received, seconds = drip(place, HEAD % 10**9)
    assert received.startswith(b"HTTP/1.1 413")
    assert seconds < 5


def test_a_client_that_never_reads_its_responses_is_cut_off(place: tuple[str, int]) -> None:
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(place)
        line.settimeout(10)
        is_cut, began = False, time.monotonic()
        while not is_cut and time.monotonic() - began < 15:
            try:
                line.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200)
                time.sleep(0.02)
            except ConnectionError:
                is_cut = True
    assert is_cut
    assert is_served(place)


def test_more_connections_than_the_limit_get_503(place: tuple[str, int]) -> None:
    with contextlib.ExitStack() as open_lines:
        lines = [open_lines.enter_context(socket.create_connection(place, timeout=10)) for _ in range(140)]
        received = reply(lines[-1])
    assert received.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in received
    assert b'{"error": "Too many connections' in received
    deadline = time.monotonic() + 5
    while not is_served(place):  # the lines are closed, and the server learns of it
        assert time.monotonic() < deadline
