"""The suites of ``heedmap evaluate``: which judges are asked about which maps, on which pictures.

The judges themselves are in ``evaluation``; here stands what each is given. All of it is measured on a part that
nothing was chosen by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heedmap.classifier import AttentionClassifier
from heedmap.data import Pictures, check_splits, load_many, open_data
from heedmap.data.annotations import AnnotationOptions, Annotations, annotations_for, refuse_unread
from heedmap.data.augmentation import plain
from heedmap.errors import DataError, HeedmapError, ModelError, OptionError, RunError, nearest
from heedmap.evaluation.imputation import BASELINES
from heedmap.listener import Listener
from heedmap.runs import Run

if TYPE_CHECKING:
    from heedmap.evaluation.localisation import LocalisationReport

AS_TOLD_BY_FILES = AnnotationOptions()
SUITES = ("accuracy", "localisation", "faithfulness", "robustness", "transfer")
MOST = {"faithfulness": 100, "robustness": 200}  # pictures, unless told: each costs hundreds of forward passes
MOST_SIZE = 224  # pixels at which maps and objects are compared; smaller pictures at their own size
DATASET = "dataset"  # the deletion baseline that is the classifier's own mean colour
COMBINED = "attention combined"
SHOWN = 3  # pictures of each sort: best, median and worst
BATCH = 64
WORKERS = 2

USERS = {  # of an option, the suites that heed it
    "annotations": ("localisation",),
    "method": ("localisation", "faithfulness"),
    "limit": ("localisation", "faithfulness", "robustness"),
    "control": ("robustness", "transfer"),
    "deletion-baseline": ("faithfulness",),
    "independent": ("faithfulness",),
}

MapFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
Judge = Callable[[Listener], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be judged.

    Attributes:
        suites: some of ``SUITES``.
        methods: map methods, with settings as :func:`heedmap.maps.method_of` reads them; empty takes the learned
            attention and Grad-CAM, or for a control Grad-CAM alone.
        annotations: of the pictures, where they do not bring their own; a folder of masks, COCO, VOC, YOLO or CSV.
        reading: how these are read.
        transfer: folders or named sets for the transfer suite.
        limit: pictures that localisation, faithfulness and robustness judge, spread evenly over the classes; None takes
            all, and for slow suites those of ``MOST``.
        deletion_baseline: what deletion leaves of a picture: its own ``mean`` colour, the mean colour of the
            ``dataset`` (the classifier's, zero once normalised, as RISE), ``black`` or ``blur``.
        independent: randomise each layer alone too.
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
        from heedmap.maps import method_of

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
        refuse_unread(self.annotations, self.reading)
        if self.limit is not None and self.limit < 2:
            raise OptionError(f"limit = {self.limit} is out of range: give 2 or more.")


@dataclass(frozen=True)
class Subject:
    """Who is judged, on what.

    Attributes:
        classifier: on the device to compute on, in eval mode.
        pictures: the part that is judged.
        labels: (N,) in the order of the classifier's classes.
        attention: the kind it was built with; ``none`` for a control.
        name: of the classifier, for tables.
        others: name -> classifiers judged beside it where that makes sense, such as its control.
        sets: how data sets of the transfer suite are opened: root, download, seed, test share.
    """

    classifier: AttentionClassifier
    pictures: Pictures
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


def ready_suites(wanted: Wanted, subject: Subject) -> dict[str, Judge]:
    """Open all that the suites need, so that a wrong name is told before the first of them has worked for minutes.

    Returns:
        suite -> what judges when called with a listener; it gives what the suite's report holds as plain numbers, with
        ``sample``: how many pictures of how many were judged. Accuracy is always judged before, and is not among them.

    Raises:
        DataError, OptionError: a data set or annotations that cannot be used.
    """
    return {name: _ready(name, wanted, subject) for name in wanted.suites if name != "accuracy"}


def check_maps(wanted: Wanted, classifier: AttentionClassifier, attention: str) -> None:
    """Ask each map for one picture, of noise: what a network cannot give shows in no other way.

    Args:
        wanted: the suites and methods.
        classifier: on the device to compute on.
        attention: its option; ``none`` of a control.

    Raises:
        ModelError, OptionError: a map that cannot be had of this classifier, or a setting that cannot be.
    """
    from heedmap.evaluation.asking import all_maps, asking

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
                raise type(error)(f"--method {name} cannot be judged on this run: {error}") from None


def _ready(name: str, wanted: Wanted, subject: Subject) -> Judge:
    count = len(subject.labels)
    rows = spread_rows(subject.labels, wanted.limit or MOST.get(name))
    judge = _JUDGES[name](wanted, subject, rows)

    def said_and_judged(listener: Listener) -> dict[str, Any]:
        if name == "transfer":  # it judges other pictures
            listener.message("Suite transfer.")
            return judge(listener)
        listener.message(f"Suite {name}, {len(rows):,} of {count:,} pictures.")
        return {**judge(listener), "sample": {"judged": len(rows), "of": count}}

    return said_and_judged


def control_of(run: Run, classifier: AttentionClassifier) -> AttentionClassifier:
    """The classifier of a run that is to stand beside another one.

    Raises:
        RunError: its classes or the size of its pictures are others, so that the two cannot see the same.
    """
    control = run.classifier()
    for what, its, own in (
        ("classes", control.classes, classifier.classes),
        ("picture size", control.image_size, classifier.image_size),
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
    """Name -> map function of what is to be judged; learned attention gives one for each tap, and the combined one.

    Raises:
        ModelError: learned attention of a control, which has none.
    """
    from heedmap.evaluation.asking import explained, learned_map, learned_map_at
    from heedmap.maps import method_of

    has_attention, taps = attention != "none", classifier.taps
    functions: dict[str, MapFunction] = {}
    for method in wanted.methods or (("attention", "grad-cam") if has_attention else ("grad-cam",)):
        if method != "attention":
            key, settings = method_of(method)
            functions[method] = explained(key, settings=settings)
            continue
        if not has_attention:
            raise ModelError("The control has no attention to judge; name another --method, such as grad-cam.")
        functions |= {f"attention {tap}": learned_map_at(tap) for tap in taps}
        if len(taps) > 1:
            functions[COMBINED] = learned_map
    return functions


def _images(subject: Subject, rows: Tensor) -> Tensor:
    """(n, 3, S, S) float32 in [0, 1], at the classifier's size."""
    images, unreadable = load_many(subject.pictures, rows, subject.classifier.image_size, WORKERS)
    if unreadable:
        raise DataError(f"Picture {subject.pictures.names[unreadable[0][0]]} cannot be read: {unreadable[0][1]}.")
    return plain(images)


