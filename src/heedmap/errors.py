"""The errors of heedmap, and words for messages.

    HeedmapError
    ├── DataError
    │   └── ImageError
    ├── ModelError
    ├── OptionError
    ├── RunError
    ├── TrainingError
    └── Stopped

Each message is one line: what is wrong, the file or value, and the way out. The command line prints the
message alone and exits with status 2; a traceback means a defect of heedmap.
"""

import difflib
from collections.abc import Iterable


class HeedmapError(Exception):
    """Base of all errors that heedmap raises on purpose."""


class DataError(HeedmapError):
    """A folder, a named set or an image that cannot be used."""


class ImageError(DataError):
    """One image file that cannot be decoded; the message names the file and the reason."""


class ModelError(HeedmapError):
    """A model, tap, attention or weights file that cannot be built or loaded."""


class OptionError(HeedmapError):
    """An option or a config key that is unknown or out of range."""


class RunError(HeedmapError):
    """A run folder that is missing, incomplete, from a newer heedmap, or changed since."""


class TrainingError(HeedmapError):
    """Training that cannot continue (loss not finite, nothing to train)."""


class Stopped(HeedmapError):  # noqa: N818  no error
    """Training was stopped (SIGINT, SIGTERM), has saved its state, and can be resumed."""


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return `` Did you mean 'x'?`` for the known word closest to ``word``, or an empty string.

    ``cutoff``, from 0 to 1, is the least similarity (``difflib``'s ratio) for a proposal.
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def checked_choice(what: str, value: str, known: Iterable[str]) -> str:
    """Return the value, or raise a ModelError with the known ones where it is not among them."""
    if value not in known:
        raise ModelError(f"Unknown {what} {value!r}; it can be {', '.join(known)}.{nearest(value, known)}")
    return value


def counted(count: int, noun: str) -> str:
    """Return number and noun, as ``1 epoch`` or ``2,000 epochs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
