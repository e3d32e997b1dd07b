"""From options to a finished run: data, audit, model, training, one evaluation on the test part, report."""

import contextlib
import dataclasses
import functools
import platform
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from heedmap.backbones import Whitened
from heedmap.config import TrainOptions, counted, free_name
from heedmap.data import ImageDataset
from heedmap.data import transforms as views
from heedmap.data.cache.decoded import DecodedCache
from heedmap.data.cache.folder import cache_folder
from heedmap.data.decoding import plain
from heedmap.data.loader import Share, Store, TrainingBatches, memory_to_use, plain_batches
from heedmap.errors import OptionError, RunError, Stopped
from heedmap.files import locked
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
from heedmap.workflows.train.checkpointing import Checkpointer, Trackers
from heedmap.workflows.train.setup import Prepared, check_model, prepare, prepare_on_each, with_absolute_paths

WHITENED_AT_ONCE = 2**19  # pixels
WHITENED_BY = 2000  # images of 1,000 patches and more: far more than the 78 numbers to be estimated
SMALLEST_EVALUATION_BATCH = 32  # images evaluated at a time, where training takes still fewer


def train(
    options: TrainOptions, *, resume: str | Path | None = None, progress: Progress | None = None, command: str = ""
) -> Run:
    """Train a classifier and return its finished run.

    Args:
        options: what to train and how; with ``resume`` the run's own options are taken instead.
        resume: an unfinished run to continue.
        progress: receives every step, epoch and message.
        command: the command line, for config.yaml; made from the options where empty.

    Raises:
        DataError, ModelError, OptionError, RunError, TrainingError: see :mod:`heedmap.errors`.
        Stopped: SIGINT or SIGTERM came; the state is saved.
    """
    run = None
    if resume is not None:
        run = Run.open(resume, finished=False)
        if run.is_finished:
            draw = f"heedmap visualize {shlex.quote(str(resume))} IMAGES"
            raise RunError(f"{resume} is finished already; `{draw}` draws its maps.")
        options, command = run.options, str(run.config.get("command", command))
    else:
        if options.out is not None:
            Run.refuse_existing(options.out)
        check_model(options)
        command, options = command or command_line(options), with_absolute_paths(options)
    trackers, accelerator = Trackers(options.track), make_accelerator()
    progress = (progress or Progress()) if accelerator.is_main_process else Progress()
    with contextlib.ExitStack() as locks:
        if run is not None and accelerator.is_main_process:
            locks.enter_context(locked(run.path))
            run.clean()
        return _train(options, run, Checkpointer(trackers, accelerator, progress), command, locks)


