"""What every part of the benchmark shares: the machine, its ceiling, alternating rounds, and where results are kept.

A figure is worth something beside two others: what the machine can do at all, and what the next best way does, both
measured in the same minutes. So contenders take turns, several rounds long, and the ceiling is measured in between. A
ratio is taken round by round, so that what the rounds have in common cancels, and has a spread of its own.
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""``processor`` counts what this process computes, on all its threads: for one thread on a machine that others use."""

clock = "wall"
RESULTS = Path(__file__).parent / "results"
SIDES = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the ceiling
# Done between two waits for the device: on a GPU one product, or one step, would mostly measure launching and waiting.
AT_ONCE = {"cpu": 1, "cuda": 20}
OUT_OF_MEMORY = "out of memory"
TRIES = 6  # of the ceiling, the best of which counts
COPIED = 2**26  # float32 values


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    words = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").is_file() else []
    named = [line.partition(":")[2].strip() for line in words if line.startswith("model name")]
    flags = next((line for line in words if line.startswith("flags")), "")
    found = {
        "processor": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16 units": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags],
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "clock": clock,
        "load": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def ceiling(device: str = "cpu") -> dict[str, float]:
    """The machine's own limits: matrix products (TFLOP/s), memory copy (GB/s, read and written), JPEG decode (1/s)."""
    return {
        "bf16 product TFLOP/s": product(torch.bfloat16, device),
        "float32 product TFLOP/s": product(torch.float32, device),
        "memory copy GB/s": _copy(device),
        "JPEG decode 1/s": _decode(),
    }


def product(dtype: torch.dtype, device: str = "cpu") -> float:
    """TFLOP/s of products of square matrices, the best of some tries."""
    side = SIDES[torch.device(device).type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    target = torch.empty_like(left)
    seconds = _best(lambda: torch.mm(left, right, out=target), device)
    return 2 * side**3 / seconds / 1e12


def _copy(device: str) -> float:
    source = torch.ones(COPIED, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device) / 1e9


def _best(work: Callable[[], object], device: str) -> float:
    """Seconds that the work takes once, in the quickest try; one before them is not counted."""
    several = repeated(work, device)
    several()
    return min(timed(several, device) for _ in range(TRIES)) / AT_ONCE[torch.device(device).type]


def repeated(work: Callable[[], object], device: str) -> Callable[[], None]:
    """The work done :data:`AT_ONCE` times."""
    times = range(AT_ONCE[torch.device(device).type])

    def several() -> None:
        for _ in times:
            work()

    return several


def _decode() -> float:
    """Photograph-like JPEGs of 640 x 480, decoded whole by Pillow on one thread."""
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return 20 / timed(lambda: [Image.open(io.BytesIO(content.getvalue())).load() for _ in range(20)])


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that the work takes, all of it: a GPU is waited for."""
    if device != "cpu":
        torch.cuda.synchronize()
    now = CLOCKS[clock]
    began = now()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return now() - began


def alternate(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", *, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each contender, round by round.

    Each is run once beforehand, which is not counted, unless they are ``warm``. Every round begins with another one, so
    that none always comes after the same.
    """
    for work in () if warm else contenders.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(contenders[name], device))
    return seconds


def those_that_fit(
    contenders: Mapping[str, Callable[[], object]],
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Run each once; returns those for which a GPU has the memory, and a note on each of the others."""
    fit, notes = {}, {}
    for name, work in contenders.items():
        try:
            work()
            fit[name] = work
        except torch.cuda.OutOfMemoryError:
            notes[name] = OUT_OF_MEMORY
            torch.cuda.empty_cache()
    return fit, notes


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the lowest and highest of the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One measure by another, round by round."""
    return [one / other for one, other in zip(above, below, strict=True)]


def keep(part: str, record: Mapping[str, Any]) -> Path:
    """Write a part's figures, with the machine they were taken on and the day."""
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{part}.json"
    whole = {"part": part, "day": time.strftime("%Y-%m-%d"), "machine": machine(), **record}
    target.write_text(json.dumps(whole, indent=1) + "\n")
    return target
