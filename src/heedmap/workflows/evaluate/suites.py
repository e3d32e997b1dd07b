"""The suites of ``heedmap evaluate``. To add one, write a subclass of :class:`Suite` and enter it in ``SUITES``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from heedmap.data import ImageDataset, load_many, open_data, verify_images
from heedmap.data.annotations.annotations import AnnotationOptions, read_annotations
from heedmap.data.decoding import plain
from heedmap.errors import DataError, HeedmapError, ModelError, OptionError, RunError, nearest
from heedmap.metrics.classification import classification_report
from heedmap.metrics.faithfulness.imputation import BASELINES
from heedmap.metrics.maps import MapFunction, all_maps, edge_map, explained, learned_map, learned_map_at
from heedmap.metrics.prediction import DatasetPredictions
from heedmap.models.classifier import AttentionClassifier, combined_map
from heedmap.modules import evaluation_mode
from heedmap.progress import Progress
from heedmap.runs import Run
from heedmap.workflows.evaluate.data import OpeningOptions

if TYPE_CHECKING:
    # Late: each suite imports its own metrics.
    from heedmap.metrics.localization.report import LocalizationReport

READ_FROM_FILES, OPENING = AnnotationOptions(), OpeningOptions()
MOST_SIZE = 224  # pixels at which maps and objects are compared; smaller images at their own size
DATASET = "dataset"  # the deletion baseline that is the classifier's own mean colour
COMBINED = "attention combined"
SHOWN = 3  # images of each kind: best, median and worst
BATCH = 64
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is evaluated, and how.

    Attributes:
        suites: some of ``SUITES``; accuracy is always among them.
        methods: map methods, with settings as :func:`heedmap.attribution.method_of` reads them; empty takes the learned
            attention and Grad-CAM, or for a control Grad-CAM alone.
        annotations, reading: of the images, where they do not bring their own (a folder of masks, COCO, VOC, YOLO or
            CSV), and how these are read.
        transfer: folders or named sets for the transfer suite.
        control: a run that is evaluated beside this one for robustness and transfer.
        limit: images that localization, faithfulness and robustness evaluate, spread evenly over the classes; None
            takes all, and for slow suites ``Suite.most``.
        deletion_baseline: what deletion leaves of an image: its own ``mean`` colour, the mean colour of the
            ``dataset`` (the classifier's, zero once normalised, as RISE), ``black`` or ``blur``.
        independent: randomize each layer alone too.
        flips: predict the mirrored images too, for ``top1_with_flips``.
        precision: ``auto``, ``bf16`` or ``float32``.

    Raises:
        OptionError: an unknown suite, method or baseline, or an option that none of the suites uses.
    """

    suites: tuple[str, ...] = ("accuracy",)
    methods: tuple[str, ...] = ()
    annotations: str | None = None
    reading: AnnotationOptions = READ_FROM_FILES
    transfer: tuple[str, ...] = ()
    control: Run | None = None
    limit: int | None = None
    deletion_baseline: str = "mean"
    independent: bool = False
    flips: bool = False
    device: str | torch.device = "cpu"
    precision: str = "auto"
    opening: OpeningOptions = OPENING

    def __post_init__(self) -> None:
        # Late: evaluating accuracy needs no attribution method.
        from heedmap.attribution import method_of

        for name in self.suites:
            if name not in SUITES:
                raise OptionError(f"There is no suite {name!r}; it can be {', '.join(SUITES)}.{nearest(name, SUITES)}")
        for name in self.methods:
            method_of(name)
        if "transfer" in self.suites and not self.transfer:
            raise OptionError("The transfer suite needs data sets: --suite transfer --transfer DIR ...")
        words = ("mean", DATASET, *(name for name in BASELINES if name != "mean"))
        if self.deletion_baseline not in words:
            hint = nearest(self.deletion_baseline, words)
            raise OptionError(f"No deletion baseline {self.deletion_baseline!r}; it can be {', '.join(words)}.{hint}")
        for option in fields(self):
            users = [name for name, suite in SUITES.items() if option.name in suite.uses]
            if users and getattr(self, option.name) != option.default and not set(users) & set(self.suites):
                flag = FLAGS.get(option.name, option.name.replace("_", "-"))
                raise OptionError(f"--{flag} is used by {' and '.join(users)} only: add --suite {users[0]}.")
        self.reading.check_used(self.annotations)
        if self.limit is not None and self.limit < 2:
            raise OptionError(f"limit = {self.limit} is out of range: give 2 or more.")


