"""The suites of ``heedmap evaluate``: which evaluates are asked about which maps, on which images.

The evaluates themselves are in ``evaluation``; here stands what each is given. All of it is measured on a part that
nothing was chosen by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heedmap.data import ImageDataset, load_many, open_data, verify_images
from heedmap.data.annotations.annotations import AnnotationOptions, Annotations, read_annotations
from heedmap.data.transforms import plain
from heedmap.errors import DataError, HeedmapError, ModelError, OptionError, RunError, nearest
from heedmap.metrics.faithfulness.imputation import BASELINES
from heedmap.models.classifier import AttentionClassifier
from heedmap.progress import Progress
from heedmap.runs import Run

if TYPE_CHECKING:
    from heedmap.metrics.localization.localize import LocalizationReport

AS_TOLD_BY_FILES = AnnotationOptions()
SUITES = ("accuracy", "localization", "faithfulness", "robustness", "transfer")
MOST = {"faithfulness": 100, "robustness": 200}  # images, unless told: each costs hundreds of forward passes
MOST_SIZE = 224  # pixels at which maps and objects are compared; smaller images at their own size
DATASET = "dataset"  # the deletion baseline that is the classifier's own mean colour
COMBINED = "attention combined"
SHOWN = 3  # images of each sort: best, median and worst
BATCH = 64
WORKERS = 2

USERS = {  # of an option, the suites that heed it
    "annotations": ("localization",),
    "method": ("localization", "faithfulness"),
    "limit": ("localization", "faithfulness", "robustness"),
    "control": ("robustness", "transfer"),
    "deletion-baseline": ("faithfulness",),
    "independent": ("faithfulness",),
}

MapFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
Suite = Callable[[Progress], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be evaluated.

    Attributes:
        suites: some of ``SUITES``.
        methods: map methods, with settings as :func:`heedmap.attribution.method_of` reads them; empty takes the learned
            attention and Grad-CAM, or for a control Grad-CAM alone.
        annotations: of the images, where they do not bring their own; a folder of masks, COCO, VOC, YOLO or CSV.
        reading: how these are read.
        transfer: folders or named sets for the transfer suite.
        limit: images that localization, faithfulness and robustness evaluate, spread evenly over the classes; None
            takes all, and for slow suites those of ``MOST``.
        deletion_baseline: what deletion leaves of an image: its own ``mean`` colour, the mean colour of the
            ``dataset`` (the classifier's, zero once normalised, as RISE), ``black`` or ``blur``.
        independent: randomize each layer alone too.
    """

    suites: tuple[str, ...] = ("accuracy",)
    methods: tuple[str, ...] = ()
    annotations: str | None = None
    reading: AnnotationOptions = AS_TOLD_BY_FILES
    transfer: tuple[str, ...] = ()
    limit: int | None = None
    deletion_baseline: str = "mean"
    independent: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            OptionError: an unknown suite or method, or a suite and its option that are not named together.
        """
        from heedmap.attribution import method_of

        for name in self.suites:
            if name not in SUITES:
                raise OptionError(f"There is no suite {name!r}; it can be {', '.join(SUITES)}.{nearest(name, SUITES)}")
        for name in self.methods:
            method_of(name)
        if ("transfer" in self.suites) != bool(self.transfer):
            raise OptionError("The transfer suite needs data sets: --suite transfer --transfer DIR ...")
        if self.deletion_baseline not in (DATASET, *BASELINES):
            words = ("mean", DATASET, "black", "blur")
            hint = nearest(self.deletion_baseline, words)
            raise OptionError(f"No deletion baseline {self.deletion_baseline!r}; it can be {', '.join(words)}.{hint}")
        baseline = None if self.deletion_baseline == "mean" else self.deletion_baseline
        for option, value in (
            ("annotations", self.annotations),
            ("method", self.methods),
            ("limit", self.limit),
            ("deletion-baseline", baseline),
            ("independent", self.independent),
        ):
            check_used(option, value or None, self.suites)
        self.reading.check_used(self.annotations)
        if self.limit is not None and self.limit < 2:
            raise OptionError(f"limit = {self.limit} is out of range: give 2 or more.")


@dataclass(frozen=True)
class Subject:
    """Who is evaluated, on what.

    Attributes:
        classifier: on the device to compute on, in eval mode.
        images: the part that is evaluated.
        labels: (N,) in the order of the classifier's classes.
        attention: the kind it was built with; ``none`` for a control.
        name: of the classifier, for tables.
        others: name -> classifiers evaluated beside it where that makes sense, such as its control.
        sets: how data sets of the transfer suite are opened: root, download, seed, test share.
    """

    classifier: AttentionClassifier
    images: ImageDataset
    labels: Tensor
    attention: str
    name: str
    others: Mapping[str, AttentionClassifier] = field(default_factory=dict)
    sets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, nn.Module]:
        """All of them."""
        return {self.name: self.classifier, **self.others}


def check_used(option: str, value: Any, suites: tuple[str, ...]) -> None:
    """Refuse an option (a key of ``USERS``) that was given, not None, and that none of the suites would heed.

    Raises:
        OptionError: it is such a one.
    """
    users = USERS[option]
    if value is not None and not set(users) & set(suites):
        raise OptionError(f"--{option} is heeded by {' and '.join(users)} alone: add --suite {users[0]}.")


def ready_suites(wanted: Wanted, subject: Subject) -> dict[str, Suite]:
    """Open all that the suites need, so that a wrong name is told before the first of them has worked for minutes.

    Returns:
        suite -> what evaluates when called with a progress; it gives what the suite's report holds as plain numbers,
        with ``sample``: how many images of how many were evaluated. Accuracy is always evaluated before, and is not
        among them.

    Raises:
        DataError, OptionError: a data set or annotations that cannot be used.
    """
    return {name: _ready(name, wanted, subject) for name in wanted.suites if name != "accuracy"}


def check_maps(wanted: Wanted, classifier: AttentionClassifier, attention: str) -> None:
    """Ask each map for one image, of noise: what a network cannot give shows in no other way.

    Args:
        wanted: the suites and methods.
        classifier: on the device to compute on.
        attention: its option; ``none`` of a control.

    Raises:
        ModelError, OptionError: a map that cannot be had of this classifier, or a setting that cannot be.
    """
    from heedmap.metrics.maps import all_maps
    from heedmap.modules import asking

    if not set(USERS["method"]) & set(wanted.suites):
        return
    side = classifier.image_size
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(1, dtype=torch.int64)
    with asking(classifier) as lent:
        for name, function in map_functions(wanted, classifier, attention).items():
            try:
                all_maps(name, function, lent, images, target, 1)
            except HeedmapError as error:
                raise type(error)(f"--method {name} cannot be evaluated on this run: {error}") from None


def _ready(name: str, wanted: Wanted, subject: Subject) -> Suite:
    count = len(subject.labels)
    rows = spread_rows(subject.labels, wanted.limit or MOST.get(name))
    predict_batches = _SUITES[name](wanted, subject, rows)

    def run_suite(progress: Progress) -> dict[str, Any]:
        if name == "transfer":  # it evaluates other images
            progress.message("Suite transfer.")
            return predict_batches(progress)
        progress.message(f"Suite {name}, {len(rows):,} of {count:,} images.")
        return {**predict_batches(progress), "sample": {"evaluated": len(rows), "of": count}}

    return run_suite


def control_of(run: Run, classifier: AttentionClassifier) -> AttentionClassifier:
    """The classifier of a run that is to stand beside another one.

    Raises:
        RunError: its classes or the size of its images are others, so that the two cannot see the same.
    """
    control = run.classifier()
    for what, its, own in (
        ("classes", control.classes, classifier.classes),
        ("image size", control.image_size, classifier.image_size),
    ):
        if its != own:
            raise RunError(f"{run.path} cannot stand beside this run: its {what} is {its}, not {own}.")
    return control


def spread_rows(labels: Tensor, most: int | None) -> Tensor:
    """Choose ``most`` rows so that each class keeps its share, evenly over its rows; ascending. None takes all."""
    count = len(labels)
    if most is None or most >= count:
        return torch.arange(count)
    by_class = labels.argsort(stable=True)
    return by_class[(2 * torch.arange(most) + 1) * count // (2 * most)].sort()[0]


def map_functions(wanted: Wanted, classifier: AttentionClassifier, attention: str) -> dict[str, MapFunction]:
    """Name -> map function of what is to be evaluated; learned attention gives one for each tap, and the combined one.

    Raises:
        ModelError: learned attention of a control, which has none.
    """
    from heedmap.attribution import method_of
    from heedmap.metrics.maps import explained, learned_map, learned_map_at

    has_attention, taps = attention != "none", classifier.taps
    functions: dict[str, MapFunction] = {}
    for method in wanted.methods or (("attention", "grad-cam") if has_attention else ("grad-cam",)):
        if method != "attention":
            key, settings = method_of(method)
            functions[method] = explained(key, settings=settings)
            continue
        if not has_attention:
            raise ModelError("The control has no attention to evaluate; name another --method, such as grad-cam.")
        functions |= {f"attention {tap}": learned_map_at(tap) for tap in taps}
        if len(taps) > 1:
            functions[COMBINED] = learned_map
    return functions


def _images(subject: Subject, rows: Tensor) -> Tensor:
    """(n, 3, S, S) float32 in [0, 1], at the classifier's size."""
    images, unreadable = load_many(subject.images, rows, subject.classifier.image_size, WORKERS)
    if unreadable:
        raise DataError(f"Image {subject.images.names[unreadable[0][0]]} cannot be read: {unreadable[0][1]}.")
    return plain(images)


