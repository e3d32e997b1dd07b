"""From options to a finished run: data, audit, model, training, the one look at the test part, report.

The steps stand in :func:`train` in the order in which they happen. What the user sees of it while it happens goes
through a :class:`Progress`, so the command line draws and a script stays silent.
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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heedmap.backbones import Whitened
from heedmap.config import TrainOptions, free_name, plan_sentence
from heedmap.data import ImageDataset
from heedmap.data import transforms as views
from heedmap.data.cache.decoded import DecodedCache
from heedmap.data.cache.folder import cache_folder
from heedmap.data.loader import Share, Store, TrainingBatches, memory_to_use, plain_batches
from heedmap.errors import OptionError, RunError, Stopped
from heedmap.files import only_one
from heedmap.metrics.prediction import ComputeOptions
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.progress import Progress
from heedmap.runs import AUDIT, Run
from heedmap.system import term_as_interrupt, threads
from heedmap.training.batch_size import fitting_batch_size
from heedmap.training.recipes import derive, early_views
from heedmap.training.trainer import Fitting, fit, make_accelerator
from heedmap.workflows.evaluate.page import complete
from heedmap.workflows.train.checkpointing import Checkpointer
from heedmap.workflows.train.setup import (
    Prepared,
    anchored,
    check_model,
    one_first,
    prepare,
    refuse_untrained_logits,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

WHITENED_AT_ONCE = 2**19  # pixels
WHITENED_BY = 2000  # images of 1,000 patches and more: far more than the 78 numbers to be estimated
SMALLEST_EVALUATION_BATCH = 32  # images evaluated at a time, where training takes still fewer


def train(
    options: TrainOptions, *, resume: str | Path | None = None, progress: Progress | None = None, command: str = ""
) -> Run:
    """Train a classifier and return its finished run.

    Args:
        options: what to do; with ``resume`` the run's own options are taken instead.
        resume: an unfinished run to go on with.
        progress: is told of every step.
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
            raise RunError(f"{resume} is finished already; `heedmap visualize {shown} IMAGES` draws its maps.")
        options, command = run.options, str(run.config.get("command", command))
    else:
        if options.out is not None:
            Run.refuse_existing(options.out)
        check_model(options)
        refuse_untrained_logits(options)
        command, options = command or command_line(options), anchored(options)
    accelerator = make_accelerator()
    with contextlib.ExitStack() as held:
        if run is not None and accelerator.is_main_process:
            held.enter_context(only_one(run.path))
            run.clean()
        return _train(options, run, accelerator, progress, command, held)


def _train(
    options: TrainOptions,
    run: Run | None,
    accelerator: Accelerator,
    progress: Progress | None,
    command: str,
    held: contextlib.ExitStack,
) -> Run:
    """Train; ``held`` takes the lock of a folder that is made here."""
    began = time.monotonic()
    fresh = run is None and accelerator.is_main_process
    stood = options.out is not None and Path(options.out).is_dir()  # an empty folder of the user's
    progress = (progress or Progress()) if accelerator.is_main_process else Progress()
    prepared = one_first(accelerator, lambda: prepare(options, progress))
    if run is not None:
        _check_unchanged(run, prepared)
    torch.manual_seed(options.seed)
    begun = run is not None and run.has_checkpoint
    classifier = build_classifier(prepared.architecture, None if begun else options.pretrained)
    if not begun and isinstance(classifier.backbone, Whitened):
        _whiten(classifier, prepared.splits.train)
    if run is None and options.batch_size is None:
        batch = fitting_batch_size(classifier, prepared.options, accelerator)
        if batch != prepared.options.batch_size:
            progress.message(f"Batches of {batch} images, not of {prepared.options.batch_size}: memory is short.")
            prepared = replace(prepared, options=derive(replace(options, batch_size=batch), prepared.splits))
    # The run keeps the names of the taps, whatever a later version takes by default.
    prepared = replace(prepared, architecture=replace(prepared.architecture, taps=classifier.taps))
    parameters = sum(each.numel() for each in classifier.parameters())
    progress.message(plan_sentence(prepared.options, prepared.sizes, classifier.taps, parameters))
    if run is None:
        run = _start(prepared, accelerator, command, stood)
        if accelerator.is_main_process:
            held.enter_context(only_one(run.path))
    with _tidied(run, fresh, stood):
        if accelerator.is_main_process and not (run.path / AUDIT).is_file():
            run.write_json(AUDIT, dataclasses.asdict(prepared.audit))
        checkpointer = Checkpointer(run, prepared.options, accelerator, progress, began)
        fitting = _fitting(prepared, classifier, checkpointer)
        _follow(fitting, checkpointer, prepared.validation)
        # The test part is evaluated by one process: it is done once, and the others have nothing else to do.
        if accelerator.is_main_process:
            progress.message("Evaluating the test part, once.")
            try:
                with term_as_interrupt():
                    computing = ComputeOptions(
                        device=accelerator.device,
                        precision=fitting.precision,
                        memory=options.memory,
                        workers=options.workers,
                    )
                    complete(run, classifier, prepared.splits, computing)
            except KeyboardInterrupt:
                command = f"heedmap train --resume {shlex.quote(str(run.path))}"
                raise Stopped(
                    f"Stopped after training, before the test part was evaluated; go on with `{command}`."
                ) from None
        accelerator.wait_for_everyone()
    return Run.open(run.path)


