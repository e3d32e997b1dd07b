"""The ResNet of "Learn To Pay Attention": pre-activation bottlenecks, tapped at the outputs of its last two stages.

Depth 164 has (164 - 2) / 9 = 18 units a stage; any depth 9 n + 2 builds, so that small ones train fast. Choices the
sources leave open, as settled here:

- A tap is the raw sum that leaves a stage, without BatchNorm and ReLU (the published code has them commented out).
- The query: BatchNorm-ReLU-pool, a 3x3 conv with BatchNorm, ReLU and dropout 0.4, pool to one position, dropout 0.5,
  a linear layer. The last pool takes the maximum of all that is left: at 32x32 that is the published 4x4 pool.
- Convs have no bias and start at N(0, sqrt(2 / (k * k * out))); linear biases start at 0.
- The shortcut at a change of width is a 1x1 conv of the activated input, as in the ResNets it is built on.
- Gradients add up where the net forks, and images are normalised by CIFAR-10's mean and deviation, as in the VGG.
"""

import math

from torch import Tensor, nn

from heedmap.backbones.base import CIFAR, Backbone
from heedmap.errors import ModelError
from heedmap.types import Stage

WIDTHS = (64, 128, 256)


class PaperResNet(Backbone):
    """Pre-activation bottleneck ResNet for small images, with taps ``stage1``, ``stage2``, ``stage3``.

    Args:
        depth: 9 n + 2 layers, n units a stage; the paper has 164.

    Raises:
        ModelError: a depth that is not 9 n + 2; the message names the two nearest that are.
    """

    name = "paper-resnet"
    normalization = CIFAR
    stages = tuple(Stage(f"stage{i + 1}", width, 2**i) for i, width in enumerate(WIDTHS))
    default_taps = ("stage2", "stage3")
    query_channels = WIDTHS[-1]
    least_size = 16

    def __init__(self, depth: int = 164) -> None:
        if depth < 11 or (depth - 2) % 9:
            below = max(11, depth - (depth - 2) % 9)
            raise ModelError(f"Depth {depth} is not 9 n + 2 of the paper's ResNet; take {below} or {below + 9}.")
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        units = (depth - 2) // 9
        ins = (16, *WIDTHS)
        self.blocks = nn.ModuleList(_stage(ins[i], WIDTHS[i], units, 1 if i == 0 else 2) for i in range(len(WIDTHS)))
        self.before_pool = nn.Sequential(
            *(nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.Dropout(0.4)),
        )
        self.to_query = nn.Sequential(nn.Dropout(0.5), nn.Linear(256, self.query_channels))
        _initialise(self)

    def begin(self, images: Tensor) -> Tensor:
        """Run the first convolution."""
        features: Tensor = self.stem(images)
        return features

    def stage_module(self, name: str) -> nn.Module:
        """Return the units of a stage."""
        return self.blocks[int(name.removeprefix("stage")) - 1]

    def global_feature(self, features: Tensor) -> Tensor:
        """Return the query (B, 256)."""
        query: Tensor = self.to_query(self.before_pool(features).amax((2, 3)))
        return query

    def query_parameters(self) -> list[nn.Parameter]:
        """Parameters of the query's own layers, behind stage 3."""
        return [*self.before_pool.parameters(), *self.to_query.parameters()]


class _Bottleneck(nn.Module):
    """BN-ReLU-conv three times (1x1 to a quarter, 3x3 with the stride, 1x1 back), added to the shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        inner = out // 4
        self.activate = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.branch = nn.Sequential(
            *(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            nn.Conv2d(inner, out, 1, bias=False),
        )
        self.shortcut = nn.Conv2d(width, out, 1, stride, bias=False) if width != out or stride != 1 else None

    def forward(self, features: Tensor) -> Tensor:
        active = self.activate(features)
        straight = features if self.shortcut is None else self.shortcut(active)
        added: Tensor = straight + self.branch(active)
        return added


def _stage(width: int, out: int, units: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Bottleneck(width, out, stride), *(_Bottleneck(out, out, 1) for _ in range(units - 1)))


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
