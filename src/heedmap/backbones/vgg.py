"""The VGG of "Learn To Pay Attention" for 32x32 images, and the plain VGG that it is compared with.

Layers, dropouts and shapes are those of the authors' published code (facts, not code, were taken from it). A conv is
3x3, stride 1, pad 1 with bias, then BatchNorm (eps 1e-3), ReLU and, where listed, dropout. The attention net
moves the plain net's first two pools behind two added convs, so that the taps keep 32, 16 and 8 positions a side; it
costs 12 times the plain net, nearly all of it for that and not for attention. A fair baseline is therefore the
same trunk with averaged taps (``attention="none"``), not the plain net.

Choices the sources leave open, as settled here:

- A tap is read after conv, BatchNorm and ReLU, *before* the pool and before any dropout (the paper's figure draws it
  behind the pool; the code taps before).
- The query g is the output of FC-1 as it is, without BatchNorm or ReLU.
- Gradients add up where the net forks. The published code averages them by hand (1/2 or 1/3 at each fork).
- Convs start at N(0, sqrt(2 / (9 * out))) with bias 0, as published. BatchNorm weights start at 1, not at U(0, 1).
- Images are normalised by CIFAR-10's mean and deviation, not by YUV contrast or ZCA.
- The last pool takes the maximum of all that is left. At 32x32 that is the published 2x2 pool; other sizes work too.
"""

import math

from torch import Tensor, nn

from heedmap.backbones.base import CIFAR, NOTHING, Backbone, Inside, Trunk
from heedmap.backbones.dropout import QuickDropout
from heedmap.types import Stage

# Each level adds one tap further up, as the paper's -att, -att2 and -att3.
LEVELS = {1: ("conv13",), 2: ("conv10", "conv13"), 3: ("conv7", "conv10", "conv13")}


# Width and dropout of each conv.
_CONVS = (
    *((64, 0.3), (64, 0.0), (128, 0.4), (128, 0.0), (256, 0.4), (256, 0.4), (256, 0.0)),
    *((512, 0.4), (512, 0.4), (512, 0.0), (512, 0.4), (512, 0.4), (512, 0.0)),
)
_ADDED = ((512, 0.4), (512, 0.4))


class _VGG(Backbone):
    """Thirteen convs, all of which can be tapped, with pools after those of ``pools``."""

    normalization = CIFAR
    query_channels = 512

    def __init__(self, pools: tuple[int, ...]) -> None:
        super().__init__()
        self.pools = frozenset(pools)
        self.convs, self.dropouts = nn.ModuleList(), nn.ModuleList()
        width, stride = 3, 1
        stages = []
        for number, (out, dropout) in enumerate(_CONVS, start=1):
            self.convs.append(_conv(width, out))
            self.dropouts.append(QuickDropout(dropout))
            width = out
            stages.append(Stage(f"conv{number}", width, stride))
            stride *= 2 if number in self.pools else 1
        self.stages = tuple(stages)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def stage_module(self, name: str) -> nn.Module:
        """Return the convolution with its normalisation and ReLU."""
        return self.convs[_number(name) - 1]

    def leave(self, name: str, features: Tensor) -> Tensor:
        """Drop out, then pool where listed; the pool after conv 13 is left to the query."""
        features = self.dropouts[_number(name) - 1](features)
        return self.pool(features) if _number(name) in self.pools and _number(name) < len(_CONVS) else features


class PaperVGG(_VGG):
    """The attention VGG: pools after conv 7, 10, 13, 14, 15; FC-1 gives the query of 512.

    Without a query conv 14, 15 and FC-1 are not run (nor is any conv behind the last tap); they hold a quarter of the
    parameters and are dead weight where no readout looks at the query.
    """

    name = "paper-vgg"
    least_size = 16

    default_taps = LEVELS[3]

    def __init__(self) -> None:
        super().__init__(pools=(7, 10, 13))
        self.added = nn.ModuleList(_conv(512, out) for out, _ in _ADDED)
        self.added_dropouts = nn.ModuleList(QuickDropout(dropout) for _, dropout in _ADDED)
        self.to_query = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, self.query_channels))
        _initialise(self)

    def global_feature(self, features: Tensor) -> Tensor:
        """Return FC-1 (B, 512), behind conv 14 and 15."""
        for conv, dropout in zip(self.added, self.added_dropouts, strict=True):
            features = dropout(conv(self.pool(features)))
        query: Tensor = self.to_query(features.amax((2, 3)))
        return query

    def query_parameters(self) -> list[nn.Parameter]:
        """Parameters of conv 14, conv 15 and FC-1."""
        return [*self.added.parameters(), *self.to_query.parameters()]


class PlainVGG(_VGG):
    """The plain VGG: pools after conv 2, 4, 7, 10, 13 and its own classifier, whose output is ``Trunk.logits``.

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

    def forward(self, images: Tensor, taps: tuple[str, ...], need_query: bool, inside: Inside = NOTHING) -> Trunk:
        """Run the network; the query is the vector that the last linear layer reads."""
        trunk = super().forward(images, taps, True, inside)
        return Trunk(trunk.features, trunk.query if need_query else None, self.linear(trunk.query))

    def global_feature(self, features: Tensor) -> Tensor:
        """Return the vector (B, 512) before the last linear layer."""
        query: Tensor = self.to_query(features.amax((2, 3)))
        return query


def _number(name: str) -> int:
    return int(name.removeprefix("conv"))


def _conv(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out, eps=1e-3), nn.ReLU())


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
