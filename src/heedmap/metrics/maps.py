"""What the metrics of maps share: logits and maps of many images, from any classifier and any map function.

They take any ``nn.Module`` from RGB in [0, 1] to logits, heedmap's own or another, and a map as a function of it, so
learned attention, an attribution and a user's own idea are evaluated by the same lines.

The baselines are maps that know nothing of what a network learned; a figure means little without theirs beside it:

``centre``       a Gaussian around the middle, the baseline of Choe et al. (2020).
``centre box``   a pyramid: its levels are all centred squares, so that MaxBoxAcc finds the best box of one size.
``uniform``      the same everywhere: what the share of the image that the objects cover is worth.
``random``       noise on a coarse grid, interpolated like any map.
``edges``        how steep the image itself is (Sobel), which no network has seen.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from heedmap.errors import DataError, ModelError, OptionError, nearest
from heedmap.models.classifier import combined_map
from heedmap.modules import fitted, logits_of

MapFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(model, images (B, 3, H, W), targets (B,)) -> (B, h, w)``, hotter is larger, any scale, as coarse as it likes."""

GRID = 14  # cells of the noise along a side: as many as the deepest features of most networks at 224 pixels have
RANDOM_MAPS = 64  # then they repeat: their components need to be found only once
SPREAD = 0.25  # standard deviation of the Gaussian in shares of the image; only the order of its values matters much

FIXED_BASELINES = ("centre", "centre box", "uniform", "random")


@dataclass(frozen=True)
class Score:
    """A mean over images with its 95 % interval (normal; over images, not over seeds).

    ``low`` and ``high`` are mean -/+ 1.96 standard errors; NaN for a single image.
    """

    mean: float
    low: float
    high: float


def score(values: Tensor) -> Score:
    """Summarise one value an image (N,); all NaN where there is no image."""
    values = values.double()
    if not len(values):
        return Score(math.nan, math.nan, math.nan)
    mean = values.mean().item()
    reach = 1.959964 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Score(mean, mean - reach, mean + reach)


class PlainReport:
    """A report that is a dataclass of dataclasses."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and dicts; NaN where a figure is not defined."""
        return asdict(self)  # type: ignore[call-overload]  # all who inherit it are dataclasses


def check_known(kind: str, name: str, known: Collection[str]) -> None:
    """Raise OptionError where a name is not one of the known ones, which the message lists."""
    if name not in known:
        raise OptionError(f"Unknown {kind} {name!r}; it can be {', '.join(known)}.{nearest(name, known)}")


def unit_range(maps: Tensor) -> Tensor:
    """Scale each map (N, H, W) to [0, 1] by its own lowest and highest value; a constant map to 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)


@torch.no_grad()
def all_logits(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return the logits (N, K) of all images, on the CPU."""
    return torch.cat([logits_of(model, fitted(model, part)).cpu() for part in images.split(batch_size)])


def all_maps(
    name: str, function: MapFunction, model: nn.Module, images: Tensor, targets: Tensor, batch_size: int
) -> Tensor:
    """Compute the maps of all images: (N, h, w) on the CPU, at least float32, without gradient.

    Raises:
        ModelError: a map of another shape, or with values that are not finite; the message names it.
    """
    parts = []
    for batch, labels in zip(images.split(batch_size), targets.split(batch_size), strict=True):
        batch = fitted(model, batch)
        with torch.enable_grad():
            values = function(model, batch, labels.to(batch.device))
        parts.append(_checked(name, values, len(batch)))
    if len({part.shape[1:] for part in parts}) != 1:
        raise ModelError(f"Map {name!r} changes its size between batches; one size is needed.")
    return torch.cat(parts)


def _checked(name: str, values: Tensor, count: int) -> Tensor:
    if not isinstance(values, Tensor):
        raise ModelError(f"Map {name!r} gave {type(values).__name__}; a tensor (B, h, w) is needed.")
    values = values.detach()
    values = values[:, 0] if values.dim() == 4 and values.shape[1] == 1 else values
    if values.dim() != 3 or len(values) != count or 0 in values.shape:
        raise ModelError(f"Map {name!r} has shape {tuple(values.shape)}; ({count}, h, w) is needed.")
    if not values.isfinite().all():
        raise ModelError(f"Map {name!r} holds values that are not finite; look at the images and weights behind it.")
    return values.to("cpu", torch.promote_types(values.dtype, torch.float32))


