"""What the system grants this process: cores, memory, and signals."""

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # numbers of mallopt's parameters in glibc's malloc.h
PAD = 256 * 2**20  # bytes requested from the system at a time
GROUPS = Path("/sys/fs/cgroup")  # where Linux has the limits of a container's processes
OWN_GROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Return the number of cores that this process may use: by ``taskset``, or by its container's limit, rounded up."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, cores_granted())))


def threads(workers: int | None) -> int:
    """Return the number of threads that decode; None takes the number of cores."""
    return cores() if workers is None else workers


def free_memory() -> float:
    """Return the bytes that this process may still allocate, in the machine and in its container."""
    import psutil

    return min(float(psutil.virtual_memory().available), memory_granted())


def cores_granted(own: Path = OWN_GROUPS, groups: Path = GROUPS) -> float:
    """Return the cores that the process's control groups, version 1 or 2, grant it; infinite without a limit.

    ``own`` is the system's list of the process's groups, which are mounted at ``groups``; those above count too.
    """
    granted = math.inf
    for folder in _folders("cpu", own, groups):
        words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and (quota := _number(words[0])) < math.inf and (period := _number(words[1])) > 0:
            granted = min(granted, quota / period)
    return granted


def memory_granted(own: Path = OWN_GROUPS, groups: Path = GROUPS) -> float:
    """Return the bytes that the process's control groups (see :func:`cores_granted`) still grant; infinite without any.

    Cached files that are not in use count as free, as in what the system calls available.
    """
    granted = math.inf
    for folder in _folders("memory", own, groups):
        words = _words(folder / "memory.stat")
        stat = dict(zip(words[::2], words[1::2], strict=False))
        for most, now, idle in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, taken = _words(folder / most), _words(folder / now)
            if limit and taken and _number(limit[0]) < math.inf:
                in_use = max(0.0, _number(taken[0]) - _number(stat.get(idle, "0")))
                granted = min(granted, max(0.0, _number(limit[0]) - in_use))
    return granted


def _folders(kind: str, own: Path, groups: Path) -> list[Path]:
    """Return the folders of the process's control groups of one kind, the innermost first.

    In a container the path may be the one outside, which is not mounted; then only folders above it exist.
    """
    folders: list[Path] = []
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and kind not in kinds.split(","):
                continue
            # Version 2 names no kinds: it has one tree for all.
            roots = (groups / kinds, groups / kind) if kinds else (groups, groups / "unified")
            inner = Path(path.lstrip("/"))
            folders += [root / folder for root in roots for folder in (inner, *inner.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []


def _number(word: str) -> float:
    """Return a number of a control group; ``max``, -1 and what cannot be read are no limit."""
    return float(word) if word.isdigit() else math.inf


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for later allocations, in the whole process; return whether it was set.

    A training step frees and allocates hundreds of megabytes. glibc maps every large block again and returns it to the
    system when it is freed, and the system fills each new page with zeros: 160,000 page faults and a fifth of the time
    of a step (docs/results/performance.md). The process then holds its peak until it ends, so this is for commands,
    which own their process. It is not set where the C library is not glibc or its ``MALLOC_`` variables are set.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) for name, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, PAD)))


@contextlib.contextmanager
def signals_handled(handler: Callable[[int, FrameType | None], Any], *signals: int) -> Iterator[None]:
    """Let ``handler`` handle signals while inside, in the main thread; no other thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def term_as_interrupt() -> contextlib.AbstractContextManager[None]:
    """While inside, SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    return signals_handled(signal.default_int_handler, signal.SIGTERM)
