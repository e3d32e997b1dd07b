"""What a model is trained for: loss, targets, validation figures, which result is better, and prediction."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from heedmap.config import TrainOptions
from heedmap.data import transforms as views
from heedmap.models.classifier import AttentionClassifier
from heedmap.training.losses import MapLoss
from heedmap.types import Batch, Output

COLLAPSED = 0.9  # mean largest softmax weight above which a map is one point
UNIFORM = 1.05  # mean largest softmax weight, in multiples of 1 / N, below which a map says nothing
SHUT = 0.01  # mean largest gate below which nothing passes

Forward = Callable[[Tensor], Output]
"""The model on images (B, 3, H, W), in the precision and memory format of the training."""
Draw = Callable[[int, int], Tensor]
"""(stream, count) to random numbers (count,) in 0 to 1, which depend on the seed, the step and the stream alone."""
Join = Callable[[Tensor], Tensor]
WINDOWS, CUTMIX = 0, 1  # streams


@dataclass(frozen=True)
class ValidationResult:
    """The result of the averaged weights on the validation images; empty where nothing was evaluated."""

    figures: Mapping[str, float] = field(default_factory=dict)  # name -> mean over images
    peaks: Mapping[str, float] = field(default_factory=dict)  # tap -> mean over images of the map's largest weight
    positions: Mapping[str, int] = field(default_factory=dict)  # tap -> positions of the map


class Task:
    """Base of the tasks. A subclass sets the attributes and defines :meth:`loss` and :meth:`sums`.

    Attributes:
        figures: names of the validation figures.
        monitor, higher_is_better: the figure that shows which epoch is best, and in which direction.
        taps: taps whose readout maps are watched while validating.
        has_gates: those maps are gates, each between 0 and 1, rather than shares.
    """

    figures: tuple[str, ...] = ("loss",)
    monitor: str = "loss"
    higher_is_better: bool = False
    taps: tuple[str, ...] = ()
    has_gates: bool = False

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Return the loss of a batch, a mean over its images."""
        raise NotImplementedError

    def sums(self, output: Output, batch: Batch) -> list[Tensor]:
        """Return the sum over the batch's images of each of :attr:`figures`, in their order."""
        raise NotImplementedError

    def predict(self, output: Output) -> Tensor:
        """Return the predictions (B, ...)."""
        return output.logits

    def training_loss(self, forward: Forward, batch: Batch, draw: Draw) -> Tensor:
        """Forward the model once on a batch, changed at will, and return the loss to go down."""
        return self.loss(forward(batch.images), batch)

    def is_better(self, figures: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Whether an epoch with these validation figures is better than the best so far."""
        new, old = figures[self.monitor], best[self.monitor]
        return new > old if self.higher_is_better else new < old

    def validate(self, forward: Forward, batches: Iterable[Batch], join: Join) -> ValidationResult:
        """Evaluate the averaged model on the validation images, all processes together.

        Each process has ``batches`` of its own, or none; ``join`` sums a tensor over all processes.
        """
        sums = torch.zeros(1 + len(self.figures) + 2 * len(self.taps), dtype=torch.float64)
        for batch in batches:
            output, count = forward(batch.images), len(batch.images)
            peaks = [output.attention[tap].flatten(1).amax(1).sum() for tap in self.taps]
            values = torch.stack([value.float() for value in (*self.sums(output, batch), *peaks)])
            positions = [float(count * output.attention[tap].shape[2:].numel()) for tap in self.taps]
            # In double on the CPU alone: an Apple GPU has none.
            sums += torch.tensor([count, *values.cpu().tolist(), *positions], dtype=torch.float64)
        sums = join(sums)
        if sums[0] == 0:
            return ValidationResult()
        figures, peaks, sizes = (sums[1:] / sums[0]).split([len(self.figures), len(self.taps), len(self.taps)])
        return ValidationResult(
            dict(zip(self.figures, figures.tolist(), strict=True)),
            dict(zip(self.taps, peaks.tolist(), strict=True)),
            dict(zip(self.taps, map(round, sizes.tolist()), strict=True)),
        )

    def warnings(self, result: ValidationResult, progress: float) -> Iterator[str]:
        """Yield sentences about maps that show nothing, once half of training is over; gates may be uniform."""
        if progress < 0.5:
            return
        for tap, peak in result.peaks.items():
            uniform = peak * result.positions[tap]
            if self.has_gates:
                if peak < SHUT:
                    yield f"The gates of {tap} have shut: the largest is {peak:.1g} on average. A lower rate may help."
            elif peak > COLLAPSED and result.positions[tap] > 1:
                yield f"The attention of {tap} has collapsed: its largest weight is {peak:.2f} on average, one point."
            elif uniform < UNIFORM:
                yield f"The attention of {tap} stays uniform: its largest weight is {uniform:.2f} x 1 / N on average."


class ClassificationTask(Task):
    """One of K classes: cross-entropy with smoothed labels and CutMix, and the terms on the maps.

    The best epoch has the highest accuracy, of equal ones the lowest loss. Maps that depend on nothing are neither
    watched nor given a term.
    """

    figures = ("accuracy", "loss")
    monitor = "accuracy"

    def __init__(self, classifier: AttentionClassifier, options: TrainOptions) -> None:
        readouts = list(classifier.attentions)
        is_constant = all(readout.is_constant for readout in readouts)
        self.taps = () if is_constant else classifier.taps
        self.has_gates = not all(readout.is_share for readout in readouts)
        self.smoothing, self.cutmix = options.label_smoothing or 0.0, options.cutmix or 0.0
        self.map_loss = MapLoss(options, constant=is_constant)

    def training_loss(self, forward: Forward, batch: Batch, draw: Draw) -> Tensor:
        """Mix images in a share of the steps, and add the terms on the maps; masks do not fit mixed images."""
        mixed, own = batch, 1.0
        if self.cutmix and (numbers := draw(CUTMIX, 4))[3] < self.cutmix:
            images, own = views.cutmix(batch.images, numbers[:3])
            mixed = batch._replace(images=images, masks=None)
        images, window = self.map_loss.views(mixed.images, lambda: draw(WINDOWS, 3))
        output, others = self.map_loss.of_images(forward(images))
        return self.loss(output, mixed, own) + self.map_loss(output, others, mixed.masks, window)

    def loss(self, output: Output, batch: Batch, own: float = 1.0) -> Tensor:
        """Return the cross-entropy; of mixed images ``own`` is the share of the area that bears their own label."""
        logits = output.logits.float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.smoothing)
        if own == 1.0:
            return loss
        return own * loss + (1 - own) * F.cross_entropy(logits, batch.labels.roll(1), label_smoothing=self.smoothing)

    def sums(self, output: Output, batch: Batch) -> list[Tensor]:
        """Return the number of right predictions and the sum of the cross-entropies."""
        right = (self.predict(output) == batch.labels).sum()
        return [right, F.cross_entropy(output.logits.float(), batch.labels, reduction="sum")]

    def predict(self, output: Output) -> Tensor:
        """Return the most probable classes (B,)."""
        return output.logits.float().argmax(1)

    def is_better(self, figures: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Higher accuracy, or the same at a lower loss."""
        return (figures["accuracy"], -figures["loss"]) > (best["accuracy"], -best["loss"])
