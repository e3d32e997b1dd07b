"""What the machine grants this process: cores, memory, some of which need not be asked for twice, and an end."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # numbers of mallopt's parameters in glibc's malloc.h
PAD = 256 * 2**20  # bytes asked of the system at a time
GROUPS = Path("/sys/fs/cgroup")  # where Linux tells what a container's processes may take together
OWN_GROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Processor cores that this process may use.

    ``taskset`` and the like may have made them fewer than there are, and a container may be granted the time of fewer,
    rounded up here.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, cores_granted())))


def threads(workers: int | None) -> int:
    """Threads that decode: as told, or as many as there are cores."""
    return cores() if workers is None else workers


def free_memory() -> float:
    """Bytes that this process may still take: what the machine has left, or its container if that is less."""
    import psutil

    return min(float(psutil.virtual_memory().available), memory_granted())


def cores_granted(own: Path = OWN_GROUPS, groups: Path = GROUPS) -> float:
    """Cores whose time the process's control groups grant it; infinite without such a limit.

    Args:
        own: the system's list of the groups that the process is in.
        groups: where they are mounted; version 1 and 2 are understood, and the limits of groups above count too.
    """
    granted = math.inf
    for folder in _folders("cpu", own, groups):
        words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and (quota := _number(words[0])) < math.inf and (period := _number(words[1])) > 0:
            granted = min(granted, quota / period)
    return granted


def memory_granted(own: Path = OWN_GROUPS, groups: Path = GROUPS) -> float:
    """Bytes that the process's control groups would still grant it; infinite without such a limit.

    Files that were read and are not in use count as taken there, but give way; so they count as free here, as in what
    the system calls available.

    Args:
        own, groups: as for :func:`cores_granted`.
    """
    granted = math.inf
    for folder in _folders("memory", own, groups):
        told = _words(folder / "memory.stat")
        stat = dict(zip(told[::2], told[1::2], strict=False))
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
    """The folders of the control groups of one kind that the process is in, the innermost first.

    A container that sees itself as the root may still be told of its path outside, which is not mounted: then those
    above are what there is.
    """
    folders: list[Path] = []
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds:  # version 2: one tree for all kinds
                roots = [groups, groups / "unified"]
            else:
                roots = [groups / kinds, groups / kind] if kind in kinds.split(",") else []
            inner = Path(path.lstrip("/"))
            folders += [root / each for root in dict.fromkeys(roots) for each in (inner, *inner.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []


def _number(word: str) -> float:
    """A number of a control group; ``max``, -1 and what cannot be read are no limit."""
    return float(word) if word.isdigit() else math.inf


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is asked next, from now on and for the whole process.

    A step of training frees and asks for hundreds of megabytes. glibc maps every large block anew and gives it back
    when it is freed, and the system fills each new page with zeros first: 160,000 page faults and a fifth of the time
    of a step (docs/performance.md). The process then holds its peak until it ends, so this is for commands, which own
    their process; other programs may call it too. Whoever has set glibc's ``MALLOC_`` variables is left alone.

    Returns:
        Whether it was set; False where the C library is not glibc, or the environment has its say.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) for name, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, PAD)))


@contextlib.contextmanager
def term_as_interrupt() -> Iterator[None]:
    """While inside, SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # no other may ask for signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
