"""Are the features of one run useful on other images? Freeze them, and train a linear SVM on top.

After the cross-domain experiment of Jetley et al., "Learn To Pay Attention" (ICLR 2018): what the head of
the trained network reads (the weighted readouts; for the control the pooled features) is computed for another data set,
scaled to length one, and a linear SVM is trained on it. How the paper set the SVM is not known; here its C is chosen
by cross-validation inside the training set, and the test set is used once.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from heedmap.data.dataset import Splits
from heedmap.data.loader import Store, memory_to_use, plain_batches
from heedmap.errors import DataError, ModelError, OptionError, nearest
from heedmap.heads.classification import IndepHead
from heedmap.metrics.classification import wilson_interval
from heedmap.metrics.maps import PlainReport
from heedmap.models.classifier import AttentionClassifier
from heedmap.modules import evaluation_mode, fitted
from heedmap.progress import Progress

COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of the SVM
FOLDS = 5
ROUNDS = 20_000  # of the solver; what has not converged by then is reported


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How the SVM is trained.

    Attributes:
        costs: the C tried; the best mean accuracy over the folds wins, of equal ones the smallest C.
        folds: stratified and shuffled, inside the training set.
        seed: of the folds and of the solver.

    Raises:
        OptionError: no C above 0, or fewer than two folds.
    """

    costs: tuple[float, ...] = COSTS
    folds: int = FOLDS
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.costs or min(self.costs) <= 0 or self.folds < 2:
            raise OptionError(f"costs = {self.costs} must each be above 0, and folds = {self.folds} 2 or more.")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Which features are computed, and how."""

    image_size: int | None = None  # side; None takes each heedmap classifier's own
    layer: str | None = None  # see :func:`features_of`
    batch_size: int = 100
    workers: int = 2  # threads that decode


PROBE, FEATURES = ProbeOptions(), FeatureOptions()


@dataclass(frozen=True)
class Probe:
    """A linear SVM on frozen features.

    Attributes:
        accuracy: share of the test images classified correctly, with its 95 % interval ``low`` to ``high``.
        majority: accuracy of always predicting the most frequent class of the training set.
        cost: the C chosen; of equal means the smallest.
        fold_mean, fold_spread: mean and standard deviation (n - 1) of the accuracy over the folds, inside train, at C.
        folds: their number: five, or as many as the smallest class has images.
        train, test, width: number of images in each, and of features.
        converged: the solver converged in the final fit.
    """

    accuracy: float
    low: float
    high: float
    majority: float
    cost: float
    fold_mean: float
    fold_spread: float
    folds: int
    train: int
    test: int
    width: int
    converged: bool


@dataclass(frozen=True)
class TransferRow:
    """One model's features on one data set."""

    model: str
    data: str
    probe: Probe


@dataclass(frozen=True)
class TransferReport(PlainReport):
    """Several models on several data sets; ``settings`` has the grid of C, the folds and the seed."""

    rows: tuple[TransferRow, ...]
    settings: dict[str, Any]


def transfer(
    models: Mapping[str, nn.Module],
    sets: Mapping[str, Splits],
    options: ProbeOptions = PROBE,
    features: FeatureOptions = FEATURES,
    *,
    progress: Progress | None = None,
) -> TransferReport:
    """Evaluate each model's features on each data set.

    Args:
        models: name -> classifier from RGB in [0, 1].
        sets: name -> data set with train and test; a validation part is trained on too.
        progress: receives which features are being evaluated.

    Raises:
        DataError, ModelError: a set without a test part; as :func:`probe` and :func:`features_of`.
        OptionError: no model, no set, or no image size where the model has none.
    """
    if not models or not sets:
        raise OptionError("There is no model or no data set; name at least one of each.")
    check_sets(sets)
    rows, progress = [], progress or Progress()
    for data, splits in sets.items():
        for name, model in models.items():
            progress.message(f"Transfer: {name} to {data}")
            size = features.image_size or getattr(model, "image_size", None)
            if size is None:
                raise OptionError(f"Model {name!r} has no image_size; give one.")
            vectors, labels = [], []
            for images in filter(None, (splits.train, splits.validation, splits.test)):
                store = Store(images, size, features.workers, memory_to_use(None, 1))
                batches = (batch.images for batch in plain_batches(store, features.batch_size))
                vectors.append(features_of(model, batches, features.layer))
                labels.append(images.labels)
            train = torch.cat(vectors[:-1]), torch.cat(labels[:-1])
            rows.append(TransferRow(name, data, probe(*train, vectors[-1], labels[-1], options)))
    settings = {"costs": list(options.costs), "folds": options.folds, "seed": options.seed, "length": "one (L2)"}
    return TransferReport(tuple(rows), settings)


def check_sets(sets: Mapping[str, Splits]) -> None:
    """Raise DataError where a data set has no test part."""
    if lacking := [data for data, splits in sets.items() if splits.test is None]:
        raise DataError(f"{lacking[0]} has no test part; add a folder 'test' beside 'train'.")


