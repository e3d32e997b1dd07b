"""Names of folders that hold a part of a dataset, and the natural order of names. Needs no torch."""

import re

PARTS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
"""Name of a folder, in lower case -> the part that it holds."""


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key: ``class2`` before ``class10``, upper and lower case together, the name itself to settle ties."""
    words = re.split(r"([0-9]+)", name)
    return [(int(word), "") if place % 2 else (0, word.casefold()) for place, word in enumerate(words)], name
