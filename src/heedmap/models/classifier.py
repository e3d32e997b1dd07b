"""The classifier: normalisation, backbone with gates inside, readouts at the taps, head.

Images enter as RGB in [0, 1] and the normalisation is part of the model, so an attack is in pixel units, an exported
model is complete, and no map depends on a forgotten line of preprocessing.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.attention import Gate, Readout
from heedmap.backbones.base import Backbone, Trunk
from heedmap.errors import ModelError, checked_choice
from heedmap.heads.classification import ReadoutHead, ResidualHead
from heedmap.models.architecture import Architecture, class_names
from heedmap.types import AttentionMap, Axis, MapBatch, Output

COMBINE = ("root", "learned")
CHANNELS = Axis("channel")


class AttentionClassifier(nn.Module):
    """A backbone whose taps are read by attention, and a head that makes logits of what was read.

    The forward pass is the loop over stages of :meth:`heedmap.backbones.base.Backbone.forward`, with the gates inside,
    then the loop over taps of :meth:`forward`.

    Args:
        backbone, classes: the network, and the class names.
        attentions: tap name -> readout, in the order of the head's input.
        head: maps tap name -> (B, C) to logits; a :class:`ResidualHead` also takes the backbone's own logits.
        image_size: side in pixels of the images it was made for.
        combine: ``root`` or ``learned``: whether each tap counts alike in the combined map, or as much as is learned.
        gates: stage name -> gate that changes the stage's features for the tap there and all later stages.

    Raises:
        ModelError: a tap or gate at no stage of the backbone, a gate behind all that is read, images too small for the
            backbone, a class named twice, or a learned combination of one tap.
    """

    def __init__(
        self,
        backbone: Backbone,
        attentions: Mapping[str, Readout],
        head: ReadoutHead,
        *,
        classes: Sequence[str],
        image_size: int,
        combine: str = "root",
        gates: Mapping[str, Gate] | None = None,
    ) -> None:
        super().__init__()
        gates = gates or {}
        backbone.check_taps(tuple(attentions))
        backbone.check_taps(tuple(gates))
        backbone.check_size(image_size, image_size)
        self.backbone, self.head = backbone, head
        self.taps, self.gate_places = tuple(attentions), tuple(gates)
        # Lists, since no module's name may hold the dot of "layer4.1".
        self.attentions, self.gates = nn.ModuleList(attentions.values()), nn.ModuleList(gates.values())
        self.classes, self.image_size = class_names(classes), image_size
        first = attentions[self.taps[0]]
        self.attention_name, self.attention_weights = first.name, first.weights
        self.architecture: Architecture | None = None  # of a classifier that can be rebuilt from it
        self.uses_query = any(readout.uses_query for readout in attentions.values())
        unread = [place for place in gates if not (self.uses_query or backbone.is_read(place, self.taps))]
        if unread:  # its weights would get no gradient
            raise ModelError(f"Nothing reads what the gate at {unread[0]!r} changes; tap that stage or a later one.")
        # Crops for training are smaller than the images evaluated, unless the network is bound to one size.
        self.takes_any_size = backbone.fixed_size is None and all(a.takes_any_size for a in attentions.values())
        self.tap_scores: nn.Parameter | None = None
        if checked_choice("combine", combine, COMBINE) == "learned":
            if len(self.taps) < 2:
                raise ModelError(f"combine 'learned' needs several taps, not {self.taps[0]} alone; name more.")
            self.tap_scores = nn.Parameter(torch.zeros(len(self.taps)))
        mean, std = (torch.tensor(values)[:, None, None] for values in backbone.normalization)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        if not self.uses_query:  # weights that can never get a gradient would stop distributed training
            for parameter in backbone.unread_parameters(self.taps):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Output:
        """Classify images and return the attention that was used.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            query: (B, D) or (1, D) from :meth:`query`, to attend with another image's global feature than its own.
        """
        needs_own = self.uses_query and query is None
        trunk, gates = self._trunk(images, needs_own)
        query = trunk.query if needs_own else query
        vectors, maps = {}, {}
        shown: dict[str, Tensor] = {}
        for tap, readout in zip(self.taps, self.attentions, strict=True):
            vector, maps[tap], more = readout(trunk.features[tap], query)
            # The readouts are float32 at least; a head whose weights are bfloat16 takes nothing else.
            vectors[tap] = vector.to(self.mean.dtype)
            shown |= more
        logits = self.head(vectors, trunk.logits) if isinstance(self.head, ResidualHead) else self.head(vectors)
        return Output(logits.to(maps[self.taps[0]].dtype), maps, shown, self.shares(), gates)

    def _trunk(self, images: Tensor, need_query: bool) -> tuple[Trunk, dict[str, MapBatch]]:
        """Run the backbone with the gates inside; return its output and the gates' maps."""
        maps: dict[str, MapBatch] = {}

        def gated(place: str, gate: nn.Module, features: Tensor) -> Tensor:
            changed, factor, _ = gate(features)
            maps[place] = MapBatch(factor, "gate", CHANNELS if factor.shape[1] > 1 else None)
            return changed

        pairs = zip(self.gate_places, self.gates, strict=True)
        changes = {place: partial(gated, place, gate) for place, gate in pairs}
        trunk: Trunk = self.backbone(self._normalised(images), self.taps, need_query, changes)
        return trunk, maps

    def shares(self) -> Tensor | None:
        """(T,) how much each tap counts in the combined map, where that was learned, else None."""
        return None if self.tap_scores is None else self.tap_scores.softmax(0)

    def _normalised(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():  # bytes from 0 to 255 would be classified, confidently and wrongly
            raise ModelError(f"Images of type {images.dtype} are not in [0, 1]; divide bytes by 255.")
        # In the more precise of the two types: steps of 1/255 are lost in bfloat16 before the mean is taken off. One
        # operation in place of two: with a pixel's channels side by side each of them is slow, 1 % of a training step.
        return torch.addcmul(-self.mean / self.std, images, 1 / self.std).to(self.mean.dtype)

    def query(self, images: Tensor) -> Tensor:
        """Return the global features (B, D) of images (B, 3, H, W) in [0, 1], to attend to other images with."""
        trunk, _ = self._trunk(images, True)
        assert trunk.query is not None  # requested
        return trunk.query


def combined_map(attention: dict[str, Tensor], shares: Tensor | None = None) -> Tensor:
    """Join the taps' maps into one: their (weighted) geometric mean, on the grid of the finest tap.

    Jetley et al. (2018) multiply the maps of two taps and take the root; the geometric mean is that for two taps and
    goes on for more. Coarser maps are upsampled bilinearly. The values are not rescaled.

    Args:
        attention: tap -> (B, 1, h, w), each not negative; so is the result, of the largest h and w among them.
        shares: (T,) the exponent of each tap, such as :attr:`heedmap.types.Output.shares`; None takes 1 / T for all.
    """
    finest = max((values.shape[-2:] for values in attention.values()), key=lambda size: size[0] * size[1])
    total = torch.zeros((), device=next(iter(attention.values())).device)
    for index, values in enumerate(attention.values()):
        resized = values if values.shape[-2:] == finest else F.interpolate(values, finest, mode="bilinear")
        logs = resized.clamp_min(torch.finfo(resized.dtype).tiny).log()
        total = total + (logs if shares is None else logs * (shares[index] * len(attention)))
    return (total / len(attention)).exp()


def attention_maps(classifier: AttentionClassifier, output: Output, row: int) -> dict[str, AttentionMap]:
    """Return the readouts' maps of one image of a batch: each tap's, then ``combined`` of several.

    The scale of softmax weights runs from 0 to the map's largest value, that of sigmoid weights from 0 to 1.
    """
    values = {tap: weights[row, 0] for tap, weights in output.attention.items()}
    if len(values) > 1:
        alone = {tap: weights[row : row + 1] for tap, weights in output.attention.items()}
        values["combined"] = combined_map(alone, output.shares)[0, 0]
    method = f"{classifier.attention_name}, {classifier.attention_weights}"
    is_gate = classifier.attention_weights == "sigmoid"
    return {
        tap: AttentionMap(grid.float().cpu(), tap, method, 0.0, 1.0 if is_gate else float(grid.max()))
        for tap, grid in values.items()
    }


def further_maps(output: Output, row: int) -> dict[str, AttentionMap]:
    """Return the maps of :attr:`Output.maps` of one image of a batch, such as those of gates, by name."""
    maps = {}
    for name, (batch, kind, axis) in output.maps.items():
        values = batch[row, 0 if axis is None else slice(None)].detach().float().cpu()
        low, high = min(0.0, float(values.min())), float(values.max())
        maps[name] = AttentionMap(values, name, kind, low, high, kind=kind, axis=axis)
    return maps
