"""What every backbone answers: feature maps at the taps, and the global feature that may serve as the query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from heedmap.errors import ModelError, nearest
from heedmap.types import Stage

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Trunk(NamedTuple):
    """What a backbone gives back.

    Attributes:
        features: tap name -> (B, C, H, W), in the order in which the taps were asked for.
        query: (B, D) the global feature, None when not asked for.
        logits: (B, K) the backbone's own answer, where it keeps its own head (already trained networks), else None.
    """

    features: dict[str, Tensor]
    query: Tensor | None
    logits: Tensor | None


class Backbone(nn.Module):
    """Base of all backbones: a chain of stages, some of which are tapped, and a global feature at its end.

    A subclass sets the attributes and defines :meth:`forward`. It needs no more of the taps than their names; which
    attention reads them is not its business.

    Attributes:
        name: how messages call it.
        stages: what can be tapped, in order.
        query_channels: width D of the global feature.
        default_taps: the taps taken when none are named.
        mean, std: the normalisation that the caller applies to RGB in [0, 1] before calling the backbone.
        fixed_size: the image side that the network insists on, or None when any will do.
        least_size: the smallest image side that works.
        normalises: every kernel that learns is followed by a normalisation, so that its length does not matter.
    """

    name: str = "backbone"
    stages: tuple[Stage, ...] = ()
    query_channels: int = 0
    default_taps: tuple[str, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    fixed_size: int | None = None
    least_size: int = 1
    normalises: bool = False

    def forward(self, images: Tensor, taps: tuple[str, ...], need_query: bool) -> Trunk:
        """Run the network on normalised images.

        Args:
            images: (B, 3, H, W), normalised by ``mean`` and ``std``.
            taps: names of the stages whose features are wanted; checked beforehand by :meth:`check_taps`.
            need_query: whether the global feature is wanted; without it the layers that only it needs are skipped.
        """
        raise NotImplementedError

    def query_parameters(self) -> list[nn.Parameter]:
        """Parameters that only the query needs; without a readout that uses the query they get no gradient."""
        return []

    def unread_parameters(self, taps: tuple[str, ...]) -> list[nn.Parameter]:
        """Parameters that get no gradient when only these taps are read, and no query: frozen by the classifier.

        A subclass that does not run the stages behind the last tap adds theirs to the query's.
        """
        return self.query_parameters()

    def eager_parameters(self) -> list[nn.Parameter]:
        """Parameters that SGD has to move much faster than the kernels; none in most networks."""
        return []

    def stage(self, name: str) -> Stage:
        """Return the stage of that name.

        Raises:
            ModelError: there is none; the message lists those that exist.
        """
        self.check_taps((name,))
        return next(stage for stage in self.stages if stage.name == name)

    def grid_side(self, tap: str, image_size: int) -> int:
        """Positions to a side at a tap for square images of that size."""
        return -(-image_size // self.stage(tap).stride)

    def check_taps(self, taps: Sequence[str]) -> None:
        """Check that every tap exists and none is named twice.

        Raises:
            ModelError: with the names that exist and the nearest one.
        """
        known = [stage.name for stage in self.stages]
        for tap in taps:
            if tap not in known:
                raise ModelError(f"No tap {tap!r} in {self.name}; it has {', '.join(known)}.{nearest(tap, known)}")
        if len(set(taps)) != len(taps):
            raise ModelError(f"A tap is named twice in {', '.join(taps)}; name each once.")

    def check_size(self, height: int, width: int) -> None:
        """Check that images of this size can be run.

        Raises:
            ModelError: the image is too small, or not of the one size that the network takes.
        """
        if self.fixed_size is not None and (height, width) != (self.fixed_size, self.fixed_size):
            raise ModelError(
                f"{self.name} takes images of {self.fixed_size} x {self.fixed_size} only, not {width} x {height}; "
                f"set the image size to {self.fixed_size}."
            )
        if min(height, width) < self.least_size:
            raise ModelError(
                f"An image of {width} x {height} is too small for {self.name}; the short side must be at least "
                f"{self.least_size}, so set a larger image size."
            )


def ordered(features: dict[str, Tensor], taps: Iterable[str]) -> dict[str, Tensor]:
    """Return the tapped features in the order of ``taps``."""
    return {tap: features[tap] for tap in taps}
