"""A change of structure changes no number: losses, weights, maps, an exported file and an evaluation stay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import same_numbers

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of this code, made in a process of its own: on one thread, which nothing else has touched."""
    folder = tmp_path_factory.mktemp("now")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(same_numbers.__file__)), str(folder)],
        **{"capture_output": True, "text": True, "check": False, "env": environment, "cwd": Path(__file__).parent},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_figures_are_those_recorded_before_the_move(now: Path) -> None:
    before, after = (json.loads((folder / "figures.json").read_text()) for folder in (GOLDEN, now))
    kept, made = (np.load(folder / "arrays.npz") for folder in (GOLDEN, now))
    assert set(made.files) == set(kept.files)
    assert set(after["evaluation"]) == set(before["evaluation"])
    if all(before[key] == value for key, value in same_numbers.machine().items()):
        assert after["losses"] == before["losses"]
        assert after["weights"] == before["weights"]
        assert after["evaluation"] == before["evaluation"]
        for name in kept.files:
            np.testing.assert_array_equal(made[name], kept[name], err_msg=name)
    else:  # another processor or torch rounds otherwise, and training lets roundings grow
        np.testing.assert_allclose(after["losses"], before["losses"], rtol=0.02)
        for name in kept.files:
            assert made[name].shape == kept[name].shape
