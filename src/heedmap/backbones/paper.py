"""The networks of "Learn To Pay Attention" for 32x32 images: the VGG, the plain VGG it is compared with, the ResNet.

Layers, dropouts and shapes are those of the authors' published code (facts, not code, were taken from it). Choices the
sources leave open, as settled here:

- A VGG tap is read after conv, BatchNorm and ReLU, *before* the pool and before any dropout (the paper's figure draws
  it behind the pool; the code taps before). A ResNet tap is the raw sum that leaves a stage, without BatchNorm and ReLU
  (the published code has them commented out).
- The query g is the output of the linear layer FC-1 as it is. In the ResNet BatchNorm-ReLU-pool, a 3x3 conv with
  BatchNorm, ReLU and dropout 0.4, a pool to one position and dropout 0.5 precede it.
- Gradients add up where a net forks. The published code averages them by hand (1/2 or 1/3 at each fork).
- Convs start at N(0, sqrt(2 / (k * k * out))), as published; their biases, which the ResNet has none of, and the
  ResNet's linear bias start at 0. BatchNorm weights start at 1, not at U(0, 1).
- The ResNet's shortcut at a change of width is a 1x1 conv of the activated input, as in the ResNets it is built on.
- Images are normalised by CIFAR-10's mean and deviation, not by YUV contrast or ZCA.
- The last pool takes the maximum of all that is left. At 32x32 that is the published pool; other sizes work too.
"""

import math

import torch
from torch import Tensor, nn

from heedmap.backbones.base import CIFAR, NOTHING, Backbone, Inside, Trunk
from heedmap.errors import ModelError
from heedmap.types import Stage

# Each level of the VGG adds one tap further up, as the paper's -att, -att2 and -att3.
LEVELS = {1: ("conv13",), 2: ("conv10", "conv13"), 3: ("conv7", "conv10", "conv13")}
WIDTHS = (64, 128, 256)  # of the ResNet's stages
DRAWS = 2**16  # that a random number of two bytes has

# Width and dropout of each conv of the VGG.
_CONVS = (
    *((64, 0.3), (64, 0.0), (128, 0.4), (128, 0.0), (256, 0.4), (256, 0.4), (256, 0.0)),
    *((512, 0.4), (512, 0.4), (512, 0.0), (512, 0.4), (512, 0.4), (512, 0.0)),
)
_ADDED = ((512, 0.4), (512, 0.4))


class QuickDropout(nn.Dropout):
    """Dropout (Srivastava et al., JMLR 2014) that draws two random bytes a value, four values at a time.

    ``torch.nn.Dropout`` draws a double for every value, one after the other, where the CPU is not Intel's: 13 % of a
    training step of the paper's VGG. The probability is rounded to 1 / 65536, and the remaining values are scaled
    accordingly. On other devices this is ``torch.nn.Dropout``.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Dropout gives it
        """Drop values of features of any shape, while training; numbers come from torch's global generator."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(input)
        dropped = min(round(self.p * DRAWS), DRAWS - 1)
        mask = torch.empty_like(input)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        torch.ge(draws.view(torch.int16).as_strided(mask.shape, mask.stride()), dropped - DRAWS // 2, out=mask)
        return (input * mask).mul_(DRAWS / (DRAWS - dropped))


class _VGG(Backbone):
    """Thirteen 3x3 convs, all of which can be tapped, with pools after those of ``pools``."""

    normalization = CIFAR
    query_channels = 512
    to_query: nn.Sequential

    def __init__(self, pools: tuple[int, ...]) -> None:
        super().__init__()
        self.pools = frozenset(pools)
        self.convs, self.dropouts = nn.ModuleList(), nn.ModuleList()
        width, stride = 3, 1
        for number, (out, dropout) in enumerate(_CONVS, start=1):
            self.convs.append(_conv(width, out))
            self.dropouts.append(QuickDropout(dropout))
            self.stages += (Stage(f"conv{number}", out, stride),)
            width, stride = out, stride * (2 if number in self.pools else 1)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def stage_module(self, name: str) -> nn.Module:
        """Return the convolution with its normalisation and ReLU."""
        return self.convs[_number(name) - 1]

    def leave(self, name: str, features: Tensor) -> Tensor:
        """Drop out, then pool where listed; the pool after conv 13 is left to the query."""
        features = self.dropouts[_number(name) - 1](features)
        return self.pool(features) if _number(name) in self.pools and _number(name) < len(_CONVS) else features

    def global_feature(self, features: Tensor) -> Tensor:
        """Return the query (B, 512)."""
        query: Tensor = self.to_query(features.amax((2, 3)))
        return query


class PaperVGG(_VGG):
    """The attention VGG: pools after conv 7, 10, 13, 14, 15; FC-1 gives the query of 512.

    It moves the plain net's first two pools behind two added convs, so that the taps keep 32, 16 and 8 positions a
    side. That costs 12 times the plain net, attention next to nothing: a fair baseline is the same trunk with averaged
    taps (``attention="none"``), not the plain net. Without a query conv 14, 15 and FC-1 are not run (nor is any conv
    behind the last tap); they hold a quarter of the parameters and are dead weight where no readout uses the query.
    """

    name = "paper-vgg"
    least_size = 16
    default_taps = LEVELS[3]
    query_modules = ("added", "to_query")

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
        return super().global_feature(features)


class PlainVGG(_VGG):
    """The plain VGG: pools after conv 2, 4, 7, 10, 13, and a classifier whose logits (B, K) are ``Trunk.logits``."""

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
    query_modules = ("before_pool", "to_query")
    query_channels = WIDTHS[-1]
    least_size = 16

    def __init__(self, depth: int = 164) -> None:
        if depth < 11 or (depth - 2) % 9:
            below = max(11, depth - (depth - 2) % 9)
            raise ModelError(f"Depth {depth} is not 9 n + 2 of the paper's ResNet; take {below} or {below + 9}.")
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks, width = nn.ModuleList(), 16
        for stride, out in zip((1, 2, 2), WIDTHS, strict=True):
            shapes = [(width, stride), *[(out, 1)] * ((depth - 2) // 9 - 1)]
            self.blocks.append(nn.Sequential(*(_Bottleneck(before, out, step) for before, step in shapes)))
            width = out
        self.before_pool = nn.Sequential(
            *(nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.Dropout(0.4)),
        )
        self.to_query = nn.Sequential(nn.Dropout(0.5), nn.Linear(256, self.query_channels))
        _initialise(self)
        linear = self.to_query[1]
        assert isinstance(linear, nn.Linear)
        nn.init.zeros_(linear.bias)

    def stage_module(self, name: str) -> nn.Module:
        """Return the units of a stage."""
        return self.blocks[int(name.removeprefix("stage")) - 1]

    def global_feature(self, features: Tensor) -> Tensor:
        """Return the query (B, 256)."""
        query: Tensor = self.to_query(self.before_pool(features).amax((2, 3)))
        return query


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
