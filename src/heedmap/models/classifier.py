"""The classifier: normalisation, backbone, attention at the taps, head; its forward is a loop that can be read.

Images enter as RGB in [0, 1] and the normalisation is part of the model, so an attack is in pixel units, an exported
model is complete, and no map depends on a line of preprocessing that somebody forgot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.attention import FeatureAttention, Readout, attention_kind
from heedmap.backbones.base import Backbone
from heedmap.errors import ModelError, nearest
from heedmap.heads.classification import ReadoutHead, ResidualHead
from heedmap.models.architecture import Architecture
from heedmap.types import AttentionMap, Output

COMBINE = ("root", "learned")


class AttentionClassifier(nn.Module):
    """A backbone whose taps are read by attention, and a head that makes logits of what was read.

    Args:
        backbone: see :class:`heedmap.backbones.base.Backbone`.
        attentions: tap name -> readout or gate, in the order of the head's input.
        head: maps tap name -> (B, C) to logits; a :class:`ResidualHead` also takes the backbone's own logits.
        classes: class names.
        image_size: side in pixels of the images it was made for.
        attention_name: key of :data:`heedmap.attention.ATTENTIONS`, for legends.
        attention_weights: ``softmax`` or ``sigmoid``, for legends.
        combine: ``root`` or ``learned``: whether each tap counts alike in the combined map, or as much as is learned.

    Raises:
        ModelError: a tap that the backbone does not have, images too small for it, a class named twice, or a learned
            combination of one tap.
    """

    def __init__(
        self,
        backbone: Backbone,
        attentions: Mapping[str, Readout | FeatureAttention],
        head: ReadoutHead,
        *,
        classes: Sequence[str],
        image_size: int,
        attention_name: str,
        attention_weights: str,
        combine: str = "root",
    ) -> None:
        super().__init__()
        backbone.check_taps(tuple(attentions))
        backbone.check_size(image_size, image_size)
        self.backbone, self.head = backbone, head
        self.taps = tuple(attentions)
        self.attentions = nn.ModuleList(attentions.values())  # a list: no module's name may hold the dot of "layer4.1"
        self.classes = checked_classes(classes)
        self.image_size = image_size
        self.attention_name, self.attention_weights = attention_name, attention_weights
        self.tap_scores = _tap_scores(combine, self.taps)
        self.architecture: Architecture | None = None  # where there is a description that makes it again
        self.uses_query = any(attention.uses_query for attention in attentions.values())
        # Crops for training are smaller than the images evaluated, unless the network is bound to one size.
        self.takes_any_size = backbone.fixed_size is None and attention_name != "feature-dense"
        self.is_gate = attention_kind(attention_name).is_gate
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(backbone.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std)[:, None, None], persistent=False)
        if not self.uses_query:  # weights that can never get a gradient would stop distributed training
            for parameter in backbone.unread_parameters(self.taps):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Output:
        """Classify images and give the attention that was used.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            query: (B, D) or (1, D) from :meth:`query`, to attend with another image's global feature; None takes
                each image's own.

        Returns:
            See :class:`heedmap.types.Output`. For a gate, ``attention`` holds its mean over channels.
        """
        needs_own = self.uses_query and query is None
        trunk = self.backbone(self._normalised(images), self.taps, needs_own)
        query = trunk.query if needs_own else query
        vectors: dict[str, Tensor] = {}
        maps: dict[str, Tensor] = {}
        merged: dict[str, Tensor] = {}
        for tap, attention in zip(self.taps, self.attentions, strict=True):
            features = trunk.features[tap]
            attended, weights = attention(features, query)
            if self.is_gate:
                merged = {
                    "before": features.amax(1, keepdim=True).float(),
                    "after": attended.amax(1, keepdim=True).float(),
                }
                attended, weights = attended.mean(dim=(2, 3)), weights.mean(1, keepdim=True)
            # The readouts are float32 at least; a head whose weights are bfloat16 takes nothing else.
            vectors[tap], maps[tap] = attended.to(self.mean.dtype), weights
        logits = self.head(vectors, trunk.logits) if isinstance(self.head, ResidualHead) else self.head(vectors)
        return Output(logits.to(maps[self.taps[0]].dtype), maps, merged, self.shares())

    def shares(self) -> Tensor | None:
        """(T,) how much each tap counts in the combined map, where that was learned, else None."""
        return None if self.tap_scores is None else self.tap_scores.softmax(0)

    def _normalised(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():  # bytes from 0 to 255 would be answered, with certainty, and wrongly
            raise ModelError(f"Images of type {images.dtype} are not in [0, 1]; divide bytes by 255.")
        # In the more precise of the two types: steps of 1/255 are lost in bfloat16 before the mean is taken off. One
        # operation in place of two: with a pixel's channels side by side each of them is slow, 1 % of a training step.
        return torch.addcmul(-self.mean / self.std, images, 1 / self.std).to(self.mean.dtype)

    def query(self, images: Tensor) -> Tensor:
        """Return the global features (B, D) of images (B, 3, H, W) in [0, 1], to attend to other images with."""
        found = self.backbone(self._normalised(images), self.taps, True).query
        assert found is not None  # asked for
        return found


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names.

    Raises:
        ModelError: a single text in place of names, or a name that comes twice.
    """
    if isinstance(classes, str):
        raise ModelError(f"classes is the text {classes!r}; give the names one by one, such as ('cat', 'dog').")
    names = tuple(classes)
    if len(set(names)) < len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise ModelError(f"Class {twice!r} is named twice; give each class a name of its own.")
    return names


