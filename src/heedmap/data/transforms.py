"""Data augmentation of whole batches, on the device that trains.

All randomness of a step comes from ``draw``, for the whole batch of all processes at once; each applies its own rows.
So a resumed run and a run on several processes see the images that one uninterrupted process sees.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from heedmap.data.decoding import plain

SHIFT_UP_TO = 64  # pixels; wider images are cropped at random places and sizes instead


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        kind: ``none``, ``shift`` (reflected borders: small images), or ``crop`` (random place, size and shape, and
            colour: photographs).
        flip: mirror every image in every other epoch (K. Jordan, arXiv 2404.00498, section 3.6), which covers both
            views evenly where a coin would not.
        least_area: smallest fraction of the image that a crop covers.
        colour: largest change of brightness, contrast and saturation, as a factor 1 ± colour.
        shift: largest shift each way in pixels; None is an eighth of the side.
        early: for how many of the first epochs views have another side, and which.
    """

    kind: str
    flip: bool
    least_area: float = 0.35
    colour: float = 0.3
    shift: int | None = None
    early: tuple[int, int] = (0, 0)


def choose(size: int, flippable: bool) -> Augmentation:
    """Return the augmentation that suits images ``size`` pixels wide."""
    return Augmentation("shift" if size <= SHIFT_UP_TO else "crop", flippable)


def view_size(size: int, augmentation: Augmentation) -> int:
    """Return the side of the views to train on, for a network to be evaluated on images ``size`` pixels wide.

    Random crops show things larger than whole images do, so a network trained on them is better at a somewhat larger
    size than theirs (Touvron et al., NeurIPS 2019, arXiv 1906.06423): nine eighths here.
    """
    return size if augmentation.kind != "crop" else max(16, round(size / 9) * 8)


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Return (count, 7) random numbers in [0, 1) for a batch: place, size, shape and colours of each view."""
    return torch.rand(count, 7, generator=generator)


def flips(indices: Tensor, epoch: int, seed: int) -> Tensor:
    """Return (B,) bool: whether each image is mirrored in this epoch; alternates from epoch to epoch."""
    coin = (indices * 2654435761 + (seed * 2 + 1) * 40503) >> 7
    return ((coin + epoch) % 2).bool()


def apply(images: Tensor, numbers: Tensor, mirrored: Tensor, augmentation: Augmentation, size: int) -> Tensor:
    """Augment images: (B, 3, R, R) uint8 to (B, 3, size, size) float32 in [0, 1].

    Args:
        images: stored images; fastest in memory format channels_last.
        numbers, mirrored: this batch's rows of :func:`draw` and :func:`flips`.
        augmentation, size: what to do with them, and the side of the views.
    """
    mirrored = mirrored & augmentation.flip
    if augmentation.kind == "crop":
        crop = _cropped_bytes if images.device.type == "cpu" else _sampled
        views = crop(images, _boxes(numbers, images.shape[-1], augmentation), mirrored, size)
        factors = (1 + augmentation.colour * (numbers[:, 4:7] * 2 - 1)).T
        return _colour(views, factors).permute(0, 3, 1, 2)  # in memory format channels_last
    reach = size // 8 if augmentation.shift is None else augmentation.shift
    return _shift(images, numbers, mirrored, reach if augmentation.kind == "shift" else 0)


def apply_to_masks(
    masks: Tensor, stored: int, numbers: Tensor, mirrored: Tensor, augmentation: Augmentation, size: int
) -> Tensor:
    """Give masks (B, H, W) the same places, sizes and mirrors as :func:`apply` the images: (B, size, size).

    They are bool, true on the object, or uint8 regions with 1 there and 2 where pixels are ignored; the dtype stays.
    They are resized to ``stored`` first, the side at which the images are stored.
    """
    planes = torch.stack((masks == 1, masks == 2, masks == 2), 1).float()  # three channels, as an image has
    white = (F.interpolate(planes, (stored, stored), mode="area") * 255).round().to(torch.uint8)
    seen = apply(white, numbers, mirrored, replace(augmentation, colour=0.0), size) >= 0.5
    return seen[:, 0] if masks.dtype == torch.bool else torch.where(seen[:, 0], 1, 2 * seen[:, 1]).to(torch.uint8)


def _shift(images: Tensor, numbers: Tensor, mirrored: Tensor, reach: int) -> Tensor:
    side = images.shape[-1]
    offsets = (numbers[:, :2] * (2 * reach + 1)).floor().long() - reach
    places = (torch.arange(side, device=images.device) + offsets[:, :, None]).abs()  # (B, 2, side)
    rows, columns = torch.where(places >= side, 2 * (side - 1) - places, places).unbind(1)  # reflected at the border
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]  # (B, side, side, 3)
    return plain(moved).permute(0, 3, 1, 2)


def _boxes(numbers: Tensor, side: int, augmentation: Augmentation) -> Tensor:
    """Return (B, 4) int64: first row and end, first column and end, of each crop of a square of ``side`` pixels."""
    area = augmentation.least_area + (1 - augmentation.least_area) * numbers[:, 0]
    aspect = ((numbers[:, 1] * 2 - 1) * 0.2877).exp()  # 3/4 .. 4/3
    lengths = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt()), 1).mul_(side).round_().clamp_(1, side)
    starts = (numbers[:, [3, 2]] * (side + 1 - lengths)).floor_()
    return torch.stack((starts, starts + lengths), 2).flatten(1).long()


def _cropped_bytes(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Resize each box bilinearly to (B, size, size, 3), float32 from 0 to 255.

    torch resizes bytes in channels_last with instructions of their own: five times as fast as floats are sampled, and
    rounded to whole numbers, as images on disk are.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    views = images.new_empty(len(images), size, size, 3).permute(0, 3, 1, 2)
    for row, ((top, bottom, left, right), turned) in enumerate(zip(boxes.tolist(), mirrored.tolist(), strict=True)):
        crop = images[row : row + 1, :, top:bottom, left:right]
        # F.interpolate with `out`: a new tensor per image takes as long as resizing does, once a training step has
        # fragmented the memory.
        torch.ops.aten.upsample_bilinear2d.out(
            crop.flip(3) if turned else crop, (size, size), False, None, None, out=views[row : row + 1]
        )
    return views.permute(0, 2, 3, 1).float()


def _sampled(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Do the same as :func:`_cropped_bytes`, not rounded, in one operation for the whole batch: for accelerators."""
    places = (torch.arange(size, device=images.device) + 0.5) / size
    top, bottom, left, right = boxes[..., None].unbind(1)
    # Clamped, since resizing a crop does not see the pixels beside it.
    rows = (top + places * (bottom - top)).clamp(top + 0.5, bottom - 0.5)
    columns = (left + places * (right - left)).clamp(left + 0.5, right - 0.5)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    grid = torch.empty((len(images), size, size, 2), device=images.device)
    grid[..., 0], grid[..., 1] = columns[:, None, :], rows[:, :, None]
    grid = grid * (2 / images.shape[-1]) - 1
    return F.grid_sample(images.float(), grid, align_corners=False).permute(0, 2, 3, 1)


