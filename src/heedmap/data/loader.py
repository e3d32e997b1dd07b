"""Batches for training and evaluating, the same ones whether images lie in memory or stream from disk.

Order and views of a training step are a function of (seed, epoch, step). So a run that was killed goes on exactly where
it was without saved state of a generator, and every process of a distributed run works out its own rows.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heedmap.data import transforms
from heedmap.data.cache.decoded import DecodedCache
from heedmap.data.dataset import ImageDataset, empty_images, load_all
from heedmap.data.decoding import plain
from heedmap.data.transforms import Augmentation
from heedmap.errors import DataError, ImageError
from heedmap.system import free_memory
from heedmap.types import Batch

_AHEAD = 2  # whole batches that are prepared in advance
_PIECE = 4  # images that a thread decodes at a time


@dataclass(frozen=True)
class Share:
    """Which of several processes this one is: it takes the rows ``rank``, ``rank + world``, ... of every batch."""

    rank: int = 0
    world: int = 1


class Store:
    """Images at one size: in memory when they fit; else mapped from a cache, or decoded on access.

    Args:
        images, size: what to hold, and the side of the stored squares.
        workers: threads that decode; 0 takes the caller's own.
        memory: bytes that the decoded images may take.
        cache: of decoded images, for the next time.

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
            self.resident = load_all(images, range(len(images)), size, workers)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: list[Tensor]) -> Iterator[Tensor]:
        """Yield the stored images (uint8) of each tensor of indices in ``order``."""
        if self.resident is not None:
            rows = self.resident.permute(0, 2, 3, 1)  # as they lie in memory, so that an image is copied in one piece
            for indices in order:
                yield rows.index_select(0, indices).permute(0, 3, 1, 2)
        elif self.mapped is not None:
            gather = self.mapped.gather
            yield from _ahead(lambda pool, indices: (1, pool.submit(gather, indices).result), order, 1)
        elif order:
            try:
                yield from _ahead(self._decode, order, self.workers) if self.workers else map(self._read, order)
            except ImageError as error:
                raise DataError(f"{str(error).rstrip('.')}. Remove the file and start again.") from None

    def _decode(self, pool: ThreadPoolExecutor, indices: Tensor) -> tuple[int, Callable[[], Tensor]]:
        """Begin to decode a batch, a few images a thread."""
        images = empty_images(len(indices), self.size)

        def fill(rows: NDArray[np.uint8], indices: Tensor) -> None:
            rows[:] = self._read(indices).numpy()  # numpy copies on this thread alone; torch would wake its own pool

        def finish() -> Tensor:
            for piece in pieces:
                piece.result()
            return images

        parts = zip(images.split(_PIECE), indices.split(_PIECE), strict=True)
        pieces = [pool.submit(fill, rows.numpy(), part) for rows, part in parts]
        return len(pieces), finish

    def _read(self, indices: Tensor) -> Tensor:
        return torch.stack([self.images.load(index, self.size) for index in indices.tolist()])


def _ahead(
    begin: Callable[[ThreadPoolExecutor, Tensor], tuple[int, Callable[[], Tensor]]], order: list[Tensor], threads: int
) -> Iterator[Tensor]:
    """Yield a batch for each tensor of indices, in order and a little ahead, so that nothing waits for the disk.

    ``begin`` gives a batch's pieces to the pool and returns their number, and what waits for them. All threads work on
    the same batch, so that the memory is that of a few batches; more of them are begun only where one is too small to
    give each thread two pieces. Processes would import the user's script again.
    """
    pool, waiting = ThreadPoolExecutor(threads), deque[tuple[int, Callable[[], Tensor]]]()
    try:
        for indices in order:
            waiting.append(begin(pool, indices))
            while len(waiting) > _AHEAD and sum(pieces for pieces, _ in waiting) - waiting[0][0] >= 2 * threads:
                yield waiting.popleft()[1]()
        while waiting:
            yield waiting.popleft()[1]()
    finally:
        pool.shutdown(cancel_futures=True)


def memory_to_use(gigabytes: float | None, world: int) -> float:
    """Return the bytes of decoded images that this process may hold; by default a quarter of what is free, shared."""
    return (free_memory() / 4 if gigabytes is None else gigabytes * 1e9) / world


class TrainingBatches:
    """Training images, shuffled and augmented.

    Args:
        store, size: images at the size at which the network will be evaluated, and side of the views that it gets.
        batch_size: images per step, over all processes; never more than there are images.
        augmentation, seed: how the images are varied; the seed is of order and views.
        with_masks: yield the objects' masks too, varied as the images are.

    Raises:
        DataError: fewer images per step than processes, or masks of images that have none.
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
        self.batch_size = min(batch_size, len(store)) // share.world * share.world
        self.steps = len(store) // self.batch_size

    def epoch(self, epoch: int, first_step: int = 0, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Yield the batches of one epoch from ``first_step`` on: this process's rows, varied on ``device``.

        Every batch is full; which images are left over after the last one differs from epoch to epoch.
        """
        order = torch.randperm(len(self.store), generator=generator(self.seed, epoch))
        early_epochs, early_size = self.augmentation.early
        size = early_size if epoch < early_epochs else self.size
        mine = slice(self.share.rank, None, self.share.world)
        steps = range(first_step, self.steps)
        rows = [order[step * self.batch_size : (step + 1) * self.batch_size][mine] for step in steps]
        for step, indices, images in zip(steps, rows, self.store.batches(rows), strict=True):
            numbers = transforms.draw(self.batch_size, generator(self.seed, epoch, step))[mine].to(device)
            mirrored = transforms.flips(indices, epoch, self.seed).to(device)
            images = transforms.apply(images.to(device, non_blocking=True), numbers, mirrored, self.augmentation, size)
            masks = None
            if self.masks is not None:
                masks = transforms.apply_to_masks(
                    self.masks[indices].to(device), self.store.size, numbers, mirrored, self.augmentation, size
                )
            yield Batch(images, self.store.images.labels[indices].to(device), indices, masks)


def plain_batches(
    store: Store, batch_size: int, device: torch.device | str = "cpu", share: Share = Share()
) -> Iterator[Batch]:
    """Yield every image of this process's share once, in order, not augmented."""
    mine = torch.arange(len(store))[share.rank :: share.world]
    order = [indices for indices in mine.split(batch_size) if len(indices)]  # nothing, split, is one empty piece
    for indices, images in zip(order, store.batches(order), strict=True):
        labels = store.images.labels[indices].to(device)
        yield Batch(plain(images.to(device, non_blocking=True)), labels, indices)


def generator(*numbers: int) -> torch.Generator:
    """Return a generator that is a function of the numbers, mixed so that neighbours have nothing in common."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 29
    return torch.Generator().manual_seed(state % 2**63)
