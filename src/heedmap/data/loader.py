"""Batches for training and evaluating, the same ones whether images lie in memory or stream from disk.

Order and views of a training step are a function of (seed, epoch, step). So a run that was killed goes on exactly where
it was without any saved state of a random generator, and every process of a distributed run can work out its own share
without talking to the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heedmap.data import transforms as views
from heedmap.data.cache.decoded import DecodedCache, refuse_failed
from heedmap.data.dataset import ImageDataset, empty_images, load_many
from heedmap.data.transforms import Augmentation
from heedmap.errors import DataError, ImageError
from heedmap.system import free_memory
from heedmap.types import Batch

_AHEAD = 2  # whole batches that wait to be asked for
_PIECE = 4  # images that a thread decodes at a time


@dataclass(frozen=True)
class Share:
    """Which of several processes this one is: it takes the rows ``rank``, ``rank + world``, ... of every batch."""

    rank: int = 0
    world: int = 1


class Store:
    """Images at one size: in memory when they fit; else mapped from a cache, or decoded when asked for.

    Args:
        images: what to hold.
        size: side of the stored squares.
        workers: threads that decode; 0 takes the caller's own.
        memory: bytes that the decoded images may take.
        cache: where decoded images are kept for the next time.

    Raises:
        DataError: an image that was readable before cannot be decoded now.
    """

    def __init__(
        self, images: ImageDataset, size: int, workers: int, memory: float, cache: DecodedCache | None = None
    ) -> None:
        self.images, self.size, self.workers = images, size, workers
        self.resident: Tensor | None = None
        self.mapped = None if cache is None else cache.open(images, size, workers)
        if len(images) * 3 * size * size > memory:
            return
        if self.mapped is not None:
            self.resident, self.mapped = self.mapped.gather(torch.arange(len(images))), None
        else:
            self.resident, failed = load_many(images, range(len(images)), size, max(1, workers))
            refuse_failed(images, failed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images.load(index, self.size)

    def batches(self, order: list[Tensor]) -> Iterator[Tensor]:
        """The stored images (uint8) of each tensor of places in ``order``."""
        if self.resident is not None:
            rows = self.resident.permute(0, 2, 3, 1)  # as they lie in memory, so that an image is copied in one piece
            for places in order:
                yield rows.index_select(0, places).permute(0, 3, 1, 2)
        elif self.mapped is not None:
            yield from _ahead(self.mapped.gather, order)
        elif order:
            try:
                yield from (
                    _decoded(self._read, order, self.size, self.workers) if self.workers else map(self._read, order)
                )
            except ImageError as error:
                raise DataError(f"{str(error).rstrip('.')}. Remove the file and start again.") from None

    def _read(self, places: Tensor) -> Tensor:
        return torch.stack([self[place] for place in places.tolist()])


def _ahead(read: Callable[[Tensor], Tensor], order: list[Tensor]) -> Iterator[Tensor]:
    """What ``read`` gives for each tensor of places, in order and a few ahead, so that the disk is not waited for.

    Pillow and numpy let other threads work while they decode and copy. Processes would import the user's script anew.
    """
    pool, waiting = ThreadPoolExecutor(1), deque[Future[Tensor]]()
    try:
        for places in order:
            waiting.append(pool.submit(read, places))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(read: Callable[[Tensor], Tensor], order: list[Tensor], size: int, threads: int) -> Iterator[Tensor]:
    """What ``read`` gives for each tensor of places, a few images a thread, in order and a little ahead.

    All threads work on the same batch, so that the memory is that of a few batches, however many threads there are.
    Only where a batch is too small to give each of them two pieces more batches are begun.
    """
    pool, waiting = ThreadPoolExecutor(threads), deque[tuple[Tensor, list[Future[None]]]]()
    pieces = 0  # of the batches that wait

    def fill(rows: NDArray[np.uint8], places: Tensor) -> None:
        rows[:] = read(places).numpy()  # numpy copies on this thread alone; torch would wake its own pool

    def take() -> Tensor:
        images, begun = waiting.popleft()
        for each in begun:
            each.result()
        return images

    try:
        for places in order:
            images = empty_images(len(places), size)
            parts = zip(images.split(_PIECE), places.split(_PIECE), strict=True)
            waiting.append((images, [pool.submit(fill, rows.numpy(), part) for rows, part in parts]))
            pieces += len(waiting[-1][1])
            while len(waiting) > _AHEAD and pieces - len(waiting[0][1]) >= 2 * threads:
                pieces -= len(waiting[0][1])
                yield take()
        while waiting:
            yield take()
    finally:
        pool.shutdown(cancel_futures=True)


def memory_to_use(gigabytes: float | None, world: int) -> float:
    """Bytes of decoded images that this process may keep; by default a quarter of what is free, shared fairly."""
    if gigabytes is not None:
        return gigabytes * 1e9 / world
    return free_memory() / 4 / world


class TrainingBatches:
    """Training images, shuffled and varied.

    Args:
        store: images at the size at which the network will evaluate.
        size: side of the views that the network gets.
        batch_size: images per step, over all processes; never more than there are images.
        augmentation: how they are varied.
        seed: of order and views.
        share: which rows are this process's.
        with_masks: give the objects' masks too, varied as the images are.
        early: for how many epochs at first views have another side, and which.

    Raises:
        DataError: fewer images per step than processes, or masks are asked for that the images do not have.
    """

    def __init__(
        self,
        store: Store,
        size: int,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        share: Share = Share(),
        with_masks: bool = False,
        early: tuple[int, int] = (0, 0),
    ) -> None:
        if with_masks and store.images.masks is None:
            raise DataError("map_supervision must know where the objects are; give --annotations, or leave it at 0.")
        self.masks = store.images.masks if with_masks else None
        if min(batch_size, len(store)) < share.world:
            raise DataError(
                f"batch_size {batch_size} of {len(store)} images cannot be shared by {share.world} processes; "
                "take fewer processes, or make it larger."
            )
        self.store, self.size, self.augmentation, self.seed, self.share = store, size, augmentation, seed, share
        self.early = early
        self.batch_size = min(batch_size, len(store)) // share.world * share.world
        self.steps = len(store) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Batches of one epoch from ``first_step`` on: this process's rows, varied on ``device``.

        Every batch is full; the images left over after the last one are others in every epoch.
        """
        order = torch.randperm(len(self.store), generator=generator(self.seed, epoch))
        size = self.early[1] if epoch < self.early[0] else self.size
        mine = slice(self.share.rank, None, self.share.world)
        steps = range(first_step, self.steps)
        places = [order[step * self.batch_size : (step + 1) * self.batch_size] for step in steps]
        stored = self.store.batches([rows[mine] for rows in places])
        for step, rows, images in zip(steps, places, stored, strict=True):
            numbers = views.draw(len(rows), generator(self.seed, epoch, step))[mine].to(device)
            rows = rows[mine]
            mirrored = views.flips(rows, epoch, self.seed).to(device)
            images = views.apply(images.to(device, non_blocking=True), numbers, mirrored, self.augmentation, size)
            masks = None
            if self.masks is not None:
                masks = views.apply_to_masks(
                    self.masks[rows].to(device), self.store.size, numbers, mirrored, self.augmentation, size
                )
            yield Batch(images, self.store.images.labels[rows].to(device), rows, masks)


def plain_batches(
    store: Store, batch_size: int, device: torch.device | str = "cpu", share: Share = Share()
) -> Iterator[Batch]:
    """Every image of this process's share once, in order, unvaried."""
    mine = torch.arange(len(store))[share.rank :: share.world]
    order = [places for places in mine.split(batch_size) if len(places)]  # nothing, split, is one empty piece
    for rows, images in zip(order, store.batches(order), strict=True):
        labels = store.images.labels[rows].to(device)
        yield Batch(views.plain(images.to(device, non_blocking=True)), labels, rows)


def generator(*numbers: int) -> torch.Generator:
    """A generator that is a function of the numbers, mixed so that neighbours have nothing in common."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 29
    return torch.Generator().manual_seed(state % 2**63)