def _localization(wanted: Wanted, subject: Subject, rows: Tensor) -> Suite:
    from heedmap.metrics.localization.localize import localize
    from heedmap.metrics.maps import all_maps
    from heedmap.modules import asking

    images = subject.images.subset(rows)
    annotations, functions = (
        read_annotations(wanted.annotations, images, wanted.reading),
        map_functions(wanted, subject.classifier, subject.attention),
    )

    def called(name: str, function: MapFunction) -> Callable[[Tensor], Tensor]:
        def maps(some: Tensor) -> Tensor:
            targets = subject.labels[rows[some]]
            with asking(subject.classifier) as lent:
                return all_maps(name, function, lent, _images(subject, rows[some]), targets, BATCH)[:, None]

        return maps

    def predict_batches(progress: Progress) -> dict[str, Any]:
        report = localize(
            {name: called(name, function) for name, function in functions.items()},
            annotations,
            images=images,
            size=min(subject.classifier.image_size, MOST_SIZE),
            progress=progress,
        )
        asked = "Attributions were asked about the true class."
        return {**report.as_dict(), "ranked": _ranked(report, annotations, rows), "asked": asked}

    return predict_batches


def _ranked(report: LocalizationReport, annotations: Annotations, rows: Tensor) -> dict[str, Any]:
    """Which images are worth a look, by which map, as rows of the whole part, with their boxes and figures."""
    name = COMBINED if COMBINED in report.per_image else next(iter(report.per_image))
    places = report.ranked(name, count=SHOWN)
    shown = {place: int(rows[place]) for each in places.values() for place in each}
    figures = dict(zip(report.rows.tolist(), report.per_image[name]["otsu_iou"].tolist(), strict=True))
    return {
        "map": name,
        "rows": {kind: [shown[place] for place in each] for kind, each in places.items()},
        "boxes": {row: annotations.boxes[place].tolist() for place, row in shown.items()},
        "figures": {row: figures[place] for place, row in shown.items()},
    }


