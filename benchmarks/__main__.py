"""Run parts of the benchmark: `python -m benchmarks [PART ...]`; without names, all of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

PARTS = {
    "training-step": "training_step",
    "end-to-end": "end_to_end",
    "learned-maps": "learned_maps",
    "map-methods": "map_methods",
    "drawing": "drawing",
    "startup": "startup",
}


def main(names: list[str]) -> None:
    """Run each part and print its figures."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"No part {unknown[0]!r}; there are {', '.join(PARTS)}.")
    for name in names or PARTS:
        print(f"\n{name}")
        show(importlib.import_module(f"benchmarks.{PARTS[name]}").main())


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
    main(sys.argv[1:])
