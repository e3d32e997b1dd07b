"""The VGG of "Learn To Pay Attention" for 32x32 images, and the plain VGG that it is measured against.

Layers, dropouts and shapes are those of the authors' published code (facts, not code, were taken from it). A conv is
3x3, stride 1, pad 1 with bias, then BatchNorm (eps 1e-3), ReLU and, where the table says so, dropout. The attention net
moves the plain net's first two pools behind two added convs, so that the taps keep 32, 16 and 8 positions a side; it
costs 12 times the plain net, nearly all of it for that and not for attention. A fair control is therefore the same
trunk with averaged taps (``attention="none"``), not the plain net.

Choices the sources leave open, as settled here:

- A tap is read after conv, BatchNorm and ReLU, *before* the pool and before any dropout (the paper's figure draws it
  behind the pool; the code taps before).
- The query g is the output of FC-1 as it is, without BatchNorm or ReLU.
- Gradients add up where the net forks. The published code averages them by hand (1/2 or 1/3 at each fork).
- Convs start at N(0, sqrt(2 / (9 * out))) with bias 0, as published. BatchNorm weights start at 1, not at U(0, 1).
- Images are normalised by CIFAR-10's mean and deviation, not by YUV contrast or ZCA.
- The last pool takes the maximum of all that is left. At 32x32 that is the published 2x2 pool; other sizes work too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from heedmap.backbones.base import Backbone, Trunk, ordered
from heedmap.backbones.dropout import QuickDropout
from heedmap.errors import ModelError
from heedmap.types import Stage

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
# Each level adds one tap further up, as the paper's -att, -att2 and -att3.
LEVELS = {1: ("conv13",), 2: ("conv10", "conv13"), 3: ("conv7", "conv10", "conv13")}


@dataclass(frozen=True)
class _Conv:
    out: int
    dropout: float = 0.0


_CONVS = (
    *(_Conv(64, 0.3), _Conv(64)),
    *(_Conv(128, 0.4), _Conv(128)),
    *(_Conv(256, 0.4), _Conv(256, 0.4), _Conv(256)),
    *(_Conv(512, 0.4), _Conv(512, 0.4), _Conv(512)),
    *(_Conv(512, 0.4), _Conv(512, 0.4), _Conv(512)),
)
_ADDED = (_Conv(512, 0.4), _Conv(512, 0.4))


class _VGG(Backbone):
    """Thirteen convs, all of which can be tapped, with pools after those of ``pools``."""

    mean = CIFAR_MEAN
    std = CIFAR_STD
    query_channels = 512

    def __init__(self, pools: tuple[int, ...]) -> None:
        super().__init__()
        self.pools = frozenset(pools)
        self.convs, self.dropouts = nn.ModuleList(), nn.ModuleList()
        width, stride = 3, 1
        stages = []
        for number, conv in enumerate(_CONVS, start=1):
            self.convs.append(_conv(width, conv.out))
            self.dropouts.append(QuickDropout(conv.dropout))
            width = conv.out
            stages.append(Stage(f"conv{number}", width, stride))
            stride *= 2 if number in self.pools else 1
        self.stages = tuple(stages)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def _trunk(self, images: Tensor, taps: tuple[str, ...], last: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Run conv 1 to ``last``; the pool after conv 13 is left to the caller."""
        features, found = images, {}
        for number in range(1, last + 1):
            features = self.convs[number - 1](features)
            if f"conv{number}" in taps:
                found[f"conv{number}"] = features
            features = self.dropouts[number - 1](features)
            if number in self.pools and number < len(_CONVS):
                features = self.pool(features)
        return features, ordered(found, taps)


class PaperVGG(_VGG):
    """The attention VGG: pools after conv 7, 10, 13, 14, 15; FC-1 gives the query of 512.

    Without a query conv 14, 15 and FC-1 are not run (nor is any conv behind the last tap); they hold a quarter of the
    parameters and are dead weight where no readout looks at the query.

    Args:
        taps: number of levels taken by default: 1 is conv13, 2 adds conv10, 3 adds conv7.

    Raises:
        ModelError: another number of levels.
    """

    name = "paper-vgg"
    least_size = 16

    def __init__(self, taps: int = 3) -> None:
        if taps not in LEVELS:
            raise ModelError(f"The paper's VGG has 1, 2 or 3 levels of attention, not {taps}.")
        super().__init__(pools=(7, 10, 13))
        self.default_taps = LEVELS[taps]
        self.added = nn.ModuleList(_conv(512, conv.out) for conv in _ADDED)
        self.added_dropouts = nn.ModuleList(QuickDropout(conv.dropout) for conv in _ADDED)
        self.to_query = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, self.query_channels))
        _initialise(self)

    def forward(self, images: Tensor, taps: tuple[str, ...], need_query: bool) -> Trunk:
        """Run the network; see :meth:`heedmap.backbones.base.Backbone.forward`."""
        features, found = self._trunk(images, taps, len(_CONVS) if need_query else _deepest(taps))
        return Trunk(found, self._query(features) if need_query else None, None)

    def _query(self, features: Tensor) -> Tensor:
        for conv, dropout in zip(self.added, self.added_dropouts, strict=True):
            features = dropout(conv(self.pool(features)))
        query: Tensor = self.to_query(features.amax((2, 3)))
        return query

    def query_parameters(self) -> list[nn.Parameter]:
        """Parameters of conv 14, conv 15 and FC-1."""
        return [*self.added.parameters(), *self.to_query.parameters()]

    def unread_parameters(self, taps: tuple[str, ...]) -> list[nn.Parameter]:
        """Parameters of the convs behind the last tap, and of the query."""
        return [*self.convs[_deepest(taps) :].parameters(), *self.query_parameters()]


class PlainVGG(_VGG):
    """The plain VGG: pools after conv 2, 4, 7, 10, 13 and its own classifier, whose answer is ``Trunk.logits``.

    Args:
        num_classes: K.
    """

    name = "paper-vgg-plain"
    least_size = 32
    default_taps = ("conv10", "conv13")

    def __init__(self, num_classes: int) -> None:
        super().__init__(pools=(2, 4, 7, 10, 13))
        self.to_query = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5)
        )
        self.linear = nn.Linear(512, num_classes)
        _initialise(self)

    def forward(self, images: Tensor, taps: tuple[str, ...], need_query: bool) -> Trunk:
        """Run the network; the query is the vector that the last linear layer reads."""
        features, found = self._trunk(images, taps, len(_CONVS))
        query = self.to_query(features.amax((2, 3)))
        return Trunk(found, query if need_query else None, self.linear(query))


def _deepest(taps: tuple[str, ...]) -> int:
    return max((int(tap.removeprefix("conv")) for tap in taps), default=0)


def _conv(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out, eps=1e-3), nn.ReLU())


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
