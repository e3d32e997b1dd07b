"""What a classifier is made of: all that is needed to make it again before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """What a classifier is made of; all that is needed to make it again before its weights are loaded.

    Attributes:
        model: ``compact``, ``whitened``, ``paper-vgg``, ``paper-resnet``, or a timm or torchvision name.
        attention, attention_weights, head, taps, combine: as in :class:`heedmap.config.TrainOptions`.
        image_size: side in pixels.
        classes: class names.
    """

    model: str
    attention: str
    attention_weights: str | None
    head: str
    taps: tuple[str, ...] | None
    image_size: int
    classes: tuple[str, ...]
    combine: str = "root"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Architecture:
        """Return the architecture that ``dataclasses.asdict`` wrote, from lists or tuples.

        Raises:
            KeyError, TypeError: these are not the fields of one.
        """
        taps = tuple(fields["taps"]) if fields["taps"] else None
        return cls(**{**fields, "taps": taps, "classes": tuple(str(name) for name in fields["classes"])})
