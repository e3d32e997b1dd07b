"""Run any torch classifier without leaving a trace in it.

Gradients are taken by ``torch.autograd.grad`` with respect to activations and images, never by ``.backward()``, so no
parameter's ``.grad`` is touched. What has to change meanwhile is changed by :func:`evaluation_mode` or :func:`hooked`
and restored afterwards, also after an exception.
"""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.errors import ModelError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# Flags and hooks belong to the module, not to the thread: two threads at once would restore each other's changes.
_ONE_AT_A_TIME = threading.RLock()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and ``torch.compile``.

    A map is computed on one device and from the code as it was written: a compiled graph runs no hooks.
    """
    inside: Any = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
    return unwrapped(inside) if isinstance(inside, nn.Module) else model


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model; return logits (B, K) from a tensor or an object with such ``.logits``, else raise a ModelError."""
    output = model(images)
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(images) and logits.shape[1] > 0:
        return logits
    kind = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(output).__name__}"
    raise ModelError(
        f"{type(model).__name__} returns {kind} for {len(images)} images; logits are needed, a tensor (B, K) or an "
        "object with such .logits. Wrap the model so that it returns them."
    )


@contextmanager
def evaluation_mode(
    model: nn.Module,
    *,
    gradients: bool = False,
    frozen: bool = False,
    as_written: bool = False,
    full_precision: bool = False,
) -> Iterator[nn.Module]:
    """Run a model in evaluation mode; afterwards it, flag by flag, and the random state are as they were.

    Yields the model to run: the same one, or its float32 copy. One thread at a time.

    Args:
        gradients: autograd is on inside, also where the caller is in ``no_grad`` or inference mode; otherwise off.
        frozen: no parameter requires a gradient inside.
        as_written: compiled submodules run uncompiled, for a compiled graph runs no hooks.
        full_precision: autocast is off, and weights in half precision are replaced by a float32 copy. A step of 1/255
            is smaller than the distance of two neighbouring bfloat16 numbers near one, so an attack would vanish in
            rounding.

    Raises:
        ModelError: ``as_written`` of a model with compiled parts, with a torch older than 2.6.
    """
    dtypes = {tensor.dtype for tensor in chain(model.parameters(), model.buffers())}
    if full_precision and not dtypes.isdisjoint((torch.float16, torch.bfloat16)):
        model = copy.deepcopy(model).float()
    device, _ = home_of(model)
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(_restored_flags(model, frozen))
        if gradients:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(_without_inference_tensors(model))
        stack.enter_context(torch.set_grad_enabled(gradients))
        if as_written and any(hasattr(part, "_orig_mod") or part._compiled_call_impl for part in model.modules()):
            if not hasattr(torch.compiler, "set_stance"):
                raise ModelError("Maps of a network with compiled parts need torch 2.6; give the network uncompiled.")
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if full_precision:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield model


@contextmanager
def _restored_flags(model: nn.Module, frozen: bool) -> Iterator[None]:
    flags = [(part, part.training) for part in model.modules()]
    trainable = [each for each in model.parameters() if each.requires_grad] if frozen else []
    try:
        for part, _ in flags:
            part.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for part, flag in flags:
            part.training = flag


@contextmanager
def _without_inference_tensors(model: nn.Module) -> Iterator[None]:
    """Replace tensors that were made in inference mode, which autograd cannot save, by ordinary copies."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for part in model.modules():
            tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for table in tables:
                for name, tensor in table.items():
                    if tensor is not None and tensor.is_inference():
                        replaced.append((table, name, tensor))
                        table[name] = tensor.clone()
        yield
    finally:
        for table, name, tensor in replaced:
            table[name] = tensor


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[..., Any]], *, with_kwargs: bool = False) -> Iterator[None]:
    """Register forward hooks inside; they run before those that the model has, which see what they return."""
    with contextlib.ExitStack() as stack:
        for module, hook in hooks.items():
            handle = module.register_forward_hook(hook, prepend=True, with_kwargs=with_kwargs)
            stack.callback(handle.remove)
        yield


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return device and precision of the model's first floating-point tensor; the CPU's defaults without one."""
    tensors = chain(model.parameters(), model.buffers())
    like = next((each for each in tensors if each.is_floating_point()), torch.empty(0, device="cpu"))
    return like.device, like.dtype


def fitted(model: nn.Module, images: Tensor) -> Tensor:
    """Move images to the model's device and precision, out of inference mode and of any graph."""
    moved = images.detach().to(*home_of(model))
    return moved.clone() if moved.is_inference() else moved


def dummy_image(module: nn.Module, size: int) -> Tensor:
    """Return (1, 3, size, size) of fixed noise, on the module's device and in its precision."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(*home_of(module))
