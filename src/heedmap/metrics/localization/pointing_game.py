"""Does a map's hottest point lie on the object? The pointing game, with its two baselines beside it.

After Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016), section 4.1. Departures: there the
point may miss the object by 15 pixels, here it must lie inside the box; there accuracies are averaged over classes,
here over images. A pointing figure means little without its baselines: objects that sit in the middle are hit by a
map that always points there.
"""

import torch
from torch import Tensor

BASELINES = ("centre", "random")


def hottest_points(maps: Tensor) -> Tensor:
    """Find the centre of the hottest cell of each map (N, 1, h, w) or (N, h, w), any scale.

    It is given as (N, 2) x and y in shares of the image; among equal cells it is the first, row by row.

    Raises:
        ValueError: another shape, an empty map, or values that are not finite.
    """
    if maps.dim() == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if maps.dim() != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"Maps must be (N, 1, h, w), not {tuple(maps.shape)}.")
    if not torch.isfinite(maps).all():
        raise ValueError("A map holds values that are not finite, so it has no hottest point.")
    height, width = maps.shape[1:]
    flat = maps.flatten(1)
    # argmax may return any of several equal cells; the first that equals the maximum is the same on every device.
    cell = (flat == flat.amax(1, keepdim=True)).to(torch.uint8).argmax(1)
    return torch.stack([(cell % width + 0.5) / width, (cell // width + 0.5) / height], dim=1)


def _hits(points: Tensor, boxes: Tensor) -> float:
    """Return the share of points (N, 2) that lie in their box, edges included."""
    return ((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all(1).double().mean().item()


def _checked(boxes: Tensor) -> Tensor:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise ValueError(f"Boxes must be (N, 4) with N at least 1, not {tuple(boxes.shape)}.")
    if not ((boxes[:, :2] < boxes[:, 2:]).all() and (boxes >= 0).all() and (boxes <= 1).all()):
        raise ValueError("Boxes must be left < right and top < bottom in shares of the image, 0 to 1.")
    return boxes


def pointing(maps: Tensor, boxes: Tensor) -> float:
    """Return the share of images whose map's hottest point (see :func:`hottest_points`) lies inside the box.

    Maps are (N, 1, h, w), boxes (N, 4) left, top, right, bottom in shares of the image that the map covers.

    Raises:
        ValueError: when shapes do not fit, boxes are empty or out of range, or a map is not finite.
    """
    if len(maps) != len(_checked(boxes)):
        raise ValueError(f"{len(maps)} maps for {len(boxes)} boxes; there must be one box for each map.")
    return _hits(hottest_points(maps).to(boxes), boxes)


def centre_pointing(boxes: Tensor) -> float:
    """Return the share of boxes (N, 4) that hold the middle of the image, as a map that always points there scores."""
    return _hits(torch.full_like(_checked(boxes)[:, :2], 0.5), boxes)


def random_pointing(boxes: Tensor) -> float:
    """Return the mean area of the boxes (N, 4): what pointing at random scores in the long run."""
    return (_checked(boxes)[:, 2:] - boxes[:, :2]).prod(1).double().mean().item()


def pointing_table(attention: dict[str, Tensor], boxes: Tensor) -> dict[str, float]:
    """Return the pointing share of each tap's maps (N, 1, h, w), then of the baselines ``centre`` and ``random``.

    Raises:
        ValueError: as :func:`pointing` does, or when a tap has a baseline's name.
    """
    if taken := set(BASELINES) & set(attention):
        raise ValueError(f"A tap is named like a baseline: {', '.join(sorted(taken))}; give it another name.")
    table = {tap: pointing(maps, boxes) for tap, maps in attention.items()}
    return {**table, "centre": centre_pointing(boxes), "random": random_pointing(boxes)}
