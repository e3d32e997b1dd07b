"""The classifier: normalisation, backbone, attention at the taps, head; its forward is a loop that can be read.

Pictures enter as RGB in [0, 1] and the normalisation is part of the model, so an attack is in pixel units, an exported
model is complete, and no map depends on a line of preprocessing that somebody forgot.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.attention import FeatureAttention, Readout, attention_kind, build_attention
from heedmap.attention.heads import ConcatHead, IndepHead, ReadoutHead, ResidualHead
from heedmap.backbones import OWN_BACKBONES
from heedmap.backbones.chain import Backbone
from heedmap.backbones.compact import Compact
from heedmap.backbones.whitened import Whitened
from heedmap.errors import ModelError, nearest
from heedmap.records import AttentionMap, Output

COMBINE = ("root", "learned")
HEADS = {"concat": ConcatHead, "indep": IndepHead, "residual": ResidualHead}


class AttentionClassifier(nn.Module):
    """A backbone whose taps are read by attention, and a head that makes logits of what was read.

    Args:
        backbone: see :class:`heedmap.backbones.chain.Backbone`.
        attentions: tap name -> readout or gate, in the order of the head's input.
        head: maps tap name -> (B, C) to logits; a :class:`ResidualHead` also takes the backbone's own logits.
        classes: class names.
        image_size: side in pixels of the pictures it was made for.
        attention_name: key of :data:`heedmap.attention.ATTENTIONS`, for legends.
        weights: ``softmax`` or ``sigmoid``, for legends.
        combine: ``root`` or ``learned``: whether each tap counts alike in the combined map, or as much as is learned.

    Raises:
        ModelError: a tap that the backbone does not have, pictures too small for it, a class named twice, or a learned
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
        weights: str,
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
        self.attention_name, self.weights = attention_name, weights
        self.tap_scores = _tap_scores(combine, self.taps)
        self.architecture: Architecture | None = None  # where there is a description that makes it again
        self.uses_query = any(attention.uses_query for attention in attentions.values())
        # Crops for training are smaller than the pictures judged, unless the network is bound to one size.
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
        """Classify pictures and give the attention that was used.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            query: (B, D) or (1, D) from :meth:`query`, to attend with another picture's global feature; None takes
                each picture's own.

        Returns:
            See :class:`heedmap.records.Output`. For a gate, ``attention`` holds its mean over channels.
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
            raise ModelError(f"Pictures of type {images.dtype} are not in [0, 1]; divide bytes by 255.")
        # In the more precise of the two types: steps of 1/255 are lost in bfloat16 before the mean is taken off. One
        # operation in place of two: with a pixel's channels side by side each of them is slow, 1 % of a training step.
        return torch.addcmul(-self.mean / self.std, images, 1 / self.std).to(self.mean.dtype)

    def query(self, images: Tensor) -> Tensor:
        """Return the global features (B, D) of pictures (B, 3, H, W) in [0, 1], to attend to other pictures with."""
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
        shares: (T,) the exponent of each tap, such as :attr:`heedmap.records.Output.shares`; None takes 1 / T for all.

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
    """Return the maps of one picture of a batch: each tap's, then ``combined`` where there are several taps.

    The scale of softmax weights runs from 0 to the map's largest value, that of sigmoid weights from 0 to 1.
    """
    values = {tap: weights[row, 0] for tap, weights in output.attention.items()}
    if len(values) > 1:
        alone = {tap: weights[row : row + 1] for tap, weights in output.attention.items()}
        values["combined"] = combined_map(alone, output.shares)[0, 0]
    method = f"{classifier.attention_name}, {classifier.weights}"
    tops = {tap: 1.0 if classifier.weights == "sigmoid" else float(grid.max()) for tap, grid in values.items()}
    return {tap: AttentionMap(grid.float().cpu(), tap, method, 0.0, tops[tap]) for tap, grid in values.items()}


@dataclass(frozen=True)
class Architecture:
    """What a classifier is made of; all that is needed to make it again before its weights are loaded.

    Attributes:
        model: ``compact``, ``whitened``, ``paper-vgg``, ``paper-resnet``, or a timm or torchvision name.
        attention, weights, head, taps, combine: as in :class:`heedmap.options.TrainOptions`.
        image_size: side in pixels.
        classes: class names.
    """

    model: str
    attention: str
    weights: str | None
    head: str
    taps: tuple[str, ...] | None
    image_size: int
    classes: tuple[str, ...]
    combine: str = "root"


def build_classifier(architecture: Architecture, pretrained: str | None = None) -> AttentionClassifier:
    """Make the classifier; its weights are random unless ``pretrained`` says where others are.

    Args:
        architecture: what to make.
        pretrained: ``hub`` or a file, for timm and torchvision backbones.

    Raises:
        ModelError: an unknown model, attention or tap, a picture size that does not fit, or weights that cannot be had.
    """
    classifier = _built(architecture, pretrained)
    classifier.architecture = architecture
    return classifier


def _built(architecture: Architecture, pretrained: str | None) -> AttentionClassifier:
    if architecture.model in ("paper-vgg", "paper-resnet"):
        return _paper_classifier(architecture, pretrained)
    name = architecture.model
    if name in ("compact", "whitened"):
        if pretrained:
            raise ModelError(f"{name} has no pretrained weights ({pretrained!r}); name a timm or torchvision model.")
        if architecture.head == "residual":
            raise ModelError(
                f"head 'residual' adds to an already trained network's answer; {name} has none. Use concat."
            )
        backbone: Backbone = Compact.for_size(architecture.image_size) if name == "compact" else Whitened()
    else:
        from heedmap.backbones.foreign import build_foreign

        backbone = build_foreign(
            architecture.model,
            pretrained=pretrained,
            taps=architecture.taps,
            keep_head=architecture.head == "residual",
            num_classes=len(architecture.classes),
            image_size=architecture.image_size,
        )
    return _assemble(backbone, architecture)


def _paper_classifier(architecture: Architecture, pretrained: str | None) -> AttentionClassifier:
    from heedmap.paper import paper_resnet_att, paper_vgg_att

    name, kind = architecture.model, attention_kind(architecture.attention)
    if pretrained:
        raise ModelError(f"{name} has no pretrained weights ({pretrained!r}); leave --pretrained out.")
    if architecture.weights not in (None, *kind.weights):
        raise ModelError(
            f"Attention {architecture.attention!r} has no weights {architecture.weights!r}; "
            f"it can be {', '.join(kind.weights)}."
        )
    if kind.is_gate or architecture.head == "residual":
        raise ModelError(
            f"{name} takes a readout with head concat or indep, not {architecture.attention} {architecture.head}."
        )
    make = paper_vgg_att if name == "paper-vgg" else paper_resnet_att
    settings = functools.partial(
        make,
        len(architecture.classes),
        score=architecture.attention,
        weights=architecture.weights or "softmax",
        head=architecture.head,
    )
    parts = settings(taps=architecture.taps) if architecture.taps else settings()
    return AttentionClassifier(
        parts.backbone,
        parts.readouts,
        parts.head,
        classes=architecture.classes,
        image_size=architecture.image_size,
        attention_name=architecture.attention,
        weights=architecture.weights or "softmax",
        combine=architecture.combine,
    )


def _assemble(backbone: Backbone, architecture: Architecture) -> AttentionClassifier:
    """Put attention and head on a backbone that is not bound to a paper's form."""
    kind = attention_kind(architecture.attention)
    taps = architecture.taps or backbone.default_taps
    if kind.is_gate and architecture.taps is None:
        taps = taps[-1:]  # soft feature attention gates the last features
    backbone.check_taps(taps)
    backbone.check_size(architecture.image_size, architecture.image_size)
    weights = architecture.weights or kind.weights[0]
    attentions = {}
    for tap in taps:
        stage = backbone.stage(tap)
        side = backbone.grid_side(tap, architecture.image_size)
        attentions[tap] = build_attention(
            architecture.attention,
            stage.channels,
            backbone.query_channels,
            height=side,
            width=side,
            weights=weights,
            level=architecture.model not in OWN_BACKBONES,
        )
    widths = {tap: attention.channels for tap, attention in attentions.items()}
    if architecture.head not in HEADS:
        raise ModelError(
            f"Unknown head {architecture.head!r}; it can be {', '.join(HEADS)}.{nearest(architecture.head, HEADS)}"
        )
    head = HEADS[architecture.head](widths, len(architecture.classes))
    return AttentionClassifier(
        backbone,
        attentions,
        head,
        classes=architecture.classes,
        image_size=architecture.image_size,
        attention_name=architecture.attention,
        weights=weights,
        combine=architecture.combine,
    )


