"""Any torch classifier, asked without leaving a trace.

Gradients are taken by ``torch.autograd.grad`` with respect to activations and images, never by ``.backward()``, so no
parameter's ``.grad`` is touched. What has to be changed meanwhile (train/eval flags, ``requires_grad``, the gradient
and inference mode, hooks) is changed inside :func:`untouched` or :func:`hooked` and put back also after an exception.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.errors import ModelError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# Flags and hooks belong to the module, not to the thread: two threads at once would put back each other's changes.
_ONE_AT_A_TIME = threading.RLock()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and ``torch.compile``.

    A map is asked of one device, and of the code as it was written: a compiled graph runs no hooks.
    """
    inside: Any = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
    return unwrapped(inside) if isinstance(inside, nn.Module) else model


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Ask the model; (B, K) logits from a tensor or from anything with such ``.logits``.

    Raises:
        ModelError: the model gives neither, or another shape.
    """
    answer = model(images)
    logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"{type(model).__name__} gives a {type(answer).__name__}; a map needs logits, a tensor (B, K) or an "
            "object with such .logits. Wrap the model so that it returns them."
        )
    if logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] == 0:
        raise ModelError(
            f"{type(model).__name__} gives {tuple(logits.shape)} for {len(images)} images; a map needs logits (B, K)."
        )
    return logits


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and precision of the first parameter of floating point; those of a fresh tensor where there is none."""
    like = next((each for each in model.parameters() if each.is_floating_point()), torch.empty(0))
    return like.device, like.dtype


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients on, and no gradient kept for parameters inside; afterwards all is as it was.

    Put back are the train/eval flag of every submodule, ``requires_grad`` of every parameter, the random state, and
    the gradient and inference mode that the caller was in. Compiled submodules run as they were written.
    """
    with _ONE_AT_A_TIME:
        flags = [(part, part.training) for part in model.modules()]
        learning = [each for each in model.parameters() if each.requires_grad]
        home, _ = home_of(model)
        devices = [home] if home.type == "cuda" else []
        try:
            for part, _ in flags:
                part.training = False
            for parameter in learning:
                parameter.requires_grad_(False)
            with (
                torch.random.fork_rng(devices),
                torch.inference_mode(False),
                torch.enable_grad(),
                _as_written(model),
                _usable(model),
            ):
                yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
            for part, flag in flags:
                part.training = flag


def _as_written(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Switch compiled submodules off: their graphs run no hooks."""
    if not any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules()):
        return contextlib.nullcontext()
    if not hasattr(torch.compiler, "set_stance"):
        raise ModelError("Maps of a network with compiled parts need torch 2.6 or newer; give the network uncompiled.")
    return torch.compiler.set_stance("force_eager")


@contextmanager
def _usable(model: nn.Module) -> Iterator[None]:
    """Lend ordinary copies in place of tensors that were made in inference mode, which autograd cannot save."""
    lent: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for part in model.modules():
            tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for table in tables:
                for name, tensor in table.items():
                    if tensor is not None and tensor.is_inference():
                        lent.append((table, name, tensor))
                        table[name] = tensor.clone()
        yield
    finally:
        for table, name, tensor in lent:
            table[name] = tensor


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[..., Any]], *, with_kwargs: bool = False) -> Iterator[None]:
    """Forward hooks inside, none afterwards; they run before those that the model has, which see what they return."""
    handles = []
    try:
        for module, hook in hooks.items():
            handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=with_kwargs))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def asking(model: nn.Module) -> Iterator[nn.Module]:
    """Lend the model out in eval mode, in full precision, with gradients possible; every flag is put back afterwards.

    Autocast is off inside. Weights that are themselves half precision are worked on as a float32 copy: a step of 1/255
    is smaller than the distance of two neighbouring bfloat16 numbers near one, so an attack would vanish in rounding.
    """
    halves = any(value.dtype in (torch.float16, torch.bfloat16) for value in _tensors(model))
    lent = copy.deepcopy(model).float() if halves else model
    flags = {module: module.training for module in lent.modules()}
    device = device_of(lent)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield lent.eval()
    finally:
        for module, flag in flags.items():
            module.training = flag


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes: the place of its first tensor, the CPU where it has none."""
    return next((value.device for value in _tensors(model)), torch.device("cpu"))


def fitted(model: nn.Module, images: Tensor) -> Tensor:
    """Bring images to the model's device and type, out of inference mode and of any graph."""
    kind = next((value.dtype for value in _tensors(model) if value.is_floating_point()), images.dtype)
    there = images.detach().to(device_of(model), kind)
    return there.clone() if there.is_inference() else there


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the train/eval flag of every submodule and the random state as before afterwards."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, training in flags:
            part.training = training


def made_up_image(module: nn.Module, size: int) -> Tensor:
    """(1, 3, size, size) of fixed noise, on the module's device and in its precision."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)
