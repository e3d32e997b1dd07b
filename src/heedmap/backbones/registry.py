"""The networks of timm and torchvision by name, and weights from a file: every key is checked, no pickle is run.

Both libraries are imported on first use: ``import heedmap`` stays quick, and heedmap's own models work beside a broken
torchvision.
"""

import importlib
import logging
import pickle
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.backbones import OWN_BACKBONES
from heedmap.backbones.base import IMAGENET, Normalization
from heedmap.errors import ModelError, nearest

LIBRARIES = ("timm", "torchvision")
SUFFIXES = (".safetensors", ".pt", ".pth")
# Where training scripts put the weights among other things.
NESTS = ("state_dict", "model", "model_state_dict")


def list_library_models() -> tuple[str, ...]:
    """Return the names in timm, then torchvision, library in front; a ModelError where one is missing or broken."""
    return tuple(f"{library}/{model}" for library in LIBRARIES for model in _models(library))


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as reason:  # a torchvision of another torch raises all three
        raise ModelError(
            f"{name} cannot be imported ({first_line(reason)}); install timm and the torchvision that belongs to torch "
            f"{torch.__version__}, or use heedmap's own models, which need neither."
        ) from reason


def _models(library: str) -> list[str]:
    if library == "timm":
        return list(_library("timm").list_models())
    models = _library("torchvision").models
    return list(models.list_models(module=models))


def find_model(name: str) -> tuple[str, str]:
    """Return library and model of a name: ``resnet18``, or with the library in front, ``torchvision/resnet18``.

    timm comes first, and has to be installed unless the name starts with torchvision: the same name must not mean
    one network here and another one elsewhere.

    Raises:
        ModelError: unknown, with the nearest name; a library is missing or broken.
    """
    library, slash, model = name.rpartition("/")
    if slash and library not in LIBRARIES:
        raise ModelError(
            f"Unknown library {library!r} in {name!r}; give timm/NAME or torchvision/NAME.{nearest(library, LIBRARIES)}"
        )
    known: list[str] = []
    for candidate in (library,) if slash else LIBRARIES:
        models = _models(candidate)
        if model in models or (candidate == "timm" and model in _library("timm").list_pretrained()):
            return candidate, model
        known += models
    raise ModelError(
        f"Unknown model {name!r}.{nearest(model, [*OWN_BACKBONES, *known])} See all names with: heedmap list"
    )


def make_network(library: str, model: str, *, hub: bool, num_classes: int | None) -> nn.Module:
    """Build a network by :func:`find_model`'s names, with random weights, or the library's own from its hub or cache.

    ``num_classes`` None is the library's number, which the hub's weights always have.

    Raises:
        ModelError: the hub's weights cannot be loaded.
    """
    options: dict[str, Any] = {} if num_classes is None or hub else {"num_classes": num_classes}
    create = _library("timm").create_model if library == "timm" else _library("torchvision").models.get_model
    if not hub:
        net: nn.Module = create(model, **options)
        return net
    unknown = None
    try:
        if library == "torchvision":
            return create(model, weights="DEFAULT")
        with _quiet_hub() as unknown:
            net = create(model, pretrained=True)
    except Exception as reason:  # urllib, httpx, huggingface_hub and timm each have their own
        raise ModelError(
            f"The weights of {library}/{model} cannot be loaded from the hub or its cache "
            f"({unknown or first_line(reason)}); supply the file: --pretrained FILE.safetensors (or .pt)."
        ) from reason
    return net


@contextmanager
def _quiet_hub() -> Iterator[str | None]:
    """Silence the hub's messages; without a network, of which it yields the reason, use its cache without retries."""
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx", "timm")]
    levels, offline = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    host, why = urllib.parse.urlsplit(constants.ENDPOINT).hostname, None
    try:
        if not offline and not urllib.request.getproxies():
            socket.getaddrinfo(host, 443)
    except OSError:
        why = f"no network: {host} cannot be resolved"
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        constants.HF_HUB_OFFLINE = offline or why is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield why
    finally:
        constants.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def pretrained_settings(net: nn.Module) -> tuple[Normalization, int | None]:
    """Return the normalisation and image side of timm's ``pretrained_cfg``; ImageNet's and None where it has none."""
    settings = getattr(net, "pretrained_cfg", None) or {}
    size = settings.get("input_size")
    normalization = Normalization(tuple(settings.get("mean", IMAGENET.mean)), tuple(settings.get("std", IMAGENET.std)))
    return normalization, size[-1] if size else None


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
