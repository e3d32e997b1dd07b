"""How small a change to the pixels flips a prediction, and whether the map moves with it.

    FGSM   Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015)
    PGD    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), maximum norm

Images are RGB in [0, 1] and the normalisation is inside the model, so an epsilon of 1/255 is one step of an 8-bit
pixel, for every model alike. The attacks know the weights and push against the label. A third row, ``noise``, moves
every pixel by epsilon up or down at random: what an attack does beyond that is the attack.

These two attacks give an upper bound of robustness, never a proof; masked gradients are reported.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.data.loader import generator
from heedmap.errors import OptionError, nearest
from heedmap.metrics.classification import wilson_interval
from heedmap.metrics.faithfulness.sanity_checks import is_constant, spearman
from heedmap.metrics.localization.pointing_game import hottest_points
from heedmap.metrics.maps import MapFunction, PlainReport, all_logits, all_maps, check_images, check_known, learned_map
from heedmap.models.classifier import AttentionClassifier
from heedmap.modules import evaluation_mode, fitted, logits_of
from heedmap.progress import Progress

EPSILONS = (0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255)
ATTACKS = ("noise", "fgsm", "pgd")
HOT_SHARE = 0.1


@dataclass(frozen=True)
class Stability:
    """How similar the maps of an image and of its attacked copy are; means over those images whose map is not constant.

    Attributes:
        rank: Spearman's rank correlation, in [-1, 1].
        overlap: share of the hottest tenth of the cells that stays in the hottest tenth; a tenth by chance.
        shift: distance from hottest point to hottest point, in shares of the image's side, 0 to 1.42.
    """

    count: int
    rank: float
    overlap: float
    shift: float


@dataclass(frozen=True)
class RobustnessRow:
    """One model under one attack.

    Attributes:
        epsilon: largest change of a pixel value, which runs from 0 to 1.
        accuracy: share of correct predictions, with its 95 % interval ``low`` to ``high``.
        fooled: share of the predictions correct at epsilon 0 that are wrong now; NaN where none was correct.
        changed: share of all predictions that differ from those at epsilon 0.
        stability: of the model's map; None where it has none.
    """

    attack: str
    epsilon: float
    accuracy: float
    low: float
    high: float
    fooled: float
    changed: float
    stability: Stability | None


@dataclass(frozen=True)
class RobustnessReport(PlainReport):
    """Several models on the same images.

    Attributes:
        models: name -> rows, by attack and then by epsilon.
        warnings: name -> signs that the gradients are masked, so that the figures flatter the model.
        settings: steps, restarts and seed, for the record.
    """

    count: int
    models: dict[str, tuple[RobustnessRow, ...]]
    warnings: dict[str, tuple[str, ...]]
    settings: dict[str, Any]


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise OptionError(f"epsilon = {epsilon} is out of range; pixels run from 0 to 1, so write 8/255 and not 8.")


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Move every pixel by ``epsilon`` in the direction that raises the loss: x + epsilon sign(dL/dx), within [0, 1].

    Args:
        model: any classifier from RGB in [0, 1] to logits; no flag, gradient or statistic of it changes.
        images, labels: (B, 3, H, W) in [0, 1], and (B,) true classes; L is their cross-entropy.
        epsilon: in [0, 1]; at 0 the images come back as they are.

    Raises:
        DataError, OptionError: images or labels that do not fit; epsilon out of range.
    """
    check_images(images, labels)
    _check_epsilon(epsilon)
    with evaluation_mode(model, gradients=True, full_precision=True) as network:
        pixels = fitted(network, images)
        return _within(pixels, pixels + epsilon * _slope(network, pixels, labels).sign(), epsilon).to(images)


@dataclass(frozen=True, kw_only=True)
class PgdOptions:
    """Steps of PGD; OptionError for steps or a step size that are not above 0.

    Attributes:
        step_size: of one step; None takes 2.5 epsilon / steps, which can cross the ball (Madry et al.).
        random_start: start anywhere in the ball, drawn with the seed, and not at the image.
    """

    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.step_size is not None and self.step_size <= 0):
            raise OptionError(f"steps = {self.steps}, step_size = {self.step_size} do not move; both must be above 0.")


PGD = PgdOptions()


