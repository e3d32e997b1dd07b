"""Rank the images of a test set by what the network predicts: loss, confidence, and what its map is like.

A ranking is made once for a run and a source, in the background and a few images at a time, so that a prediction that
is requested meanwhile waits for one small batch and no longer.
"""

import math
import threading
from concurrent.futures import CancelledError
from typing import Any

import torch
from torch import Tensor

from heedmap.apps.explorer.gallery import ImageSource, confined
from heedmap.apps.explorer.network import Network
from heedmap.data import FolderDataset
from heedmap.data.decoding import plain
from heedmap.errors import DataError, ImageError
from heedmap.metrics.localization.pointing_game import hottest_points
from heedmap.models.classifier import combined_map

BATCH = 16
COLUMNS = ("predicted", "confidence", "loss", "peak", "pointing")
"""Of a row: class index; its probability; cross-entropy in nats, None without a label; the largest value of the map in
multiples of its mean; whether the map's hottest point lies in the object's box, None where no box is known."""

Row = list[float | int | bool | None]


class Ranking:
    """The ranking of one source by one network, from now on; a DataError where the source has other classes."""

    def __init__(self, network: Network, source: ImageSource) -> None:
        unknown = {label for label in source.labels if label} - set(network.classifier.classes)
        if unknown:
            raise DataError(f"{network.name} knows no class {min(unknown)!r}; {source.title} cannot be ranked by it.")
        self._network, self._source = network, source
        self._rows: list[Row | None] = []
        self._stop = threading.Event()
        self._failure = ""
        threading.Thread(target=self._run, name="ranking", daemon=True).start()

    def state(self) -> dict[str, Any]:
        """Rows so far (see :data:`COLUMNS`; None for an image that cannot be read), and how many there will be."""
        rows = list(self._rows)
        return {"columns": COLUMNS, "rows": rows, "total": len(self._source.names), "failure": self._failure}

    def stop(self) -> None:
        """Stop after the batch that is being computed."""
        self._stop.set()

    def _run(self) -> None:
        try:
            for start in range(0, len(self._source.names), BATCH):
                batch = range(start, min(start + BATCH, len(self._source.names)))
                loaded = {index: image for index in batch if (image := self._load(index)) is not None}
                if self._stop.is_set():
                    return
                rows = self._network.submit(lambda loaded=loaded: self._evaluate(loaded)).result() if loaded else {}  # type: ignore[misc]
                self._rows += [rows.get(index) for index in batch]
        except (CancelledError, RuntimeError) as error:  # the explorer is closing, or the machine ran out of memory
            self._failure = f"Ranking stopped: {error or 'the explorer is closing'}."

    def _load(self, index: int) -> Tensor | None:
        """Return the network's view, without the larger one that the page shows."""
        size, dataset = self._network.image_size, self._source.dataset
        try:
            if dataset is None:
                return self._source.image(index, (size,)).images[size]
            if isinstance(dataset, FolderDataset):
                confined(dataset.root, dataset.names[index])
            return dataset.load(index, size)
        except ImageError:
            return None

    @torch.no_grad()
    def _evaluate(self, loaded: dict[int, Tensor]) -> dict[int, Row]:
        network, indices = self._network, list(loaded)
        output = network.classifier(plain(torch.stack(list(loaded.values()))).to(network.device))
        logs = output.logits.double().log_softmax(1).cpu()
        maps = combined_map(output.attention, output.shares).float().cpu()
        peaks = maps.amax((1, 2, 3)) / maps.mean((1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny)
        points = hottest_points(maps)
        return {index: self._row(index, logs[row], float(peaks[row]), points[row]) for row, index in enumerate(indices)}

    def _row(self, index: int, logs: Tensor, peak: float, point: Tensor) -> Row:
        predicted, label = int(logs.argmax()), self._source.labels[index]
        loss = None if label is None else -float(logs[self._network.classifier.classes.index(label)])
        loss = loss if loss is not None and math.isfinite(loss) else None
        boxes = None if self._source.dataset is None else self._source.dataset.boxes
        hit = None
        if boxes is not None:
            left, top, right, bottom = boxes[index].tolist()
            hit = bool(left <= point[0] <= right and top <= point[1] <= bottom)
        return [predicted, float(logs[predicted].exp()), loss, peak, hit]
