"""Maps from how the score changes when parts of the image are changed; no gradient is taken.

Changed images run ``chunk`` at a time, so memory stays flat. All classes come from the same forward passes.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from heedmap.attribution.layers import run_with_leaf
from heedmap.attribution.request import Attribution, Request, check_count, check_share, precise, scores_of
from heedmap.errors import OptionError


def score_cam(request: Request, *, chunk: int = 32) -> Attribution:
    """Compute Score-CAM (Wang et al. 2020, algorithm 1): a channel's weight is the score of the image masked by it.

    The image is multiplied with each channel, scaled to [0, 1] and to the image's size, and the target's logits under
    these masks become weights by a softmax over channels. The unmasked score, which the paper subtracts, cancels
    there. As in torch-cam, and unlike the authors' code, a channel is scaled to [0, 1] before it is enlarged; a
    uniform channel is a black mask.

    Args:
        chunk: masked images at a time; there are as many as the layer has channels.
    """
    check_count(chunk=chunk)
    activation = run_with_leaf(request)
    grid, targets = activation.grid, request.targets(activation.logits)
    low, high = grid.amin((2, 3), keepdim=True), grid.amax((2, 3), keepdim=True)
    masks = torch.where(high > low, (grid - low) / torch.where(high > low, high - low, 1), 0)
    weights = []
    for image, of_image, classes in zip(request.images, masks, targets, strict=True):
        scores = []  # of the image's classes, (C, T)
        for some in of_image.split(chunk):
            large = F.interpolate(some[:, None], image.shape[1:], mode="bilinear", align_corners=False)
            with torch.no_grad():
                scores.append(request.logits(image * large.to(image.dtype))[:, classes])
        weights.append(torch.cat(scores).T.to(masks.dtype))
    values = torch.einsum("btc,bchw->bthw", torch.stack(weights).softmax(2), grid).relu()
    return Attribution(values, targets, activation.logits, activation.layer)


def occlusion(
    request: Request,
    *,
    window: int | None = None,
    stride: int | None = None,
    fill: float = 0.0,
    score: str = "logit",
    chunk: int = 32,
) -> Attribution:
    """Compute how far the score falls when a square is covered (Zeiler and Fergus 2014); signed, one value a pixel.

    A pixel's value is the mean fall over the squares that cover it. Squares at the right and lower border are cut.

    Args:
        window: side of the square in pixels; None takes a quarter of the image's short side.
        stride: pixels from one square to the next; None takes half the window.
        fill: the value that covers.
        score: ``logit`` or ``probability``.
        chunk: changed images at a time.
    """
    images, (height, width) = request.images, request.images.shape[-2:]
    window = max(1, min(height, width) // 4) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    check_count(min(height, width), window=window)
    check_count(window, stride=stride)
    check_count(chunk=chunk)
    logits, targets = request.run()
    plain = scores_of(logits, score).gather(1, targets).to(precise(logits.dtype))
    falls, times = plain.new_zeros(*targets.shape, height, width), plain.new_zeros(height, width)
    tops, lefts = range(0, height - window + stride, stride), range(0, width - window + stride, stride)
    squares = [(slice(top, top + window), slice(left, left + window)) for top in tops for left in lefts]
    step = max(1, chunk // len(images))
    for first in range(0, len(squares), step):
        some = squares[first : first + step]
        covered = images.repeat(len(some), 1, 1, 1, 1)
        for number, (rows, columns) in enumerate(some):
            covered[number, :, :, rows, columns] = fill
        with torch.no_grad():
            scores = scores_of(request.logits(covered.flatten(0, 1)), score)
        by_square = scores.view(len(some), *logits.shape).to(plain.dtype)
        for (rows, columns), score_now in zip(some, by_square, strict=True):
            falls[:, :, rows, columns] += (plain - score_now.gather(1, targets))[:, :, None, None]
            times[rows, columns] += 1
    return Attribution(falls / times, targets, logits, signed=True)


def rise(
    request: Request,
    *,
    count: int = 1000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    score: str = "probability",
    chunk: int = 32,
) -> Attribution:
    """Compute RISE (Petsiuk et al. 2018, eq. 6): the mean of random masks, weighted by the image's score under them.

    Every image gets the same masks. Values carry the noise of ``count`` draws, and an offset: the mean score.

    Args:
        count, seed: number of masks, and their seed.
        cells: cells to a side of the coarse random grid that becomes a mask.
        keep: probability that a cell is kept.
        score: ``probability`` as published, or ``logit``.
        chunk: masked images at a time.
    """
    check_count(count=count, cells=cells, chunk=chunk)
    check_share("keep", keep)
    images = request.images
    logits, targets = request.run()
    total = torch.zeros(*targets.shape, *images.shape[-2:], device=images.device)
    for masks in _random_masks(count, cells, keep, seed, images, max(1, chunk // len(images))):
        masked = (images[None] * masks[:, None, None].to(images.dtype)).flatten(0, 1)
        with torch.no_grad():
            scores = scores_of(request.logits(masked), score).view(len(masks), *logits.shape)
        of_targets = scores.gather(2, targets.expand(len(masks), -1, -1)).to(total.dtype)
        total += torch.einsum("nbt,nhw->bthw", of_targets, masks)
    return Attribution(total / (count * keep), targets, logits, signed=score == "logit")


def _random_masks(count: int, cells: int, keep: float, seed: int, images: Tensor, step: int) -> Iterator[Tensor]:
    """Yield masks (n, H, W) in [0, 1], ``step`` at a time; they do not depend on ``step``."""
    height, width = images.shape[-2:]
    if cells > min(height, width):
        raise OptionError(f"cells {cells} are more than the image's {height} x {width} pixels; take fewer.")
    source = torch.Generator().manual_seed(seed)
    grids = (torch.rand(count, 1, cells, cells, generator=source) < keep).float()
    cell = (math.ceil(height / cells), math.ceil(width / cells))
    shifts = torch.stack([torch.randint(0, side, (count,), generator=source) for side in cell], 1)
    size = ((cells + 1) * cell[0], (cells + 1) * cell[1])
    for some, places in zip(grids.split(step), shifts.split(step), strict=True):
        large = F.interpolate(some.to(images.device), size, mode="bilinear", align_corners=False)[:, 0]
        crops = zip(large, places.tolist(), strict=True)
        yield torch.stack([mask[y : y + height, x : x + width] for mask, (y, x) in crops])
