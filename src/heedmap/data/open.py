"""Open a dataset by name, folder or shards.

Named sets are read by torchvision, which is imported on use, and held in memory as uint8 RGB (N, 3, H, W); it checks
the files' MD5 sums where it unpickles them (CIFAR).
"""

import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heedmap.data.dataset import Splits, TensorDataset
from heedmap.data.digit_scenes import SCENES, open_digit_scenes
from heedmap.data.folders import open_folder
from heedmap.data.webdataset.dataset import open_shards
from heedmap.data.webdataset.index import is_sharded
from heedmap.errors import DataError, nearest

_DIGITS = tuple("0123456789")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_CLOTHES = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag"
_FASHION = (*_CLOTHES.split(), "Ankle boot")


@dataclass(frozen=True)
class NamedSet:
    """A named set, read by a class in ``torchvision.datasets``."""

    dataset: str
    files: str  # what lies in the root folder, unpacked
    description: str
    classes: tuple[str, ...] = ()  # in the order of the labels; empty where the files themselves hold them
    flippable: bool = True  # a mirrored image keeps its class
    by_split: bool = False  # the constructor takes split="train", not train=True


NAMED = {
    "cifar10": NamedSet("CIFAR10", "cifar-10-batches-py/", "60,000 photographs of 10 things, 32x32"),
    "cifar100": NamedSet("CIFAR100", "cifar-100-python/", "60,000 photographs of 100 things, 32x32"),
    "svhn": NamedSet("SVHN", "train_32x32.mat and test_32x32.mat", "99,289 house numbers, 32x32", _DIGITS, False, True),
    "stl10": NamedSet("STL10", "stl10_binary/", "13,000 photographs of 10 things, 96x96", _STL10, True, True),
    "mnist": NamedSet("MNIST", "MNIST/raw/*-ubyte", "70,000 handwritten digits, 28x28", _DIGITS, False),
    "fashion-mnist": NamedSet("FashionMNIST", "FashionMNIST/raw/*-ubyte", "70,000 pieces of clothing, 28x28", _FASHION),
}
"""Name on the command line -> the set."""

DIGIT_SCENES = tuple(SCENES)


def open_data(
    data: str | Path,
    *,
    root: str | Path = "data",
    download: bool = True,
    seed: int = 0,
    test_share: float = 0.2,
    cache: Path | None = None,
) -> Splits:
    """Open a dataset. Files are listed, not yet decoded: see :func:`heedmap.data.cache.verified.verify_images`.

    Args:
        data: ``digit-scenes``, a named set (``NAMED``), a folder, or tar shards (a folder of them, or a pattern such as
            ``shards/train-{000..009}.tar``). A name wins over a folder of the same name; write ``./cifar10`` for the
            folder.
        root, download: where the files of named sets are, and whether to fetch those that are missing.
        seed: of the digit scenes, and of the test part drawn from a folder that has none.
        test_share: share of each class for that test part.
        cache: folder that caches the indexes of shards; None caches nothing.

    Raises:
        DataError, OptionError: see :func:`open_folder`, :func:`open_shards` and :func:`open_named`.
    """
    name = str(data)
    known = [*DIGIT_SCENES, *NAMED]
    if name in known:
        splits = open_named(name, root, download) if name in NAMED else open_digit_scenes(seed=seed, name=name)
        note = f"There is also a folder {name!r} here; write ./{name} to mean it."
        return replace(splits, notes=(*splits.notes, note)) if Path(name).is_dir() else splits
    if is_sharded(data):
        return open_shards(data, test=test_share, seed=seed, cache=cache)
    if not Path(data).exists() and (hint := nearest(name, known)):
        raise DataError(f"There is no folder {name!r}, and the named sets are {', '.join(known)}.{hint}")
    return open_folder(data, test=test_share, seed=seed)


def open_named(name: str, root: str | Path, download: bool) -> Splits:
    """Read one of ``NAMED`` from its folder ``root``, as its authors divided it; names are ``train/000000`` and so on.

    Raises:
        DataError: no such set; torchvision is absent or broken; the files are missing, damaged, or cannot be fetched.
    """
    if name not in NAMED:
        raise DataError(f"There is no named set {name!r}; known are {', '.join(NAMED)}.{nearest(name, NAMED)}")
    constructor = _constructor(name)
    train, test = (_read(name, constructor, Path(root), part, download) for part in ("train", "test"))
    notes = (f"{name} is divided as its authors divided it.",)
    return Splits(name, train.classes, train, None, test, notes=notes, flippable=NAMED[name].flippable)


def _constructor(name: str) -> Callable[..., Any]:
    try:
        from torchvision import datasets
    # A torchvision built for another torch fails in any of these ways.
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        why = f"{name} is read by torchvision, which cannot be imported ({_first_line(error)})"
        raise DataError(f"{why}; install the one that fits your torch, or use a folder of images.") from error
    return getattr(datasets, NAMED[name].dataset)


def _read(name: str, constructor: Callable[..., Any], root: Path, part: str, download: bool) -> TensorDataset:
    named = NAMED[name]
    choice: dict[str, Any] = {"split": part} if named.by_split else {"train": part == "train"}
    try:
        dataset = constructor(root=str(root), download=download, **choice)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make torchvision raise anything: AssertionError, UnpicklingError ...
        raise DataError(_trouble(name, root, download, error)) from error
    labels = dataset.labels if named.by_split else dataset.targets
    images = _rgb(torch.as_tensor(np.asarray(dataset.data)))
    names = [f"{part}/{index:06d}" for index in range(len(images))]
    classes = named.classes or tuple(dataset.classes)
    return TensorDataset(images, torch.as_tensor(np.asarray(labels), dtype=torch.int64), classes, names)


def _rgb(images: Tensor) -> Tensor:
    """Return (N, H, W) grey, (N, H, W, 3) or (N, 3, H, W) as (N, 3, H, W); grey is repeated without a copy."""
    if images.dim() == 3:
        return images[:, None].expand(-1, 3, -1, -1)
    return images.permute(0, 3, 1, 2).contiguous() if images.shape[3] == 3 else images


def _trouble(name: str, root: Path, download: bool, error: Exception) -> str:
    place = f"its files belong at {root / NAMED[name].files} (unpacked)"
    if isinstance(error, ImportError):
        return f"{name} cannot be read: {_first_line(error)}; install the missing package."
    if not download:
        return f"{name} is not there or damaged, and downloading is off; {place}, or allow downloading."
    if isinstance(error, urllib.error.URLError | OSError | RuntimeError):
        return f"{name} cannot be fetched ({_first_line(error)}); {place}; put them there by hand or try again."
    return f"{name} is damaged ({_first_line(error)}); {place}; remove them and fetch them again."


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
