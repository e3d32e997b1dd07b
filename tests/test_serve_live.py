"""One real server in a process of its own: crowds, giants, a fuzzer, and a stop in the middle of the work."""

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

httpx = pytest.importorskip("httpx")


@dataclass
class Server:
    """A running service."""

    address: str
    process: subprocess.Popen[str]

    @property
    def place(self) -> tuple[str, int]:
        host, port = self.address.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def megabytes(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)


@contextlib.contextmanager
def serving(run: Path, *words: object) -> Iterator[Server]:
    command = [sys.executable, "-m", "heedmap", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(
        [*command, *(str(word) for word in words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        yield Server(found[0], process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture(scope="module")
def server(_finished_run: Path) -> Iterator[Server]:
    with serving(_finished_run, "--timeout", 60) as running:  # a loaded machine takes its time for 200 at once
        yield running


def image(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def post(server: Server, content: bytes, kind: str = "image/jpeg", path: str = "/predict") -> "httpx.Response":
    return httpx.post(server.address + path, content=content, headers={"Content-Type": kind}, timeout=30)


@pytest.mark.slow
def test_two_hundred_requests_at_once_each_get_their_own_prediction(server: Server) -> None:
    alone = [post(server, image(seed)).json()["top"] for seed in range(5)]

    async def crowd() -> list["httpx.Response"]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.address, limits=limits, timeout=60) as client:
            headers = {"Content-Type": "image/jpeg"}
            sent = (client.post("/predict", content=image(number % 5), headers=headers) for number in range(200))
            return list(await asyncio.gather(*sent))

    answers = asyncio.run(crowd())
    assert [answer.status_code for answer in answers] == [200] * 200
    for number, answer in enumerate(answers):
        for one, other in zip(answer.json()["top"], alone[number % 5], strict=True):
            assert one["name"] == other["name"]
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
    health = httpx.get(server.address + "/health").json()
    assert health["waiting"] == 0
    assert health["batches"] < health["images"] / 2


def test_a_hundred_megabytes_are_refused_and_memory_stays_flat(server: Server) -> None:
    block = b"\xff" * 1_000_000
    for seed in range(5):
        post(server, image(seed))  # what the service needs anyway is there
    before, most = server.megabytes, 0.0

    async def giant() -> "httpx.Response":
        nonlocal most

        async def body() -> AsyncIterator[bytes]:
            nonlocal most
            for _ in range(100):
                most = max(most, server.megabytes)
                yield block

        async with httpx.AsyncClient(timeout=30) as client:  # chunked: the length is not declared
            return await client.post(
                server.address + "/predict", content=body(), headers={"Content-Type": "image/jpeg"}
            )

    for _ in range(3):
        answer = asyncio.run(giant())
        assert answer.status_code == 413
        assert "20,000,000" in answer.json()["error"]
    assert most - before < 120  # one body of 20 MB, its copies on the way, and nothing of the other 80
    assert server.megabytes - before < 80
    assert post(server, image()).status_code == 200


def test_a_declared_giant_a_bomb_a_text_and_a_cut_image_get_their_sentence(server: Server) -> None:
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    before = server.megabytes
    for content, status in ((file.getvalue(), 413), (b"text", 415), (image()[:700], 422), (b"", 422)):
        answer = post(server, content)
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
    assert server.megabytes - before < 50
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: 100000000\r\n\r\n"
    with socket.create_connection(server.place, timeout=10) as line:
        line.sendall(head)
        assert line.recv(100).startswith(b"HTTP/1.1 413")


def test_a_stop_finishes_what_is_under_way_and_ends_with_status_zero(finished_run: Path) -> None:
    with serving(finished_run) as server:
        content = image()
        head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        with socket.create_connection(server.place, timeout=10) as line:
            line.sendall(head.encode() + content[:100])
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            line.sendall(content[100:])
            assert line.recv(100).startswith(b"HTTP/1.1 200")
        out, complaints = server.process.communicate(timeout=20)
        assert server.process.returncode == 0, complaints
        assert "Stopped" in out
        assert complaints == ""


@pytest.mark.slow
def test_what_openapi_promises_holds_whatever_schemathesis_sends(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    command = ["run", f"{server.address}/openapi.json", "--checks", "all", "--max-examples", "15", "--no-color"]
    command += ["--generation-deterministic", "--suppress-health-check", "all"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # it keeps a cache where it works
        env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_images", "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