FLAGS = {"methods": "method"}  # options whose flag has another name


@dataclass(frozen=True, eq=False)
class Subject:
    """What is evaluated: a classifier with its maps, and images."""

    classifier: AttentionClassifier  # on the device to compute on, in eval mode
    images: ImageDataset
    labels: Tensor  # (N,) in the order of the classifier's classes
    maps: Mapping[str, MapFunction] = field(default_factory=dict)  # see map_functions
    others: Mapping[str, AttentionClassifier] = field(default_factory=dict)  # evaluated beside it, such as its control
    opened: Mapping[str, Any] = field(default_factory=dict)  # arguments of open_data for the transfer suite

    @property
    def models(self) -> dict[str, nn.Module]:
        """All classifiers."""
        return {"this run": self.classifier, **self.others}

    def load(self, rows: Tensor) -> Tensor:
        """Return images (n, 3, S, S) float32 in [0, 1], at the classifier's size; raise DataError for a broken one."""
        images, unreadable = load_many(self.images, rows, self.classifier.image_size, WORKERS)
        if unreadable:
            raise DataError(f"Image {self.images.names[unreadable[0][0]]} cannot be read: {unreadable[0][1]}.")
        return plain(images)


class Suite(ABC):
    """An entry of ``SUITES``, which evaluates the images ``rows`` (n,); ``sample`` says how many of how many these are.

    The constructor opens what it needs, so that a wrong name fails (DataError, OptionError) before minutes of work.
    """

    name: ClassVar[str]
    uses: ClassVar[tuple[str, ...]] = ()  # fields of EvaluateOptions that are for this suite and those that share them
    most: ClassVar[int | None] = None  # images that it evaluates unless a limit is given; None takes all

    def __init__(self, subject: Subject, options: EvaluateOptions) -> None:
        self.subject, self.options = subject, options
        limit = options.limit if "limit" in self.uses else None
        self.rows = spread_rows(subject.labels, limit or self.most)
        self.sample = {"evaluated": len(self.rows), "of": len(subject.labels)}
        self.message = f"Suite {self.name}, {len(self.rows):,} of {len(subject.labels):,} images."

    @abstractmethod
    def compute(self, predictions: DatasetPredictions, progress: Progress) -> dict[str, Any]:
        """Return what JSON can hold: the fields of the metric's report, and what the suite adds."""


class Accuracy(Suite):
    """Accuracy, calibration and confusion, and where boxes are known the pointing game; on all images."""

    name = "accuracy"

    def compute(self, predictions: DatasetPredictions, progress: Progress) -> dict[str, Any]:
        """Return the fields of a ``ClassificationReport``, pointing and rates.

        ``pointing`` is the share of images whose hottest point lies in the object's box, by map, with ``centre`` and
        ``random`` beside, None where no boxes are known; ``images_per_second`` is that of network and decoding
        together, by the clock, ``network_images_per_second`` that of the network alone (the lower the first lies below
        it, the more threads that decode would help).
        """
        classifier, boxes = self.subject.classifier, self.subject.images.boxes
        report = classification_report(predictions.logits, predictions.labels, classifier.classes)
        seconds = {"images": predictions.seconds, "network_images": predictions.network_seconds}
        rates = {f"{name}_per_second": len(predictions.labels) / max(took, 1e-9) for name, took in seconds.items()}
        pointing = None
        if boxes is not None and predictions.attention:
            # Late, as all metrics of maps: accuracy alone, at the end of each training, needs none of them.
            # Late: each suite imports its own metrics.
            from heedmap.metrics.localization.pointing_game import pointing_table

            maps, shares = predictions.attention, classifier.shares()
            if len(maps) > 1:
                shares = None if shares is None else shares.detach().float().cpu()
                maps = {**maps, "combined": combined_map(maps, shares)}
            pointing = pointing_table(maps, boxes)
        return {**report.as_dict(), "pointing": pointing, **rates}


