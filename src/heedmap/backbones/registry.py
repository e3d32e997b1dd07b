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
from heedmap.backbones.weights import first_line
from heedmap.errors import ModelError, nearest

LIBRARIES = ("timm", "torchvision")


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
    """Return library and model of a name.

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
