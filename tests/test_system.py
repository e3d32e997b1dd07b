"""What the machine grants: cores, a container's limits, and freed memory kept for the next step (glibc)."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from heedmap import system as machine
from heedmap.data.loader import memory_to_use

needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc"
)
PROGRAM = """
import resource
from heedmap.system import keep_freed_memory

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
    program = "import os; from heedmap.system import cores; os.sched_setaffinity(0, [0]); print(cores())"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout == "1\n"


@needs_glibc
def test_a_freed_block_is_allocated_again_without_page_faults() -> None:
    was_set, faults = run()
    assert was_set == "True"
    assert faults < 1000  # eight blocks of 16,384 pages


@needs_glibc
def test_settings_of_the_c_library_in_the_environment_win() -> None:
    was_set, faults = run(MALLOC_MMAP_THRESHOLD_="1048576")
    assert was_set == "False"
    assert faults > 8 * 512  # at the fewest, where the system gives pages of two megabytes: shows what is saved


# ---- a container's limits, on made files


def made(folder: Path, own: str, **files: str) -> tuple[Path, Path]:
    """The list of the process's groups, and where they are mounted; ``__`` in a name is ``/``, ``_`` stays."""
    for name, content in files.items():
        path = folder / "groups" / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    (folder / "own").write_text(own + "\n")
    return folder / "own", folder / "groups"


@pytest.mark.parametrize(
    ("own", "files", "granted"),
    [
        ("0::/", {"cpuDOTmax": "150000 100000"}, 1.5),
        ("0::/", {"cpuDOTmax": "max 100000"}, math.inf),
        ("0::/a/b", {"a__b__cpuDOTmax": "max 100000", "a__cpuDOTmax": "300000 100000", "cpuDOTmax": "max 100000"}, 3),
        ("0::/docker/123", {"cpuDOTmax": "50000 100000"}, 0.5),  # the path outside of the container
        ("3:cpu,cpuacct:/x", {"cpu,cpuacct__x__cpuDOTcfs_quota_us": "250000",
                              "cpu,cpuacct__x__cpuDOTcfs_period_us": "100000"}, 2.5),
        ("3:cpu:/", {"cpu__cpuDOTcfs_quota_us": "-1", "cpu__cpuDOTcfs_period_us": "100000"}, math.inf),
        ("3:cpuset:/", {"cpu__cpuDOTcfs_quota_us": "100000", "cpu__cpuDOTcfs_period_us": "100000"}, math.inf),
        ("0::/", {"cpuDOTmax": "nonsense"}, math.inf),
        ("nonsense", {}, math.inf),
        ("0::/", {}, math.inf),
    ],
)  # fmt: skip
def test_the_time_of_cores_that_a_container_grants(
    tmp_path: Path, own: str, files: dict[str, str], granted: float
) -> None:
    assert machine.cores_granted(*made(tmp_path, own, **files)) == granted


@pytest.mark.parametrize(
    ("own", "files", "granted"),
    [
        ("0::/", {"memoryDOTmax": "1000", "memoryDOTcurrent": "400"}, 600),
        ("0::/", {"memoryDOTmax": "1000", "memoryDOTcurrent": "990",
                  "memoryDOTstat": "anon 90\ninactive_file 850\nactive_file 50"}, 860),
        ("0::/", {"memoryDOTmax": "max", "memoryDOTcurrent": "400"}, math.inf),
        ("0::/", {"memoryDOTmax": "100", "memoryDOTcurrent": "400"}, 0),
        ("0::/a", {"a__memoryDOTmax": "5000", "a__memoryDOTcurrent": "1", "memoryDOTmax": "900",
                   "memoryDOTcurrent": "200"}, 700),
        ("4:memory:/in", {"memory__in__memoryDOTlimit_in_bytes": "800", "memory__in__memoryDOTusage_in_bytes": "500",
                          "memory__in__memoryDOTstat": "inactive_file 1\ntotal_inactive_file 300"}, 600),
        ("4:memory:/docker/9", {"memory__memoryDOTlimit_in_bytes": "800", "memory__memoryDOTusage_in_bytes": "500"},
         300),
        ("0::/", {}, math.inf),
    ],
)  # fmt: skip
def test_the_memory_that_a_container_grants(tmp_path: Path, own: str, files: dict[str, str], granted: float) -> None:
    assert machine.memory_granted(*made(tmp_path, own, **files)) == granted


def test_without_such_files_nothing_is_limited(tmp_path: Path) -> None:
    nowhere = (tmp_path / "own", tmp_path / "groups")
    assert machine.cores_granted(*nowhere) == machine.memory_granted(*nowhere) == math.inf


def test_cores_and_memory_are_the_smaller_of_machine_and_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores_granted", lambda: math.inf)
    monkeypatch.setattr(machine, "memory_granted", lambda: math.inf)
    assert machine.cores() == len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(machine.cores())
    )
    assert machine.free_memory() > 1e6
    monkeypatch.setattr(machine, "cores_granted", lambda: 0.2)
    monkeypatch.setattr(machine, "memory_granted", lambda: 8000.0)
    assert machine.cores() == 1
    assert memory_to_use(None, 2) == 1000
