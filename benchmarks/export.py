"""Images a second of a run in torch, in its ONNX file and in its eight-bit one; and what eight bits cost in accuracy.

    python benchmarks/export.py RUN model.onnx int8.onnx [--threads 1] [--rounds 7]

The three take turns, so that whatever else the machine does falls on all of them; told are medians and quartiles.
Images are squares of the network's size already. The accuracy is that of the run's whole test part.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from heedmap import OnnxClassifier, Run, open_data


def main() -> None:
    """Measure and print."""
    words = argparse.ArgumentParser()
    words.add_argument("run")
    words.add_argument("files", nargs="+")
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--rounds", type=int, default=7)
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    run = Run.open(given.run)
    classifier = run.classifier()
    options = run.options
    test = open_data(options.data, root=options.root, download=False, seed=options.seed, test_share=options.test).test
    assert test is not None
    pixels = np.stack([test.load(i, classifier.image_size).permute(1, 2, 0).numpy() for i in range(len(test))])

    @torch.inference_mode()
    def in_torch(batch: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        return classifier(images.contiguous(memory_format=torch.channels_last)).logits.numpy()

    classifier.to(memory_format=torch.channels_last)
    answers: dict[str, Callable[[np.ndarray], np.ndarray]] = {"torch, channels_last": in_torch}
    for path in given.files:
        read = OnnxClassifier(path, threads=given.threads)
        answers[path] = lambda batch, read=read: read(batch)["logits"]
    for name, answer in answers.items():
        found = np.concatenate([answer(pixels[i : i + 50]).argmax(1) for i in range(0, len(pixels), 50)])
        sys.stdout.write(f"accuracy {(found == test.labels.numpy()).mean():.4f}  {name}\n")
    for batch in (1, 16):
        rates: dict[str, list[float]] = {name: [] for name in answers}
        for _ in range(given.rounds):
            for name, answer in answers.items():
                started = time.perf_counter()
                for place in range(0, 64, batch):
                    answer(pixels[place : place + batch])
                rates[name].append(64 / (time.perf_counter() - started))
        for name, found in rates.items():
            low, middle, high = statistics.quantiles(found, n=4)
            sys.stdout.write(f"batch {batch:>2}  {middle:7.1f} images/s ({low:.1f} - {high:.1f})  {name}\n")


if __name__ == "__main__":
    main()
