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
    try:
        content = _content(path)
    except pickle.UnpicklingError as reason:
        raise ModelError(
            f"{path} is a pickle that holds more than tensors, or is damaged; heedmap loads no pickles, since they can "
            "run any code. Save the tensors alone: torch.save(net.state_dict(), ...), or as .safetensors."
        ) from reason
    except Exception as reason:  # each format, and each kind of damage, has its own
        kind = "safetensors" if path.suffix == ".safetensors" else "PyTorch weights"
        raise ModelError(f"{path} cannot be read as {kind} ({first_line(reason)}); download it again.") from reason
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(content):
        raise ModelError(
            f"{path} is not a dictionary of tensors by name; save it with torch.save(net.state_dict(), ...)."
        )
    if all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def load_weights(module: nn.Module, path: str | Path, *, dropped: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Load a weights file into a network, all of them or none; return the keys left out.

    Those are what the file holds for ``dropped``, the names of submodules that were removed, such as the classifier.

    Raises:
        ModelError: from :func:`read_weights`; keys missing, not known, or of another shape. The network is unchanged.
    """
    weights = read_weights(path)
    left_out = tuple(key for key in weights if key.startswith(tuple(f"{name}." for name in dropped)))
    own = module.state_dict()
    # Files from before PyTorch 0.4.1 have no such counters; nothing that a network computes depends on them.
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    fitting = counters | {key: value for key, value in weights.items() if key not in left_out}
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in fitting.items()
        if key in own and value.shape != own[key].shape
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


def _content(path: Path) -> dict[str, object]:
    """What the file holds by name; nothing where it holds no dictionary."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # start-up stays light

        return dict(load_file(path))
    with warnings.catch_warnings():
        # torch warns about pickles that it did not write; unreadable ones raise.
        warnings.simplefilter("ignore", UserWarning)
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        return {}
    return dict(next((content[nest] for nest in NESTS if isinstance(content.get(nest), dict)), content))


def _some(what: str, keys: list[str], most: int = 3) -> str:
    """``2 missing (a, b)``, or an empty string when there are none."""
    more = ", ..." if len(keys) > most else ""
    return f"{len(keys)} {what} ({', '.join(keys[:most])}{more})" if keys else ""


def first_line(reason: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return (str(reason).splitlines() or [type(reason).__name__])[0]
