"""Boxes around what is attended to, by numpy and scipy: an exported file is served where there is no torch."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from heedmap.visualization.heatmap import FLAT

MOST_BOXES = 8
"""Boxes reported of an image, those with the most attention first."""

Box: TypeAlias = dict[str, float]


def boxes_of(values: NDArray[np.float32], threshold: float, size: int) -> list[list[Box]]:
    """Find the boxes around the cells that are attended to in maps (B, h, w), not negative.

    Each map is resized bilinearly to the network's view, ``size`` pixels to a side; connected regions (4 neighbours) of
    pixels that reach ``threshold``, in (0, 1], times the map's largest value get a box each, after Zhou et al.,
    "Learning Deep Features for Discriminative Localization" (CVPR 2016), section 3.2, who take the largest region only.

    Returns:
        For each map at most :data:`MOST_BOXES` boxes, most attention first: ``left``, ``top``, ``right``, ``bottom`` in
        shares of the view, and ``share``, the part of the map's sum that lies in the region. None for a uniform map.
    """
    from scipy import ndimage

    boxes: list[list[Box]] = []
    for view in upsampled_views(values, size):
        top = float(view.max())
        if top < FLAT * float(view.mean()):
            boxes.append([])
            continue
        regions, count = ndimage.label(view >= threshold * top)
        sums = ndimage.sum_labels(view, regions, range(1, count + 1)) / view.sum(dtype=np.float64)
        slices = ndimage.find_objects(regions)
        order = np.argsort(-sums, kind="stable")[:MOST_BOXES]
        boxes.append([_box(slices[place], float(sums[place]), size) for place in order])
    return boxes


def upsampled_views(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return maps (B, h, w) as (B, size, size), linear between the centres of their cells.

    As ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` does.
    """
    for axis in (1, 2):
        count = values.shape[axis]
        places = ((np.arange(size) + 0.5) * count / size - 0.5).clip(0, count - 1)
        before = places.astype(np.intp)
        share = (places - before).astype(np.float32)
        first, second = values.take(before, axis), values.take(np.minimum(before + 1, count - 1), axis)
        values = first + (share[:, None] if axis == 1 else share) * (second - first)
    return values


def _box(place: tuple[slice, slice], share: float, size: int) -> Box:
    rows, columns = place
    edges = {"left": columns.start, "top": rows.start, "right": columns.stop, "bottom": rows.stop}
    return {side: edge / size for side, edge in edges.items()} | {"share": share}
