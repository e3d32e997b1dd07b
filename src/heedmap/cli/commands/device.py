"""The device of a command."""

from heedmap.errors import OptionError


def pick_device(name: str | None) -> str:
    """Return the device named, or a GPU if there is one.

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


def cpu_only(name: str | None) -> str:
    """Return the device of an exported file.

    Raises:
        OptionError: another one is named.
    """
    if name not in (None, "cpu"):
        raise OptionError(f"An exported file computes on the CPU here, not on {name}; name the run for that.")
    return "cpu"
