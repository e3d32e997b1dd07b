"""What training may ask of the maps besides the right answer; 0 is best.

Entropy and disagreement end at 1; ``mismatch`` ends at 13.8, where nothing lies on the object.

All are differentiable in the maps that the network used, and act on every tap alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Maps = dict[str, Tensor]


def entropy(maps: Maps) -> Tensor:
    """How far the maps are spread: entropy over positions divided by that of an even map, mean over taps and pictures.

    Args:
        maps: tap -> (B, 1, h, w), not negative; sigmoid gates are first divided by their sum.
    """
    found = []
    for values in maps.values():
        shares = _shares(values)
        if shares.shape[1] > 1:  # a single position has no spread
            found.append(torch.special.entr(shares).sum(1).mean() / math.log(shares.shape[1]))
    return torch.stack(found).mean() if found else torch.zeros(())


def disagreement(maps: Maps, mirrored: Maps) -> Tensor:
    """How much of the attention moves when the picture is mirrored: total variation, mean over taps and pictures.

    Args:
        maps: of the pictures.
        mirrored: of the same pictures, mirrored left to right.
    """
    pairs = [(_shares(values), _shares(mirrored[tap].flip(3))) for tap, values in maps.items()]
    return torch.stack([(one - other).abs().sum(1).mean() / 2 for one, other in pairs]).mean()


def mismatch(maps: Maps, masks: Tensor) -> Tensor:
    """How far the attention is from an even spread over the object: Kullback-Leibler, mean over taps and pictures.

    The wanted map gives each cell the share of the object that lies in it; the term is the sum of wanted * log(wanted /
    given). What lies off the object costs as much as what is missing on it: a term that asked only for weight inside
    the mask was met by one cell of it (LOG.md). Pictures with an empty mask are left out; where all are, it is zero.

    Args:
        maps: tap -> (B, 1, h, w).
        masks: (B, H, W) bool, true on the object.
    """
    marked = masks.flatten(1).any(1)
    if not marked.any():
        return next(iter(maps.values())).sum() * 0
    found = []
    for values in maps.values():
        height, width = values.shape[2:]
        wanted = F.adaptive_avg_pool2d(masks[marked, None].float(), (height, width)).flatten(1)
        wanted = wanted / wanted.sum(1, keepdim=True)
        given = _shares(values[marked]).clamp_min(1e-6).log()
        found.append((torch.special.entr(wanted).neg() - wanted * given).sum(1).mean())
    return torch.stack(found).mean()


def _shares(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    return flat / flat.sum(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