def pgd(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, options: PgdOptions = PGD) -> Tensor:
    """Step several times like FGSM, each time back into the ball of ``epsilon`` (maximum norm) and into [0, 1].

    The images of the last step, (B, 3, H, W), are in [0, 1] exactly, and in the ball up to rounding of the last bit.
    Arguments and errors are those of :func:`fgsm`.
    """
    check_images(images, labels)
    _check_epsilon(epsilon)
    stride = 2.5 * epsilon / options.steps if options.step_size is None else options.step_size
    with evaluation_mode(model, gradients=True, full_precision=True) as network:
        pixels = fitted(network, images)
        moved = pixels
        if options.random_start:
            start = torch.rand(pixels.shape, generator=generator(options.seed)).to(pixels) * 2 - 1
            moved = _within(pixels, pixels + epsilon * start, epsilon)
        for _ in range(options.steps):
            moved = _within(pixels, moved + stride * _slope(network, moved, labels).sign(), epsilon)
        return moved.to(images)


def noise(images: Tensor, epsilon: float, seed: int = 0) -> Tensor:
    """Move every pixel by ``epsilon`` up or down at random, within [0, 1]: the baseline of the attacks."""
    signs = torch.rand(images.shape, generator=generator(seed)).to(images) * 2 - 1
    return _within(images, images + epsilon * signs.sign(), epsilon)


def _within(images: Tensor, moved: Tensor, epsilon: float) -> Tensor:
    """Bring moved images back to within epsilon of the images, and into [0, 1]."""
    lower, upper = (images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1)
    return torch.minimum(torch.maximum(moved, lower), upper) if epsilon else images.clone()


def _slope(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the summed cross-entropy with respect to the images; no ``.grad`` is touched."""
    pixels = images.detach().requires_grad_(True)
    loss = F.cross_entropy(logits_of(model, pixels), labels.to(pixels.device).long().clone(), reduction="sum")
    return torch.autograd.grad(loss, pixels)[0]


@dataclass(frozen=True, kw_only=True)
class RobustnessOptions:
    """Which attacks, how strong.

    Attributes:
        attacks: some of :data:`ATTACKS`, at least one.
        epsilons: in [0, 1]; 0 is added where it is missing.
        steps, seed: of PGD; of noise and PGD's start.

    Raises:
        OptionError: no or an unknown attack, an epsilon or a number of steps out of range.
    """

    attacks: tuple[str, ...] = ATTACKS
    epsilons: tuple[float, ...] = EPSILONS
    steps: int = PGD.steps
    seed: int = 0
    batch_size: int = 100

    def __post_init__(self) -> None:
        if not self.attacks:
            raise OptionError(f"There is no attack; name at least one of {', '.join(ATTACKS)}.")
        for attack in self.attacks:
            check_known("attack", attack, ATTACKS)
        for epsilon in self.epsilons:
            _check_epsilon(epsilon)
        PgdOptions(steps=self.steps)

    def attacked(
        self, attack: str, model: nn.Module, batch: tuple[Tensor, Tensor], epsilon: float, number: int
    ) -> Tensor:
        """Return the attacked images of a batch (images, labels); its number is added to the seed."""
        if attack == "noise":
            return noise(batch[0], epsilon, self.seed + number)
        if attack == "fgsm":
            return fgsm(model, *batch, epsilon)
        return pgd(model, *batch, epsilon, PgdOptions(steps=self.steps, seed=self.seed + number))


DEFAULTS = RobustnessOptions()


def evaluate_robustness(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    options: RobustnessOptions = DEFAULTS,
    *,
    maps: Mapping[str, MapFunction] | None = None,
    progress: Progress | None = None,
) -> RobustnessReport:
    """Attack several models on the same images, such as an attention net and its matched control.

    Args:
        models: name -> any classifier from RGB in [0, 1]; each is attacked by its own gradients.
        images, labels: (N, 3, H, W) in [0, 1], and (N,) true classes.
        maps: name of a model -> the map whose stability is measured, computed for the label. None takes the learned
            attention of every heedmap classifier; a model that is not named gives none.
        progress: receives which attack is being evaluated.

    Raises:
        DataError, ModelError: images or labels that do not fit; an output without logits, or a map that is no map.
        OptionError: no model, or a map of a model that is not there.
    """
    check_images(images, labels)
    if not models:
        raise OptionError("There is no model to attack; name at least one.")
    if maps is None:
        maps = {name: learned_map for name, model in models.items() if isinstance(model, AttentionClassifier)}
    if unknown := [name for name in maps if name not in models]:
        raise OptionError(f"A map is given for {unknown[0]!r}, which is no model here.{nearest(unknown[0], models)}")
    levels, progress = sorted({0.0, *options.epsilons}), progress or Progress()
    rows, warnings = {}, {}
    for name, model in models.items():
        with evaluation_mode(model, gradients=True, full_precision=True) as network:
            subject = _Attacked(name, network, images, labels.cpu(), maps.get(name), options.batch_size)
            clean, lines = subject.predict(images), []
            for attack in options.attacks:
                progress.message(f"Robustness: {name}, {attack}")
                for epsilon in levels:
                    now = subject.predict(subject.attacked(options, attack, epsilon)) if epsilon else clean
                    lines.append(subject.row(attack, epsilon, clean, now))
            rows[name] = tuple(lines)
            warnings[name] = masking(lines, subject.silent_share(), len(images))
    settings = {"pgd_steps": options.steps, "pgd_step_size": "2.5 epsilon / steps", "restarts": 1, "seed": options.seed}
    return RobustnessReport(len(images), rows, warnings, settings)


Outcome = tuple[Tensor, Tensor | None]
"""Predicted classes (N,) and maps (N, h, w)."""


@dataclass(frozen=True, eq=False)
class _Attacked:
    """A model, the images, and its map."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    method: MapFunction | None
    batch_size: int

    def predict(self, images: Tensor) -> Outcome:
        predicted = all_logits(self.model, images, self.batch_size).argmax(1)
        if self.method is None:
            return predicted, None
        return predicted, all_maps(self.name, self.method, self.model, images, self.labels, self.batch_size)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)

    def attacked(self, options: RobustnessOptions, attack: str, epsilon: float) -> Tensor:
        parts = enumerate(self.batches())
        return torch.cat([options.attacked(attack, self.model, batch, epsilon, number) for number, batch in parts])

    def row(self, attack: str, epsilon: float, clean: Outcome, now: Outcome) -> RobustnessRow:
        was_right, is_right = clean[0] == self.labels, now[0] == self.labels
        accuracy = is_right.double().mean().item()
        fooled = (~is_right[was_right]).double().mean().item() if was_right.any() else math.nan
        changed = (now[0] != clean[0]).double().mean().item()
        still = None if clean[1] is None or now[1] is None else stability(clean[1], now[1])
        interval = wilson_interval(accuracy, len(self.labels))
        return RobustnessRow(attack, epsilon, accuracy, *interval, fooled, changed, still)

    def silent_share(self) -> float:
        """Return the share of images whose gradient is zero in every pixel: no attack by gradients sees them."""
        slopes = (_slope(self.model, fitted(self.model, images), labels) for images, labels in self.batches())
        return sum(int((slope.flatten(1) == 0).all(1).sum()) for slope in slopes) / len(self.images)


