"""How long judging where maps lie takes: ``python benchmarks/localisation.py [--maps 10000] [--side 14] [--size 224]``.

The maps are noise on a grid of ``--side`` cells, interpolated: 14 is what a deep tap gives at 224 pixels, 224 the worst
case, a map in which every pixel goes its own way. Prints processor seconds too: they hardly change when others compute.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from heedmap.data.annotations import Annotations
from heedmap.evaluation.localisation import localise


def drawn(count: int, generator: torch.Generator) -> Annotations:
    """Annotations of one box a picture, a fifth to four fifths of each side."""
    sides = 0.2 + 0.6 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (1 - sides)
    boxes = torch.cat([corner, corner + sides], dim=1)
    names = tuple(str(row) for row in range(count))
    known, objects = torch.ones(count, dtype=torch.bool), torch.ones(count, dtype=torch.int64)
    return Annotations(names, tuple(box[None] for box in boxes), (None,) * count, known, objects)


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("maps", 10000), ("side", 14), ("size", 224)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    annotations = drawn(options.maps, generator)

    def maps(rows: torch.Tensor) -> torch.Tensor:
        source = torch.Generator().manual_seed(int(rows[0]))
        return torch.rand(len(rows), 1, options.side, options.side, generator=source)

    for name, judged in (("baselines alone", None), ("maps and baselines", maps)):
        wall, processor = time.perf_counter(), time.process_time()
        localise({"maps": judged or (lambda rows: torch.ones(len(rows), 1, 1, 1))}, annotations, size=options.size)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(  # noqa: T201  the point of the script
            f"{name}: {options.maps} maps of {options.side} cells at {options.size} pixels, {wall:.1f} s, "
            f"{processor:.1f} s of processor, peak {memory:.2f} GiB"
        )


if __name__ == "__main__":
    main()
