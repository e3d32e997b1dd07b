"""Small texts: counts for messages, lists of names as users write them, names of new folders."""

from collections.abc import Iterable
from pathlib import Path

from heedmap.errors import OptionError


def counted(count: int, noun: str) -> str:
    """Return number and noun, as ``1 epoch`` or ``2,000 epochs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def split_names(option: str, words: Iterable[str]) -> tuple[str, ...]:
    """Return the names in an option's words, which spaces or commas separate.

    Raises:
        OptionError: words without any name, such as of a shell's empty variable.
    """
    words = tuple(words)
    names = tuple(name.strip() for word in words for name in word.split(",") if name.strip())
    if words and not names:
        raise OptionError(f"--{option} names nothing; leave it out, or name something.")
    return names


def class_values(words: Iterable[str]) -> dict[str, int] | None:
    """Return classes and the whole numbers that stand for them, given as ``cat=1``; None where none are given.

    Raises:
        OptionError: a word of another form, or a class given twice.
    """
    values: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if not name or not number.isdecimal() or name in values:
            raise OptionError(f"class_values cannot hold {word!r}; give each class once, such as cat=1.")
        values[name] = int(number)
    return values or None


def free_name(parent: Path, stem: str) -> Path:
    """Return the first of ``stem-1``, ``stem-2``, ... in ``parent`` that does not exist."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"
