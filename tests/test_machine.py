"""Freed memory is kept for the next step, where the C library is glibc and nobody else has set it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc"
)
PROGRAM = """
import resource
from heedmap.machine import keep_freed_memory

print(keep_freed_memory())
for turn in range(9):
    block = b"x" * 2**26
    del block
    if turn == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**variables: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**clean, **variables}, check=True, capture_output=True, text=True
    )
    was_set, faults = found.stdout.split()
    return was_set, int(faults)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_cores_are_those_that_the_process_may_use() -> None:
    program = "import os; from heedmap.machine import cores; os.sched_setaffinity(0, [0]); print(cores())"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout == "1\n"


def test_a_block_that_was_freed_is_asked_for_again_without_page_faults() -> None:
    was_set, faults = run()
    assert was_set == "True"
    assert faults < 1000  # eight blocks of 16,384 pages


def test_who_has_set_the_c_library_is_left_alone() -> None:
    was_set, faults = run(MALLOC_MMAP_THRESHOLD_="1048576")
    assert was_set == "False"
    assert faults > 8 * 512  # at the fewest, where the system gives pages of two megabytes: shows what is saved
