"""Load weights from a file into a network; every key is checked, no pickle is run."""

import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from heedmap.errors import ModelError

SUFFIXES = (".safetensors", ".pt", ".pth")
# Where training scripts put the weights among other things.
NESTS = ("state_dict", "model", "model_state_dict")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file by name.

    ``.pt`` and ``.pth`` are read with ``weights_only=True``, so that a file cannot run code. A checkpoint with the
    weights under ``state_dict``, ``model`` or ``model_state_dict`` is opened there, and the ``module.`` that
    DistributedDataParallel puts before every name is removed.

    Raises:
        ModelError: no such file, another suffix, a pickle of more than tensors, a damaged file, no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"No weights file {path}; give the path of a {', '.join(SUFFIXES)} file.")
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} is not a weights file; give {', '.join(SUFFIXES)}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(content):
        raise ModelError(
            f"{path} is not a dictionary of tensors by name; save it with torch.save(net.state_dict(), ...)."
        )
    if all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def load_weights(module: nn.Module, path: str | Path, *, dropped: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Load a weights file into a network; all of them or none.

    Args:
        module: the network; its parameters and buffers are overwritten.
        path: see :func:`read_weights`.
        dropped: names of submodules that were removed from the network, such as the classifier; what the file holds
            for them is left out.

    Returns:
        The keys left out, all of them under ``dropped``.

    Raises:
        ModelError: from :func:`read_weights`; keys missing, not known, or of another shape. The network is unchanged.
    """
    weights = read_weights(path)
    left_out = tuple(key for key in weights if key.startswith(tuple(f"{name}." for name in dropped)))
    fitting = {key: value for key, value in weights.items() if key not in left_out}
    own = module.state_dict()
    # Files from before PyTorch 0.4.1 have no such counters; nothing that a network computes depends on them.
    for key in own.keys() - fitting.keys():
        if key.endswith("num_batches_tracked"):
            fitting[key] = own[key]
    shapes = [
        f"{key} {tuple(fitting[key].shape)} instead of {tuple(own[key].shape)}"
        for key in fitting
        if key in own and fitting[key].shape != own[key].shape
    ]
    complaints = (
        _some("missing", sorted(own.keys() - fitting.keys())),
        _some("not known", sorted(fitting.keys() - own.keys())),
        _some("of another shape", shapes),
    )
    if any(complaints):
        raise ModelError(
            f"{path} does not fit the network: {'; '.join(filter(None, complaints))}. Give the weights of this network."
        )
    module.load_state_dict(fitting)
    return left_out


def _read_safetensors(path: Path) -> dict[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as reason:
        raise ModelError(f"{path} cannot be read as safetensors ({_line(reason)}); download it again.") from reason


def _read_torch(path: Path) -> dict[str, object]:
    try:
        with warnings.catch_warnings():
            # torch warns about pickles that it did not write; unreadable ones raise below.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as reason:
        raise ModelError(
            f"{path} is a pickle that holds more than tensors, or is damaged; heedmap loads no pickles, since they can "
            "run any code. Save the tensors alone: torch.save(net.state_dict(), ...), or as .safetensors."
        ) from reason
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as reason:
        raise ModelError(f"{path} cannot be read as PyTorch weights ({_line(reason)}); download it again.") from reason
    if not isinstance(content, dict):
        return {}
    return dict(next((content[nest] for nest in NESTS if isinstance(content.get(nest), dict)), content))


def _some(what: str, keys: list[str], most: int = 3) -> str:
    """``2 missing (a, b)``, or an empty string when there are none."""
    if not keys:
        return ""
    return f"{len(keys)} {what} ({', '.join(keys[:most])}{', ...' if len(keys) > most else ''})"


def _line(reason: BaseException) -> str:
    return (str(reason).splitlines() or [type(reason).__name__])[0]
