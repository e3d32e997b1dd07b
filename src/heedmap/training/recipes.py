"""Recipes: fill in the options that were left open from the images and their number.

The constants were measured on CIFAR-10, the Intel scenes and the digit scenes (experiments/LOG.md).
"""

import io
import math
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

from PIL import Image

from heedmap.config import TrainOptions
from heedmap.data import FileDataset, ImageDataset, Splits, TensorDataset
from heedmap.data import transforms as views
from heedmap.errors import OptionError
from heedmap.training.optimizers import FOR_NORMALISED

NORMALISED = ("compact", "whitened")  # what Muon can train
OWN_SIZES = {"paper-vgg": 32, "paper-resnet": 32}
MANY, SMALL = 10_000, 48  # from so many images of at most so many pixels on, the whitened net learns faster
EPOCHS = {"pretrained": 1000, "whitened": 2650}  # times the root of the number of images; for others 3400
FAST = 2 / 3  # epochs of the fast recipe, as a share of the standard one's
EARLY, SMALLER = 0.6, 0.75  # share of its epochs with smaller photographs, and their side then


@dataclass(frozen=True)
class Rates:
    """Highest learning rate at 48 images per step (it goes with the root of the batch), weight decay, smoothing."""

    learning_rate: float
    weight_decay: float
    label_smoothing: float = 0.1


RATES = {"adamw": Rates(3e-3, 0.05), "sgd": Rates(0.1, 5e-4), "muon": Rates(0.037, 0.05)}
WHITENED_RATES = {**RATES, "sgd": Rates(0.078, 1.3e-3, 0.2), "muon": Rates(0.037, 4e-3, 0.2)}


def derive(options: TrainOptions, splits: Splits) -> TrainOptions:
    """Fill in every option that was left open.

    Small images get many cheap steps in large batches, photographs fewer in small ones; a small set gets more epochs
    than a large one.

    Raises:
        OptionError: a shift as wide as the image, or where images are not shifted; Muon without normalisations.
    """
    count = len(splits.train)
    size = options.image_size or OWN_SIZES.get(options.model or "") or _usual_size(options, splits.train)
    model = options.model or ("whitened" if count >= MANY and size <= SMALL else "compact")
    chosen = views.choose(size, splits.flippable)
    kind: Any = options.augment or chosen.kind
    optimizer: Any = options.optimizer or ("muon" if model == "whitened" else "adamw")
    if optimizer == "muon" and model not in NORMALISED:
        raise OptionError(FOR_NORMALISED)
    rates = (WHITENED_RATES if model == "whitened" else RATES)[optimizer]
    most = 512 if model == "whitened" and optimizer == "muon" else 128 if size <= views.SHIFT_UP_TO else 48
    batch = options.batch_size or min(most, max(16, 2 ** int(math.log2(max(count, 64) / 16))))
    derived = {
        "model": model,
        "image_size": size,
        "augment": kind,
        "shift": _shift(options, model, size, kind),
        "flip": chosen.flip,
        "cutmix": 0.5 if kind == "crop" and options.pretrained is None else 0.0,
        "batch_size": batch,
        "epochs": _epochs(options, model, count),
        "optimizer": optimizer,
        **asdict(rates),
        "learning_rate": rates.learning_rate * math.sqrt(batch / 48),
    }
    return replace(options, **{name: value for name, value in derived.items() if getattr(options, name) is None})


def early_views(options: TrainOptions, size: int) -> tuple[int, int]:
    """Return the number of first epochs for which the fast recipe crops to a smaller side, and that side.

    Progressive resizing (fast.ai's entry to DAWNBench, 2018) learns the coarse part at half the cost. Small images
    gained nothing by it (experiments/LOG.md), so this is for photographs.
    """
    if options.recipe != "fast" or options.augment != "crop":
        return 0, size
    return round(EARLY * (options.epochs or 0)), round(SMALLER * size / 8) * 8


def _shift(options: TrainOptions, model: str, size: int, kind: str) -> int | None:
    if options.shift is None:  # the fewer epochs, the less augmentation
        return size // (16 if model == "whitened" else 8) if kind == "shift" else None
    if kind != "shift":
        raise OptionError(f"shift = {options.shift} is for augment = shift; here augment is {kind}.")
    if options.shift >= size:
        raise OptionError(f"shift = {options.shift} leaves nothing of images of {size} pixels; give fewer pixels.")
    return options.shift


def _epochs(options: TrainOptions, model: str, count: int) -> int:
    epochs = EPOCHS.get(model if options.pretrained is None else "pretrained", 3400) / math.sqrt(count)
    return round(min(max(epochs, 4), 200) * (FAST if options.recipe == "fast" else 1))


def _usual_size(options: TrainOptions, images: ImageDataset) -> int:
    """Return the side of the square that suits most images of the set."""
    if isinstance(images, TensorDataset):
        side = float(min(images.images.shape[-2:]))
    elif isinstance(images, FileDataset):
        sample = range(0, len(images), len(images) // 50 + 1)
        side = statistics.median(min(Image.open(io.BytesIO(images.data(i))).size) for i in sample)
    else:
        side = 128
    if options.model not in (None, "compact", "whitened"):  # timm and torchvision networks are made for photographs
        return 224 if side > 160 else max(64, int(side) // 32 * 32)
    return max(16, int(side) // 8 * 8) if side <= 96 else 144 if side <= 176 else 160
