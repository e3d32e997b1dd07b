"""From an architecture, a name or a trained network to a classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from heedmap.attention import Gate, TapFeatures, attention_options
from heedmap.backbones import OWN_BACKBONES
from heedmap.backbones.base import IMAGENET, Backbone, Normalization
from heedmap.backbones.compact import Compact
from heedmap.backbones.paper import PaperResNet, PaperVGG
from heedmap.backbones.whitened import Whitened
from heedmap.errors import ModelError, checked_choice
from heedmap.heads.classification import HEADS
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier


@dataclass(frozen=True)
class Form:
    """How readouts and head are made, beside what the architecture names.

    See :class:`heedmap.attention.readouts.CompatibilityReadout`, :class:`heedmap.heads.classification.ReadoutHead`.
    """

    rescale: bool = False
    paper: bool = False
    project: str = "query"
    normalise: str | None = None
    dropout: float = 0.5


PAPER_FORMS = {
    "paper-vgg": Form(paper=True, normalise="paper"),
    "paper-resnet": Form(paper=True, normalise="paper", dropout=0.3),
}


def build_classifier(architecture: Architecture, pretrained: str | None = None) -> AttentionClassifier:
    """Build the classifier, with random weights unless ``pretrained`` names others.

    ``pretrained`` is ``hub`` or a file, for timm and torchvision backbones.

    Raises:
        ModelError: an unknown model, attention or tap, an image size that does not fit, weights that cannot be loaded.
    """
    name = architecture.model
    if name in OWN_BACKBONES:
        backbone = _own_backbone(architecture, pretrained)
    else:
        # Late: heedmap's own networks need nothing of timm's or torchvision's.
        from heedmap.backbones.wrapped import build_wrapped

        backbone = build_wrapped(
            name,
            pretrained=pretrained,
            taps=architecture.taps,
            keep_head=architecture.head == "residual",
            num_classes=len(architecture.classes),
            image_size=architecture.image_size,
        )
    form = PAPER_FORMS.get(name, Form(rescale=name not in OWN_BACKBONES))
    classifier = assemble_classifier(backbone, architecture, form)
    classifier.architecture = architecture
    return classifier


def _own_backbone(architecture: Architecture, pretrained: str | None) -> Backbone:
    name = architecture.model
    if pretrained:
        raise ModelError(f"{name} has no pretrained weights ({pretrained!r}); name a timm or torchvision model.")
    if architecture.head == "residual":
        raise ModelError(f"head 'residual' adds to a trained network's logits; {name} has none. Use concat or indep.")
    if name == "compact":
        return Compact.for_size(architecture.image_size)
    return {"whitened": Whitened, "paper-vgg": PaperVGG, "paper-resnet": PaperResNet}[name]()


def assemble_classifier(
    backbone: Backbone, architecture: Architecture, form: Form, gates: Mapping[str, Gate] | None = None
) -> AttentionClassifier:
    """Put attention and head on a backbone.

    Args:
        backbone, gates: see :class:`AttentionClassifier`.
        architecture: names attention, taps and head; its ``model`` is not used.
        form: how they are made.

    Raises:
        ModelError: an unknown attention, tap or head, or a size or attention that does not fit the backbone.
    """
    options = attention_options(architecture.attention, architecture.attention_weights)
    if form.paper and not options.HAS_PAPER_FORM:
        raise ModelError(f"{backbone.name} has no form of attention {options.name!r}; use parametrised or dot.")
    head = HEADS[checked_choice("head", architecture.head, HEADS)]
    taps = architecture.taps or (backbone.default_taps[-1:] if options.LAST_TAP_ONLY else backbone.default_taps)
    backbone.check_taps(taps)
    backbone.check_size(architecture.image_size, architecture.image_size)
    readouts = {}
    for tap in taps:
        side = backbone.grid_side(tap, architecture.image_size)
        shape = (backbone.stage(tap).channels, backbone.query_channels, side, side)
        readouts[tap] = options.build(TapFeatures(*shape, form.rescale, form.paper, form.project))
    widths = {tap: readout.channels for tap, readout in readouts.items()}
    return AttentionClassifier(
        backbone,
        readouts,
        head(widths, len(architecture.classes), form.normalise, form.dropout),
        classes=architecture.classes,
        image_size=architecture.image_size,
        combine=architecture.combine,
        gates=gates,
    )


def attach(
    module: nn.Module,
    *,
    classes: Sequence[str],
    image_size: int = 224,
    taps: str | Sequence[str] | None = None,
    attention: str = "parametrised",
    attention_weights: str | None = None,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET,
) -> AttentionClassifier:
    """Put attention into a network that is already trained, without changing its logits.

    The readouts enter through a linear layer that starts at zero and is added to the network's own logits, so before
    the first step of training the logits are the network's own.

    Args:
        module: any ``nn.Module`` from normalised images (B, 3, H, W) to logits (B, K).
        classes, image_size: the K class names, and the side of the images in pixels.
        taps: name, or names, of submodules with (B, C, H, W) outputs; None takes two deep ones.
        attention, attention_weights: see :data:`heedmap.attention.ATTENTIONS`.
        normalization: mean and standard deviation per channel that the network was trained with.

    Raises:
        ModelError: no module, a tap that does not exist, a network without features that can be tapped, a class named
            twice, or another number of classes than the network has.
    """
    # Late: heedmap's own networks need nothing of timm's or torchvision's.
    from heedmap.backbones.wrapped import WrappedBackbone

    if not isinstance(module, nn.Module):
        raise ModelError(f"attach: give a module, not {module!r}; heedmap.build_classifier takes names.")
    names = (taps,) if isinstance(taps, str) else None if taps is None else tuple(taps)
    architecture = Architecture("custom", attention, attention_weights, "residual", names, image_size, classes)  # type: ignore[arg-type]  # made a tuple there
    backbone = WrappedBackbone(
        module, names, keep_head=True, normalization=Normalization(*normalization), image_size=image_size
    )
    if backbone.logit_channels != len(architecture.classes):
        raise ModelError(
            f"{backbone.name} has {backbone.logit_channels} classes, but {len(architecture.classes)} class names were "
            "given; name the classes it was trained on, in its order."
        )
    return assemble_classifier(backbone, architecture, Form(rescale=True))