def _localisation(wanted: Wanted, subject: Subject, rows: Tensor) -> Judge:
    from heedmap.evaluation.asking import all_maps, asking
    from heedmap.evaluation.localisation import localise

    pictures = subject.pictures.subset(rows)
    annotations, functions = (
        annotations_for(pictures, wanted.annotations, wanted.reading),
        map_functions(wanted, subject.classifier, subject.attention),
    )

    def called(name: str, function: MapFunction) -> Callable[[Tensor], Tensor]:
        def maps(some: Tensor) -> Tensor:
            targets = subject.labels[rows[some]]
            with asking(subject.classifier) as lent:
                return all_maps(name, function, lent, _images(subject, rows[some]), targets, BATCH)[:, None]

        return maps

    def judge(listener: Listener) -> dict[str, Any]:
        report = localise(
            {name: called(name, function) for name, function in functions.items()},
            annotations,
            images=pictures,
            size=min(subject.classifier.image_size, MOST_SIZE),
            listener=listener,
        )
        asked = "Attributions were asked about the true class."
        return {**report.as_dict(), "ranked": _ranked(report, annotations, rows), "asked": asked}

    return judge


def _ranked(report: LocalisationReport, annotations: Annotations, rows: Tensor) -> dict[str, Any]:
    """Which pictures are worth a look, by which map, as rows of the whole part, with their boxes and figures."""
    name = COMBINED if COMBINED in report.per_picture else next(iter(report.per_picture))
    places = report.ranked(name, count=SHOWN)
    shown = {place: int(rows[place]) for each in places.values() for place in each}
    figures = dict(zip(report.rows.tolist(), report.per_picture[name]["otsu_iou"].tolist(), strict=True))
    return {
        "map": name,
        "rows": {kind: [shown[place] for place in each] for kind, each in places.items()},
        "boxes": {row: annotations.boxes[place].tolist() for place, row in shown.items()},
        "figures": {row: figures[place] for place, row in shown.items()},
    }


def _faithfulness(wanted: Wanted, subject: Subject, rows: Tensor) -> Judge:
    from heedmap.evaluation.asking import edge_map
    from heedmap.evaluation.faithfulness import faithfulness
    from heedmap.evaluation.randomisation import randomisation

    functions = map_functions(wanted, subject.classifier, subject.attention)

    def judge(listener: Listener) -> dict[str, Any]:
        images = _images(subject, rows)
        word = wanted.deletion_baseline
        report = faithfulness(
            subject.classifier,
            images,
            functions,
            deletion_baseline=subject.classifier.mean.flatten() if word == DATASET else word,
            batch_size=BATCH,
            listener=listener,
        )
        checks = {}
        for name, function in {**functions, "edges": edge_map}.items():
            listener.message(f"Randomising the weights under {name}.")
            found = randomisation(subject.classifier, images, function, independent=wanted.independent)
            checks[name] = found.as_dict()
        return {**report.as_dict(), "randomisation": checks, "deletion_baseline": word}

    return judge


def _robustness(wanted: Wanted, subject: Subject, rows: Tensor) -> Judge:
    from heedmap.evaluation.robustness import robustness

    def judge(listener: Listener) -> dict[str, Any]:
        images, labels = _images(subject, rows), subject.labels[rows]
        return robustness(subject.models, images, labels, batch_size=BATCH, listener=listener).as_dict()

    return judge


def _transfer(wanted: Wanted, subject: Subject, rows: Tensor) -> Judge:
    from heedmap.evaluation.transfer import check_sets, transfer

    sets = {name: check_splits(open_data(name, **subject.sets), WORKERS) for name in wanted.transfer}
    check_sets(sets)
    return lambda listener: transfer(subject.models, sets, listener=listener).as_dict()


_JUDGES: dict[str, Callable[[Wanted, Subject, Tensor], Judge]] = {
    "localisation": _localisation,
    "faithfulness": _faithfulness,
    "robustness": _robustness,
    "transfer": _transfer,
}
