"""What a run needs before its first step: options checked, data opened and audited, classes and sizes known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heedmap.attention import attention_options
from heedmap.backbones import OWN_BACKBONES, Compact
from heedmap.config import TrainOptions, counted
from heedmap.data import FolderDataset, ImageDataset, Splits, is_sharded, open_data, split_by_class
from heedmap.data.annotations.annotations import AnnotationOptions, read_annotations
from heedmap.data.audit.findings import audit
from heedmap.data.cache.folder import cache_folder
from heedmap.data.cache.verified import verify_images
from heedmap.errors import DataError, HeedmapError, ModelError
from heedmap.models.architecture import Architecture
from heedmap.progress import Progress
from heedmap.system import threads
from heedmap.training.recipes import derive
from heedmap.types import Audit
from heedmap.workflows.evaluate.data import digests, is_named

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_VALIDATION = 2000  # images; more tell little more about which epoch was best, and are missed in training


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
        """Images learned from, chosen by, and evaluated at the end."""
        parts = self.splits.parts
        if self.validation is not None:
            parts = {"train": parts["train"], "validation": self.validation, **parts}
        return {name: len(part) for name, part in parts.items()}


def anchored(options: TrainOptions) -> TrainOptions:
    """The same options with whole paths, so that the run finds its images wherever the user stands later.

    Raises:
        DataError: there are no such annotations.
        OptionError: it is told how annotations are read, and none are named.
    """
    changes: dict[str, Any] = {"root": _whole_path(options.root)}
    if not is_named(options.data) and (Path(options.data).is_dir() or is_sharded(options.data)):
        changes["data"] = _whole_path(options.data)
    if options.pretrained is not None and Path(options.pretrained).is_file():
        changes["pretrained"] = _whole_path(options.pretrained)
    AnnotationOptions.from_command(options)
    if options.annotations is not None:
        if not Path(options.annotations).exists():
            raise DataError(f"There are no annotations {options.annotations}; give a folder or a file that exists.")
        changes["annotations"] = _whole_path(options.annotations)
    return replace(options, **changes)


def _whole_path(path: str) -> str:
    # A link keeps the name by which the user knows it; only a way up has to be walked.
    return str(Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute())


def check_model(options: TrainOptions) -> None:
    """Refuse, before the images are read, what needs no image to be refused.

    Raises:
        ModelError: no such model, a tap that ``compact`` does not have, or weights that the attention does not have.
    """
    attention_options(options.attention, options.attention_weights)
    if options.model in (None, "compact", "whitened") and options.taps is not None:
        with torch.device("meta"):  # the stages have the same names in both, at any size
            Compact().check_taps(options.taps)
    if options.model is not None and options.model not in OWN_BACKBONES:
        from heedmap.backbones.registry import find_model

        find_model(options.model)


def refuse_untrained_logits(options: TrainOptions) -> None:
    """Refuse to add attention to the answer of a network with random weights, which is never trained to be one."""
    is_foreign = options.model not in (None, *OWN_BACKBONES)
    if options.head == "residual" and is_foreign and options.pretrained is None:
        raise ModelError(
            f"head 'residual' adds to an already trained network's answer; {options.model} has random weights. Give "
            "its weights with --pretrained, or use concat."
        )


def prepare(options: TrainOptions, progress: Progress) -> Prepared:
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
    checked = verify_images(splits, threads(options.workers), home)
    splits = checked.splits
    splits.check_trainable(options.allow_unreadable)
    for note in splits.notes:
        progress.message(note)
    found = audit(splits, depth="cheap", digests=checked.digests)
    for finding in found.findings[:5]:
        progress.message(f"audit: {finding.sentence}")
    if len(found.findings) > 5:
        progress.message(f"audit: {counted(len(found.findings) - 5, 'finding')} more, in the report.")
    training, validation = splits.train, splits.validation
    if validation is None and options.validation > 0:
        kept, taken = split_by_class(training.labels, options.validation, options.seed, MOST_VALIDATION)
        if len(taken):  # nothing can be taken where every class has a single image
            training, validation = splits.train.subset(kept), splits.train.subset(taken)
            splits = replace(splits, train=training)
    derived = derive(options, splits)
    if options.attention == "none" and (options.map_supervision or options.map_consistency or options.map_entropy):
        progress.message("attention = none: the control's maps are constant, so what is asked of maps is passed over.")
    if options.map_supervision and options.annotations is not None:
        training, notes = _outlined(training, options, derived.image_size or 0)
        splits = replace(splits, train=training, notes=splits.notes + notes)
    architecture = Architecture(
        model=derived.model or "compact",
        attention=derived.attention,
        attention_weights=derived.attention_weights,
        head=derived.head,
        taps=derived.taps,
        image_size=derived.image_size or 0,
        classes=splits.classes,
        combine=derived.combine,
    )
    return Prepared(derived, splits, validation, found, architecture, names)


def _outlined(images: ImageDataset, options: TrainOptions, size: int) -> tuple[ImageDataset, tuple[str, ...]]:
    """The same images with the masks of their objects, and what there is to say of them."""
    from heedmap.data.masks import PackedRegions

    found = read_annotations(options.annotations, images, AnnotationOptions.from_command(options))
    masks = PackedRegions.pack((found.region(row, size) for row in range(len(found))), len(found), size)
    notes = (*found.notes, f"{masks.marked} of {len(masks)} training images have objects for map_supervision.")
    assert isinstance(images, FolderDataset)  # annotations are refused for others
    return images.with_masks(masks), notes


def one_first(accelerator: Accelerator, prepared: Callable[[], Prepared]) -> Prepared:
    """Let the first process of each machine fetch and check the images; the others find what it has kept.

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
