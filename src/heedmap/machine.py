"""What the machine grants this process: cores, and memory that need not be asked for twice."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # numbers of mallopt's parameters in glibc's malloc.h
PAD = 256 * 2**20  # bytes asked of the system at a time


def cores() -> int:
    """Processor cores that this process may use; ``taskset`` and the like may have made them fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
