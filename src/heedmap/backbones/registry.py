"""The networks of timm and torchvision by name.

Both libraries are imported on first use: ``import heedmap`` stays quick, and heedmap's own models work beside a broken
torchvision.
"""

import importlib
import logging
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from heedmap.backbones import OWN_BACKBONES
from heedmap.backbones.base import IMAGENET, Normalization
from heedmap.errors import ModelError, nearest

LIBRARIES = ("timm", "torchvision")


def list_library_models() -> tuple[str, ...]:
    """Names that :func:`build_wrapped` knows, timm's first, each with its library in front.

    Raises:
        ModelError: one of the libraries is missing or broken.
    """
    return tuple(f"{library}/{model}" for library in LIBRARIES for model in _models(library))


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as reason:  # a torchvision of another torch raises all three
        why = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise ModelError(
            f"{name} cannot be imported ({why}); install timm and the torchvision that belongs to torch "
            f"{torch.__version__}, or use heedmap's own models, which need neither."
        ) from reason


def _models(library: str) -> list[str]:
    if library == "timm":
        return list(_library("timm").list_models())
    models = _library("torchvision").models
    return list(models.list_models(module=models))


def find_model(name: str) -> tuple[str, str]:
    """Return library and model of a name.

    timm comes first, and has to be installed unless the name starts with torchvision: the same name must not mean
    one network here and another one elsewhere.

    Raises:
        ModelError: unknown, with the nearest name; a library is missing or broken.
    """
    library, slash, model = name.partition("/")
    libraries = (library,) if slash else LIBRARIES
    if slash and library not in LIBRARIES:
        raise ModelError(
            f"Unknown library {library!r} in {name!r}; give timm/NAME or torchvision/NAME.{nearest(library, LIBRARIES)}"
        )
    model = model if slash else name
    known: list[str] = []
    for candidate in libraries:
        models = _models(candidate)
        if model in models or (candidate == "timm" and model in _library("timm").list_pretrained()):
            return candidate, model
        known += models
    raise ModelError(
        f"Unknown model {name!r}.{nearest(model, [*OWN_BACKBONES, *known])} See all names with: heedmap list"
    )


def make_network(library: str, model: str, *, hub: bool, num_classes: int | None) -> nn.Module:
    """Build a network, with random weights or the library's own from the hub.

    Args:
        library: ``timm`` or ``torchvision``.
        model: its name there.
        hub: take the library's weights, from its cache or over the network.
        num_classes: outputs of the classifier; None is the library's number, which the hub's weights always have.

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
        why = unknown or (str(reason).splitlines() or [type(reason).__name__])[0]
        raise ModelError(
            f"The weights of {library}/{model} cannot be loaded from the hub or its cache ({why}); "
            "supply the file: --pretrained FILE.safetensors (or .pt)."
        ) from reason
    return net


@contextmanager
def _quiet_hub() -> Iterator[str | None]:
    """Silence the hub's messages; where its host cannot be resolved, use its cache alone, without a minute of retries.

    Yields what is wrong with the internet connection, or None.
    """
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx", "timm")]
    levels, offline = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    resolves = offline or bool(urllib.request.getproxies()) or _resolves(host)
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        constants.HF_HUB_OFFLINE = offline or not resolves
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield None if resolves else f"no network: {host} cannot be resolved"
    finally:
        constants.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _resolves(host: str | None) -> bool:
    """Whether the name of a host has an address."""
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def pretrained_settings(net: nn.Module) -> tuple[Normalization, int | None]:
    """Return the normalisation and image side of timm's ``pretrained_cfg``; ImageNet's and None where it has none."""
    settings = getattr(net, "pretrained_cfg", None) or {}
    size = settings.get("input_size")
    normalization = Normalization(tuple(settings.get("mean", IMAGENET.mean)), tuple(settings.get("std", IMAGENET.std)))
    return normalization, size[-1] if size else None
