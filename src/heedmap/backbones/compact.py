"""The default backbone: a small residual net for training from scratch, quick on two cores.

The stem's stride follows the image, so that the deepest tap keeps about 8 x 8 positions whether images are 32 or 160
pixels wide: a map with fewer positions is too coarse, one with more costs more than it shows.
"""

from __future__ import annotations

from torch import Tensor, nn

from heedmap.backbones.base import Backbone, Normalization
from heedmap.errors import ModelError
from heedmap.types import Stage

WIDTHS = (32, 64, 128, 256)


def conv_norm(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch normalisation, which has one."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(channels_out)
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015), shortcut D: pooling, then a 1x1 convolution.

    The last normalisation starts at zero, so that each block starts as its shortcut.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(channels_in, channels_out, stride=stride)
        self.second = conv_norm(channels_out, channels_out)
        norm = self.second[1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if channels_in != channels_out:
            self.shortcut.append(conv_norm(channels_in, channels_out, kernel=1))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, H / stride, W / stride)."""
        change = self.second(self.activation(self.first(features)))
        return self.activation(change + self.shortcut(features))


class Compact(Backbone):
    """Stem, then three stages of residual blocks; query: the mean of the last stage's features.

    Args:
        stem_stride: 1, 2 or 4: how much the stem shrinks the image before the first stage.
        widths: channels of the stem and of the three stages.
        blocks, strides: residual blocks in each stage, and how much it shrinks its input, 1 or 2.
    """

    name = "compact"
    normalises = True
    normalization = Normalization((0.45, 0.45, 0.45), (0.25, 0.25, 0.25))

    def __init__(
        self,
        stem_stride: int = 1,
        widths: tuple[int, ...] = WIDTHS,
        blocks: tuple[int, ...] = (1, 1, 1),
        strides: tuple[int, ...] = (2, 2, 2),
    ) -> None:
        super().__init__()
        if stem_stride not in (1, 2, 4):
            raise ModelError(f"stem_stride {stem_stride} is not 1, 2 or 4.")
        self.stem = nn.Sequential(conv_norm(3, widths[0], stride=min(stem_stride, 2)), nn.ReLU(inplace=True))
        if stem_stride == 4:
            self.stem.append(nn.MaxPool2d(2, ceil_mode=True))
        channels, stride = widths[0], stem_stride
        for number, (width, depth, shrink) in enumerate(zip(widths[1:], blocks, strides, strict=True), start=1):
            body = [ResidualBlock(channels if i == 0 else width, width, shrink if i == 0 else 1) for i in range(depth)]
            self.add_module(f"stage{number}", nn.Sequential(*body))
            channels, stride = width, stride * shrink
            self.stages += (Stage(f"stage{number}", width, stride),)
        self.query_channels, self.least_size = channels, stride
        self.default_taps = tuple(stage.name for stage in self.stages[-2:])

    @classmethod
    def for_size(cls, size: int) -> Compact:
        """The net for images ``size`` pixels wide: the deepest tap has 8 x 8 positions at 32 and 64, 9 x 9 at 144."""
        if size <= 80:
            return cls(1 if size <= 48 else 2, strides=(2, 2, 1))
        return cls(2 if size <= 176 else 4)
