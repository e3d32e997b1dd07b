"""Concurrent requests share a batch, and one thread runs the classifier."""

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from heedmap.apps.limits import Limits, Waiting
from heedmap.inference.predictor import Prediction, Predictor


class Batcher:
    """A queue before the classifier, which one thread runs, within ``batch_size`` and ``batch_wait`` of the limits.

    While a batch is being predicted the next one fills, so under load batches are full without any waiting; only the
    first image after a quiet moment waits ``batch_wait`` for others. ``batches`` and ``images`` count since the start.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor, self._limits = predictor, limits
        self._queue: asyncio.Queue[tuple[NDArray[np.uint8], asyncio.Future[Prediction]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "classifier")
        self._worker: asyncio.Task[None] | None = None
        self.waiting = Waiting(limits.waiting)
        self.batches = self.images = 0

    def start(self) -> None:
        """Begin; to be called in the event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """End; requests that still wait are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()
        self._thread.shutdown()

    async def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the prediction for one image, uint8 RGB (3, S, S), computed in a batch with others."""
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, future))
        return await future

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            if self._queue.qsize() < self._limits.batch_size - 1 and self._limits.batch_wait:
                await asyncio.sleep(self._limits.batch_wait)
            while len(batch) < self._limits.batch_size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            if connected := [(image, future) for image, future in batch if not future.done()]:
                await self._predict(connected)

    async def _predict(self, batch: list[tuple[NDArray[np.uint8], asyncio.Future[Prediction]]]) -> None:
        images, began = np.stack([image for image, _ in batch]), time.perf_counter()
        try:
            predictions = await asyncio.get_running_loop().run_in_executor(self._thread, self._predictor, images)
        except Exception as error:  # one bad batch must not end the service
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self.batches, self.images = self.batches + 1, self.images + len(batch)
        self.waiting.took((time.perf_counter() - began) / len(batch))
        for (_, future), prediction in zip(batch, predictions, strict=True):
            if not future.done():
                future.set_result(prediction)
