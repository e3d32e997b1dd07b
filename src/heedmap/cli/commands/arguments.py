"""What several commands take: options with their help (the text in the annotation), and the device named by one."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from heedmap.errors import OptionError

RunFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN"), "The run folder."]
RunOrFile = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="RUN"),
    "The run folder, or a file that export wrote (.onnx).",
]
Images = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="IMAGES"),
    "Files, folders, patterns, tar shards such as 'shards/{000..099}.tar', @list.txt, or - for a list on standard "
    "input.",
]
DataFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
Device = Annotated[str | None, "Where to compute. Default: a GPU where there is one."]
Precision = Annotated[Literal["auto", "bf16", "float32"], "Arithmetic of the network."]
HostNames = Annotated[
    tuple[str, ...], "Host names to accept beside addresses and this machine's own name, such as a proxy's."
]


def is_file(source: str) -> bool:
    """Return whether a command's source is an exported file, not a run."""
    return Path(source).suffix.lower() == ".onnx"


def pick_device(name: str | None, source: str = "") -> str:
    """Return the device named, or a GPU if there is one; the CPU for an exported file, without importing torch.

    An OptionError is raised where torch knows no such device, the machine has none, or the file cannot use it.
    """
    if is_file(source):
        if name not in (None, "cpu"):
            raise OptionError(f"An exported file computes on the CPU here, not on {name}; name the run for that.")
        return "cpu"
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return name
