"""Random views of whole batches, drawn on the device that trains.

All randomness of a step comes from ``draw`` and the generator it is given, for the whole batch of all processes at
once; each process then applies its own rows. So a step's views depend on (seed, epoch, step) alone: a resumed run and
a run on several processes see the pictures that one uninterrupted process sees.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT_UP_TO = 64  # pixels; wider pictures are cropped at random places and sizes instead
IN_CACHE = 8  # pictures that a CPU varies at a time


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied.

    Attributes:
        kind: ``none``, ``shift`` (reflected borders: small pictures), or ``crop`` (random
            place, size and shape, and colour: photographs).
        flip: mirror every picture in every other epoch (K. Jordan, arXiv 2404.00498, section 3.6), which covers both
            views evenly where a coin would not.
        least_area: smallest share of the picture that a crop keeps.
        colour: largest change of brightness, contrast and saturation, as a factor 1 ± colour.
        shift: largest shift each way in pixels; None is an eighth of the side.
    """

    kind: str
    flip: bool
    least_area: float = 0.35
    colour: float = 0.3
    shift: int | None = None


def choose(size: int, flippable: bool) -> Augmentation:
    """The augmentation that suits pictures ``size`` pixels wide."""
    return Augmentation("shift" if size <= SHIFT_UP_TO else "crop", flippable)


def view_size(size: int, augmentation: Augmentation) -> int:
    """Side of the views to train on, for a network that will judge pictures ``size`` pixels wide.

    Random crops show things larger than whole pictures do. A network trained on crops judges better at a somewhat
    larger size than that of the crops (Touvron et al., NeurIPS 2019, arXiv 1906.06423): nine eighths here.
    """
    return size if augmentation.kind != "crop" else max(16, round(size / 9) * 8)


def draw(count: int, generator: torch.Generator) -> Tensor:
    """(count, 7) random numbers in [0, 1) for the views of a batch: place, size, shape and colours of each."""
    return torch.rand(count, 7, generator=generator)


def flips(indices: Tensor, epoch: int, seed: int) -> Tensor:
    """(B,) bool: whether each picture is mirrored in this epoch; alternates from epoch to epoch."""
    coin = (indices * 2654435761 + (seed * 2 + 1) * 40503) >> 7
    return ((coin + epoch) % 2).bool()


def apply(images: Tensor, numbers: Tensor, mirrored: Tensor, augmentation: Augmentation, size: int) -> Tensor:
    """(B, 3, R, R) uint8 to (B, 3, size, size) float32 in [0, 1].

    Args:
        images: stored pictures.
        numbers: this batch's rows of :func:`draw`.
        mirrored: (B,) bool from :func:`flips`.
        augmentation: what to do with them.
        size: side of the views.
    """
    mirrored = mirrored & augmentation.flip
    if augmentation.kind == "crop":
        return _photographs(images, numbers, mirrored, augmentation, size)
    reach = size // 8 if augmentation.shift is None else augmentation.shift
    reach = reach if augmentation.kind == "shift" else 0
    return _shift(images, numbers, mirrored, reach)


def apply_to_masks(
    masks: Tensor, stored: int, numbers: Tensor, mirrored: Tensor, augmentation: Augmentation, size: int
) -> Tensor:
    """(B, H, W) to (B, size, size): the same places, sizes and mirrors as :func:`apply` gives the pictures.

    Args:
        masks: bool, true on the object; or uint8 regions with 1 there and 2 where nobody may judge. The kind is kept.
        stored: side at which the pictures are stored; the masks are brought to it first.
        numbers, mirrored, augmentation, size: as the pictures got.
    """
    planes = torch.stack((masks == 1, masks == 2, masks == 2), 1).float()  # three channels, as a picture has
    white = (F.interpolate(planes, (stored, stored), mode="area") * 255).round().to(torch.uint8)
    seen = apply(white, numbers, mirrored, replace(augmentation, colour=0.0), size) >= 0.5
    return seen[:, 0] if masks.dtype == torch.bool else torch.where(seen[:, 0], 1, 2 * seen[:, 1]).to(torch.uint8)


