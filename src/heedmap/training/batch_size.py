"""How many images fit into a training step."""

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

WHOLE = 2.2  # peak of a step over what its forward pass keeps for the backward pass; 1.3 - 2.1 on a CPU (LOG.md)
LEFT = 0.8  # share of the free memory that a step may take


def fitting_batch(classifier: AttentionClassifier, options: TrainOptions, accelerator: Accelerator) -> int:
    """``options.batch_size``, or so much less that a step fits into the memory of every process.

    Runs that are to be compared should be told their batch size where memory is that scarce.
    """
    device, world = accelerator.device, accelerator.num_processes
    assert options.batch_size is not None  # derive has set these
    assert options.image_size is not None
    free = free_bytes(device, world)
    passes = 2 if options.map_consistency else 1  # each image is seen twice
    mine = options.batch_size
    if free < math.inf:  # else there is nothing to try it for
        kept = passes * kept_by_image(classifier, options.image_size, resolve(options.precision, device), device)
        mine = most_that_fit(mine, kept / world, free)
    return int(accelerator.gather(torch.tensor([mine], device=device)).min())


def kept_by_image(classifier: AttentionClassifier, size: int, precision: str, device: torch.device) -> float:
    """Bytes that a training step keeps from the forward pass for the backward pass, for each image more.

    The difference between four images and two, so that what does not grow (weights and their copies in bfloat16) is
    not counted. Nothing of the classifier changes, and neither do torch's random numbers.

    Args:
        classifier: is copied.
        size: side of the images in pixels.
        precision: ``bf16`` or ``float32``.
        device: where it will train.
    """
    duplicate = copy.deepcopy(classifier).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    kept: list[int] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for count in (2, 4):
            blocks: dict[int, int] = {}

            def note(value: Tensor, blocks: dict[int, int] = blocks) -> Tensor:
                storage = value.untyped_storage()
                blocks[storage.data_ptr()] = storage.nbytes()
                return value

            images = torch.rand(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
            with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value), autocast(precision, device):
                logits = duplicate(images).logits
                F.cross_entropy(logits.float(), torch.zeros(count, dtype=torch.long, device=device))
            kept.append(sum(blocks.values()))
    return (kept[1] - kept[0]) / 2


def free_bytes(device: torch.device, processes: int) -> float:
    """What is free on the device, for one of several processes that share it; infinite where nobody can tell.

    Every process has a GPU of its own, and its share of the machine's memory otherwise.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return free_memory() / processes if device.type == "cpu" else math.inf


def most_that_fit(batch: int, a_image: float, free: float) -> int:
    """``batch``, halved until a step of it fits into ``free`` bytes; never below two, which a normalisation needs."""
    while batch >= 4 and batch * a_image * WHOLE > free * LEFT:
        batch //= 2
    return batch
