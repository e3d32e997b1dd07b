"""The largest batch of which a training step fits into memory."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from heedmap.config import TrainOptions
from heedmap.models.classifier import AttentionClassifier
from heedmap.system import free_memory
from heedmap.training.precision import autocast, resolve

if TYPE_CHECKING:
    from accelerate import Accelerator

PEAK = 2.2  # memory of a step over what its forward pass saves; 1.3 - 2.1 on a CPU (experiments/LOG.md)
USABLE = 0.8  # share of the free memory that a step may take


def fitting_batch_size(classifier: AttentionClassifier, options: TrainOptions, accelerator: Accelerator) -> int:
    """Return ``options.batch_size``, or so much less that a step fits into the memory of every process.

    Set the batch size of runs that are to be compared where memory is that scarce.
    """
    device, world = accelerator.device, accelerator.num_processes
    assert options.batch_size is not None  # set by derive
    assert options.image_size is not None
    free, size = free_bytes(device, world), options.batch_size
    if free < math.inf:
        views = 2 if options.map_consistency else 1
        saved = views * bytes_per_image(classifier, options.image_size, resolve(options.precision, device), device)
        size = halved_until_it_fits(size, saved / world, free)
    return int(accelerator.gather(torch.tensor([size], device=device)).min())


def bytes_per_image(classifier: AttentionClassifier, size: int, precision: str, device: torch.device) -> float:
    """Return the bytes that a training step saves from the forward for the backward pass, per image.

    The difference between four images and two, so that what does not grow (weights and their copies in bfloat16) is
    not counted. Nothing of the classifier, which is copied, changes, and neither do torch's random numbers. ``size`` is
    the side of the images in pixels, ``precision`` one of ``bf16`` and ``float32``.
    """
    copied = copy.deepcopy(classifier).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    saved: list[int] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for count in (2, 4):
            blocks: dict[int, int] = {}

            def note(value: Tensor, blocks: dict[int, int] = blocks) -> Tensor:
                storage = value.untyped_storage()
                blocks[storage.data_ptr()] = storage.nbytes()
                return value

            images = torch.rand(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
            with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value), autocast(precision, device):
                logits = copied(images).logits
                F.cross_entropy(logits.float(), torch.zeros(count, dtype=torch.long, device=device))
            saved.append(sum(blocks.values()))
    return (saved[1] - saved[0]) / 2


def free_bytes(device: torch.device, processes: int) -> float:
    """Return the free memory for one of several processes: of its own GPU, or its share of the CPU's; else infinity."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return free_memory() / processes if device.type == "cpu" else math.inf


def halved_until_it_fits(batch: int, per_image: float, free: float) -> int:
    """Return ``batch``, halved until a step of it fits into ``free`` bytes; at least two, for the normalisations."""
    while batch >= 4 and batch * per_image * PEAK > free * USABLE:
        batch //= 2
    return batch
