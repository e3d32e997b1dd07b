"""The loop: ``for report in fit(classifier, train, validation, options)``.

Fit knows no files and prints nothing; the caller does, from the reports and from :meth:`Fitting.state`. Accelerate
places the model, joins several processes and averages their gradients. Autocast is set here, since Accelerate's own
setting is one for the whole Python process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from heedmap.config import TrainOptions
from heedmap.data import transforms as views
from heedmap.data.loader import TrainingBatches, generator
from heedmap.errors import OptionError, RunError, TrainingError
from heedmap.models.classifier import AttentionClassifier, combined_map
from heedmap.training import losses as map_terms
from heedmap.training.optimizers import make_optimizer, optimizer_state
from heedmap.training.precision import autocast, resolve
from heedmap.training.schedules import SCHEDULES
from heedmap.types import Batch, EpochReport, Output, StepReport

AVERAGING_SHARE = 8  # the average looks back over one eighth of the whole run
WAIT = timedelta(hours=1)  # for the other processes
COLLAPSED = 0.9  # mean largest softmax weight above which a map is one point
UNIFORM = 1.05  # mean largest softmax weight, in multiples of 1 / N, below which a map says nothing
SHUT = 0.01  # mean largest gate below which nothing passes

OnStep = Callable[[StepReport], None]


@dataclass
class ValidationResult:
    """What the averaged weights came to on the validation part."""

    accuracy: float = math.nan
    loss: float = math.nan
    peaks: dict[str, float] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    def beats(self, other: ValidationResult) -> bool:
        """Higher accuracy, or the same at a lower loss; a later epoch wins when nothing was evaluated."""
        if math.isnan(self.accuracy) or math.isnan(other.accuracy):
            return True
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def fit(
    classifier: AttentionClassifier,
    train: TrainingBatches,
    validation: Callable[[], Iterable[Batch]] | None,
    options: TrainOptions,
    *,
    accelerator: Accelerator | None = None,
    state: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    on_step: OnStep | None = None,
) -> Fitting:
    """Train; iterate over what is returned for one report an epoch.

    After the last report ``classifier`` holds the best averaged weights, in eval mode. Random numbers of torch's global
    generator (dropout) are seeded anew at every step from (seed, epoch, step).

    Args:
        classifier: is changed in place.
        train: batches to learn from.
        validation: called after every epoch, gives this process's share of the batches to evaluate by; None evaluates
            nothing and keeps the last weights.
        options: ``epochs``, ``learning_rate`` and ``weight_decay`` must be set.
        accelerator: one for the whole process; None makes one.
        state: what :meth:`Fitting.state` gave, to go on from there.
        on_step: called after every step, with the state of that step at hand.

    Raises:
        OptionError: an option that must be set is not.
        TrainingError: from the iteration, when the loss is not finite.
        RunError: ``state`` does not belong to this classifier and these options.
    """
    return Fitting(classifier, train, validation, options, accelerator or make_accelerator(), state, on_step)


def make_accelerator() -> Accelerator:
    """What places the model and joins the processes that torchrun started: NCCL on GPUs, gloo on the CPU."""
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    # Where it is not told that the CPU is meant, Accelerate leaves several processes strangers to each other there.
    # All others wait while the first one evaluates the test part, which may take longer than NCCL's ten minutes.
    return Accelerator(cpu=not has_gpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])


class Fitting:
    """A training under way; see :func:`fit`.

    Attributes:
        averaged: the classifier with the moving average of the weights, in eval mode.
        step, evaluated: steps taken and epochs evaluated so far.
        best: what the best epoch so far came to.
    """

    def __init__(
        self,
        classifier: AttentionClassifier,
        train: TrainingBatches,
        validation: Callable[[], Iterable[Batch]] | None,
        options: TrainOptions,
        accelerator: Accelerator,
        state: tuple[dict[str, Tensor], dict[str, Any]] | None,
        on_step: OnStep | None,
    ) -> None:
        if options.epochs is None or options.learning_rate is None or options.weight_decay is None:
            raise OptionError("epochs, learning_rate and weight_decay must be set; train.derive fills them in.")
        self.options, self.train, self.validation, self.on_step = options, train, validation, on_step
        self.accelerator, self.epochs = accelerator, options.epochs
        self.rate, self.precision = options.learning_rate, resolve(options.precision, accelerator.device)
        _check_batch(classifier, train)
        self.total_steps = train.steps * options.epochs
        self.classifier = classifier.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        decay = 1 - AVERAGING_SHARE / max(self.total_steps, 2 * AVERAGING_SHARE)
        self._averages = AveragedModel(
            self.classifier,
            multi_avg_fn=_averaging(decay if options.averaging is None else options.averaging),
            use_buffers=True,
        )
        self.averaged = cast(AttentionClassifier, self._averages.module.eval())
        self.optimizer = make_optimizer(classifier, options, fused=accelerator.device.type in ("cpu", "cuda"))
        self.best, self.best_epoch = ValidationResult(), 0
        self._best_weights: dict[str, Tensor] = {}
        self.step, self.evaluated, self._loss_sum = 0, 0, 0.0
        self._began, self._stepped = time.perf_counter(), 0
        if state is not None:
            self._restore(*state)
        self._model = accelerator.prepare_model(self.classifier)

    def __iter__(self) -> Iterator[EpochReport]:
        """Train epoch after epoch; see :func:`fit`."""
        for epoch in range(self.evaluated, self.epochs):
            if self.options.patience and epoch - self.best_epoch >= self.options.patience:
                break
            began, first = time.perf_counter(), self.step - epoch * self.train.steps
            self._train_epoch(epoch, first)
            yield self._finish_epoch(epoch, self.train.steps - first, time.perf_counter() - began)
        self.classifier.load_state_dict(self._best_weights)
        self.classifier.eval()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a later :func:`fit` needs to go on from this very step: tensors by name, and numbers and words.

        The tensors are copies on the CPU; training on does not change them.

        Raises:
            TrainingError: the last step left weights that are not finite, so this is no state to go on from.
        """
        tensors = {f"model.{name}": value for name, value in self.classifier.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self._averages.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self._best_weights.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if value is not None}
        tensors = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        if not all(value.isfinite().all() for value in tensors.values() if value.is_floating_point()):
            raise TrainingError(self._diverged())
        progress = {
            "step": self.step,
            "total_steps": self.total_steps,
            "evaluated": self.evaluated,
            "loss_sum": self._loss_sum,
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best.accuracy,
            "best_loss": self.best.loss,
        }
        return tensors, progress

    def _restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        try:
            self.classifier.load_state_dict(parts["model"])
            self._averages.load_state_dict(parts["averaged"])
            self.optimizer.load_state_dict(optimizer_state(self.optimizer, parts["optimizer"]))
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            raise RunError(f"The checkpoint does not fit this model: {str(error).splitlines()[0]}") from None
        if progress["total_steps"] != self.total_steps:
            raise RunError(
                f"The checkpoint is of a training of {progress['total_steps']} steps, this one has {self.total_steps}: "
                "the images, or the number of processes, are not those it began with."
            )
        self._best_weights = {name: value.to(self.accelerator.device) for name, value in parts["best"].items()}
        self.step, self.evaluated = int(progress["step"]), int(progress["evaluated"])
        self._loss_sum = float(progress["loss_sum"])
        self.best_epoch = int(progress["best_epoch"])
        self.best = ValidationResult(float(progress["best_accuracy"]), float(progress["best_loss"]))

    def _train_epoch(self, epoch: int, first: int) -> None:
        self._model.train()
        for index, batch in enumerate(self.train.epoch(epoch, first, self.accelerator.device), start=first):
            if index == 0:
                self._loss_sum = 0.0
            loss = self._train_step(batch, epoch, index)
            self._averages.update_parameters(self.classifier)
            self.step += 1
            self._stepped += 1
            self._loss_sum += loss
            if self.on_step is not None:
                self.on_step(self._step_report(epoch, loss))

    def _train_step(self, batch: Batch, epoch: int, index: int) -> float:
        """One step of the optimiser; returns the loss."""
        seed = self.options.seed
        torch.manual_seed(generator(seed, epoch, index, 2 + self.train.share.rank).initial_seed())
        images, own = batch.images, 1.0
        if self.options.cutmix:
            numbers = torch.rand(4, generator=generator(seed, epoch, index, 1))
            if numbers[3] < self.options.cutmix:
                images, own = views.cutmix(images, numbers[:3])
        for group in self.optimizer.param_groups:
            factor = SCHEDULES[self.options.schedule](self.step / self.total_steps)
            group["lr"] = self.rate * factor * group["share"]
        seen, window = images, map_terms.WHOLE
        if self.options.map_consistency:
            window = map_terms.drawn_window(torch.rand(3, generator=generator(seed, epoch, index, 0)))
            # One pass for images and second views: two before one backward are more than joined processes can follow.
            seen = torch.cat((images, map_terms.second_view(images, window)))
        with autocast(self.precision, self.accelerator.device):
            output = self._model(seen.contiguous(memory_format=torch.channels_last))
        loss = self._loss(output.logits[: len(images)].float(), batch.labels, own)
        loss = loss + self._map_terms(output, None if images is not batch.images else batch.masks, window)
        # The mean over all processes, so that all see the same number and all stop where it is not finite. It is read
        # when the backward pass is under way, so that a GPU does not stand idle meanwhile.
        mean = self.accelerator.reduce(loss.detach(), "mean")
        self.accelerator.backward(loss)
        value = float(mean)
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} at epoch {epoch + 1}, step {index + 1}; training stopped and the last good state "
                f"is kept. A lower --learning-rate (now {self.rate:g}) or --precision float32 helps most often."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _loss(self, logits: Tensor, labels: Tensor, own: float) -> Tensor:
        smoothing = self.options.label_smoothing or 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if own == 1.0:
            return loss
        other = F.cross_entropy(logits, labels.roll(1), label_smoothing=smoothing)
        return own * loss + (1 - own) * other

    def _map_terms(self, output: Output, masks: Tensor | None, window: map_terms.Window) -> Tensor | float:
        """What the options ask of the maps; zero where they ask nothing. Masks do not fit images that were mixed."""
        options, total = self.options, cast("Tensor | float", 0.0)
        if options.attention == "none":  # its maps are constant; a term would only blur the loss
            return total if output.shares is None else self._combination({}, None, output.shares)
        maps = attention = output.attention
        if options.map_consistency:
            halves = {tap: values.chunk(2) for tap, values in attention.items()}
            maps = {tap: half[0] for tap, half in halves.items()}
            others = {tap: half[1] for tap, half in halves.items()}
            total = total + options.map_consistency * map_terms.disagreement(maps, others, window)
        if options.map_entropy:
            total = total + options.map_entropy * map_terms.entropy(maps)
        if options.map_supervision and masks is not None:
            total = total + options.map_supervision * map_terms.mismatch(maps, masks)
        if output.shares is not None:
            total = total + self._combination(maps, masks, output.shares)
        return total

    def _combination(self, maps: dict[str, Tensor], masks: Tensor | None, shares: Tensor) -> Tensor:
        """What teaches how much each tap counts in the combined map; the maps themselves are not moved by it."""
        if masks is None:
            return shares.sum() * 0  # joined processes wait for the gradient of every parameter, in every step
        still = {tap: values.detach() for tap, values in maps.items()}
        return self.options.map_supervision * map_terms.mismatch({"combined": combined_map(still, shares)}, masks)

    def _finish_epoch(self, epoch: int, steps: int, seconds: float) -> EpochReport:
        began = time.perf_counter()
        evaluated = self._evaluate()
        evaluating = time.perf_counter() - began
        gates = self.classifier.is_gate or self.classifier.attention_weights == "sigmoid"
        if math.isfinite(evaluated.accuracy) and not math.isfinite(
            evaluated.loss
        ):  # before it is called the best, or drawn
            raise TrainingError(self._diverged())
        self.evaluated = epoch + 1
        improved = evaluated.beats(self.best)
        if improved:
            self.best, self.best_epoch = evaluated, epoch + 1
            self._best_weights = {name: value.clone() for name, value in self.averaged.state_dict().items()}
        return EpochReport(
            epoch=epoch + 1,
            epochs=self.epochs,
            train_loss=self._loss_sum / self.train.steps,
            learning_rate=self._rate_now(),
            validation_accuracy=evaluated.accuracy,
            validation_loss=evaluated.loss,
            images_per_second=steps * self.train.batch_size / max(seconds, 1e-9),
            seconds=seconds,
            evaluation_seconds=evaluating,
            attention_peak=evaluated.peaks,
            warnings=tuple(attention_warnings(evaluated.peaks, evaluated.positions, (epoch + 1) / self.epochs, gates)),
            is_best=improved,
        )

    def _evaluate(self) -> ValidationResult:
        """Evaluate the averaged weights on the validation part, all processes together."""
        if self.validation is None:
            return ValidationResult()
        device = self.accelerator.device
        # The control's maps are even on purpose: they have no peak to follow, and nothing to warn of.
        taps = self.classifier.taps
        if taps and self.classifier.attention_name == "none":
            taps = ()
        sums = torch.zeros(3 + 2 * len(taps), dtype=torch.float64)
        for batch in self.validation():
            with torch.no_grad(), autocast(self.precision, device):
                output = self.averaged(batch.images.contiguous(memory_format=torch.channels_last))
            logits = output.logits.float()
            right = (logits.argmax(1) == batch.labels).sum()
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            peaks = [output.attention[tap].flatten(1).amax(1).sum() for tap in taps]
            found = torch.stack([right.float(), loss, *peaks]).cpu()  # in double only there: an Apple GPU has none
            count = len(batch.labels)
            positions = [float(count * output.attention[tap].shape[2:].numel()) for tap in taps]
            sums += torch.tensor([count, *found.tolist(), *positions], dtype=torch.float64)
        if self.accelerator.num_processes > 1:  # a process may have had no image to evaluate, and still joins in
            sums = self.accelerator.reduce(sums.to(device)).cpu()
        if sums[0] == 0:
            return ValidationResult()
        right, loss, *rest = (sums[1:] / sums[0]).tolist()
        peaks, numbers = rest[: len(taps)], map(round, rest[len(taps) :])
        return ValidationResult(right, loss, dict(zip(taps, peaks, strict=True)), dict(zip(taps, numbers, strict=True)))

    def _diverged(self) -> str:
        return (
            f"The weights are not finite after step {self.step}; training stopped and the last good state is kept. "
            f"A lower --learning-rate (now {self.rate:g}) helps most often."
        )

    def _rate_now(self) -> float:
        """The rate of the last step, of parameters that take no more and no less of it than is set."""
        group = self.optimizer.param_groups[0]
        return float(group["lr"] / group["share"])

    def _step_report(self, epoch: int, loss: float) -> StepReport:
        seconds = time.perf_counter() - self._began
        return StepReport(
            step=self.step,
            total_steps=self.total_steps,
            epoch=epoch + 1,
            epochs=self.epochs,
            loss=loss,
            learning_rate=self._rate_now(),
            images_per_second=self._stepped * self.train.batch_size / seconds,
            seconds_left=seconds / self._stepped * (self.total_steps - self.step),
        )


