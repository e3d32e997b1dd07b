"""The networks of "Learn To Pay Attention" put together from their rooms: a trunk, a readout a tap, and a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from heedmap.attention.readouts import CompatibilityReadout, MeanReadout, Readout
from heedmap.backbones.base import Backbone
from heedmap.backbones.resnet import PaperResNet
from heedmap.backbones.vgg import PaperVGG
from heedmap.errors import ModelError, nearest
from heedmap.heads.classification import ConcatHead, IndepHead

HEADS: dict[str, type[ConcatHead] | type[IndepHead]] = {"concat": ConcatHead, "indep": IndepHead}


@dataclass(frozen=True)
class PaperPieces:
    """The parts of an attention network, for the classifier to join.

    Attributes:
        backbone: the trunk.
        readouts: tap name -> readout, in order.
        head: from the readouts' vectors to logits.
    """

    backbone: Backbone
    readouts: dict[str, Readout]
    head: ConcatHead | IndepHead

    def parameter_count(self) -> int:
        """All parameters of the three parts, dead and frozen ones included, as the published counts have them."""
        parts: list[nn.Module] = [self.backbone, *self.readouts.values(), self.head]
        return sum(parameter.numel() for part in parts for parameter in part.parameters())


def paper_vgg_att(
    num_classes: int,
    taps: int | Sequence[str] = 3,
    score: str = "parametrised",
    weights: str = "softmax",
    head: str = "concat",
    project: str = "query",
) -> PaperPieces:
    """Return (VGG-att)-, (VGG-att2)- or (VGG-att3)-{concat, indep}-{dp, pc} of the paper.

    Args:
        num_classes: K.
        taps: levels of attention, 1 to 3; or the names of any of the thirteen convs.
        score: ``parametrised`` (pc), ``dot`` (dp); not in the paper are ``additive`` and ``none``, the matched control,
            which averages each tap.
        weights: ``softmax``, as in the paper, or ``sigmoid``.
        head: ``concat`` or ``indep``.
        project: at the one level whose size differs from the query's (conv7), bring the ``query`` down as the published
            weights do, or the ``features`` up.

    Raises:
        ModelError: an unknown word or number of taps.
    """
    backbone = PaperVGG(taps) if isinstance(taps, int) else PaperVGG()
    names = backbone.default_taps if isinstance(taps, int) else tuple(taps)
    return _pieces(backbone, names, num_classes, score, weights, head, project, dropout=0.5)


def paper_resnet_att(
    num_classes: int,
    depth: int = 164,
    taps: Sequence[str] = PaperResNet.default_taps,
    score: str = "parametrised",
    weights: str = "softmax",
    head: str = "concat",
    project: str = "query",
) -> PaperPieces:
    """Return RN-att2 of the paper: taps after stages 2 and 3, dropout 0.3 before the head.

    Args:
        num_classes: K; the published code has 100 written in.
        depth: 9 n + 2 layers; the paper has 164.
        taps: names among ``stage1``, ``stage2``, ``stage3``.
        score: as in :func:`paper_vgg_att`, and so are the rest.
        weights: ``softmax`` or ``sigmoid``.
        head: ``concat`` or ``indep``.
        project: ``query`` or ``features``; stage2 is the level whose size differs.

    Raises:
        ModelError: an unknown word or depth.
    """
    return _pieces(PaperResNet(depth), tuple(taps), num_classes, score, weights, head, project, dropout=0.3)


def _pieces(
    backbone: Backbone,
    taps: tuple[str, ...],
    num_classes: int,
    score: str,
    weights: str,
    head: str,
    project: str,
    dropout: float,
) -> PaperPieces:
    backbone.check_taps(taps)
    if head not in HEADS:
        raise ModelError(f"Unknown head {head!r}; it can be {', '.join(HEADS)}.{nearest(head, HEADS)}")
    readouts: dict[str, Readout] = {}
    for tap in taps:
        channels = backbone.stage(tap).channels
        if score == "none":
            readouts[tap] = MeanReadout(channels)
        else:
            readouts[tap] = CompatibilityReadout(channels, backbone.query_channels, score, weights, project, paper=True)
    widths = {tap: readout.channels for tap, readout in readouts.items()}
    return PaperPieces(backbone, readouts, HEADS[head](widths, num_classes, "paper", dropout))