def features_of(model: nn.Module, batches: Iterator[Tensor] | Sequence[Tensor], layer: str | None = None) -> Tensor:
    """Compute the features that the head of a classifier reads: (N, C) float32 on the CPU, not yet of length one.

    For a heedmap classifier these are the vectors of all taps side by side, normalised as the head normalises them:
    the weighted readouts, or the pooled features of the control. For any other it is what its last linear layer gets.

    Args:
        model: any classifier; it is as before afterwards.
        batches: images (B, 3, H, W) in [0, 1], on any device.
        layer: name of the module whose input is taken instead; (B, C, H, W) is averaged over positions.

    Raises:
        ModelError: a layer that does not exist or did not run, or no linear layer to be found.
    """
    features: list[Tensor] = []
    inputs: list[Tensor] = []

    def collect(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.append(given[0].mean((2, 3)) if given[0].dim() == 4 else given[0].flatten(1))

    with evaluation_mode(model, full_precision=True) as network, contextlib.ExitStack() as hooks:
        for reader in _readers(network, layer):
            hooks.enter_context(reader.register_forward_pre_hook(collect))
        for images in batches:
            inputs.clear()
            network(fitted(network, images))
            if not inputs:
                raise ModelError(f"Layer {layer or 'of the head'!r} did not run; name another with layer=.")
            features.append(torch.cat(inputs, dim=1).float().cpu())
    if not features:
        raise ModelError("There were no images to compute features of.")
    return torch.cat(features)


def _readers(model: nn.Module, layer: str | None) -> list[nn.Module]:
    known = dict(model.named_modules())
    if layer is not None:
        if layer not in known:
            raise ModelError(f"There is no layer {layer!r} in the model.{nearest(layer, known)}")
        return [known[layer]]
    if isinstance(model, AttentionClassifier):
        return list(model.head.linears) if isinstance(model.head, IndepHead) else [model.head.get_submodule("linear")]
    linear: list[nn.Module] = [module for module in known.values() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(f"{type(model).__name__} has no linear layer; name one whose input is taken with layer=.")
    return linear[-1:]


def probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, options: ProbeOptions = PROBE
) -> Probe:
    """Train a linear SVM (one against the rest, squared hinge) on features of length one, and evaluate it once.

    Features are (N, C) and (M, C), each row scaled to length one here; labels are (N,) and (M,) int64.

    Raises:
        DataError: features or labels that do not fit or are not finite, one class only, or one with a single image.
    """
    from sklearn.model_selection import StratifiedKFold

    _check_probe(train, train_labels, test, test_labels)
    features, labels, seed = _unit(train), train_labels.cpu().numpy(), options.seed
    names, counts = np.unique(labels, return_counts=True)
    folds = min(options.folds, int(counts.min()))
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels))

    def fold_accuracies(cost: float) -> NDArray[np.float64]:
        fits = ((_fit(features[inside], labels[inside], cost, seed)[0], outside) for inside, outside in parts)
        return np.array([(svm.predict(features[outside]) == labels[outside]).mean() for svm, outside in fits])

    grid = {cost: fold_accuracies(cost) for cost in sorted(options.costs)}
    cost = max(grid, key=lambda tried: grid[tried].mean())  # of equal ones the first
    svm, converged = _fit(features, labels, cost, seed)
    truth = test_labels.cpu().numpy()
    accuracy = float((svm.predict(_unit(test)) == truth).mean())
    return Probe(
        accuracy,
        *wilson_interval(accuracy, len(truth)),
        majority=float((truth == names[counts.argmax()]).mean()),
        cost=cost,
        fold_mean=float(grid[cost].mean()),
        fold_spread=float(grid[cost].std(ddof=1)),
        folds=folds,
        train=len(features),
        test=len(truth),
        width=train.shape[1],
        converged=converged,
    )


def _unit(features: Tensor) -> NDArray[np.float64]:
    return np.asarray(F.normalize(features.detach().cpu().double(), dim=1))


def _fit(features: NDArray[np.float64], labels: NDArray[np.int64], cost: float, seed: int) -> tuple[Any, bool]:
    """Return the SVM, and whether its solver converged, which sklearn reports by a warning that is not printed."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    svm = LinearSVC(C=cost, dual="auto", max_iter=ROUNDS, random_state=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        svm.fit(features, labels)
    others = [warning for warning in caught if not issubclass(warning.category, ConvergenceWarning)]
    for other in others:
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return svm, len(others) == len(caught)


def _check_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    for part, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if features.dim() != 2 or not len(features) or labels.shape != features.shape[:1]:
            shapes = f"features {tuple(features.shape)}, labels {tuple(labels.shape)}"
            raise DataError(f"{part}: {shapes}; (N, C) and (N,) are needed.")
        if not features.isfinite().all():
            raise DataError(f"{part}: some features are not finite; the weights of the network are broken.")
    if train.shape[1] != test.shape[1]:
        raise DataError(f"Features of width {train.shape[1]} in train and {test.shape[1]} in test; one is needed.")
    counts = train_labels.unique(return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        raise DataError("Train needs two classes with two images each, or C cannot be chosen inside it.")
