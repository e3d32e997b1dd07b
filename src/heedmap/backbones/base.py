"""What every backbone returns: feature maps at the taps, and the global feature that may serve as the query.

The loop over stages stands in :meth:`Backbone.forward`. Gates sit inside it, readouts read what it returns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from heedmap.errors import ModelError, nearest
from heedmap.types import Stage

Inside = Mapping[str, Callable[[Tensor], Tensor]]
"""Stage name -> what replaces its features (B, C, H, W) by others of the same shape, for all that follows."""
NOTHING: Inside = {}


class Normalization(NamedTuple):
    """Mean and standard deviation per channel of RGB in [0, 1], taken off and divided by before a network."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


class Trunk(NamedTuple):
    """The output of a backbone.

    Attributes:
        features: tap name -> (B, C, H, W), in the order of the requested taps.
        query: (B, D) the global feature, None when not requested.
        logits: (B, K) of the backbone's own head, where it keeps one (already trained networks), else None.
    """

    features: dict[str, Tensor]
    query: Tensor | None
    logits: Tensor | None


class Backbone(nn.Module):
    """Base of all backbones: a chain of stages, some of which are tapped, and a global feature at its end.

    A subclass sets the attributes; its stages are its submodules of those names, or what :meth:`stage_module` returns.
    A network that runs itself overrides :meth:`forward`.

    Attributes:
        name, default_taps: how messages call it, and the taps used when none are named.
        stages, query_channels: what can be tapped, in order, and the width D of the global feature.
        normalization: applied by the caller to RGB in [0, 1].
        query_modules: names of the submodules behind the last stage, which only the query needs.
        fixed_size, least_size: the only image side that the network takes, None for any; the smallest that works.
        normalises: every learned kernel is followed by a normalisation, so that its norm does not matter.
    """

    name: str = "backbone"
    stages: tuple[Stage, ...] = ()
    query_channels: int = 0
    query_modules: tuple[str, ...] = ()
    default_taps: tuple[str, ...] = ()
    normalization: Normalization = IMAGENET
    fixed_size: int | None = None
    least_size: int = 1
    normalises: bool = False

    def forward(self, images: Tensor, taps: tuple[str, ...], need_query: bool, inside: Inside = NOTHING) -> Trunk:
        """Run the network.

        Args:
            images: (B, 3, H, W), normalised by :attr:`normalization`.
            taps: the stages whose features are returned; checked beforehand by :meth:`check_taps`.
            need_query: whether to return the global feature; without it nothing behind the last tap is run.
            inside: what changes a stage's features before the tap and all later stages see them.
        """
        x, features = self.begin(images), {}
        for stage in self.stages if need_query else self.stages[: self._depth(taps)]:
            x = self.stage_module(stage.name)(x)
            if stage.name in inside:
                x = inside[stage.name](x)
            if stage.name in taps:
                features[stage.name] = x
            x = self.leave(stage.name, x)
        return Trunk({tap: features[tap] for tap in taps}, self.global_feature(x) if need_query else None, None)

    def begin(self, images: Tensor) -> Tensor:
        """Return what the first stage takes, of normalised images (B, 3, H, W): a ``stem``'s features, or they."""
        features: Tensor = self.get_submodule("stem")(images) if "stem" in self._modules else images
        return features

    def stage_module(self, name: str) -> nn.Module:
        """Return the module of a stage."""
        return self.get_submodule(name)

    def leave(self, name: str, features: Tensor) -> Tensor:
        """Return what the next stage takes, of the features (B, C, H, W) of the named one."""
        return features

    def global_feature(self, features: Tensor) -> Tensor:
        """Return the query (B, D), of what the last stage left; the mean over positions unless overridden."""
        return features.mean(dim=(2, 3))

    def query_parameters(self) -> list[nn.Parameter]:
        """Return the parameters behind the last stage, which only the query needs."""
        return [parameter for name in self.query_modules for parameter in self.get_submodule(name).parameters()]

    def unread_parameters(self, taps: tuple[str, ...]) -> list[nn.Parameter]:
        """Parameters that get no gradient when only these taps are read, and no query: frozen by the classifier."""
        behind = self.stages[self._depth(taps) :]
        return [p for stage in behind for p in self.stage_module(stage.name).parameters()] + self.query_parameters()

    def is_read(self, stage: str, taps: tuple[str, ...]) -> bool:
        """Whether the taps read the stage or what depends on it; the query is not counted."""
        return stage in [each.name for each in self.stages[: self._depth(taps)]]

    def _depth(self, taps: Sequence[str]) -> int:
        """The number of stages up to the last tap."""
        return max((place for place, stage in enumerate(self.stages, start=1) if stage.name in taps), default=0)

    def fast_parameters(self) -> list[nn.Parameter]:
        """Parameters that SGD has to move much faster than the kernels; none in most networks."""
        return []

    def stage(self, name: str) -> Stage:
        """Return the stage of that name, or raise as :meth:`check_taps` does."""
        self.check_taps((name,))
        return next(stage for stage in self.stages if stage.name == name)

    def grid_side(self, tap: str, image_size: int) -> int:
        """Positions to a side at a tap for square images of that size."""
        return -(-image_size // self.stage(tap).stride)

    def check_taps(self, taps: Sequence[str]) -> None:
        """Raise a ModelError with the names that exist where a tap does not, and where one is named twice."""
        known = [stage.name for stage in self.stages]
        for tap in taps:
            if tap not in known:
                raise ModelError(f"No tap {tap!r} in {self.name}; it has {', '.join(known)}.{nearest(tap, known)}")
        if len(set(taps)) != len(taps):
            raise ModelError(f"A tap is named twice in {', '.join(taps)}; name each once.")

    def check_size(self, height: int, width: int) -> None:
        """Raise a ModelError where such images are too small, or not of the one size that the network takes."""
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
