"""What training may ask of the maps besides the right answer; 0 is best.

Entropy and disagreement end at 1; ``mismatch`` ends at 13.8, where nothing lies on the object.

All are differentiable in the maps that the network used, and act on every tap alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Maps = dict[str, Tensor]
LEAST_SIDE = 0.6  # of a window, as a share of the image's


class Window(NamedTuple):
    """A part of the mirrored image: its left and top edge and its side, in shares of the image's."""

    left: float
    top: float
    side: float


WHOLE = Window(0.0, 0.0, 1.0)


def drawn_window(numbers: Tensor) -> Window:
    """Three numbers (3,) in 0 to 1 to a window: its side, then where it lies."""
    size, across, down = numbers.tolist()
    side = 1 - (1 - LEAST_SIDE) * size
    return Window((1 - side) * across, (1 - side) * down, side)


def second_view(values: Tensor, window: Window) -> Tensor:
    """Mirror left to right and enlarge the window to the whole; bilinear.

    Args:
        values: (B, C, H, W), images or maps: what is done to an image is to be done to its map.
        window: which part.
    """
    left, top, side = window
    place = values.new_tensor([[-side, 0, 1 - 2 * left - side], [0, side, 2 * top + side - 1]])  # mirrored: -side
    points = F.affine_grid(place.expand(len(values), 2, 3), list(values.shape), align_corners=False)
    return F.grid_sample(values, points, mode="bilinear", padding_mode="reflection", align_corners=False)


def entropy(maps: Maps) -> Tensor:
    """How far the maps are spread: entropy over positions divided by that of a uniform map, mean over taps and images.

    Args:
        maps: tap -> (B, 1, h, w), not negative; sigmoid gates are first divided by their sum.
    """
    found = []
    for values in maps.values():
        shares = _shares(values)
        if shares.shape[1] > 1:  # a single position has no spread
            found.append(torch.special.entr(shares).sum(1).mean() / math.log(shares.shape[1]))
    return torch.stack(found).mean() if found else torch.zeros(())


def disagreement(maps: Maps, seen: Maps, window: Window = WHOLE) -> Tensor:
    """How far the maps of second views are from second views of the maps: total variation, mean over taps and images.

    Both are compared as shares of what they hold. An image counts by how much of its attention lies in the window:
    what is left of a map whose hot place was cut away says nothing.

    Args:
        maps: of the images.
        seen: of the second views of the same images.
        window: that of the views.
    """
    found = []
    for tap, values in maps.items():
        view = second_view(values, window)
        inside, whole = (each.detach().flatten(1).mean(1) for each in (view, values))
        kept = inside * window.side**2 / whole.clamp_min(torch.finfo(whole.dtype).tiny)  # gates may all be shut
        found.append((kept.clamp(max=1) * (_shares(view) - _shares(seen[tap])).abs().sum(1)).mean() / 2)
    return torch.stack(found).mean()


def mismatch(maps: Maps, masks: Tensor) -> Tensor:
    """How far the attention is from an even spread over the object: Kullback-Leibler, mean over taps and images.

    The wanted map gives each cell the share of the object that lies in it; the term is the sum of wanted * log(wanted /
    given). What lies off the object costs as much as what is missing on it: a term that asked only for weight inside
    the mask was met by one cell of it (LOG.md). Cells that lie for more than a half where nobody may evaluate are in
    neither sum. Images without a cell on the object are left out; where all are, it is zero.

    Args:
        maps: tap -> (B, 1, h, w).
        masks: (B, H, W) bool, true on the object; or uint8 with 1 there and 2 where nobody may evaluate.
    """
    marked = (masks == 1).flatten(1).any(1)
    if not marked.any():
        return next(iter(maps.values())).sum() * 0
    planes = torch.stack((masks[marked] == 1, masks[marked] == 2), 1).float()
    found = []
    for values in maps.values():
        wanted, unknown = F.adaptive_avg_pool2d(planes, (values.shape[2], values.shape[3])).flatten(2).unbind(1)
        evaluated = unknown <= 0.5
        wanted = wanted * evaluated
        whole = wanted.sum(1, keepdim=True)
        wanted = wanted / whole.clamp_min(torch.finfo(whole.dtype).tiny)
        given = _shares(values[marked].flatten(1) * evaluated).clamp_min(1e-6).log()
        cost = (torch.special.entr(wanted).neg() - wanted * given).sum(1)
        found.append(cost.sum() / (whole > 0).sum().clamp_min(1))
    return torch.stack(found).mean()


def _shares(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    return flat / flat.sum(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