def _train(
    options: TrainOptions, run: Run | None, checkpointer: Checkpointer, command: str, locks: contextlib.ExitStack
) -> Run:
    """Train; ``locks`` takes the lock of a folder that is made here."""
    accelerator, progress = checkpointer.accelerator, checkpointer.progress
    is_new = run is None and accelerator.is_main_process
    folder_existed = options.out is not None and Path(options.out).is_dir()  # an empty folder of the user's
    prepared = prepare_on_each(accelerator, lambda: prepare(options, progress))
    if run is not None:
        _check_unchanged(run, prepared)
    has_weights = run is not None and run.has_checkpoint
    classifier = _build(prepared, None if has_weights else options)
    if run is None and options.batch_size is None:
        batch = fitting_batch_size(classifier, prepared.options, accelerator)
        if batch != prepared.options.batch_size:
            progress.message(f"Batches of {batch} images, not of {prepared.options.batch_size}: memory is short.")
            prepared = replace(prepared, options=derive(replace(options, batch_size=batch), prepared.splits))
    # The run records the names of the taps, whatever a later version takes by default.
    prepared = replace(prepared, architecture=replace(prepared.architecture, taps=classifier.taps))
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    progress.message(plan_sentence(prepared.options, prepared.sizes, classifier.taps, parameters))
    if run is None:
        run = _create(prepared, accelerator, command, folder_existed)
        if accelerator.is_main_process:
            locks.enter_context(locked(run.path))
    with _removed_on_failure(run, folder_existed) if is_new else contextlib.nullcontext():
        if accelerator.is_main_process and not (run.path / AUDIT).is_file():
            run.write_json(AUDIT, dataclasses.asdict(prepared.audit))
        fitting = _fitting(prepared, classifier, checkpointer, run)
        sample, held_out = None, prepared.validation  # up to six validation images for the panels of maps
        if held_out is not None:
            rows = torch.linspace(0, len(held_out) - 1, min(6, len(held_out))).long().tolist()
            sample = torch.stack([held_out.load(row, classifier.image_size) for row in rows])
        with checkpointer.handle_signals():
            for report in fitting:
                checkpointer.on_epoch(report, sample)
        # One process evaluates the test part: it is done once, and the others have nothing else to do.
        if accelerator.is_main_process:
            progress.message("Evaluating the test part, once.")
            computing = ComputeOptions(
                device=accelerator.device, precision=fitting.precision, memory=options.memory, workers=options.workers
            )
            try:
                with term_as_interrupt():
                    complete(run, classifier, prepared.splits, computing)
            except KeyboardInterrupt:
                way = f"continue with `heedmap train --resume {shlex.quote(str(run.path))}`"
                raise Stopped(f"Stopped after training, before the test part was evaluated; {way}.") from None
        accelerator.wait_for_everyone()
    return Run.open(run.path)


def plan_sentence(options: TrainOptions, sizes: Mapping[str, int], taps: tuple[str, ...], parameters: int) -> str:
    """Return one line about a training with these derived options."""
    parts = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    epochs = counted(options.epochs or 0, "epoch")
    attention = "no attention (the control)" if options.attention == "none" else f"{options.attention} attention"
    return (
        f"{options.model}, {parameters / 1e6:.2f} M parameters, {attention} at {', '.join(taps)}; "
        f"{options.image_size} px, {epochs}, batch size {options.batch_size}, "
        f"{options.optimizer} up to learning rate {options.learning_rate:.3g}; images: {parts}."
    )


def _build(prepared: Prepared, initial: TrainOptions | None) -> AttentionClassifier:
    """Build the classifier; ``initial`` is None where its weights come from a checkpoint."""
    torch.manual_seed(prepared.options.seed)
    classifier = build_classifier(prepared.architecture, None if initial is None else initial.pretrained)
    if initial is not None and isinstance(classifier.backbone, Whitened):
        classifier.backbone.whiten(_whitening_batches(classifier, prepared.splits.train))
    return classifier


