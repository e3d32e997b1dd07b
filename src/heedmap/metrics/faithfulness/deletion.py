"""Remove the hot places of an image, or show only them, and classify again: the measures of faithfulness themselves.

    deletion, insertion     Petsiuk, Das, Saenko, "RISE" (BMVC 2018), section 4.2 and the published code
    ROAD                    Rong et al., "A Consistent and Efficient Evaluation Strategy ..." (ICML 2022)
    average drop, increase  Chattopadhyay et al., "Grad-CAM++" (WACV 2018), section 4.1

Rules that hold for all of them: a map coarser than the image is upsampled bilinearly; among equal values a random
order decides, which is a function of seed and image, so a constant map is at chance. The model runs in the mode it is
in; call ``eval()`` before, or use :func:`heedmap.metrics.faithfulness.evaluation.evaluate_faithfulness`, which does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.data.loader import generator
from heedmap.errors import DataError, OptionError
from heedmap.metrics.faithfulness.imputation import imputed, stand_in
from heedmap.metrics.maps import check_known, unit_range
from heedmap.modules import fitted, home_of, logits_of

ROAD_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
ORDERS = ("most", "least")


@dataclass(frozen=True, eq=False)
class MappedImages:
    """Images (N, 3, H, W) in [0, 1], each with the class (N,) whose probability is followed, and its map.

    Maps are (N, h, w), finite, on the CPU; larger is hotter.

    Raises:
        DataError: numbers that do not fit, or a map that is not finite.
    """

    images: Tensor
    targets: Tensor
    maps: Tensor

    def __post_init__(self) -> None:
        maps, count = self.maps, len(self.images)
        if maps.dim() != 3 or len(maps) != count or len(self.targets) != count or 0 in maps.shape:
            shapes = f"Maps {tuple(maps.shape)} and {len(self.targets)} targets for {count} images"
            raise DataError(f"{shapes}; (N, h, w) and (N,) are needed.")
        if not maps.isfinite().all():
            raise DataError("A map holds values that are not finite, so its pixels have no order.")


@dataclass(frozen=True, eq=False)
class Curve:
    """How the prediction changes while more and more of the image is changed."""

    shares: Tensor  # (S,) share of the pixels changed
    probabilities: Tensor  # (N, S) of the target
    kept: Tensor  # (N, S) bool, the target still has the largest logit
    area: Tensor  # (N,) the area under the probabilities, for ROAD their mean


def pixel_ranks(maps: Tensor, height: int, width: int, seed: int = 0) -> Tensor:
    """Rank the pixels of images by their maps (N, h, w): (N, height * width) int32, 0 = the hottest.

    ``seed`` is that of the order among equal values.
    """
    return torch.stack([_ranked(maps, row, height, width, seed) for row in range(len(maps))])


def _ranked(maps: Tensor, row: int, height: int, width: int, seed: int) -> Tensor:
    """Return (height * width,) int32 of one image, see :func:`pixel_ranks`."""
    values = upsampled(maps[row : row + 1], height, width).flatten()
    shuffled = torch.randperm(len(values), generator=generator(seed, row))
    order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
    ranks = torch.empty(len(values), dtype=torch.int32)
    ranks[order] = torch.arange(len(values), dtype=torch.int32)
    return ranks


def upsampled(maps: Tensor, height: int, width: int) -> Tensor:
    """Resize maps (N, h, w) to (N, height, width): bilinear, corners not aligned; as they are where the size fits."""
    if maps.shape[1:] == (height, width):
        return maps
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def deletion(
    model: nn.Module,
    mapped: MappedImages,
    *,
    step: int | None = None,
    baseline: str | Tensor = "mean",
    seed: int = 0,
    batch_size: int = 128,
) -> Curve:
    """Delete the hottest pixels step by step (RISE, algorithm 1); a small area is good.

    Args:
        model: any classifier from RGB in [0, 1].
        step: pixels deleted between two predictions; None takes W. There are ceil(H W / step) steps, and the curve
            begins with the whole image; the area is by trapezoids over equal steps, as in RISE's code.
        baseline: what deleted pixels become, see :func:`heedmap.metrics.faithfulness.imputation.stand_in`. RISE takes
            the zero of the normalised image, here ``classifier.mean.flatten()``; ``mean`` is each image's own mean
            colour.
        seed: of the order among equal values.

    Raises:
        OptionError: an unknown baseline, or a step below 1.
    """
    return _stepwise(model, _Path(mapped, baseline, seed, is_deletion=True), step, batch_size)


def insertion(
    model: nn.Module,
    mapped: MappedImages,
    *,
    step: int | None = None,
    baseline: str | Tensor = "blur",
    seed: int = 0,
    batch_size: int = 128,
) -> Curve:
    """Start from nothing and insert the hottest pixels step by step (RISE); a large area is good.

    ``baseline`` is what the image is before anything is inserted. For the rest see :func:`deletion`.
    """
    return _stepwise(model, _Path(mapped, baseline, seed, is_deletion=False), step, batch_size)


@dataclass(frozen=True, eq=False)
class _Path:
    """Images on their way to the baseline (deletion) or from it, each prepared when a batch needs it."""

    mapped: MappedImages
    baseline: str | Tensor
    seed: int
    is_deletion: bool

    def of(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the image starts and ends (3, H, W), and the ranks of its pixels (H * W,)."""
        image = self.mapped.images[row : row + 1]
        height, width = image.shape[2:]
        ranks = _ranked(self.mapped.maps, row, height, width, self.seed)
        ends = (image[0], stand_in(image, self.baseline)[0])
        return (*(ends if self.is_deletion else ends[::-1]), ranks)


