"""Where a command computes."""

from __future__ import annotations

from heedmap.errors import OptionError


def pick_device(name: str | None) -> str:
    """The device named, or a GPU where there is one.

    Raises:
        OptionError: torch knows no such device, or the machine has none.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return name
