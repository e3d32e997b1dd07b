"""The options and the result of drawing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from heedmap.errors import OptionError, nearest
from heedmap.visualization.panel import Scale


@dataclass(frozen=True)
class VisualizeOptions:
    """How images are drawn.

    Attributes:
        target: the class that the methods explain, by name or index; None is the one predicted for each image.
        layer: the layer that they read; None takes the last spatial one.
        scale: ``image`` draws each map from 0 to its own largest value (sigmoid weights from 0 to 1), ``range`` from
            its smallest to its largest, ``set`` on one scale for all images, ``(low, high)`` on a fixed one.
        overwrite: write into a folder that has something in it; only files of an earlier drawing there are removed.
        on_progress: called with the number of images done, after each batch.

    Raises:
        OptionError: ``batch_size`` is below 1, or no such scale.
    """

    target: str | int | None = None
    layer: str | None = None
    scale: Scale = "image"
    batch_size: int = 16
    overwrite: bool = False
    on_progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionError(f"batch_size {self.batch_size} is too small; it must be at least 1.")
        scale, words = self.scale, ("image", "range", "set")
        if scale not in words and not (isinstance(scale, tuple) and len(scale) == 2 and scale[0] < scale[1]):
            hint = nearest(scale, words) if isinstance(scale, str) else ""
            raise OptionError(f"scale {scale!r} is none of {', '.join(words)}, nor (low, high) with low < high.{hint}")


@dataclass(frozen=True)
class VisualizeResult:
    """What became of the images."""

    count: int  # images drawn
    unreadable: tuple[tuple[str, str], ...]  # path and reason of those skipped
    index: Path  # the page to open
    notes: tuple[str, ...]  # sentences for the user, such as why a query changes nothing
    seconds: float  # from the first image to the last file
