"""The loop: ``for report in fit(classifier, train, validation, options)``.

It knows no files and prints nothing; the caller does, from the reports and from :meth:`Fitting.state`. What is learned
and how it is evaluated is the task's. Accelerate places the model, joins several processes and averages their
gradients. Autocast is set here, since Accelerate's own setting is one for the whole Python process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from heedmap.config import TrainOptions
from heedmap.data.loader import TrainingBatches, generator
from heedmap.errors import OptionError, RunError, TrainingError
from heedmap.models.classifier import AttentionClassifier
from heedmap.training.optimizers import SCHEDULES, make_optimizer, optimizer_state
from heedmap.training.precision import autocast, resolve
from heedmap.training.tasks import ClassificationTask, Task, ValidationResult
from heedmap.types import Batch, EpochReport, Output, StepReport

AVERAGING_SHARE = 8  # the average looks back over one eighth of the whole run
WAIT = timedelta(hours=1)  # for the other processes
PROGRESS = ("step", "total_steps", "evaluated", "loss_sum", "best_epoch")  # numbers of a checkpoint

OnStep = Callable[[StepReport], None]
Validation = Callable[[], Iterable[Batch]]


def fit(
    classifier: AttentionClassifier,
    train: TrainingBatches,
    validation: Validation | None,
    options: TrainOptions,
    *,
    task: Task | None = None,
    accelerator: Accelerator | None = None,
    on_step: OnStep | None = None,
) -> Fitting:
    """Train; iterate over the returned object for one report per epoch.

    After the last report ``classifier`` holds the best averaged weights, in eval mode. Torch's global random numbers
    (dropout) are seeded at every step from (seed, epoch, step). To resume, see :meth:`Fitting.load_state`.

    Args:
        classifier, train: the model, which is changed in place, and the training batches.
        validation: called after every epoch, returns this process's share of the validation batches; None evaluates
            nothing and keeps the last weights.
        options: ``epochs``, ``learning_rate`` and ``weight_decay`` must be set.
        task, accelerator: None is :class:`ClassificationTask`, and one that :func:`make_accelerator` makes.
        on_step: called after every step; :meth:`Fitting.state` is then that of the step.

    Raises:
        OptionError: an option that must be set is not, or one image per step where the head normalises over the batch.
        TrainingError: from the iteration, when the loss is not finite.
    """
    chosen = task or ClassificationTask(classifier, options)
    return Fitting(classifier, train, validation, options, chosen, accelerator or make_accelerator(), on_step)


def make_accelerator() -> Accelerator:
    """Return what places the model and joins the processes that torchrun started: NCCL on GPUs, gloo on the CPU."""
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    # Without cpu=True Accelerate does not join several processes on the CPU. All others wait while the first one
    # evaluates the test set, which may take longer than NCCL's ten minutes.
    return Accelerator(cpu=not has_gpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])


class Fitting:
    """A training under way; see :func:`fit`.

    Attributes:
        averaged: the model with the moving average of the weights, in eval mode.
        step, evaluated, loss_sum: steps taken, epochs evaluated, and the sum of the losses of the epoch under way.
        best, best_epoch: the validation result of the best epoch so far, and its number.
    """

    def __init__(
        self,
        classifier: nn.Module,
        train: TrainingBatches,
        validation: Validation | None,
        options: TrainOptions,
        task: Task,
        accelerator: Accelerator,
        on_step: OnStep | None,
    ) -> None:
        if options.epochs is None or options.learning_rate is None or options.weight_decay is None:
            raise OptionError("epochs, learning_rate and weight_decay must be set; train.derive fills them in.")
        normalises = any(isinstance(module, nn.BatchNorm1d) for module in classifier.modules())
        if train.batch_size // train.share.world < 2 and normalises:
            raise OptionError(
                "batch_size: each process needs at least 2 images per step, since the head normalises over the batch; "
                "make it larger, or give more images."
            )
        self.options, self.train, self.validation, self.on_step = options, train, validation, on_step
        self.task, self.accelerator, self.epochs = task, accelerator, options.epochs
        self.rate, self.precision = options.learning_rate, resolve(options.precision, accelerator.device)
        self.total_steps = train.steps * options.epochs
        self.classifier = classifier.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        decay = 1 - AVERAGING_SHARE / max(self.total_steps, 2 * AVERAGING_SHARE)
        average = _averaging(decay if options.averaging is None else options.averaging)
        self._averages = AveragedModel(self.classifier, multi_avg_fn=average, use_buffers=True)
        self.averaged: Any = self._averages.module.eval()
        self.optimizer = make_optimizer(classifier, options, fused=accelerator.device.type in ("cpu", "cuda"))
        self.best, self.best_epoch = ValidationResult(), 0
        self._best_weights: dict[str, Tensor] = {}
        self.step, self.evaluated, self.loss_sum = 0, 0, 0.0
        self._began, self._stepped = time.perf_counter(), 0
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
        """Return all that :meth:`load_state` needs to resume after this very step: copies of tensors, and progress.

        Raises:
            TrainingError: the last step left weights that are not finite.
        """
        averaged = self._averages.state_dict()
        parts = {"model": self.classifier.state_dict(), "averaged": averaged, "best": self._best_weights}
        tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if value is not None}
        layout = torch.contiguous_format
        tensors = {name: value.detach().cpu().clone(memory_format=layout) for name, value in tensors.items()}
        if not all(value.isfinite().all() for value in tensors.values() if value.is_floating_point()):
            raise self._diverged()
        progress = {name: getattr(self, name) for name in PROGRESS}
        return tensors, progress | {"best": dict(self.best.figures)}

    def load_state(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Resume from what :meth:`state` returned; call it before the iteration.

        Raises:
            RunError: the state is not of such a model, or of a training of another number of steps.
        """
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
        for name in PROGRESS:
            setattr(self, name, progress[name])
        self.best = ValidationResult({name: float(value) for name, value in progress["best"].items()})

    def _train_epoch(self, epoch: int, first: int) -> None:
        self._model.train()
        for index, batch in enumerate(self.train.epoch(epoch, first, self.accelerator.device), start=first):
            if index == 0:
                self.loss_sum = 0.0
            loss = self._train_step(batch, epoch, index)
            self._averages.update_parameters(self.classifier)
            self.step += 1
            self._stepped += 1
            self.loss_sum += loss
            if self.on_step is not None:
                self.on_step(self._step_report(epoch, loss))

    def _train_step(self, batch: Batch, epoch: int, index: int) -> float:
        """Take one step of the optimiser and return the loss."""
        seed = self.options.seed
        torch.manual_seed(generator(seed, epoch, index, 2 + self.train.share.rank).initial_seed())
        for group in self.optimizer.param_groups:
            factor = SCHEDULES[self.options.schedule](self.step / self.total_steps)
            group["lr"] = self.rate * factor * group["share"]

        def draw(stream: int, count: int) -> Tensor:
            return torch.rand(count, generator=generator(seed, epoch, index, stream))

        loss = self.task.training_loss(partial(self._run, self._model), batch, draw)
        # The mean over all processes, so that all see the same number and all stop where it is not finite. It is read
        # when the backward pass is under way, so that a GPU does not stand idle meanwhile.
        mean = self.accelerator.reduce(loss.detach(), "mean")
        self.accelerator.backward(loss)
        value = float(mean)
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss is {value} at epoch {epoch + 1}, step {index + 1}; training stopped and the last good state "
                f"is saved. A lower --learning-rate (now {self.rate:g}) or --precision float32 helps most often."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _run(self, model: nn.Module, images: Tensor) -> Output:
        """Run the model in the training's memory format and precision."""
        with autocast(self.precision, self.accelerator.device):
            output: Output = model(images.contiguous(memory_format=torch.channels_last))
        return output

    def _finish_epoch(self, epoch: int, steps: int, seconds: float) -> EpochReport:
        began = time.perf_counter()
        result = ValidationResult()
        if self.validation is not None:
            with torch.no_grad():
                result = self.task.validate(partial(self._run, self.averaged), self.validation(), self._joined)
        if not all(map(math.isfinite, result.figures.values())):  # before it is called the best, or drawn
            raise self._diverged()
        self.evaluated = epoch + 1
        new, old = result.figures, self.best.figures
        improved = not (new and old) or self.task.is_better(new, old)  # a later epoch wins when nothing was evaluated
        if improved:
            self.best, self.best_epoch = result, epoch + 1
            self._best_weights = {name: value.clone() for name, value in self.averaged.state_dict().items()}
        return EpochReport(
            epoch=epoch + 1,
            epochs=self.epochs,
            train_loss=self.loss_sum / self.train.steps,
            learning_rate=self._rate_now(),
            images_per_second=steps * self.train.batch_size / max(seconds, 1e-9),
            seconds=seconds,
            validation=dict(result.figures),
            attention_peak=dict(result.peaks),
            warnings=tuple(self.task.warnings(result, (epoch + 1) / self.epochs)),
            is_best=improved,
            evaluation_seconds=time.perf_counter() - began,
        )

    def _joined(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        summed: Tensor = self.accelerator.reduce(values.to(self.accelerator.device))
        return summed.cpu()

    def _diverged(self) -> TrainingError:
        return TrainingError(
            f"The weights are not finite after step {self.step}; training stopped and the last good state is saved. "
            f"A lower --learning-rate (now {self.rate:g}) helps most often."
        )

    def _rate_now(self) -> float:
        """The rate of the last step, of parameters that take the set rate."""
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


def _averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return an exponential moving average whose horizon grows with the steps, so that it forgets the random start."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], steps: Tensor | int) -> None:
        taken = float(steps)
        weight = 1 - min(decay, (1 + taken) / (10 + taken))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return update
