"""From options to a finished run: data, audit, model, training, the one look at the test part, report.

The steps stand in :func:`train` in the order in which they happen. What the user sees of it while it happens goes
through a :class:`Listener`, so the command line draws and a script stays silent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heedmap.attention import check_weights
from heedmap.backbones import OWN_BACKBONES, Compact, Whitened
from heedmap.classifier import Architecture, AttentionClassifier, build_classifier
from heedmap.data import FolderPictures, Pictures, Splits, is_sharded, open_data, split_by_class
from heedmap.data import augmentation as views
from heedmap.data.audit import audit
from heedmap.data.cache import DecodedCache
from heedmap.data.checked import check_once
from heedmap.data.folders import refuse_unreadable, refuse_untestable
from heedmap.data.kept import cache_folder
from heedmap.data.loading import Share, Store, TrainingBatches, memory_to_use, plain_batches
from heedmap.errors import DataError, HeedmapError, ModelError, OptionError, RunError, Stopped
from heedmap.evaluate import complete, is_named
from heedmap.keeper import Keeper, term_as_interrupt
from heedmap.listener import Listener
from heedmap.machine import threads
from heedmap.options import TrainOptions, counted, free_name, plan_sentence
from heedmap.own_data import digests
from heedmap.records import Audit
from heedmap.runs import AUDIT, Run, only_one
from heedmap.training.fit import Fitting, fit, make_accelerator
from heedmap.training.memory import fitting_batch
from heedmap.training.recipes import derive, early_views

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_VALIDATION = 2000  # pictures; more tell little more about which epoch was best, and are missed in training
WHITENED_AT_ONCE = 2**19  # pixels
WHITENED_BY = 2000  # pictures of 1,000 patches and more: far more than the 78 numbers to be estimated
JUDGED_BATCH = 200  # pictures judged at a time


@dataclass(frozen=True)
class Prepared:
    """All that is known before the first step."""

    options: TrainOptions
    splits: Splits
    validation: Pictures | None
    audit: Audit
    architecture: Architecture
    names: dict[str, str]  # see heedmap.own_data.digests


def train(
    options: TrainOptions, *, resume: str | Path | None = None, listener: Listener | None = None, command: str = ""
) -> Run:
    """Train a classifier and return its finished run.

    Args:
        options: what to do; with ``resume`` the run's own options are taken instead.
        resume: an unfinished run to go on with.
        listener: is told of every step.
        command: the command line, for the record; made up from the options where empty.

    Raises:
        DataError, ModelError, OptionError, RunError, TrainingError: see :mod:`heedmap.errors`.
        Stopped: SIGINT or SIGTERM came; the state is saved.
    """
    run = None
    if resume is not None:
        run = Run.open(resume, finished=False)
        if run.is_finished:
            shown = shlex.quote(str(resume))
            raise RunError(f"{resume} is finished already; `heedmap visualize {shown} PICTURES` draws its maps.")
        options, command = run.options, str(run.config.get("command", command))
    else:
        if options.out is not None:
            Run.refuse_existing(options.out)
        check_model(options)
        _refuse_untrained_answer(options)
        command, options = command or made_up_command(options), anchored(options)
    accelerator = make_accelerator()
    with contextlib.ExitStack() as held:
        if run is not None and accelerator.is_main_process:
            held.enter_context(only_one(run.path))
            run.clean()
        return _train(options, run, accelerator, listener, command, held)


def _train(
    options: TrainOptions,
    run: Run | None,
    accelerator: Accelerator,
    listener: Listener | None,
    command: str,
    held: contextlib.ExitStack,
) -> Run:
    """Train; ``held`` takes the lock of a folder that is made here."""
    began = time.monotonic()
    fresh = run is None and accelerator.is_main_process
    stood = options.out is not None and Path(options.out).is_dir()  # an empty folder of the user's
    listener = (listener or Listener()) if accelerator.is_main_process else Listener()
    prepared = _one_first(accelerator, lambda: prepare(options, listener))
    if run is not None:
        _check_unchanged(run, prepared)
    torch.manual_seed(options.seed)
    begun = run is not None and run.has_checkpoint
    classifier = build_classifier(prepared.architecture, None if begun else options.pretrained)
    if not begun and isinstance(classifier.backbone, Whitened):
        _whiten(classifier, prepared.splits.train)
    if run is None and options.batch_size is None:
        batch = fitting_batch(classifier, prepared.options, accelerator)
        if batch != prepared.options.batch_size:
            listener.message(f"Batches of {batch} pictures, not of {prepared.options.batch_size}: memory is short.")
            prepared = replace(prepared, options=derive(replace(options, batch_size=batch), prepared.splits))
    # The run keeps the names of the taps, whatever a later version takes by default.
    prepared = replace(prepared, architecture=replace(prepared.architecture, taps=classifier.taps))
    parameters = sum(each.numel() for each in classifier.parameters())
    listener.message(plan_sentence(prepared.options, _sizes(prepared), classifier.taps, parameters))
    if run is None:
        run = _start(prepared, accelerator, command, stood)
        if accelerator.is_main_process:
            held.enter_context(only_one(run.path))
    with _tidied(run, fresh, stood):
        if accelerator.is_main_process and not (run.path / AUDIT).is_file():
            run.write_json(AUDIT, dataclasses.asdict(prepared.audit))
        keeper = Keeper(run, prepared.options, accelerator, listener, began)
        fitting = _fitting(prepared, classifier, keeper)
        _follow(fitting, keeper, prepared.validation)
        # The test part is judged by one process: it is done once, and the others have nothing else to do.
        if accelerator.is_main_process:
            listener.message("Judging the test part, once.")
            try:
                with term_as_interrupt():
                    complete(run, classifier, prepared.splits, device=accelerator.device, precision=fitting.precision)
            except KeyboardInterrupt:
                command = f"heedmap train --resume {shlex.quote(str(run.path))}"
                raise Stopped(
                    f"Stopped after training, before the test part was judged; go on with `{command}`."
                ) from None
        accelerator.wait_for_everyone()
    return Run.open(run.path)


def _one_first(accelerator: Accelerator, prepared: Callable[[], Prepared]) -> Prepared:
    """Let the first process of each machine fetch and check the pictures; the others find what it has kept.

    Where it fails, the others find out for themselves: waiting for it they would never end, or end with another error.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
        return prepared()
    try:
        found = prepared()
    except HeedmapError:
        accelerator.wait_for_everyone()
        raise
    accelerator.wait_for_everyone()
    return found