def _tap_scores(combine: str, taps: tuple[str, ...]) -> nn.Parameter | None:
    if combine not in COMBINE:
        raise ModelError(f"Unknown combine {combine!r}; it can be {', '.join(COMBINE)}.{nearest(combine, COMBINE)}")
    if combine == "root":
        return None
    if len(taps) < 2:
        raise ModelError(f"combine 'learned' joins the maps of several taps; there is {taps[0]} alone. Name more taps.")
    return nn.Parameter(torch.zeros(len(taps)))


def combined_map(attention: dict[str, Tensor], shares: Tensor | None = None) -> Tensor:
    """Join the taps' maps into one: their (weighted) geometric mean, on the grid of the finest tap.

    Jetley et al. (2018) multiply the maps of two taps and take the root; the geometric mean is that for two taps and
    goes on for more. Coarser maps are upsampled bilinearly. The values are not rescaled.

    Args:
        attention: tap -> (B, 1, h, w), each not negative.
        shares: (T,) the exponent of each tap, such as :attr:`heedmap.types.Output.shares`; None takes 1 / T for all.

    Returns:
        (B, 1, h, w) with the largest h and w among the taps.
    """
    finest = max((values.shape[-2:] for values in attention.values()), key=lambda size: size[0] * size[1])
    total = torch.zeros((), device=next(iter(attention.values())).device)
    for place, values in enumerate(attention.values()):
        resized = values if values.shape[-2:] == finest else F.interpolate(values, finest, mode="bilinear")
        logs = resized.clamp_min(torch.finfo(resized.dtype).tiny).log()
        total = total + (logs if shares is None else logs * (shares[place] * len(attention)))
    return (total / len(attention)).exp()


def attention_maps(classifier: AttentionClassifier, output: Output, row: int) -> dict[str, AttentionMap]:
    """Return the maps of one image of a batch: each tap's, then ``combined`` where there are several taps.

    The scale of softmax weights runs from 0 to the map's largest value, that of sigmoid weights from 0 to 1.
    """
    values = {tap: weights[row, 0] for tap, weights in output.attention.items()}
    if len(values) > 1:
        alone = {tap: weights[row : row + 1] for tap, weights in output.attention.items()}
        values["combined"] = combined_map(alone, output.shares)[0, 0]
    method = f"{classifier.attention_name}, {classifier.attention_weights}"
    tops = {
        tap: 1.0 if classifier.attention_weights == "sigmoid" else float(grid.max()) for tap, grid in values.items()
    }
    return {tap: AttentionMap(grid.float().cpu(), tap, method, 0.0, tops[tap]) for tap, grid in values.items()}
