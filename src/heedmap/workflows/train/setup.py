"""Everything before the first step: options checked, data opened and audited, classes and sizes known."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from heedmap.attention import attention_options
from heedmap.backbones import OWN_BACKBONES, Compact
from heedmap.backbones.registry import find_model
from heedmap.config import ModelOptions, TrainOptions, counted
from heedmap.data import FolderDataset, ImageDataset, Splits, is_sharded, open_data, split_by_class
from heedmap.data.annotations.annotations import AnnotationOptions, read_annotations
from heedmap.data.audit.findings import audit
from heedmap.data.cache.folder import cache_folder
from heedmap.data.cache.verified import verify_images
from heedmap.data.masks import PackedRegions
from heedmap.errors import DataError, HeedmapError, ModelError
from heedmap.models.architecture import Architecture
from heedmap.progress import Progress
from heedmap.system import threads
from heedmap.training.recipes import derive
from heedmap.types import Audit
from heedmap.workflows.evaluate.data import digests, is_named

MOST_VALIDATION = 2000  # images; more hardly help to choose the best epoch, and are missed in training


@dataclass(frozen=True)
class Prepared:
    """All that is known before the first step."""

    options: TrainOptions
    splits: Splits
    validation: ImageDataset | None
    audit: Audit
    architecture: Architecture
    names: dict[str, str]  # see heedmap.workflows.evaluate.data.digests

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each part, validation included."""
        parts = self.splits.parts
        if self.validation is not None:
            parts = {"train": parts["train"], "validation": self.validation, **parts}
        return {name: len(part) for name, part in parts.items()}


def architecture_of(options: TrainOptions, classes: tuple[str, ...]) -> Architecture:
    """Return what a classifier with these derived options is built from."""
    values = {name: getattr(options, name) for name in ("attention", "attention_weights", "head", "taps", "combine")}
    return Architecture(options.model or "compact", image_size=options.image_size or 0, classes=classes, **values)


def with_absolute_paths(options: TrainOptions) -> TrainOptions:
    """Return the options with absolute paths, so that the run finds its images from any folder later."""
    changes: dict[str, Any] = {"root": _absolute(options.root)}
    if not is_named(options.data) and (Path(options.data).is_dir() or is_sharded(options.data)):
        changes["data"] = _absolute(options.data)
    if options.pretrained is not None and Path(options.pretrained).is_file():
        changes["pretrained"] = _absolute(options.pretrained)
    AnnotationOptions.from_command(options)
    if options.annotations is not None:
        if not Path(options.annotations).exists():
            raise DataError(f"There are no annotations {options.annotations}; give a folder or a file that exists.")
        changes["annotations"] = _absolute(options.annotations)
    return replace(options, **changes)


def _absolute(path: str) -> str:
    # A link keeps the name by which the user knows it; only a way up has to be walked.
    return str(Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute())


def check_model(options: ModelOptions) -> None:
    """Raise ModelError for a model, tap, attention weights or head that cannot be, before any image is read."""
    attention_options(options.attention, options.attention_weights)
    if options.model in (None, "compact", "whitened") and options.taps is not None:
        with torch.device("meta"):  # the stages have the same names in both, at any size
            Compact().check_taps(options.taps)
    if options.model is None or options.model in OWN_BACKBONES:
        return
    find_model(options.model)
    if options.head == "residual" and options.pretrained is None:
        why = f"head 'residual' adds to the logits of a trained network; {options.model} has random weights"
        raise ModelError(f"{why}. Give its weights with --pretrained, or use concat.")


def prepare(options: TrainOptions, progress: Progress) -> Prepared:
    """Open, check and audit the data, and derive the options that are None."""
    home = cache_folder(options.cache)
    where: dict[str, Any] = {"root": options.root, "download": options.download, "cache": home and home / "shards"}
    splits = open_data(options.data, **where, seed=options.seed, test_share=options.test)
    names = digests(splits)
    checked = verify_images(splits, threads(options.workers), home)
    splits = checked.splits
    splits.check_trainable(options.allow_unreadable)
    for note in splits.notes:
        progress.message(note)
    report = audit(splits, depth="cheap", digests=checked.digests)
    for finding in report.findings[:5]:
        progress.message(f"audit: {finding.sentence}")
    if len(report.findings) > 5:
        progress.message(f"audit: {counted(len(report.findings) - 5, 'finding')} more, in the report.")
    training, validation = splits.train, splits.validation
    if validation is None and options.validation > 0:
        rest, taken = split_by_class(training.labels, options.validation, options.seed, MOST_VALIDATION)
        if len(taken):  # empty where every class has a single image
            training, validation = splits.train.subset(rest), splits.train.subset(taken)
            splits = replace(splits, train=training)
    derived = derive(options, splits)
    if options.attention == "none" and (options.map_supervision or options.map_consistency or options.map_entropy):
        ignored = "map_supervision, map_consistency and map_entropy are ignored"
        progress.message(f"attention = none: the maps are uniform; {ignored}.")
    if options.map_supervision and options.annotations is not None:
        training, notes = _with_masks(training, options, derived.image_size or 0)
        splits = replace(splits, train=training, notes=splits.notes + notes)
    return Prepared(derived, splits, validation, report, architecture_of(derived, splits.classes), names)


def _with_masks(images: ImageDataset, options: TrainOptions, size: int) -> tuple[ImageDataset, tuple[str, ...]]:
    """Return the images with the masks of their objects, and notes on these."""
    objects = read_annotations(options.annotations, images, AnnotationOptions.from_command(options))
    masks = PackedRegions.pack((objects.region(row, size) for row in range(len(objects))), len(objects), size)
    notes = (*objects.notes, f"{masks.marked} of {len(masks)} training images have objects for map_supervision.")
    assert isinstance(images, FolderDataset)  # annotations are refused for others
    return images.with_masks(masks), notes


def prepare_on_each(accelerator: Accelerator, make: Callable[[], Prepared]) -> Prepared:
    """Prepare on the first process of each machine, then on the others, which find the images fetched and cached.

    Where it fails, the others run into the same error: waiting for it they would never end.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
        return make()
    try:
        prepared = make()
    except HeedmapError:
        accelerator.wait_for_everyone()
        raise
    accelerator.wait_for_everyone()
    return prepared