def _whitening_batches(classifier: AttentionClassifier, dataset: ImageDataset) -> Iterator[Tensor]:
    """Yield training images, spread evenly over the part; few at a time: each pixel becomes twelve double numbers."""
    rows = torch.linspace(0, len(dataset) - 1, min(WHITENED_BY, len(dataset))).long()
    for few in rows.split(max(1, WHITENED_AT_ONCE // classifier.image_size**2)):
        images = plain(torch.stack([dataset.load(row, classifier.image_size) for row in few.tolist()]))
        yield (images - classifier.mean) / classifier.std


def refuse_changes(run: str | Path, options: TrainOptions) -> None:
    """Raise OptionError where options given beside ``resume`` are not the run's own, which are taken."""
    own, given = with_absolute_paths(Run.open(run, finished=False).options), with_absolute_paths(options)
    for field in dataclasses.fields(TrainOptions):
        value, before = getattr(given, field.name), getattr(own, field.name)
        if field.name == "out" and value is not None and Path(value).resolve() == Path(run).resolve():
            continue
        if value != before:
            what = "the data" if field.name == "data" else f"--{field.name.replace('_', '-')}"
            own_value = f"{what} is {before!r} there, not {value!r}"
            raise OptionError(f"{run} continues with its own options: {own_value}. Leave it out.")


def command_line(options: TrainOptions) -> str:
    """Return the command line with these options."""
    words = ["heedmap", "train", options.data]
    for field in dataclasses.fields(options):
        value, flag = getattr(options, field.name), field.name.replace("_", "-")
        if field.name == "data" or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _create(prepared: Prepared, accelerator: Accelerator, command: str, folder_existed: bool) -> Run:
    """Create the run folder, on the first process, and send its name to the others."""
    where: list[str] = [""]
    if accelerator.is_main_process:
        options = prepared.options
        # A pattern of shards has letters that no folder should have.
        data = re.sub(r"[^\w.+ -]+", "-", Path(options.data).name)
        stem = f"{data}-{str(options.model).replace('/', '-')}-{options.attention}"
        run = Run.create(options.out or free_name(Path("runs"), stem))
        python, system = platform.python_version(), platform.platform()
        facts: dict[str, Any] = {"command": command}
        facts["versions"] = {"python": python, "torch": str(torch.__version__), "system": system}
        facts |= {"processes": accelerator.num_processes, "sizes": prepared.sizes, "images": prepared.names}
        with _removed_on_failure(run, folder_existed):
            run.write_config(options, prepared.architecture, **facts, notes=list(prepared.splits.notes))
        where = [str(run.path)]
    broadcast_object_list(where)
    return Run.open(where[0], finished=False)


def _check_unchanged(run: Run, prepared: Prepared) -> None:
    """Refuse to continue with other images than the run began with: order and split would not be the same."""
    before, now = run.config.get("sizes"), prepared.sizes
    data, what = prepared.options.data, ""
    if (before, tuple(run.config["architecture"]["classes"])) != (now, prepared.splits.classes):
        what = f"{before} images of {data}, which now holds {now}"
    elif run.config.get("images", prepared.names) != prepared.names:
        what = f"other images of {data}, though as many"
    if what:
        raise RunError(f"{run.path} began with {what}; put the images back as they were, or start a new run.")


def _fitting(prepared: Prepared, classifier: AttentionClassifier, checkpointer: Checkpointer, run: Run) -> Fitting:
    """Return the training over the prepared data, from the run's checkpoint if it has one."""
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
    with accelerator.local_main_process_first():  # the others on this machine find the cache filled
        store = Store(prepared.splits.train, size, workers, memory, cache)
    if classifier.takes_any_size:
        augmentation = replace(augmentation, early=early_views(options, view))
    masks = options.map_supervision > 0
    batches = TrainingBatches(store, view, options.batch_size, augmentation, options.seed, share, masks)
    evaluated = None
    if prepared.validation is not None:
        with accelerator.local_main_process_first():
            held_out = Store(prepared.validation, size, workers, memory, cache)
        # As many at a time as in training, whose memory is there to be used again: three times as fast as 200.
        count = max(SMALLEST_EVALUATION_BATCH, batches.batch_size // share.world)
        evaluated = functools.partial(plain_batches, held_out, count, accelerator.device, share)

    state = checkpointer.load(run)
    is_resumed = state is not None or run.read_metrics()  # a process that died before a checkpoint leaves lines too
    fitting = fit(classifier, batches, evaluated, options, accelerator=accelerator, on_step=checkpointer.on_step)
    if state is not None:
        fitting.load_state(*state)
    checkpointer.start(fitting)
    if is_resumed and accelerator.is_main_process:
        run.rewind_metrics(fitting.step, fitting.evaluated)
        checkpointer.progress.message(f"Continuing after step {fitting.step} of {fitting.total_steps}.")
    return fitting


@contextlib.contextmanager
def _removed_on_failure(run: Run, folder_existed: bool) -> Iterator[None]:
    """Remove a new run that failed before its first checkpoint; a folder that existed before is emptied."""
    try:
        yield
    except BaseException:
        if not run.has_checkpoint and not run.is_finished:
            shutil.rmtree(run.path, ignore_errors=True)
            if folder_existed:
                run.path.mkdir(exist_ok=True)
        raise