def stability(before: Tensor, after: Tensor) -> Stability | None:
    """Compare maps (N, h, w) of images and of their attacked copies; None where all maps before are constant."""
    varied = ~is_constant(before)
    before, after = before[varied], after[varied]
    if not len(before):
        return None
    shift = (hottest_points(before) - hottest_points(after)).double().square().sum(1).sqrt().mean().item()
    hot = max(1, round(HOT_SHARE * before[0].numel()))
    flats = (before.flatten(1), after.flatten(1))
    first, second = (
        torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(hot).indices, True) for flat in flats
    )
    overlap = ((first & second).sum(1).double() / hot).mean().item()
    return Stability(len(before), spearman(before, after).mean().item(), overlap, shift)


def masking(rows: Sequence[RobustnessRow], silent: float, count: int) -> tuple[str, ...]:
    """Name the signs that gradients are masked (after Athalye, Carlini, Wagner, ICML 2018, section 3.1).

    ``rows`` are of one model, ``silent`` is the share of images whose gradient is zero in every pixel, ``count`` the
    number of images; a difference below two of them is no sign.
    """
    table = {(row.attack, row.epsilon): row.accuracy for row in rows}
    signs, slack = [], 2 / count
    if silent > 0.01:
        signs.append(f"The gradient of {silent:.0%} of the images is zero in every pixel, so no attack can see them.")
    for (attack, epsilon), accuracy in table.items():
        result = f"{attack} at {epsilon * 255:g}/255 leaves {accuracy:.1%} right"
        for weaker, sign in (("fgsm", "one step does more than many"), ("noise", "noise does more than the gradient")):
            other = table.get((weaker, epsilon), 1.0)
            if attack in ("fgsm", "pgd") and weaker != attack and accuracy > other + slack:
                signs.append(f"{result}, {weaker} only {other:.1%}: {sign}, a sign of masked gradients.")
        if attack == "pgd" and epsilon >= 16 / 255 and accuracy > 0.5 * table[attack, 0.0] + slack:
            signs.append(f"{result}, more than half of the clean accuracy: rare without masked gradients; look closer.")
    return tuple(signs)
