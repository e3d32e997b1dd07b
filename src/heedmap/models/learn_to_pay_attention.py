"""The networks of "Learn To Pay Attention" by their names in the paper."""

from collections.abc import Sequence
from dataclasses import replace

from heedmap.backbones.paper import LEVELS, PaperResNet, PaperVGG
from heedmap.errors import ModelError
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import PAPER_FORMS, assemble_classifier


def paper_vgg_att(
    num_classes: int,
    taps: int | Sequence[str] = 3,
    score: str = "parametrised",
    weights: str = "softmax",
    head: str = "concat",
    project: str = "query",
) -> AttentionClassifier:
    """Return (VGG-att)-, (VGG-att2)- or (VGG-att3)-{concat, indep}-{dp, pc} of the paper.

    Args:
        num_classes: K; the classes are named by their numbers.
        taps: levels of attention, 1 to 3; or the names of any of the thirteen convs.
        score: ``parametrised`` (pc), ``dot`` (dp); not in the paper: ``additive``; ``none``, which averages each tap.
        weights, head: ``softmax``, as in the paper, or ``sigmoid``; ``concat`` or ``indep``.
        project: at the one level whose size differs from the query's (conv7), bring the ``query`` down as the published
            weights do, or the ``features`` up.

    Raises:
        ModelError: an unknown word or number of taps.
    """
    if isinstance(taps, int) and taps not in LEVELS:
        raise ModelError(f"The paper's VGG has 1, 2 or 3 levels of attention, not {taps}.")
    names = LEVELS[taps] if isinstance(taps, int) else tuple(taps)
    architecture = Architecture("paper-vgg", score, weights, head, names, 32, tuple(map(str, range(num_classes))))
    return assemble_classifier(PaperVGG(), architecture, replace(PAPER_FORMS["paper-vgg"], project=project))


def paper_resnet_att(
    num_classes: int,
    depth: int = 164,
    taps: Sequence[str] = PaperResNet.default_taps,
    score: str = "parametrised",
    weights: str = "softmax",
    head: str = "concat",
    project: str = "query",
) -> AttentionClassifier:
    """Return RN-att2 of the paper: taps after stages 2 and 3, dropout 0.3 before the head.

    Args:
        depth: 9 n + 2 layers; the paper has 164.
        taps: names among ``stage1``, ``stage2``, ``stage3``.
        num_classes, score, weights, head, project: as in :func:`paper_vgg_att`; stage2 is the level of another size.

    Raises:
        ModelError: an unknown word or depth.
    """
    classes = tuple(map(str, range(num_classes)))
    architecture = Architecture("paper-resnet", score, weights, head, tuple(taps), 32, classes)
    return assemble_classifier(PaperResNet(depth), architecture, replace(PAPER_FORMS["paper-resnet"], project=project))