class Localization(Suite):
    """Do maps lie on the annotated objects?"""

    name = "localization"
    uses = ("annotations", "methods", "limit")

    def __init__(self, subject: Subject, options: EvaluateOptions) -> None:
        super().__init__(subject, options)
        self.images = subject.images.subset(self.rows)
        self.annotations = read_annotations(options.annotations, self.images, options.reading)

    def compute(self, predictions: DatasetPredictions, progress: Progress) -> dict[str, Any]:
        """Return a ``LocalizationReport``, and which images are worth a look."""
        # Late: each suite imports its own metrics.
        from heedmap.metrics.localization.evaluation import LocalizationOptions, evaluate_localization

        maps = {name: self._maps_of(name, function) for name, function in self.subject.maps.items()}
        options = LocalizationOptions(size=min(self.subject.classifier.image_size, MOST_SIZE))
        report = evaluate_localization(maps, self.annotations, options, images=self.images, progress=progress)
        target = "Attributions explain the true class."
        return {**report.as_dict(), "ranked": self._ranked(report), "target": target, "sample": self.sample}

    def _maps_of(self, name: str, function: MapFunction) -> Callable[[Tensor], Tensor]:
        def maps(places: Tensor) -> Tensor:
            rows = self.rows[places]
            with evaluation_mode(self.subject.classifier, gradients=True, full_precision=True) as network:
                images, labels = self.subject.load(rows), self.subject.labels[rows]
                return all_maps(name, function, network, images, labels, BATCH)[:, None]

        return maps

    def _ranked(self, report: LocalizationReport) -> dict[str, Any]:
        """Return the images worth a look, by which map, as rows of the whole part, with their boxes and figures."""
        name = COMBINED if COMBINED in report.per_image else next(iter(report.per_image))
        ranked = report.ranked(name, count=SHOWN)
        rows = {place: int(self.rows[place]) for places in ranked.values() for place in places}
        figures = dict(zip(report.rows.tolist(), report.per_image[name]["otsu_iou"].tolist(), strict=True))
        return {
            "map": name,
            "rows": {kind: [rows[place] for place in places] for kind, places in ranked.items()},
            "boxes": {row: self.annotations.boxes[place].tolist() for place, row in rows.items()},
            "figures": {row: figures[place] for place, row in rows.items()},
        }


class Faithfulness(Suite):
    """Do the hot places matter to the prediction, and do maps depend on what was learned?"""

    name = "faithfulness"
    uses = ("methods", "limit", "deletion_baseline", "independent")
    most = 100  # each image costs hundreds of forward passes

    def compute(self, predictions: DatasetPredictions, progress: Progress) -> dict[str, Any]:
        """Return a ``FaithfulnessReport``, and a ``RandomizationReport`` for each map."""
        # Late: each suite imports its own metrics.
        from heedmap.metrics.faithfulness import evaluation, sanity_checks

        classifier, images, word = self.subject.classifier, self.subject.load(self.rows), self.options.deletion_baseline
        baseline = classifier.mean.flatten() if word == DATASET else word
        options, maps = evaluation.FaithfulnessOptions(deletion_baseline=baseline, batch_size=BATCH), self.subject.maps
        report = evaluation.evaluate_faithfulness(classifier, images, maps, options=options, progress=progress)
        randomizing, checks = sanity_checks.RandomizationOptions(independent=self.options.independent), {}
        for name, function in {**maps, "edges": edge_map}.items():
            progress.message(f"Randomizing the weights under {name}.")
            checks[name] = sanity_checks.randomization_check(
                classifier, images, function, options=randomizing
            ).as_dict()
        return {**report.as_dict(), "randomization": checks, "deletion_baseline": word, "sample": self.sample}


