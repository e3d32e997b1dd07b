"""Concurrent requests share a batch, and one thread asks the classifier."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from heedmap.apps.server.limits import Limits, Refusal
from heedmap.inference.predictor import Prediction, Predictor


class Batcher:
    """A queue before the classifier.

    While a batch is being answered the next one fills, so under load batches are full without any waiting; only the
    first image after a quiet moment waits ``batch_wait`` for company.

    Args:
        predictor: asked by one thread of this object's own.
        limits: ``batch_size``, ``batch_wait`` and ``waiting`` hold here.

    Attributes:
        waiting: requests that hold a place now.
        batches, answered: counts since the start.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor, self._limits = predictor, limits
        self._queue: asyncio.Queue[tuple[NDArray[np.uint8], asyncio.Future[Prediction]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "classifier")
        self._worker: asyncio.Task[None] | None = None
        self._seconds = 0.05  # of an image, lately
        self.waiting = self.batches = self.answered = 0

    def start(self) -> None:
        """Begin; to be called in the event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """End; whoever still waits is refused."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()
        self._thread.shutdown()

    def refuse_when_full(self) -> None:
        """Check that there is a place.

        Raises:
            Refusal: 503, with the seconds after which to ask again.
        """
        if self.waiting >= self._limits.waiting:
            seconds = max(1, math.ceil(self.waiting * self._seconds))
            raise Refusal(
                503,
                f"{self.waiting} requests are waiting already; ask again in {seconds} s.",
                {"Retry-After": str(seconds)},
            )

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place among those that wait.

        Raises:
            Refusal: see :meth:`refuse_when_full`.
        """
        self.refuse_when_full()
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def ask(self, view: NDArray[np.uint8]) -> Prediction:
        """Answer one view, uint8 RGB (3, S, S), in company with others."""
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((view, future))
        return await future

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            if self._queue.qsize() < self._limits.batch_size - 1 and self._limits.batch_wait:
                await asyncio.sleep(self._limits.batch_wait)
            while len(batch) < self._limits.batch_size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._answer([(view, future) for view, future in batch if not future.done()])  # some hung up

    async def _answer(self, batch: list[tuple[NDArray[np.uint8], asyncio.Future[Prediction]]]) -> None:
        if not batch:
            return
        views, began = np.stack([view for view, _ in batch]), time.perf_counter()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._predictor, views)
        except Exception as error:  # one bad batch must not end the service
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self.batches, self.answered = self.batches + 1, self.answered + len(batch)
        self._seconds = 0.8 * self._seconds + 0.2 * (time.perf_counter() - began) / len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