def _whiten(classifier: AttentionClassifier, pictures: Pictures) -> None:
    """Compute the first layer of a whitened net from training pictures, spread evenly over the part."""
    rows = torch.linspace(0, len(pictures) - 1, min(WHITENED_BY, len(pictures))).long().tolist()
    pixels = classifier.image_size**2

    def batches() -> Iterator[Tensor]:  # small ones: each pixel becomes twelve double numbers
        few = max(1, WHITENED_AT_ONCE // pixels)
        for start in range(0, len(rows), few):
            chosen = rows[start : start + few]
            images = views.plain(torch.stack([pictures.load(row, classifier.image_size) for row in chosen]))
            yield (images - classifier.mean) / classifier.std

    assert isinstance(classifier.backbone, Whitened)
    classifier.backbone.whiten(batches())


def anchored(options: TrainOptions) -> TrainOptions:
    """The same options with whole paths, so that the run finds its pictures wherever the user stands later."""
    changes: dict[str, Any] = {"root": _whole_path(options.root)}
    if not is_named(options.data) and (Path(options.data).is_dir() or is_sharded(options.data)):
        changes["data"] = _whole_path(options.data)
    if options.pretrained is not None and Path(options.pretrained).is_file():
        changes["pretrained"] = _whole_path(options.pretrained)
    if options.annotations is not None:
        if not Path(options.annotations).exists():
            raise DataError(f"There are no annotations {options.annotations}; give a folder or a file that exists.")
        changes["annotations"] = _whole_path(options.annotations)
    return replace(options, **changes)


def _whole_path(path: str) -> str:
    # A link keeps the name by which the user knows it; only a way up has to be walked.
    return str(Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute())


def refuse_changes(run: str | Path, options: TrainOptions) -> None:
    """Check that what is told beside ``resume`` is what the run was told, since its own options are taken.

    Args:
        run: the run to go on with.
        options: its own, and over them what was told.

    Raises:
        OptionError: an option that would be passed over.
        RunError: the run cannot be read.
    """
    own, told = anchored(Run.open(run, finished=False).options), anchored(options)
    for field in dataclasses.fields(TrainOptions):
        value, kept = getattr(told, field.name), getattr(own, field.name)
        if field.name == "out" and value is not None and Path(value).resolve() == Path(run).resolve():
            continue
        if value != kept:
            what = "the data" if field.name == "data" else f"--{field.name.replace('_', '-')}"
            raise OptionError(
                f"{run} goes on by its own options: {what} is {kept!r} there, not {value!r}. Leave it out."
            )


def check_model(options: TrainOptions) -> None:
    """Refuse, before the pictures are read, what needs no picture to be refused.

    Raises:
        ModelError: no such model, a tap that ``compact`` does not have, or weights that the attention does not have.
    """
    check_weights(options.attention, options.weights)
    if options.model in (None, "compact", "whitened") and options.taps is not None:
        with torch.device("meta"):  # the stages have the same names in both, at any size
            Compact().check_taps(options.taps)
    if options.model is not None and options.model not in OWN_BACKBONES:
        from heedmap.backbones.zoo import find_model

        find_model(options.model)


def _refuse_untrained_answer(options: TrainOptions) -> None:
    """Refuse to add attention to the answer of a network with random weights, which is never trained to be one."""
    is_foreign = options.model not in (None, *OWN_BACKBONES)
    if options.head == "residual" and is_foreign and options.pretrained is None:
        raise ModelError(
            f"head 'residual' adds to an already trained network's answer; {options.model} has random weights. Give "
            "its weights with --pretrained, or use concat."
        )


def prepare(options: TrainOptions, listener: Listener) -> Prepared:
    """Open, check and audit the data, and fill in what the options leave open."""
    home = cache_folder(options.cache)
    splits = open_data(
        options.data,
        root=options.root,
        download=options.download,
        seed=options.seed,
        test_share=options.test,
        cache=home and home / "shards",
    )
    names = digests(splits)
    checked = check_once(splits, workers_to_use(options), home)
    splits = checked.splits
    if not options.allow_unreadable:
        refuse_unreadable(splits)
    refuse_untestable(splits)
    for note in splits.notes:
        listener.message(note)
    found = audit(splits, depth="cheap", digests=checked.digests)
    for finding in found.findings[:5]:
        listener.message(f"audit: {finding.sentence}")
    if len(found.findings) > 5:
        listener.message(f"audit: {counted(len(found.findings) - 5, 'finding')} more, in the report.")
    training, validation = splits.train, splits.validation
    if validation is None and options.validation > 0:
        kept, taken = split_by_class(training.labels, options.validation, options.seed, MOST_VALIDATION)
        if len(taken):  # nothing can be taken where every class has a single picture
            training, validation = splits.train.subset(kept), splits.train.subset(taken)
            splits = replace(splits, train=training)
    derived = derive(options, splits)
    if options.attention == "none" and (options.map_supervision or options.map_consistency or options.map_entropy):
        listener.message("attention = none: the control's maps are constant, so what is asked of maps is passed over.")
    if options.map_supervision and options.annotations is not None:
        training, notes = _outlined(training, options.annotations, derived.image_size or 0)
        splits = replace(splits, train=training, notes=splits.notes + notes)
    architecture = Architecture(
        model=derived.model or "compact",
        attention=derived.attention,
        weights=derived.weights,
        head=derived.head,
        taps=derived.taps,
        image_size=derived.image_size or 0,
        classes=splits.classes,
        combine=derived.combine,
    )
    return Prepared(derived, splits, validation, found, architecture, names)


def _outlined(pictures: Pictures, annotations: str, size: int) -> tuple[Pictures, tuple[str, ...]]:
    """The same pictures with the masks of their objects, and what there is to say of them."""
    from heedmap.data.annotations import annotations_for
    from heedmap.data.object_masks import PackedRegions

    found = annotations_for(pictures, annotations)
    masks = PackedRegions.pack((found.region(row, size) for row in range(len(found))), len(found), size)
    notes = (*found.notes, f"{masks.marked} of {len(masks)} training pictures have objects for map_supervision.")
    assert isinstance(pictures, FolderPictures)  # annotations are refused for others
    return pictures.outlined(masks), notes


def workers_to_use(options: TrainOptions) -> int:
    """Threads or processes that decode."""
    return threads(options.workers)


def made_up_command(options: TrainOptions) -> str:
    """The command line that means these options."""
    words = ["heedmap", "train", options.data]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name == "data" or value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


def _start(prepared: Prepared, accelerator: Accelerator, command: str, stood: bool) -> Run:
    """Make the run folder, on the first process, and tell the others where it is."""
    from accelerate.utils import broadcast_object_list

    where: list[str] = [""]
    if accelerator.is_main_process:
        options = prepared.options
        # A pattern of shards has letters that no folder should have.
        data = re.sub(r"[^\w.+ -]+", "-", Path(options.data).name)
        stem = f"{data}-{str(options.model).replace('/', '-')}-{options.attention}"
        run = Run.create(options.out or free_name(Path("runs"), stem))
        versions = {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "system": platform.platform(),
        }
        with _tidied(run, True, stood):
            run.write_config(
                options,
                prepared.architecture,
                command=command,
                versions=versions,
                processes=accelerator.num_processes,
                sizes=_sizes(prepared),
                pictures=prepared.names,
                notes=list(prepared.splits.notes),
            )
        where = [str(run.path)]
    broadcast_object_list(where)
    return Run.open(where[0], finished=False)


def _sizes(prepared: Prepared) -> dict[str, int]:
    """Pictures learned from, chosen by, and judged at the end."""
    parts = prepared.splits.parts
    if prepared.validation is not None:
        parts = {"train": parts["train"], "validation": prepared.validation, **parts}
    return {name: len(part) for name, part in parts.items()}


def _check_unchanged(run: Run, prepared: Prepared) -> None:
    """Refuse to go on with other pictures than the run began with: order and split would not be the same."""
    before, now = run.config.get("sizes"), _sizes(prepared)
    if (before, tuple(run.config["architecture"]["classes"])) != (now, prepared.splits.classes):
        raise RunError(
            f"{run.path} began with {before} pictures of {prepared.options.data}, which now holds {now}; put the "
            "pictures back as they were, or start a new run."
        )
    if run.config.get("pictures", prepared.names) != prepared.names:
        raise RunError(
            f"{run.path} began with other pictures of {prepared.options.data}, though as many; put them back as they "
            "were, or start a new run."
        )


def _fitting(prepared: Prepared, classifier: AttentionClassifier, keeper: Keeper) -> Fitting:
    """Join data, model and whatever checkpoint the run has."""
    options, accelerator = prepared.options, keeper.accelerator
    share = Share(accelerator.process_index, accelerator.num_processes)
    assert options.image_size is not None  # derive has set these
    assert options.batch_size is not None
    assert options.augment is not None
    size, workers, memory = options.image_size, workers_to_use(options), memory_to_use(options.memory, share.world)
    augmentation = views.Augmentation(options.augment, bool(options.flip), shift=options.shift)
    # A dense matrix, or a network for one size alone, must be trained at the size at which it judges.
    view = views.view_size(size, augmentation) if classifier.takes_any_size else size
    home = cache_folder(options.cache)
    cache = None if home is None else DecodedCache(home, options.cache_size * 1e9, keeper.listener.message)
    with accelerator.local_main_process_first():  # the others of this machine find the cache filled
        store = Store(prepared.splits.train, size, workers, memory, cache)
    early = early_views(options, view) if classifier.takes_any_size else (0, view)
    batches = TrainingBatches(
        store, view, options.batch_size, augmentation, options.seed, share, options.map_supervision > 0, early
    )
    judged = None
    if prepared.validation is not None:
        with accelerator.local_main_process_first():
            held_out = Store(prepared.validation, size, workers, memory, cache)
        judged = functools.partial(plain_batches, held_out, JUDGED_BATCH, accelerator.device, share)

    state = keeper.load()
    going_on = keeper.run.read_metrics() or state is not None
    fitting = fit(classifier, batches, judged, options, accelerator=accelerator, state=state, on_step=keeper.on_step)
    keeper.attend(fitting)
    if going_on and accelerator.is_main_process:  # a death before the first checkpoint leaves lines too
        keeper.run.rewind_metrics(fitting.step, fitting.judged)
        keeper.listener.message(f"Going on after step {fitting.step} of {fitting.total_steps}.")
    return fitting


def _follow(fitting: Fitting, keeper: Keeper, validation: Pictures | None) -> None:
    """Train to the end, keeping the run's files up to date."""
    sample = None
    if validation is not None and fitting.options.image_size:
        rows = torch.linspace(0, len(validation) - 1, min(6, len(validation))).long().tolist()
        sample = torch.stack([validation.load(row, fitting.options.image_size) for row in rows])
    with keeper.on_duty():
        for report in fitting:
            keeper.on_epoch(report, sample)


@contextlib.contextmanager
def _tidied(run: Run, fresh: bool, stood: bool) -> Iterator[None]:
    """Remove a new run that failed before it had anything worth keeping; a folder that stood before is emptied."""
    try:
        yield
    except BaseException:
        if fresh and not run.has_checkpoint and not run.is_finished:
            shutil.rmtree(run.path, ignore_errors=True)
            if stood:
                run.path.mkdir(exist_ok=True)
        raise
