"""Every way heedmap says no.

    HeedmapError
    ├── DataError        a folder, a named set or an image that cannot be used
    │   └── ImageError     one image file that cannot be decoded
    ├── ModelError       a model, tap, attention or weights file that cannot be built or loaded
    ├── OptionError      an option or a config key that is unknown or out of range
    ├── RunError         a run folder that is missing, incomplete, newer, or changed by another hand
    ├── TrainingError    training that cannot go on (loss not finite, nothing to train)
    └── Stopped          training was asked to stop and has saved its state

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
    """A run folder that is missing, incomplete, from a newer heedmap, or changed by another hand."""


class TrainingError(HeedmapError):
    """Training that cannot go on."""


class Stopped(HeedmapError):  # noqa: N818  not an error of anybody's
    """Training was asked to stop (SIGINT, SIGTERM), has saved its state, and can go on."""


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return `` Did you mean 'x'?`` for the known word closest to ``word``, or an empty string.

    ``cutoff``, from 0 to 1, is the least likeness (``difflib``'s ratio) that makes a proposal.
    """
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {found[0]!r}?" if found else ""