def _whiten(classifier: AttentionClassifier, dataset: ImageDataset) -> None:
    """Compute the first layer of a whitened net from training images, spread evenly over the part."""
    rows = torch.linspace(0, len(dataset) - 1, min(WHITENED_BY, len(dataset))).long().tolist()
    pixels = classifier.image_size**2

    def batches() -> Iterator[Tensor]:  # small ones: each pixel becomes twelve double numbers
        few = max(1, WHITENED_AT_ONCE // pixels)
        for start in range(0, len(rows), few):
            chosen = rows[start : start + few]
            images = views.plain(torch.stack([dataset.load(row, classifier.image_size) for row in chosen]))
            yield (images - classifier.mean) / classifier.std

    assert isinstance(classifier.backbone, Whitened)
    classifier.backbone.whiten(batches())


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


def command_line(options: TrainOptions) -> str:
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
                sizes=prepared.sizes,
                images=prepared.names,
                notes=list(prepared.splits.notes),
            )
        where = [str(run.path)]
    broadcast_object_list(where)
    return Run.open(where[0], finished=False)


def _check_unchanged(run: Run, prepared: Prepared) -> None:
    """Refuse to go on with other images than the run began with: order and split would not be the same."""
    before, now = run.config.get("sizes"), prepared.sizes
    if (before, tuple(run.config["architecture"]["classes"])) != (now, prepared.splits.classes):
        raise RunError(
            f"{run.path} began with {before} images of {prepared.options.data}, which now holds {now}; put the "
            "images back as they were, or start a new run."
        )
    if run.config.get("images", prepared.names) != prepared.names:
        raise RunError(
            f"{run.path} began with other images of {prepared.options.data}, though as many; put them back as they "
            "were, or start a new run."
        )


def _fitting(prepared: Prepared, classifier: AttentionClassifier, checkpointer: Checkpointer) -> Fitting:
    """Join data, model and whatever checkpoint the run has."""
    options, accelerator = prepared.options, checkpointer.accelerator
    share = Share(accelerator.process_index, accelerator.num_processes)
    assert options.image_size is not None  # derive has set these
    assert options.batch_size is not None
    assert options.augment is not None
    size, workers, memory = options.image_size, threads(options.workers), memory_to_use(options.memory, share.world)
    augmentation = views.Augmentation(options.augment, bool(options.flip), shift=options.shift)
    # A dense matrix, or a network for one size alone, must be trained at the size at which it evaluates.
    view = views.view_size(size, augmentation) if classifier.takes_any_size else size
    home = cache_folder(options.cache)
    cache = None if home is None else DecodedCache(home, options.cache_size * 1e9, checkpointer.progress.message)
    with accelerator.local_main_process_first():  # the others of this machine find the cache filled
        store = Store(prepared.splits.train, size, workers, memory, cache)
    if classifier.takes_any_size:
        augmentation = replace(augmentation, early=early_views(options, view))
    with_masks = options.map_supervision > 0
    batches = TrainingBatches(store, view, options.batch_size, augmentation, options.seed, share, with_masks)
    evaluated = None
    if prepared.validation is not None:
        with accelerator.local_main_process_first():
            held_out = Store(prepared.validation, size, workers, memory, cache)
        # As many at a time as in training, whose memory is there to be used again: three times as fast as 200.
        count = max(SMALLEST_EVALUATION_BATCH, batches.batch_size // share.world)
        evaluated = functools.partial(plain_batches, held_out, count, accelerator.device, share)

    state = checkpointer.load()
    going_on = checkpointer.run.read_metrics() or state is not None
    fitting = fit(classifier, batches, evaluated, options, accelerator=accelerator, on_step=checkpointer.on_step)
    if state is not None:
        fitting.load_state(*state)
    checkpointer.attend(fitting)
    if going_on and accelerator.is_main_process:  # a death before the first checkpoint leaves lines too
        checkpointer.run.rewind_metrics(fitting.step, fitting.evaluated)
        checkpointer.progress.message(f"Going on after step {fitting.step} of {fitting.total_steps}.")
    return fitting


def _follow(fitting: Fitting, checkpointer: Checkpointer, validation: ImageDataset | None) -> None:
    """Train to the end, keeping the run's files up to date."""
    sample = None
    if validation is not None and fitting.options.image_size:
        rows = torch.linspace(0, len(validation) - 1, min(6, len(validation))).long().tolist()
        sample = torch.stack([validation.load(row, fitting.options.image_size) for row in rows])
    with checkpointer.on_duty():
        for report in fitting:
            checkpointer.on_epoch(report, sample)


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
