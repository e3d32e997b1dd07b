"""Requests a second and latency of ``heedmap serve``, beside the ceiling of the same machine.

    python benchmarks/serve.py RUN [--image FILE] [--requests 400] [--clients 1 8 32 200]

Starts the service in a process of its own and sends it one image again and again over as many kept-open connections
as there are clients, each asking anew when it has its answer. The client shares the machine's cores with the service.
The ceiling is the classifier alone on full batches of decoded images, and decoding alone on one thread, in this
process.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageFilter

from heedmap.apps.server import Limits, open_predictor
from heedmap.apps.uploads import decode_upload


def photograph() -> bytes:
    """A JPEG of 640 x 480 pixels with as much detail as a photograph."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)).save(file, "JPEG", quality=88)
    return file.getvalue()


async def client(place: tuple[str, int], request: bytes, left: list[int], seconds: list[float]) -> None:
    """Ask until nothing is left to ask."""
    reader, writer = await asyncio.open_connection(*place)
    while left[0] > 0:
        left[0] -= 1
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length, head
        body = await reader.readexactly(int(length[1]))
        seconds.append(time.perf_counter() - began)
        assert head.startswith(b"HTTP/1.1 200"), body
    writer.close()


async def crowd(place: tuple[str, int], request: bytes, requests: int, clients: int) -> tuple[float, list[float]]:
    """Return requests a second and the seconds of each request."""
    left, seconds = [requests], []
    began = time.perf_counter()
    await asyncio.gather(*(client(place, request, left, seconds) for _ in range(clients)))
    return requests / (time.perf_counter() - began), sorted(seconds)


def ceilings(run: str, content: bytes) -> None:
    """Print what the classifier and the decoder do alone."""
    predictor, limits = open_predictor(run), Limits()
    view = decode_upload(content, predictor.image_size, limits).image
    batch = np.stack([view] * limits.batch_size)
    for name, work, count in (
        ("classifier alone, batches of 16", lambda: predictor(batch), limits.batch_size),
        ("classifier alone, one at a time", lambda: predictor(batch[:1]), 1),
        ("decoding alone, one thread", lambda: decode_upload(content, predictor.image_size, limits), 1),
    ):
        work()
        began, times = time.perf_counter(), 0
        while time.perf_counter() - began < 2:
            work()
            times += 1
        print(f"{name:34} {times * count / (time.perf_counter() - began):8.0f} /s")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--image")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 200])
    given = parser.parse_args()
    content = Path(given.image).read_bytes() if given.image else photograph()
    print(f"image of {len(content):,} bytes, {Image.open(io.BytesIO(content)).size}")
    ceilings(given.run, content)
    command = [sys.executable, "-m", "heedmap", "serve", given.run, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)", server.stdout.readline())
        assert found
        place = (found[1], int(found[2]))
        head = (
            f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        request = head.encode() + content
        asyncio.run(crowd(place, request, 50, 4))  # warm
        for clients in given.clients:
            rate, seconds = asyncio.run(crowd(place, request, given.requests, clients))
            half, most = (1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.95))
            memory = psutil.Process(server.pid).memory_info().rss / 1e6
            latency = f"median {half:6.1f} ms   95 % {most:6.1f} ms"
            print(f"{clients:4} clients {rate:8.0f} requests/s   {latency}   {memory:4.0f} MB")
        server.terminate()


if __name__ == "__main__":
    main()
