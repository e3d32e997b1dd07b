"""Runs and a server for the tests of the explorer."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from heedmap import Architecture, Run, TrainOptions, build_classifier, open_data
from heedmap.apps.address import Address
from heedmap.apps.explorer.app import LIMITS, build_explorer
from heedmap.apps.running import AppServer
from heedmap.data.decoding import plain

STEPS = 30


@functools.cache
def trained_dot(data: Path) -> Path:
    """A run of dot attention on cue images whose map follows the query.

    Its attention and head are trained on a backbone that stays as it was made: the features are computed once, and the
    steps cost next to nothing.
    """
    part = open_data(str(data)).train
    images = plain(torch.stack([part.load(place, 32) for place in range(len(part))]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture = Architecture("compact", "dot", None, "concat", None, 32, part.classes)
        classifier = build_classifier(architecture)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one forward sees all of these images
    with torch.no_grad():
        classifier.train()(images)
        classifier.eval()
        trunk = classifier.backbone((images - classifier.mean) / classifier.std, classifier.taps, True)
    learned = [*classifier.attentions.parameters(), *classifier.head.parameters()]
    optimizer = torch.optim.Adam(learned, 0.005)
    for _ in range(STEPS):
        read = zip(classifier.taps, classifier.attentions, strict=True)
        vectors = {tap: attention(trunk.features[tap], trunk.query).features for tap, attention in read}
        optimizer.zero_grad()
        cross_entropy(classifier.head(vectors), part.labels).backward()
        optimizer.step()
    run = Run.create(data.parent / "explorer-dot")
    run.write_config(TrainOptions(data=str(data), image_size=32, attention="dot"), architecture)
    run.save_model(classifier)
    run.finish()
    return run.path


@contextmanager
def serving(runs: list[Path], images: list[Path]) -> Iterator[str]:
    """Serve on a free port of this machine, in a thread; gives the address."""
    app, _ = build_explorer([Run.open(path) for path in runs], images)
    listening, ready, urls = Address(port=0).listen(), threading.Event(), []

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    server = AppServer(app, LIMITS, on_ready)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        assert ready.wait(20)
        yield urls[0]
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