def _colour(views: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation by ``factors`` (3, B) in this order; 0 - 255 becomes 0 - 1.

    The three are one affine function of a pixel and its grey. ``views`` (B, H, W, 3) is changed in place.
    """
    brightness, contrast, saturation = factors
    own = brightness * contrast * saturation / 255
    shared = brightness * contrast * (1 - saturation) / 765  # of the sum of the channels, three times the grey
    level = brightness * (1 - contrast) * views.mean((1, 2, 3)) / 255
    red, green, blue = views.unbind(3)
    grey = (red + green).add_(blue).mul_(shared[:, None, None]).add_(level[:, None, None])
    views.mul_(own[:, None, None, None])
    for channel in (red, green, blue):
        channel.add_(grey)
    return views.clamp_(0, 1)


def cutmix(images: Tensor, numbers: Tensor) -> tuple[Tensor, float]:
    """Paste a rectangle of each image's neighbour in the batch into it (Yun et al., ICCV 2019, arXiv 1905.04899).

    ``numbers`` (3,) in [0, 1) are area, row and column of the rectangle in all images (B, 3, H, W). Return the mixed
    images, and the fraction of each that is still its own; the rest belongs to the image one row up.
    """
    height, width = images.shape[-2:]
    area, row, column = numbers.tolist()
    tall, wide = int(height * area**0.5), int(width * area**0.5)
    top, left = int(row * (height - tall + 1)), int(column * (width - wide + 1))
    mixed = images.clone()
    place = (..., slice(top, top + tall), slice(left, left + wide))
    mixed[place] = images[place].roll(1, 0)
    return mixed, 1 - tall * wide / (height * width)