def plain(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.float().div_(255)


def _shift(images: Tensor, numbers: Tensor, mirrored: Tensor, reach: int) -> Tensor:
    side = images.shape[-1]
    places = torch.arange(side, device=images.device)
    offsets = (numbers[:, :2] * (2 * reach + 1)).floor().long() - reach  # (B, 2)
    rows, columns = (_reflect(places + offset[:, None], side) for offset in offsets.unbind(1))  # (B, side) each
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]  # (B, side, side, 3)
    return plain(moved).permute(0, 3, 1, 2)


def _reflect(places: Tensor, side: int) -> Tensor:
    places = places.abs()
    return torch.where(places >= side, 2 * (side - 1) - places, places)


def _photographs(images: Tensor, numbers: Tensor, mirrored: Tensor, augmentation: Augmentation, size: int) -> Tensor:
    """Crop and colour; on a CPU a few pictures at a time, so that what one operation writes the next finds in cache.

    That alone halves the time, and the results are written as the network wants them: a pixel's channels side by side.
    """
    boxes = _boxes(numbers, mirrored, augmentation)
    factors = (1 + augmentation.colour * (numbers[:, 4:7] * 2 - 1)).T[..., None, None, None]
    layout = torch.channels_last
    views = torch.empty((len(images), 3, size, size), device=images.device, memory_format=layout)
    step = IN_CACHE if images.device.type == "cpu" else max(1, len(images))
    for rows in (slice(start, start + step) for start in range(0, len(images), step)):
        views[rows] = _colour(_crop(plain(images[rows]), boxes[:, rows], size), factors[:, rows])
    return views


def _boxes(numbers: Tensor, mirrored: Tensor, augmentation: Augmentation) -> Tensor:
    """(4, B): width and height of each crop, as shares of the picture, and where its centre lies, from -1 to 1."""
    area = augmentation.least_area + (1 - augmentation.least_area) * numbers[:, 0]
    aspect = ((numbers[:, 1] * 2 - 1) * 0.2877).exp()  # 3/4 .. 4/3
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    across, down = (numbers[:, 2] * 2 - 1) * (1 - width), (numbers[:, 3] * 2 - 1) * (1 - height)
    return torch.stack((torch.where(mirrored, -width, width), height, across, down))


def _crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Sample each box bilinearly: the values of ``F.affine_grid``, whose matrix product takes as long as sampling."""
    width, height, across, down = boxes[..., None]
    places = torch.linspace(-1, 1, size, device=images.device) * (size - 1) / size
    grid = torch.empty((len(images), size, size, 2), device=images.device)
    grid[..., 0] = (places * width + across)[:, None, :]
    grid[..., 1] = (places * height + down)[:, :, None]
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _colour(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation, changed in place by ``factors`` (3, B, 1, 1, 1) in this order."""
    brightness, contrast, saturation = factors
    grey = images.mean(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    torch.lerp(grey, images, saturation, out=images)
    images.addcmul_(images - mean, contrast - 1)  # lerp from the mean, which is slow where two of three are one number
    return images.mul_(brightness).clamp_(0, 1)


def cutmix(images: Tensor, numbers: Tensor) -> tuple[Tensor, float]:
    """Paste a rectangle of each picture's neighbour in the batch into it (Yun et al., ICCV 2019, arXiv 1905.04899).

    Args:
        images: (B, 3, H, W); left as it is.
        numbers: (3,) in [0, 1): area, row and column of the rectangle, the same for the whole batch.

    Returns:
        The mixed pictures, and the share of each that is still its own; the rest belongs to the picture one row up.
    """
    height, width = images.shape[-2:]
    area, row, column = numbers.tolist()
    tall, wide = int(height * area**0.5), int(width * area**0.5)
    top, left = int(row * (height - tall + 1)), int(column * (width - wide + 1))
    mixed = images.clone()
    place = (..., slice(top, top + tall), slice(left, left + wide))
    mixed[place] = images[place].roll(1, 0)
    return mixed, 1 - tall * wide / (height * width)
