"""Part photographs with masks into train, val and test, so that no photograph stands in two parts.

    python experiments/voc_masks.py FROM TO

FROM holds images/CLASS/* and masks/CLASS/*. A photograph that stands under several classes goes, with all of them, into
one part; heedmap's own split is by file and class, and would show the network images that it is evaluated by. Files are
linked, not copied.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

PARTS = {"train": 0.6, "val": 0.15, "test": 0.25}


def part_of(content: bytes) -> str:
    """The part of a photograph: a function of its bytes alone, so that it is the same everywhere."""
    share, edge = int(hashlib.sha256(content).hexdigest()[:8], 16) / 16**8, 0.0
    for name, size in PARTS.items():
        edge += size
        if share < edge:
            return name
    return name


def main() -> None:
    """Make TO/PART/CLASS/IMAGE, and TO/masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    told = parser.parse_args()
    source, target = told.source.resolve(), told.target
    for image in sorted(source.glob("images/*/*")):
        place = target / "images" / part_of(image.read_bytes()) / image.parent.name / image.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(image)
    (target / "masks").symlink_to(source / "masks")


if __name__ == "__main__":
    main()