def attach(
    module: nn.Module,
    *,
    classes: Sequence[str],
    image_size: int = 224,
    taps: str | Sequence[str] | None = None,
    attention: str = "parametrised",
    weights: str | None = None,
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> AttentionClassifier:
    """Put attention into a network that is already trained, without moving its answer.

    The readouts enter through a linear layer that starts at zero and is added to the network's own logits, so before
    the first step of training the logits are the network's own.

    Args:
        module: any ``nn.Module`` from normalised pictures (B, 3, H, W) to logits (B, K).
        classes: the K class names.
        image_size: side of the pictures.
        taps: name, or names, of submodules with (B, C, H, W) outputs; None takes two deep ones.
        attention, weights: see :data:`heedmap.attention.ATTENTIONS`.
        mean, std: the normalisation that the network was trained with.

    Raises:
        ModelError: no module, a tap that does not exist, a network without features that can be tapped, a class named
            twice, or another number of classes than the network has.
    """
    from heedmap.backbones.foreign import ForeignBackbone

    if not isinstance(module, nn.Module):
        raise ModelError(f"attach: give a module, not {module!r}; heedmap.build_classifier takes names.")
    names = checked_classes(classes)
    chosen = (taps,) if isinstance(taps, str) else tuple(taps) if taps is not None else None
    backbone = ForeignBackbone(module, taps=chosen, keep_head=True, mean=mean, std=std, image_size=image_size)
    if backbone.answer_channels != len(names):
        raise ModelError(
            f"{backbone.name} tells {backbone.answer_channels} classes apart, but {len(names)} class names were given; "
            "name the classes it was trained on, in its order."
        )
    return _assemble(backbone, Architecture("custom", attention, weights, "residual", chosen, image_size, names))


def list_models() -> dict[str, str]:
    """Names and one line each of heedmap's own backbones."""
    return dict(OWN_BACKBONES)
