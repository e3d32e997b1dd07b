"""Run parts of the benchmark: `python -m benchmarks [PART ...]`; without names, all that need no GPU."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks import measuring
from heedmap.system import keep_freed_memory

PARTS = {
    "training-step": "training_step",
    "end-to-end": "end_to_end",
    "learned-maps": "learned_maps",
    "map-methods": "map_methods",
    "drawing": "drawing",
    "localization": "localization",
    "startup": "startup",
    "scale": "scale",
}
ASKED_FOR = {"gpu": "gpu"}


def main() -> None:
    """Run each part, print its figures, and write the page of them all."""
    known = {**PARTS, **ASKED_FOR}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(known))
    parser.add_argument(
        "--clock",
        choices=measuring.CLOCKS,
        default="wall",
        help="processor: seconds of this process, for one thread (OMP_NUM_THREADS=1) on a machine that others use",
    )
    parser.add_argument("--rounds", type=int, help="of each part; by default each part's own number")
    parser.add_argument(
        "--page",
        action="store_true",
        help="only write the tables and docs/results/performance.md again, from the saved figures",
    )
    asked = parser.parse_args()
    unknown = [name for name in asked.parts if name not in known]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(known)}")
    measuring.clock = asked.clock
    keep_freed_memory()  # as the commands do; the reference and the peers, in this same process, gain as well
    parts = () if asked.page else tuple(asked.parts or PARTS)
    if len(parts) > 1:  # each in a process of its own, which holds no memory of those before it
        options = [word for word in sys.argv[1:] if word not in parts]
        for name in parts:
            subprocess.run([sys.executable, "-m", "benchmarks", name, *options], check=True)
        return
    for name in parts:
        print(f"\n{name}")
        rounds = {} if asked.rounds is None else {"rounds": asked.rounds}
        show(importlib.import_module(f"benchmarks.{known[name]}").main(**rounds))
    from benchmarks.page import write_page

    print(f"\n{write_page()}")


def show(record: Mapping[str, Any], indent: str = "  ") -> None:
    """Print figures, one a line."""
    for name, value in record.items():
        if isinstance(value, Mapping) and set(value) == {"median", "low", "high"}:
            print(f"{indent}{name}: {value['median']:.4g} ({value['low']:.4g} - {value['high']:.4g})")
        elif isinstance(value, Mapping):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value:.4g}" if isinstance(value, float) else f"{indent}{name}: {value}")


if __name__ == "__main__":
    main()
