"""From an architecture, a name or a trained network to a classifier."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from heedmap.attention import attention_kind, build_attention
from heedmap.backbones import OWN_BACKBONES
from heedmap.backbones.base import Backbone
from heedmap.backbones.compact import Compact
from heedmap.backbones.whitened import Whitened
from heedmap.errors import ModelError, nearest
from heedmap.heads.classification import ConcatHead, IndepHead, ResidualHead
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier, checked_classes

HEADS = {"concat": ConcatHead, "indep": IndepHead, "residual": ResidualHead}


def build_classifier(architecture: Architecture, pretrained: str | None = None) -> AttentionClassifier:
    """Make the classifier; its weights are random unless ``pretrained`` says where others are.

    Args:
        architecture: what to make.
        pretrained: ``hub`` or a file, for timm and torchvision backbones.

    Raises:
        ModelError: an unknown model, attention or tap, an image size that does not fit, or weights that cannot be had.
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
        from heedmap.backbones.wrapped import build_wrapped

        backbone = build_wrapped(
            architecture.model,
            pretrained=pretrained,
            taps=architecture.taps,
            keep_head=architecture.head == "residual",
            num_classes=len(architecture.classes),
            image_size=architecture.image_size,
        )
    return _assemble(backbone, architecture)


def _paper_classifier(architecture: Architecture, pretrained: str | None) -> AttentionClassifier:
    from heedmap.models.learn_to_pay_attention import paper_resnet_att, paper_vgg_att

    name, kind = architecture.model, attention_kind(architecture.attention)
    if pretrained:
        raise ModelError(f"{name} has no pretrained weights ({pretrained!r}); leave --pretrained out.")
    if architecture.attention_weights not in (None, *kind.weights):
        raise ModelError(
            f"Attention {architecture.attention!r} has no weights {architecture.attention_weights!r}; "
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
        weights=architecture.attention_weights or "softmax",
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
        attention_weights=architecture.attention_weights or "softmax",
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
    weights = architecture.attention_weights or kind.weights[0]
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
        attention_weights=weights,
        combine=architecture.combine,
    )


def attach(
    module: nn.Module,
    *,
    classes: Sequence[str],
    image_size: int = 224,
    taps: str | Sequence[str] | None = None,
    attention: str = "parametrised",
    attention_weights: str | None = None,
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> AttentionClassifier:
    """Put attention into a network that is already trained, without moving its answer.

    The readouts enter through a linear layer that starts at zero and is added to the network's own logits, so before
    the first step of training the logits are the network's own.

    Args:
        module: any ``nn.Module`` from normalised images (B, 3, H, W) to logits (B, K).
        classes: the K class names.
        image_size: side of the images.
        taps: name, or names, of submodules with (B, C, H, W) outputs; None takes two deep ones.
        attention, attention_weights: see :data:`heedmap.attention.ATTENTIONS`.
        mean, std: the normalisation that the network was trained with.

    Raises:
        ModelError: no module, a tap that does not exist, a network without features that can be tapped, a class named
            twice, or another number of classes than the network has.
    """
    from heedmap.backbones.wrapped import WrappedBackbone

    if not isinstance(module, nn.Module):
        raise ModelError(f"attach: give a module, not {module!r}; heedmap.build_classifier takes names.")
    names = checked_classes(classes)
    chosen = (taps,) if isinstance(taps, str) else tuple(taps) if taps is not None else None
    backbone = WrappedBackbone(module, taps=chosen, keep_head=True, mean=mean, std=std, image_size=image_size)
    if backbone.logit_channels != len(names):
        raise ModelError(
            f"{backbone.name} tells {backbone.logit_channels} classes apart, but {len(names)} class names were given; "
            "name the classes it was trained on, in its order."
        )
    return _assemble(
        backbone, Architecture("custom", attention, attention_weights, "residual", chosen, image_size, names)
    )


def list_models() -> dict[str, str]:
    """Names and one line each of heedmap's own backbones."""
    return dict(OWN_BACKBONES)
