"""How the parts of a data set are called, and the order in which people read names."""

from __future__ import annotations

import re

__all__ = ["PARTS", "natural"]

PARTS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key: ``class2`` before ``class10``, upper and lower case together, the name itself to settle ties."""
    words = re.split(r"([0-9]+)", name)
    return [(int(word), "") if place % 2 else (0, word.casefold()) for place, word in enumerate(words)], name
