"""Are the features of one run useful on other images? Freeze them, and train a linear SVM on top.

After the cross-domain experiment of Jetley et al., "Learn To Pay Attention" (ICLR 2018): what the head of
the trained network reads (the weighted readouts; for the control the pooled features) is computed for another data set,
scaled to length one, and a linear SVM is trained on it. How the paper set the SVM is not known; here its C is chosen
by cross-validation inside the training set, and the test set is used once.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from heedmap.models.classifier import AttentionClassifier
from heedmap.modules import evaluation_mode, fitted
from heedmap.progress import Progress

COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of the SVM, tried in this order
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
            raise OptionError(
                f"costs = {self.costs}, folds = {self.folds}; each C must be above 0, and folds 2 or more."
            )


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Which features are computed, and how.

    Attributes:
        image_size: side of the images; None takes each heedmap classifier's own.
        layer: see :func:`features_of`.
        batch_size: images a forward pass.
        workers: threads that decode.
    """

    image_size: int | None = None
    layer: str | None = None
    batch_size: int = 100
    workers: int = 2


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
        train, test: number of images.
        width: of the features.
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
class TransferReport:
    """Several models on several data sets.

    Attributes:
        rows: for each data set, each model.
        settings: grid of C, folds and seed, for the record.
    """

    rows: tuple[TransferRow, ...]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and dicts."""
        return asdict(self)


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
        DataError: a set without a test part, or as :func:`probe`.
        ModelError: as :func:`features_of`.
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
            parts = []
            for images in (splits.train, splits.validation, splits.test):
                if images is not None:
                    store = Store(images, size, features.workers, memory_to_use(None, 1))
                    batches = (batch.images for batch in plain_batches(store, features.batch_size))
                    parts.append((features_of(model, batches, features.layer), images.labels))
            *trained, (test, labels) = parts
            train = torch.cat([part for part, _ in trained]), torch.cat([part for _, part in trained])
            rows.append(TransferRow(name, data, probe(*train, test, labels, options)))
    settings = {"costs": list(options.costs), "folds": options.folds, "seed": options.seed, "length": "one (L2)"}
    return TransferReport(tuple(rows), settings)


def check_sets(sets: Mapping[str, Splits]) -> None:
    """Raise DataError where a data set has no test part."""
    for data, splits in sets.items():
        if splits.test is None:
            raise DataError(f"{data} has no test part; add a folder 'test' beside 'train'.")


def features_of(model: nn.Module, batches: Iterator[Tensor] | Sequence[Tensor], layer: str | None = None) -> Tensor:
    """Compute the features that the head of a classifier reads.

    For a heedmap classifier these are the vectors of all taps side by side, normalised as the head normalises them:
    the weighted readouts, or the pooled features of the control. For any other it is what its last linear layer gets.

    Args:
        model: any classifier; it is as before afterwards.
        batches: images (B, 3, H, W) in [0, 1], on any device.
        layer: name of the module whose input is taken instead; (B, C, H, W) is averaged over positions.

    Returns:
        (N, C) float32 on the CPU, not yet of length one.

    Raises:
        ModelError: a layer that does not exist or did not run, or no linear layer to be found.
    """
    features: list[Tensor] = []
    with evaluation_mode(model, full_precision=True) as network, _inputs_of(_readers(network, layer)) as inputs:
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
        raise ModelError(
            f"{type(model).__name__} has no linear layer; name the layer whose input is taken with layer=."
        )
    return linear[-1:]


@contextlib.contextmanager
def _inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the first input of each module as (B, C) while inside."""
    collected: list[Tensor] = []

    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        collected.append(inputs[0].mean((2, 3)) if inputs[0].dim() == 4 else inputs[0].flatten(1))

    hooks = [module.register_forward_pre_hook(collect) for module in modules]
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()


def probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, options: ProbeOptions = PROBE
) -> Probe:
    """Train a linear SVM (one against the rest, squared hinge) on features of length one, and evaluate it once.

    Args:
        train, test: (N, C) and (M, C) features; each row is scaled to length one here.
        train_labels, test_labels: (N,) and (M,) int64.

    Raises:
        DataError: features or labels that do not fit or are not finite, one class only, or one with a single image.
    """
    _check_probe(train, train_labels, test, test_labels)
    features, labels, seed = _unit(train), train_labels.cpu().numpy(), options.seed
    names, counts = np.unique(labels, return_counts=True)
    folds = min(options.folds, int(counts.min()))
    grid = {cost: _fold_accuracies(features, labels, cost, folds, seed) for cost in sorted(options.costs)}
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
    unit: NDArray[np.float64] = F.normalize(features.detach().cpu().double(), dim=1).numpy()
    return unit


def _fold_accuracies(
    features: NDArray[np.float64], labels: NDArray[np.int64], cost: float, folds: int, seed: int
) -> NDArray[np.float64]:
    from sklearn.model_selection import StratifiedKFold

    accuracies = []
    for train, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels):
        svm, _ = _fit(features[train], labels[train], cost, seed)
        accuracies.append((svm.predict(features[held_out]) == labels[held_out]).mean())
    return np.array(accuracies)


def _fit(features: NDArray[np.float64], labels: NDArray[np.int64], cost: float, seed: int) -> tuple[Any, bool]:
    """Return the SVM, and whether its solver converged, which sklearn reports by a warning that is not printed."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    svm = LinearSVC(C=cost, dual="auto", max_iter=ROUNDS, random_state=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        svm.fit(features, labels)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return svm, not any(issubclass(each.category, ConvergenceWarning) for each in caught)


def _check_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    for part, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if features.dim() != 2 or not len(features) or labels.shape != features.shape[:1]:
            raise DataError(
                f"{part}: features {tuple(features.shape)}, labels {tuple(labels.shape)}; (N, C) and (N,) are needed."
            )
        if not features.isfinite().all():
            raise DataError(f"{part}: some features are not finite; the weights of the network are broken.")
    if train.shape[1] != test.shape[1]:
        raise DataError(f"Features of width {train.shape[1]} in train and {test.shape[1]} in test; one is needed.")
    counts = train_labels.unique(return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        raise DataError("Train needs two classes with two images each, or C cannot be chosen inside it.")