def check_images(images: Tensor, targets: Tensor | None = None) -> None:
    """Raise DataError for images other than floating point RGB (N, 3, H, W) in [0, 1], or targets that do not fit."""
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise DataError(f"Images are {images.dtype} {tuple(images.shape)}; floating point (N, 3, H, W) are needed.")
    if not (images.amin() >= 0 and images.amax() <= 1):
        raise DataError("Images must lie in [0, 1]; the normalisation belongs into the model.")
    if targets is not None and (targets.shape != images.shape[:1] or targets.is_floating_point()):
        raise DataError(f"{tuple(targets.shape)} targets of {targets.dtype} for {len(images)} images; integers (N,).")


def learned_map(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the attention that the classifier used, (B, h, w): all taps combined (see ``combined_map``).

    A :data:`MapFunction`; it does not depend on the target, and raises ModelError where the model gives no attention.
    """
    return _learned(model, images, None)


def learned_map_at(tap: str) -> MapFunction:
    """Return a :data:`MapFunction` that gives the attention used at one tap; it raises ModelError where none is."""
    return lambda model, images, targets: _learned(model, images, tap)


@torch.no_grad()
def _learned(model: nn.Module, images: Tensor, tap: str | None) -> Tensor:
    output = model(images)
    attention: Mapping[str, Tensor] = getattr(output, "attention", {})
    if not attention:
        raise ModelError(f"{type(model).__name__} gives no attention; pass a map function that computes one.")
    if tap is None:
        return combined_map(dict(attention), getattr(output, "shares", None))[:, 0]
    if tap not in attention:
        raise ModelError(f"There is no tap {tap!r}; it can be {', '.join(attention)}.{nearest(tap, attention)}")
    return attention[tap][:, 0]


def explained(method: str, layer: str | None = None, settings: Mapping[str, Any] = {}) -> MapFunction:
    """Return a method of :func:`heedmap.attribution.explain`, such as ``grad-cam``, as a :data:`MapFunction`."""
    # Late: only this map needs the attribution methods.
    from heedmap.attribution import explain

    return lambda model, images, targets: explain(model, images, method, targets, layer, settings).values[:, 0]


def fixed_baselines(size: int, seed: int) -> dict[str, Tensor]:
    """Return the baselines that do not depend on the image: name -> (K, 1, h, w); image i has map i modulo K.

    ``size`` is the side of the maps in pixels, ``seed`` that of the noise.
    """
    # An odd number of cells has one in the very middle, which is where these two point.
    axis = (torch.arange(size | 1) + 0.5) / (size | 1) - 0.5
    generator = torch.Generator().manual_seed(seed)
    return {
        "centre": centre(size | 1, size | 1)[None, None],
        "centre box": 1 - 2 * torch.maximum(axis.abs()[:, None], axis.abs())[None, None],
        "uniform": torch.ones(1, 1, GRID, GRID),
        "random": torch.rand(RANDOM_MAPS, 1, GRID, GRID, generator=generator),
    }


def centre(height: int, width: int) -> Tensor:
    """Return the Gaussian around the middle, (height, width)."""
    row, column = ((torch.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return torch.exp(-(row[:, None] ** 2 + column[None, :] ** 2) / (2 * SPREAD**2))


def edges(images: Tensor) -> Tensor:
    """Return how steep the brightness is, (M, 1, H, W) float32: the length of the Sobel gradient.

    Images are (M, 3, H, W) RGB, uint8 or in [0, 1].
    """
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    grey = (images.float() * weights[:, None, None]).sum(1, keepdim=True)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device)
    filters = torch.stack([across, across.T])[:, None]
    return conv2d(pad(grey, (1, 1, 1, 1), mode="replicate"), filters).norm(dim=1, keepdim=True)


def centre_map(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return a map (B, H, W) that falls from the middle of the image, whatever is in it; a :data:`MapFunction`."""
    return centre(*images.shape[-2:]).to(images.device).expand(len(images), -1, -1)


def edge_map(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return how steep the image itself is, (B, H, W); a :data:`MapFunction` that never runs the model."""
    return edges(images)[:, 0]
