"""The networks of timm and torchvision by name.

Neither library is imported before it is asked for something: ``import heedmap`` stays quick, and heedmap's own models
work beside a torchvision that does not.
"""

from __future__ import annotations

import importlib
import logging
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from heedmap.backbones import OWN_BACKBONES
from heedmap.backbones.base import IMAGENET_MEAN, IMAGENET_STD
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
            f"{torch.__version__}, or take heedmap's own models, which need neither."
        ) from reason


def _models(library: str) -> list[str]:
    if library == "timm":
        return list(_library("timm").list_models())
    models = _library("torchvision").models
    return list(models.list_models(module=models))


def find_model(name: str) -> tuple[str, str]:
    """Return library and model of a name.

    timm is asked first, and has to be there unless the name says torchvision: the same name must not mean one
    network here and another one elsewhere.

    Raises:
        ModelError: unknown, with the nearest name; a library is missing or broken.
    """
    library, slash, model = name.partition("/")
    libraries = (library,) if slash else LIBRARIES
    if slash and library not in LIBRARIES:
        raise ModelError(
            f"Unknown library {library!r} in {name!r}; say timm/NAME or torchvision/NAME.{nearest(library, LIBRARIES)}"
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
        ModelError: the hub's weights cannot be had.
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
            f"The weights of {library}/{model} cannot be had from the hub or its cache ({why}); "
            "supply the file: --pretrained FILE.safetensors (or .pt)."
        ) from reason
    return net


@contextmanager
def _quiet_hub() -> Iterator[str | None]:
    """Nothing of the hub's own about its retries; where its host is not known, its cache alone, and no waiting.

    Gives what is wrong with the network, if anything is: the hub tries again for most of a minute before it gives up.
    """
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx", "timm")]
    levels, offline = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    is_known = offline or bool(urllib.request.getproxies()) or _is_known(host)
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        constants.HF_HUB_OFFLINE = offline or not is_known
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield None if is_known else f"no network: {host} is not known"
    finally:
        constants.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_known(host: str | None) -> bool:
    """Whether the name of a host has an address, without which no request can succeed."""
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def habits(net: nn.Module) -> tuple[Sequence[float], Sequence[float], int | None]:
    """Return the mean, standard deviation and image side a network was made for; ImageNet's where it does not say."""
    says = getattr(net, "pretrained_cfg", None) or {}
    size = says.get("input_size")
    return says.get("mean", IMAGENET_MEAN), says.get("std", IMAGENET_STD), size[-1] if size else None
