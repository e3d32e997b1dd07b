"""How little of a change to the pixels turns an answer, and whether the map moves with it.

    FGSM   Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015)
    PGD    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), maximum norm

Images are RGB in [0, 1] and the normalisation is inside the model, so an epsilon of 1/255 is one step of an 8-bit
pixel, for every model alike. The attacks know the weights and push against the label. A third row, ``noise``, moves
every pixel by epsilon up or down at random: what an attack adds to that is the attack.

These two attacks give an upper bound of robustness, never a proof; where gradients are masked the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.data.loader import generator
from heedmap.errors import OptionError, nearest
from heedmap.metrics.classification import wilson_interval
from heedmap.metrics.faithfulness.sanity_checks import is_constant, spearman
from heedmap.metrics.localization.localize import hottest_points
from heedmap.metrics.maps import MapFunction, all_logits, all_maps, check_images, learned_map
from heedmap.models.classifier import AttentionClassifier
from heedmap.modules import evaluation_mode, fitted, logits_of
from heedmap.progress import Progress

EPSILONS = (0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255)
ATTACKS = ("noise", "fgsm", "pgd")
PGD_STEPS = 10
HOT_SHARE = 0.1


@dataclass(frozen=True)
class Stability:
    """How alike the maps of an image and of its attacked duplicate are; means over images whose map is not constant.

    Attributes:
        count: those images.
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
        attack: ``noise``, ``fgsm`` or ``pgd``.
        epsilon: largest change of a pixel value, which runs from 0 to 1.
        accuracy: share of right answers, with its 95 % interval ``low`` to ``high``.
        fooled: share of the answers right at epsilon 0 that are wrong now; NaN where none was right.
        changed: share of all answers that are others than at epsilon 0.
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
class RobustnessReport:
    """Several models on the same images.

    Attributes:
        count: number of images.
        models: name -> rows, by attack and then by epsilon.
        warnings: name -> signs that the gradients are masked, so that the figures flatter the model.
        settings: steps, restarts and seed, for the record.
    """

    count: int
    models: dict[str, tuple[RobustnessRow, ...]]
    warnings: dict[str, tuple[str, ...]]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and dicts; NaN where a figure is not defined."""
        return asdict(self)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Move every pixel by ``epsilon`` in the direction that raises the loss: x + epsilon sign(dL/dx), within [0, 1].

    Args:
        model: any classifier from RGB in [0, 1] to logits; no flag, gradient or statistic of it changes.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,) true classes; L is their cross-entropy.
        epsilon: in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1], of the images' type and place; the images themselves at epsilon 0.

    Raises:
        DataError: images or labels that do not fit.
        OptionError: epsilon out of range.
    """
    check_images(images, labels)
    _check_epsilon(epsilon)
    with evaluation_mode(model, gradients=True, full_precision=True) as lent:
        there = fitted(lent, images)
        return _within(there, there + epsilon * _slope(lent, there, labels).sign(), epsilon).to(images)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int = PGD_STEPS,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
) -> Tensor:
    """Step ``steps`` times like FGSM, each time back into the ball of ``epsilon`` (maximum norm) and into [0, 1].

    Args:
        model, images, labels, epsilon: as for :func:`fgsm`.
        steps: 1 or more.
        step_size: of one step; None takes 2.5 epsilon / steps, which can cross the ball (Madry et al.).
        random_start: start anywhere in the ball and not at the image.
        seed: of the start.

    Returns:
        (B, 3, H, W): the last step. In [0, 1] exactly; in the ball up to rounding of the last bit.

    Raises:
        DataError, OptionError: as :func:`fgsm`, or steps or a step size that are not above 0.
    """
    check_images(images, labels)
    _check_epsilon(epsilon)
    if steps < 1 or (step_size is not None and step_size <= 0):
        raise OptionError(f"steps = {steps}, step_size = {step_size} do not move; both must be above 0.")
    stride = 2.5 * epsilon / steps if step_size is None else step_size
    with evaluation_mode(model, gradients=True, full_precision=True) as lent:
        there = fitted(lent, images)
        moved = there
        if random_start:
            start = torch.rand(there.shape, generator=generator(seed)).to(there) * 2 - 1
            moved = _within(there, there + epsilon * start, epsilon)
        for _ in range(steps):
            moved = _within(there, moved + stride * _slope(lent, moved, labels).sign(), epsilon)
        return moved.to(images)