def _check_batch(classifier: nn.Module, train: TrainingBatches) -> None:
    """Refuse one image a step where that cannot be normalised over the batch."""
    alone = train.batch_size // train.share.world < 2
    if alone and any(isinstance(module, nn.BatchNorm1d) for module in classifier.modules()):
        raise OptionError(
            "batch_size: each process needs at least 2 images per step, since the head normalises over the batch; "
            "make it larger, or give more images."
        )


def attention_warnings(
    peaks: dict[str, float], positions: dict[str, int], progress: float, gates: bool
) -> Iterator[str]:
    """Sentences about maps that say nothing, once half of training is over; gates may be even, but not shut."""
    if progress < 0.5:
        return
    for tap, peak in peaks.items():
        if gates:
            if peak < SHUT:
                yield f"The gates of {tap} have shut: the largest is {peak:.1g} on average. A lower rate may help."
        elif peak > COLLAPSED and positions[tap] > 1:
            yield f"The attention of {tap} has collapsed: its largest weight is {peak:.2f} on average, one point."
        elif peak * positions[tap] < UNIFORM:
            yield f"The attention of {tap} stays uniform: its largest weight is {peak * positions[tap]:.2f} x 1 / N."


def _averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average whose horizon grows with the steps taken, so that it forgets the random start."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], steps: Tensor | int) -> None:
        taken = float(steps)
        weight = 1 - min(decay, (1 + taken) / (10 + taken))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return update