def _stepwise(model: nn.Module, path: _Path, step: int | None, batch_size: int) -> Curve:
    """Classify every step of every image; only the images of one batch are prepared at a time."""
    images, targets = path.mapped.images, path.mapped.targets
    height, width = images.shape[2:]
    step = width if step is None else step
    if step < 1:
        raise OptionError(f"step = {step} deletes nothing; it counts pixels, 1 or more.")
    steps = math.ceil(height * width / step)
    counts = (torch.arange(steps + 1) * step).clamp_max(height * width).to(torch.int32)
    prepared: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    predictions = []
    for pairs in torch.arange(len(images) * len(counts)).split(batch_size):
        rows, places = pairs // len(counts), pairs % len(counts)
        prepared = {row: prepared.get(row) or path.of(row) for row in range(int(rows[0]), int(rows[-1]) + 1)}
        mixed = _mixed(model, prepared, rows, counts[places])
        predictions.append(_predicted(model, mixed, targets[rows.to(targets.device)]))
    both = torch.cat(predictions).view(len(images), len(counts), 2)
    area = torch.trapezoid(both[..., 0], dx=1 / steps, dim=1)
    return Curve(counts.double() / (height * width), both[..., 0], both[..., 1] > 0, area)


def _mixed(
    model: nn.Module, prepared: dict[int, tuple[Tensor, Tensor, Tensor]], rows: Tensor, counts: Tensor
) -> Tensor:
    """Return (B, 3, H, W): of each image in ``rows``, its ``counts`` first ranked pixels from its other end."""
    start, end, ranks = (torch.stack(part) for part in zip(*prepared.values(), strict=True))
    device = home_of(model)[0]
    places = (rows - rows[0]).to(device)
    changed = ranks.to(device)[places] < counts.to(device)[:, None]
    start, end = fitted(model, start)[places], fitted(model, end)[places]
    return torch.where(changed.view(len(rows), 1, *start.shape[2:]), end, start)


@torch.no_grad()
def _predicted(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return (B, 2) float64 on the CPU: probability of the target, and 1 where it has the largest logit."""
    logits = logits_of(model, images).double().cpu()
    own = targets.cpu()[:, None]
    return torch.cat((logits.softmax(1).gather(1, own), (logits.argmax(1, keepdim=True) == own).double()), dim=1)


def road(
    model: nn.Module,
    mapped: MappedImages,
    *,
    order: str = "most",
    shares: Sequence[float] = ROAD_SHARES,
    noise: float = 0.01,
    seed: int = 0,
    batch_size: int = 128,
) -> Curve:
    """Remove and debias: impute a share of the pixels from their neighbours (see ``imputation.imputed``), classify.

    What a mask's shape alone gives away is gone with it, unlike with a fixed colour.

    The ``area`` of the curve is the mean probability over ``shares``.

    Args:
        model, seed: as for :func:`deletion`.
        order: ``most`` removes the hottest pixels first (a small area is good), ``least`` the coldest (a large one is).
        shares: of the pixels removed, each above 0 and below 1.
        noise: standard deviation in pixel units; 0.01 as in the published code, which adds it to normalised images.

    Raises:
        OptionError: an unknown order, or a share out of range.
    """
    check_known("order", order, ORDERS)
    if not shares or not all(0 < share < 1 for share in shares):
        raise OptionError(f"shares = {tuple(shares)}; each must lie between 0 and 1, both left out.")
    height, width = mapped.images.shape[2:]
    ranks = pixel_ranks(mapped.maps, height, width, seed).view(-1, height, width)
    if order == "least":
        ranks = height * width - 1 - ranks
    pixels, targets = mapped.images.detach().cpu(), mapped.targets.cpu()
    predictions = []
    for pairs in torch.arange(len(pixels) * len(shares)).split(batch_size):
        rows, places = pairs // len(shares), pairs % len(shares)
        views = [
            imputed(pixels[row], ranks[row] < round(shares[place] * height * width), noise, generator(seed, row, place))
            for row, place in zip(rows.tolist(), places.tolist(), strict=True)
        ]
        predictions.append(_predicted(model, fitted(model, torch.stack(views)), targets[rows]))
    both = torch.cat(predictions).view(len(pixels), len(shares), 2)
    return Curve(torch.tensor(shares, dtype=torch.float64), both[..., 0], both[..., 1] > 0, both[..., 0].mean(1))


def confidence_change(
    model: nn.Module, mapped: MappedImages, *, baseline: str | Tensor = "black", batch_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Show the image through its map (Grad-CAM++, section 4.1, equation E = L * I) and compare the probabilities.

    The map is upsampled and scaled to [0, 1] by its own smallest and largest value; where it is 0 the image becomes
    ``baseline`` (black in the equation). A constant map shows the whole image.

    Returns:
        drop: (N,) float64, max(0, p - p shown) / p; its mean is the average drop, as a share and not in percent.
        increase: (N,) bool, p shown > p; its share is the increase in confidence.

    Raises:
        OptionError: an unknown baseline.
    """
    pairs = []
    parts = (mapped.images.split(batch_size), mapped.targets.split(batch_size), mapped.maps.split(batch_size))
    for images, targets, maps in zip(*parts, strict=True):
        pixels = fitted(model, images)
        grid = upsampled(maps, *pixels.shape[2:]).to(pixels)
        is_flat = grid.amax((1, 2), keepdim=True) == grid.amin((1, 2), keepdim=True)
        weight = torch.where(is_flat, 1.0, unit_range(grid))[:, None]
        shown = _predicted(model, torch.lerp(stand_in(pixels, baseline), pixels, weight), targets)
        pairs.append(torch.stack((_predicted(model, pixels, targets)[:, 0], shown[:, 0]), dim=1))
    whole, shown = torch.cat(pairs).unbind(1)
    return (whole - shown).clamp_min(0) / whole.clamp_min(torch.finfo(torch.float64).tiny), shown > whole
