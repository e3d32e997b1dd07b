"""What a classifier is rebuilt from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heedmap.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """The description from which a classifier is rebuilt before its weights are loaded.

    The fields are those of :class:`heedmap.config.TrainOptions`; ``image_size`` is the side in pixels.
    """

    model: str
    attention: str
    attention_weights: str | None
    head: str
    taps: tuple[str, ...] | None
    image_size: int
    classes: tuple[str, ...]
    combine: str = "root"

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", class_names(self.classes))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Architecture:
        """Return the architecture that ``dataclasses.asdict`` wrote, from lists or tuples.

        Raises:
            KeyError, TypeError: these are not the fields of one.
        """
        taps = tuple(fields["taps"]) if fields["taps"] else None
        return cls(**{**fields, "taps": taps, "classes": tuple(str(name) for name in fields["classes"])})


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names as a tuple; a ModelError for a single text in their place, or a name that comes twice."""
    if isinstance(classes, str):
        raise ModelError(f"classes is the text {classes!r}; give the names one by one, such as ('cat', 'dog').")
    names = tuple(classes)
    if len(set(names)) < len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise ModelError(f"Class {twice!r} is named twice; give each class a name of its own.")
    return names