def _faithfulness(wanted: Wanted, subject: Subject, rows: Tensor) -> Suite:
    from heedmap.metrics.faithfulness.faithfulness import faithfulness
    from heedmap.metrics.faithfulness.sanity_checks import randomization
    from heedmap.metrics.maps import edge_map

    functions = map_functions(wanted, subject.classifier, subject.attention)

    def predict_batches(progress: Progress) -> dict[str, Any]:
        images = _images(subject, rows)
        word = wanted.deletion_baseline
        report = faithfulness(
            subject.classifier,
            images,
            functions,
            deletion_baseline=subject.classifier.mean.flatten() if word == DATASET else word,
            batch_size=BATCH,
            progress=progress,
        )
        checks = {}
        for name, function in {**functions, "edges": edge_map}.items():
            progress.message(f"Randomizing the weights under {name}.")
            found = randomization(subject.classifier, images, function, independent=wanted.independent)
            checks[name] = found.as_dict()
        return {**report.as_dict(), "randomization": checks, "deletion_baseline": word}

    return predict_batches


def _robustness(wanted: Wanted, subject: Subject, rows: Tensor) -> Suite:
    from heedmap.metrics.robustness import robustness

    def predict_batches(progress: Progress) -> dict[str, Any]:
        images, labels = _images(subject, rows), subject.labels[rows]
        return robustness(subject.models, images, labels, batch_size=BATCH, progress=progress).as_dict()

    return predict_batches


def _transfer(wanted: Wanted, subject: Subject, rows: Tensor) -> Suite:
    from heedmap.metrics.linear_probe import check_sets, transfer

    sets = {name: verify_images(open_data(name, **subject.sets), WORKERS).splits for name in wanted.transfer}
    check_sets(sets)
    return lambda progress: transfer(subject.models, sets, progress=progress).as_dict()


_SUITES: dict[str, Callable[[Wanted, Subject, Tensor], Suite]] = {
    "localization": _localization,
    "faithfulness": _faithfulness,
    "robustness": _robustness,
    "transfer": _transfer,
}