class Robustness(Suite):
    """Do predictions and maps withstand attacks?"""

    name = "robustness"
    uses = ("limit", "control")
    most = 200

    def compute(self, predictions: DatasetPredictions, progress: Progress) -> dict[str, Any]:
        """Return a ``RobustnessReport``."""
        # Late: each suite imports its own metrics.
        from heedmap.metrics.robustness import evaluate_robustness

        images, labels = self.subject.load(self.rows), self.subject.labels[self.rows]
        report = evaluate_robustness(self.subject.models, images, labels, progress=progress)
        return {**report.as_dict(), "sample": self.sample}


class Transfer(Suite):
    """Are the features useful on other data sets? A linear probe."""

    name = "transfer"
    uses = ("transfer", "control")

    def __init__(self, subject: Subject, options: EvaluateOptions) -> None:
        # Late: each suite imports its own metrics.
        from heedmap.metrics.linear_probe import check_sets

        super().__init__(subject, options)
        opened = {name: open_data(name, **subject.opened) for name in options.transfer}
        self.sets = {name: verify_images(splits, WORKERS).splits for name, splits in opened.items()}
        check_sets(self.sets)
        self.message = "Suite transfer."

    def compute(self, predictions: DatasetPredictions, progress: Progress) -> dict[str, Any]:
        """Return a ``TransferReport``."""
        # Late: each suite imports its own metrics.
        from heedmap.metrics.linear_probe import transfer

        return transfer(self.subject.models, self.sets, progress=progress).as_dict()


SUITES: dict[str, type[Suite]] = {s.name: s for s in (Accuracy, Localization, Faithfulness, Robustness, Transfer)}


def control_of(run: Run, classifier: AttentionClassifier) -> AttentionClassifier:
    """Return the classifier of a run that is evaluated beside another; RunError for other classes or image size."""
    control = run.classifier()
    for name in ("classes", "image_size"):
        theirs, own = getattr(control, name), getattr(classifier, name)
        if theirs != own:
            what = name.replace("_", " ")
            raise RunError(f"{run.path} cannot be compared with this run: its {what} is {theirs}, not {own}.")
    return control


def spread_rows(labels: Tensor, most: int | None) -> Tensor:
    """Choose ``most`` rows so that each class keeps its share, evenly over its rows; ascending. None takes all."""
    count = len(labels)
    if most is None or most >= count:
        return torch.arange(count)
    by_class = labels.argsort(stable=True)
    return by_class[(2 * torch.arange(most) + 1) * count // (2 * most)].sort()[0]


def map_functions(options: EvaluateOptions, classifier: AttentionClassifier, attention: str) -> dict[str, MapFunction]:
    """Return name -> map function; learned attention gives one for each tap, and the combined one.

    Each runs once on noise, for what a network cannot give shows in no other way (ModelError, OptionError); none where
    no suite uses maps.
    """
    # Late: evaluating accuracy needs no attribution method.
    from heedmap.attribution import method_of

    if not any("methods" in SUITES[name].uses for name in options.suites):
        return {}
    has_attention, taps = attention != "none", classifier.taps
    functions: dict[str, MapFunction] = {}
    for method in options.methods or (("attention", "grad-cam") if has_attention else ("grad-cam",)):
        if method != "attention":
            key, settings = method_of(method)
            functions[method] = explained(key, settings=settings)
            continue
        if not has_attention:
            raise ModelError("The control has no attention to evaluate; name another --method, such as grad-cam.")
        functions |= {f"attention {tap}": learned_map_at(tap) for tap in taps}
        if len(taps) > 1:
            functions[COMBINED] = learned_map
    side = classifier.image_size
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with evaluation_mode(classifier, gradients=True, full_precision=True) as network:
        for name, function in functions.items():
            try:
                all_maps(name, function, network, noise, torch.zeros(1, dtype=torch.int64), 1)
            except HeedmapError as error:
                raise type(error)(f"--method {name} cannot be evaluated on this run: {error}") from None
    return functions
