"""A plain net behind a whitened first layer: the fastest to train on many small images.

The shape is that of airbench94 (K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498), whose
first layer is due to D. Page (2018): 2x2 patches of the training images are decorrelated and brought to one variance
by a layer that is computed, not learned; every 3x3 kernel starts as the identity on its first channels, so that the net
starts as a pyramid of pooled patches; normalisations have no scale to learn. Where this one differs: ReLU in place of
GELU, which costs a CPU as much as a convolution; the image is extended by one row and column, so that a map lies
exactly on its image; the last stage does not shrink, so that its map has 8 x 8 positions for 32 pixels, and the
middle one is narrower to pay for that; and the attention reads the last two stages, where that net takes the maximum
over the last.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.backbones.base import CIFAR, Backbone
from heedmap.types import Stage

WIDTHS = (64, 192, 256)
PATCH = 2  # pixels, each way
FILTERS = 2 * 3 * PATCH * PATCH  # each direction of patch space, and its opposite
SMALLEST_VARIANCE = 5e-4  # directions that hardly vary are noise; they are not blown up beyond this


class Whitened(Backbone):
    """First layer, then three stages of two 3x3 convolutions; all but the last halve the grid; query: mean of the last.

    ``widths`` are the channels of the stages. Before training, :meth:`whiten` sets the first layer from images.
    """

    name = "whitened"
    normalises = True
    normalization = CIFAR

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, FILTERS, PATCH)
        self.first.weight.requires_grad_(False)  # computed; the bias is learned
        assert self.first.bias is not None
        nn.init.zeros_(self.first.bias)
        channels, stride = FILTERS, 1
        for number, width in enumerate(widths, start=1):
            shrink = 1 if number == len(widths) else 2
            self.add_module(f"stage{number}", _stage(channels, width, shrink))
            channels, stride = width, stride * shrink
            self.stages += (Stage(f"stage{number}", width, stride),)
        self.query_channels, self.least_size = channels, stride
        self.default_taps = tuple(stage.name for stage in self.stages[-2:])

    @torch.no_grad()
    def whiten(self, batches: Iterable[Tensor]) -> None:
        """Set the first layer so that its outputs for these images are uncorrelated and of variance one.

        Args:
            batches: (B, 3, H, W) each, normalised; a few thousand images are plenty.
        """
        count, products = 0, torch.zeros(3 * PATCH * PATCH, 3 * PATCH * PATCH, dtype=torch.float64)
        for images in batches:
            patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5)
            patches = patches.reshape(-1, 3 * PATCH * PATCH).double()
            count, products = count + len(patches), products + patches.T @ patches
        variances, directions = torch.linalg.eigh(products / count)
        filters = (directions / (variances + SMALLEST_VARIANCE).sqrt()).T.reshape(-1, 3, PATCH, PATCH)
        self.first.weight.copy_(torch.cat((filters, -filters)))

    def begin(self, images: Tensor) -> Tensor:
        """Run the whitened layer."""
        return F.relu(self.first(F.pad(images, (0, PATCH - 1, 0, PATCH - 1), mode="replicate")), inplace=True)

    def fast_parameters(self) -> list[nn.Parameter]:
        """The biases of the normalisations, which stand in for scale and bias (Jordan 2024, section 3)."""
        return [module.bias for module in self.modules() if isinstance(module, nn.BatchNorm2d)]


def _stage(channels_in: int, channels_out: int, shrink: int) -> nn.Sequential:
    """Convolution, maximum over ``shrink`` each way, normalisation, ReLU; then the same without the maximum."""
    pool = nn.MaxPool2d(shrink, ceil_mode=True) if shrink > 1 else nn.Identity()
    return nn.Sequential(
        *(_convolution(channels_in, channels_out), pool, _norm(channels_out), nn.ReLU(inplace=True)),
        *(_convolution(channels_out, channels_out), _norm(channels_out), nn.ReLU(inplace=True)),
    )


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight[: min(channels_in, channels_out)].data)
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation whose scale stays one."""
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm
