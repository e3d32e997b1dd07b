"""The arithmetic in which a device is fast."""

import contextlib

import torch

from heedmap.errors import OptionError


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, so that autocast makes it faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # torch has no public name for these; float32 is safe where a version drops them.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(probe() for probe in probes if probe is not None)


def resolve(precision: str, device: torch.device) -> str:
    """Turn ``auto`` into ``bf16`` or ``float32``; an OptionError for an unknown word."""
    if precision not in ("auto", "bf16", "float32"):
        raise OptionError(f"precision = {precision!r} is not one of auto, bf16, float32.")
    return ("bf16" if computes_in_bf16(device) else "float32") if precision == "auto" else precision


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return the context in which the network runs; weights, losses and softmax stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
