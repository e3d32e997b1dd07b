"""Maps and points that know nothing of what a network learned; a figure means little without theirs beside it.

``centre``       a Gaussian around the middle, the baseline of Choe et al. (2020).
``centre box``   a pyramid: its levels are all centred squares, so that MaxBoxAcc finds the best box of one size.
``uniform``      the same everywhere: what the share of the image that the objects cover is worth.
``random``       noise on a coarse grid, interpolated like any map.
``edges``        how steep the image itself is (Sobel), which no network has seen.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

GRID = 14  # cells of the noise along a side: as many as the deepest features of most networks at 224 pixels have
RANDOM_MAPS = 64  # then they repeat: their components need to be found only once
SPREAD = 0.25  # standard deviation of the Gaussian in shares of the image; only the order of its values matters much

FIXED_BASELINES = ("centre", "centre box", "uniform", "random")


def fixed_baselines(size: int, seed: int) -> dict[str, Tensor]:
    """Return the baselines that do not depend on the image.

    Args:
        size: side of the maps in pixels.
        seed: of the noise.

    Returns:
        name -> (K, 1, h, w); image i has map i modulo K.
    """
    # An odd number of cells has one in the very middle, which is where these two point.
    axis = (torch.arange(size | 1) + 0.5) / (size | 1) - 0.5
    row, column = axis[:, None], axis[None, :]
    generator = torch.Generator().manual_seed(seed)
    maps = {
        "centre": centre(size | 1, size | 1)[None, None],
        "centre box": 1 - 2 * torch.maximum(row.abs(), column.abs())[None, None],
        "uniform": torch.ones(1, 1, GRID, GRID),
        "random": torch.rand(RANDOM_MAPS, 1, GRID, GRID, generator=generator),
    }
    return {name: maps[name] for name in FIXED_BASELINES}


def centre(height: int, width: int) -> Tensor:
    """Return the Gaussian around the middle, (height, width)."""
    row, column = ((torch.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return torch.exp(-(row[:, None] ** 2 + column[None, :] ** 2) / (2 * SPREAD**2))


def edges(images: Tensor) -> Tensor:
    """Return how steep the image's brightness is: the length of the Sobel gradient.

    Args:
        images: (M, 3, H, W) RGB, uint8 or in [0, 1].

    Returns:
        (M, 1, H, W) float32, on the images' device.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    grey = (images.float() * weights[:, None, None]).sum(1, keepdim=True)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device)
    filters = torch.stack([across, across.T])[:, None]
    return conv2d(pad(grey, (1, 1, 1, 1), mode="replicate"), filters).norm(dim=1, keepdim=True)
