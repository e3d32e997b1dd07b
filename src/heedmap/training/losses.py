"""Loss terms on the attention maps, beside the task's own loss; 0 is best.

Entropy and disagreement end at 1; ``mismatch`` ends at 13.8, where nothing lies on the object. All are differentiable
in the maps that the network used, and act on every tap alike.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heedmap.config import TrainOptions
from heedmap.models.classifier import combined_map
from heedmap.types import Output

Maps = dict[str, Tensor]
LEAST_SIDE = 0.6  # of a window, as a share of the image's


class Window(NamedTuple):
    """A part of the mirrored image: its left and top edge and its side, in shares of the image's."""

    left: float
    top: float
    side: float


WHOLE = Window(0.0, 0.0, 1.0)


def window_of(numbers: Tensor) -> Window:
    """Return the window of three numbers (3,) in 0 to 1: its side, then its place."""
    size, across, down = numbers.tolist()
    side = 1 - (1 - LEAST_SIDE) * size
    return Window((1 - side) * across, (1 - side) * down, side)


def second_view(values: Tensor, window: Window) -> Tensor:
    """Mirror images or their maps (B, C, H, W) left to right and enlarge the window to the whole; bilinear."""
    left, top, side = window
    place = values.new_tensor([[-side, 0, 1 - 2 * left - side], [0, side, 2 * top + side - 1]])  # mirrored: -side
    points = F.affine_grid(place.expand(len(values), 2, 3), list(values.shape), align_corners=False)
    return F.grid_sample(values, points, mode="bilinear", padding_mode="reflection", align_corners=False)


def entropy(maps: Maps) -> Tensor:
    """Return the entropy over positions divided by that of a uniform map, mean over taps and images.

    Maps are tap -> (B, 1, h, w), not negative, here and below; sigmoid gates are first divided by their sum.
    """
    shares = [_shares(values) for values in maps.values() if values[0].numel() > 1]  # a single position has no spread
    values_by_tap = [torch.special.entr(each).sum(1).mean() / math.log(each.shape[1]) for each in shares]
    return torch.stack(values_by_tap).mean() if values_by_tap else torch.zeros(())


def disagreement(maps: Maps, others: Maps, window: Window = WHOLE) -> Tensor:
    """Return the total variation between maps of second views and second views of maps, mean over taps and images.

    Both are compared as shares of what they hold. An image counts by how much of its attention lies in the window:
    a map whose peak was cut away counts little. ``others`` are the maps of the second views of the same images.
    """
    values_by_tap = []
    for tap, values in maps.items():
        view = second_view(values, window)
        inside, whole = (shown.detach().flatten(1).mean(1) for shown in (view, values))
        remaining = inside * window.side**2 / whole.clamp_min(torch.finfo(whole.dtype).tiny)  # gates may all be shut
        values_by_tap.append((remaining.clamp(max=1) * (_shares(view) - _shares(others[tap])).abs().sum(1)).mean() / 2)
    return torch.stack(values_by_tap).mean()


def mismatch(maps: Maps, masks: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence from a uniform map over the object, mean over taps and images.

    The target map gives each cell the share of the object that lies in it; the term is the sum of target * log(target /
    attention). What lies off the object costs as much as what is missing on it: a term that only rewarded weight inside
    the mask was met by one cell of it (experiments/LOG.md). Cells of which more than a half is to be ignored are in
    neither sum. Images without a cell on the object are left out; where all are, it is zero. Masks are (B, H, W) bool,
    true on the object, or uint8 with 1 there and 2 on what is to be ignored.
    """
    marked = (masks == 1).flatten(1).any(1)
    if not marked.any():
        return next(iter(maps.values())).sum() * 0
    planes = torch.stack((masks[marked] == 1, masks[marked] == 2), 1).float()
    values_by_tap = []
    for values in maps.values():
        target, ignored = F.adaptive_avg_pool2d(planes, (values.shape[2], values.shape[3])).flatten(2).unbind(1)
        counted = ignored <= 0.5
        target = target * counted
        whole = target.sum(1, keepdim=True)
        target = target / whole.clamp_min(torch.finfo(whole.dtype).tiny)
        shares = _shares(values[marked].flatten(1) * counted).clamp_min(1e-6).log()
        cost = (torch.special.entr(target).neg() - target * shares).sum(1)
        values_by_tap.append(cost.sum() / (whole > 0).sum().clamp_min(1))
    return torch.stack(values_by_tap).mean()


def _shares(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    return flat / flat.sum(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)


class MapLoss:
    """The terms on the maps, weighed by the options ``map_...``, and the second views that one of them needs.

    ``constant``: the maps are those of no attention; only learned shares then get a term.
    """

    def __init__(self, options: TrainOptions, *, constant: bool) -> None:
        self.consistency, self.entropy = options.map_consistency, options.map_entropy
        self.supervision, self.constant = options.map_supervision, constant

    def views(self, images: Tensor, numbers: Callable[[], Tensor]) -> tuple[Tensor, Window]:
        """Return the images (B, 3, H, W), followed by their second views where these are needed, and their window.

        One forward pass for both: two before one backward pass are more than joined processes can follow.
        """
        if not self.consistency:
            return images, WHOLE
        window = window_of(numbers())
        return torch.cat((images, second_view(images, window))), window

    def of_images(self, output: Output) -> tuple[Output, Maps]:
        """Split the output for :meth:`views` into that for the images and the maps of their second views."""
        if not self.consistency:
            return output, {}
        halves = {tap: values.chunk(2) for tap, values in output.attention.items()}
        first, second = ({tap: half[part] for tap, half in halves.items()} for part in (0, 1))
        return output._replace(logits=output.logits.chunk(2)[0], attention=first), second

    def __call__(self, output: Output, others: Maps, masks: Tensor | None, window: Window) -> Tensor | float:
        """Return the weighted sum of the terms, of the output for the images and the maps of their second views.

        Masks are (B, H, W), of the images' objects; None where there are none, or where images were mixed.
        """
        maps, shares, masks = output.attention, output.shares, None if self.constant else masks
        total: Tensor | float = 0.0
        if self.consistency and not self.constant:
            total = total + self.consistency * disagreement(maps, others, window)
        if self.entropy and not self.constant:
            total = total + self.entropy * entropy(maps)
        if self.supervision and masks is not None:
            total = total + self.supervision * mismatch(maps, masks)
        if shares is None:
            return total
        if masks is None:
            return total + shares.sum() * 0  # joined processes wait for every parameter's gradient, in every step
        # The shares learn how much each tap counts in the combined map; the maps themselves are not moved by it.
        fixed = {tap: values.detach() for tap, values in maps.items()}
        return total + self.supervision * mismatch({"combined": combined_map(fixed, shares)}, masks)
