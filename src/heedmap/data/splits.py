"""A dataset in its parts: train, validation and test; and how parts are drawn where the data has none."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heedmap.config import counted
from heedmap.data.dataset import ImageDataset
from heedmap.errors import DataError, OptionError

MOST_UNREADABLE = 0.02


@dataclass(frozen=True)
class Splits:
    """A dataset in its parts.

    Attributes:
        name: ``digit-scenes``, a named set, or the folder.
        classes: class names in natural order (``class2`` before ``class10``).
        train: the images to learn from.
        validation: the images that choose the best epoch; None where the dataset has no such part, and they are taken
            from ``train`` (:func:`split_by_class`).
        test: the images that are used once, at the end.
        unreadable: (path, reason) of the images left out because they cannot be decoded.
        notes: what was done with the data, in plain sentences.
        flippable: a mirrored image keeps its class. False for digits.
        drawn: the test part is a share of the training images.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset | None
    unreadable: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    flippable: bool = True
    drawn: bool = False

    @property
    def parts(self) -> dict[str, ImageDataset]:
        """The parts that exist: ``train``, ``validation``, ``test`` -> images."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    def with_test_part(self, share: float, seed: int) -> Splits:
        """Set a share of each class of train apart as the test part, where there is none.

        Raises:
            OptionError: ``share`` does not lie between 0 and 1.
        """
        if self.test is not None:
            return self
        train, test = split_by_class(self.train.labels, share, seed)
        note = f"There is no test part, so {share:.0%} of each class was set apart as one with seed {seed}: "
        notes = [*self.notes, note + _sizes(len(train), len(test))]
        counts = torch.bincount(self.train.labels, minlength=len(self.classes)).tolist()
        if single := ", ".join(name for name, count in zip(self.classes, counts, strict=True) if count == 1):
            notes.append(f"One image only, so none to test on: class {single}.")
        return replace(
            self, train=self.train.subset(train), test=self.train.subset(test), notes=tuple(notes), drawn=True
        )

    def without(self, failures: Mapping[str, Sequence[tuple[int, str]]]) -> Splits:
        """Leave out images that cannot be decoded and record them in ``unreadable``.

        Args:
            failures: part -> (index, reason), as :func:`heedmap.data.dataset.load_many` returns them.

        Raises:
            DataError: a class of train, or the whole of another part, has no readable image left.
        """
        parts, unreadable = dict(self.parts), list(self.unreadable)
        for name, failed in failures.items():
            images, indices = parts[name], {index for index, _ in failed}
            unreadable += [(images.names[index], reason) for index, reason in failed]
            parts[name] = images.subset([index for index in range(len(images)) if index not in indices])
            if failed and name != "train" and not len(parts[name]):
                reason = failed[0][1]
                raise DataError(f"{self.name}: no image of the {name} part can be read; the first says: {reason}.")
        missing = sorted(set(range(len(self.classes))) - set(parts["train"].labels.tolist()))
        if failures.get("train") and missing:
            empty = self.classes[missing[0]]
            raise DataError(f"{self.name}: no image of class {empty!r} can be read; mend its files or leave it out.")
        notes = self.notes
        if self.test is not None:  # the sizes that the note of the draw gives have to be those that are left
            before = _sizes(len(self.train), len(self.test))
            notes = tuple(note.replace(before, _sizes(len(parts["train"]), len(parts["test"]))) for note in notes)
        validation, test = parts.get("validation"), parts.get("test")
        return replace(
            self, train=parts["train"], validation=validation, test=test, unreadable=tuple(unreadable), notes=notes
        )

    def check_trainable(self, allow_unreadable: bool = False) -> None:
        """Check that a model can be trained and tested on these parts.

        Raises:
            DataError: more than one image in fifty was left out and this is not allowed, or the test part is empty
                because every class has a single image.
        """
        if self.test is not None and not len(self.test):
            raise DataError(
                f"{self.name}: no class has two images, so there is none to test on; add some, or a folder 'test' "
                "beside 'train'."
            )
        lost = len(self.unreadable)
        total = lost + sum(map(len, self.parts.values()))
        if lost > MOST_UNREADABLE * total and not allow_unreadable:
            path, reason = self.unreadable[0]
            raise DataError(
                f"{lost} of {total} images cannot be read, the first is {path} ({reason}). `heedmap audit "
                f"{shlex.quote(self.name)}` lists them; --allow-unreadable goes on without them."
            )


def split_by_class(labels: Tensor, share: float, seed: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Set a share of each class apart, the same one for the same seed.

    Args:
        labels: (N,) int64.
        share: in (0, 1); of each class that many images are taken, rounded, but at least one and never all. A class
            with a single image keeps it.
        seed: of the draw.
        most: lower the share so that about this many are taken in all (the one of each class still is).

    Returns:
        Two int64 tensors of ascending indices into ``labels``: those that stay and those set apart.

    Raises:
        OptionError: ``share`` does not lie between 0 and 1.
    """
    if not 0 < share < 1:
        raise OptionError(f"The share to set apart must lie between 0 and 1, not {share}.")
    if most is not None:
        share = min(share, most / max(1, len(labels)))
    generator = torch.Generator().manual_seed(seed)
    is_taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        indices = (labels == label).nonzero().flatten()
        count = min(max(int(share * len(indices) + 0.5), 1), len(indices) - 1)
        is_taken[indices[torch.randperm(len(indices), generator=generator)[:count]]] = True
    return (~is_taken).nonzero().flatten(), is_taken.nonzero().flatten()


def _sizes(train: int, test: int) -> str:
    return f"{counted(train, 'image')} to learn from, {test:,} to test on."