def noise(images: Tensor, epsilon: float, seed: int = 0) -> Tensor:
    """Move every pixel by ``epsilon`` up or down at random, within [0, 1]: the control of the attacks."""
    signs = torch.rand(images.shape, generator=generator(seed)).to(images) * 2 - 1
    return _within(images, images + epsilon * signs.sign(), epsilon)


def _within(images: Tensor, moved: Tensor, epsilon: float) -> Tensor:
    """Bring moved images back to within epsilon of the images, and into [0, 1]."""
    lower, upper = (images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1)
    return torch.minimum(torch.maximum(moved, lower), upper) if epsilon else images.clone()


def _slope(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the summed cross-entropy by the images; no ``.grad`` of anything is touched."""
    asked = images.detach().requires_grad_(True)
    loss = F.cross_entropy(logits_of(model, asked), labels.to(asked.device).long().clone(), reduction="sum")
    return torch.autograd.grad(loss, asked)[0]


def robustness(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    attacks: Sequence[str] = ATTACKS,
    epsilons: Sequence[float] = EPSILONS,
    maps: Mapping[str, MapFunction] | None = None,
    steps: int = PGD_STEPS,
    seed: int = 0,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> RobustnessReport:
    """Attack several models on the same images: put the attention net and its control beside each other.

    Args:
        models: name -> any classifier from RGB in [0, 1]; each is attacked by its own gradients.
        images: (N, 3, H, W) in [0, 1].
        labels: (N,) true classes.
        attacks: some of :data:`ATTACKS`.
        epsilons: in [0, 1]; 0 is added where it is missing.
        maps: name of a model -> the map whose stability is asked for, computed for the label. None takes the learned
            attention of every heedmap classifier; a model that is not named gives none.
        steps: of PGD.
        seed: of noise and PGD's start.
        batch_size: images at a time.
        progress: is told what is at work.

    Raises:
        DataError: images or labels that do not fit.
        ModelError: an answer without logits, or a map that is no map.
        OptionError: an unknown attack, an epsilon out of range, or a map of a model that is not there.
    """
    check_images(images, labels)
    _check(models, attacks, epsilons, maps)
    levels = sorted({0.0, *epsilons})
    if maps is None:
        maps = {name: learned_map for name, model in models.items() if isinstance(model, AttentionClassifier)}
    attackers = _attackers(steps, seed)
    rows, warnings = {}, {}
    for name, model in models.items():
        with evaluation_mode(model, gradients=True, full_precision=True) as lent:
            subject = _Subject(name, lent, images, labels.cpu(), maps.get(name), batch_size)
            clean = subject.answer(images)
            found = []
            for attack in attacks:
                if progress is not None:
                    progress.message(f"Robustness: {name}, {attack}")
                for epsilon in levels:
                    now = subject.answer(subject.moved(attackers[attack], epsilon)) if epsilon else clean
                    found.append(subject.row(attack, epsilon, clean, now))
            rows[name] = tuple(found)
            warnings[name] = masking(found, subject.silent_share(), len(images))
    settings = {"pgd_steps": steps, "pgd_step_size": "2.5 epsilon / steps", "restarts": 1, "seed": seed}
    return RobustnessReport(len(images), rows, warnings, settings)


Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]


def _attackers(steps: int, seed: int) -> dict[str, Attack]:
    """Attack name -> function (model, images, labels, epsilon, number of the batch)."""
    return {
        "noise": lambda model, images, labels, epsilon, batch: noise(images, epsilon, seed + batch),
        "fgsm": lambda model, images, labels, epsilon, batch: fgsm(model, images, labels, epsilon),
        "pgd": lambda model, images, labels, epsilon, batch: pgd(
            model, images, labels, epsilon, steps=steps, seed=seed + batch
        ),
    }


@dataclass(frozen=True, eq=False)
class _Subject:
    """A model, the images, and its map."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    method: MapFunction | None
    batch_size: int

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicted classes (N,) and maps (N, h, w)."""
        predicted = all_logits(self.model, images, self.batch_size).argmax(1)
        if self.method is None:
            return predicted, None
        return predicted, all_maps(self.name, self.method, self.model, images, self.labels, self.batch_size)

    def moved(self, attack: Attack, epsilon: float) -> Tensor:
        pairs = zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
        return torch.cat([attack(self.model, *pair, epsilon, batch) for batch, pair in enumerate(pairs)])

    def row(
        self, attack: str, epsilon: float, clean: tuple[Tensor, Tensor | None], now: tuple[Tensor, Tensor | None]
    ) -> RobustnessRow:
        was_right, is_right = clean[0] == self.labels, now[0] == self.labels
        accuracy = is_right.double().mean().item()
        low, high = wilson_interval(accuracy, len(self.labels))
        fooled = (~is_right[was_right]).double().mean().item() if was_right.any() else math.nan
        changed = (now[0] != clean[0]).double().mean().item()
        still = None if clean[1] is None or now[1] is None else stability(clean[1], now[1])
        return RobustnessRow(attack, epsilon, accuracy, low, high, fooled, changed, still)

    def silent_share(self) -> float:
        """Share of images whose gradient is zero in every pixel: an attack by gradients cannot see them."""
        silent = 0
        for some, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            slope = _slope(self.model, fitted(self.model, some), labels)
            silent += int((slope.flatten(1) == 0).all(1).sum())
        return silent / len(self.images)


def stability(before: Tensor, after: Tensor) -> Stability | None:
    """Compare maps (N, h, w) of images and of their attacked duplicates; None where all maps before are constant."""
    telling = ~is_constant(before)
    before, after = before[telling], after[telling]
    if not len(before):
        return None
    shift = (hottest_points(before) - hottest_points(after)).double().square().sum(1).sqrt().mean().item()
    hot = max(1, round(HOT_SHARE * before[0].numel()))
    first, second = (torch.zeros(maps.flatten(1).shape, dtype=torch.bool) for maps in (before, after))
    for marked, maps in ((first, before), (second, after)):
        marked.scatter_(1, maps.flatten(1).topk(hot, dim=1).indices, True)
    overlap = ((first & second).sum(1).double() / hot).mean().item()
    return Stability(len(before), spearman(before, after).mean().item(), overlap, shift)


def masking(rows: Sequence[RobustnessRow], silent: float, count: int) -> tuple[str, ...]:
    """Name the signs that gradients are masked (after Athalye, Carlini, Wagner, ICML 2018, section 3.1).

    Args:
        rows: of one model.
        silent: share of images whose gradient is zero in every pixel.
        count: number of images; a difference below two of them is no sign.
    """
    table = {(row.attack, row.epsilon): row.accuracy for row in rows}
    found, slack = [], 2 / count
    if silent > 0.01:
        found.append(f"The gradient of {silent:.0%} of the images is zero in every pixel, so no attack can see them.")
    for (attack, epsilon), accuracy in table.items():
        size = f"{attack} at {epsilon * 255:g}/255 leaves {accuracy:.1%} right"
        for weaker, sign in (("fgsm", "one step does more than many"), ("noise", "noise does more than the gradient")):
            other = table.get((weaker, epsilon), 1.0)
            if attack in ("fgsm", "pgd") and weaker != attack and accuracy > other + slack:
                found.append(f"{size}, {weaker} only {other:.1%}: {sign}, a sign of masked gradients.")
        if attack == "pgd" and epsilon >= 16 / 255 and accuracy > 0.5 * table[attack, 0.0] + slack:
            found.append(f"{size}, more than half of the clean accuracy: rare without masked gradients; look closer.")
    return tuple(found)


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise OptionError(f"epsilon = {epsilon} is out of range; pixels run from 0 to 1, so write 8/255 and not 8.")


def _check(
    models: Mapping[str, nn.Module],
    attacks: Sequence[str],
    epsilons: Sequence[float],
    maps: Mapping[str, MapFunction] | None,
) -> None:
    if not models or not attacks:
        raise OptionError("There is no model or no attack; name at least one of each.")
    for attack in attacks:
        if attack not in ATTACKS:
            raise OptionError(f"Unknown attack {attack!r}; it can be {', '.join(ATTACKS)}.{nearest(attack, ATTACKS)}")
    for epsilon in epsilons:
        _check_epsilon(epsilon)
    for name in maps or ():
        if name not in models:
            raise OptionError(f"A map is given for {name!r}, which is no model here.{nearest(name, models)}")
