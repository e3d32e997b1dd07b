import gzip
import pickle
import struct
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from heedmap.data import NAMED, TensorDataset, open_data, open_named
from heedmap.errors import DataError

datasets = pytest.importorskip("torchvision.datasets")

COUNTS = {"train": 6, "test": 4}


def planes(count: int, side: int) -> np.ndarray:
    """(count, 3, side, side): every plane of every image has its own value, so that a mixed-up axis shows."""
    values = np.arange(count * 3, dtype=np.uint8).reshape(count, 3, 1, 1)
    return np.broadcast_to(values, (count, 3, side, side)).copy()


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def write_mnist(root: Path, folder: str = "MNIST") -> None:
    for part, prefix in (("train", "train"), ("test", "t10k")):
        count = COUNTS[part]
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", planes(count, 28)[:, 0])
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))


def write_fashion(root: Path) -> None:
    write_mnist(root, "FashionMNIST")


def write_pickle(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    write_pickle(folder / "batches.meta", {"label_names": [f"thing {label}" for label in range(10)]})
    train = planes(COUNTS["train"], 32).reshape(-1, 3072)
    for number in range(1, 6):  # five batches: 1, 1, 1, 1 and 2 images
        rows = slice(number - 1, number if number < 5 else None)
        labels = list(range(COUNTS["train"]))[rows]
        write_pickle(folder / f"data_batch_{number}", {"data": train[rows], "labels": labels})
    test = planes(COUNTS["test"], 32).reshape(-1, 3072)
    write_pickle(folder / "test_batch", {"data": test, "labels": list(range(COUNTS["test"]))})


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    write_pickle(folder / "meta", {"fine_label_names": [f"thing {label}" for label in range(100)]})
    for part, count in COUNTS.items():
        content = {"data": planes(count, 32).reshape(-1, 3072), "fine_labels": list(range(count))}
        write_pickle(folder / part, content)


def write_svhn(root: Path) -> None:
    from scipy.io import savemat

    for part, count in COUNTS.items():
        labels = np.where(np.arange(count) == 0, 10, np.arange(count))[:, None]  # the files call a zero 10
        savemat(root / f"{part}_32x32.mat", {"X": planes(count, 32).transpose(3, 2, 1, 0), "y": labels})


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for part, count in COUNTS.items():
        planes(count, 96).tofile(folder / f"{part}_X.bin")
        np.arange(1, count + 1, dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "unlabeled_X.bin").touch()  # torchvision asks for it, though it does not read it
    (folder / "class_names.txt").write_text("\n".join(f"thing {label}" for label in range(10)))


WRITERS: dict[str, Callable[[Path], None]] = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "stl10": write_stl10,
    "mnist": write_mnist,
    "fashion-mnist": write_fashion,
}


@pytest.fixture
def without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny stand-ins cannot have the MD5 sums of the real files."""
    for name in ("cifar", "svhn", "stl10"):
        module = sys.modules[f"torchvision.datasets.{name}"]
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).exists())


@pytest.mark.usefixtures("without_checksums")
@pytest.mark.parametrize("name", NAMED)
def test_every_named_set_is_read_from_its_own_file_format(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    splits = open_data(name, root=tmp_path, download=False)
    grey = "mnist" in name
    side = 96 if name == "stl10" else 28 if grey else 32
    for part, count in COUNTS.items():
        images = splits.parts[part]
        assert isinstance(images, TensorDataset)
        assert images.images.shape == (count, 3, side, side)
        assert images.labels.tolist() == list(range(count))
        assert images.names[1] == f"{part}/000001"
        assert images.load(1, side)[:, 3, 5].tolist() == ([3, 3, 3] if grey else [3, 4, 5])
        assert images.load(1, 16).shape == (3, 16, 16)
    assert len(splits.classes) == (100 if name == "cifar100" else 10)
    assert splits.validation is None


@pytest.mark.parametrize("name", NAMED)
def test_a_table_row_names_ten_classes_or_leaves_them_to_the_files(name: str) -> None:
    known = NAMED[name]
    assert len(set(known.classes)) == (0 if name.startswith("cifar") else 10)
    assert known.flippable == (name not in ("mnist", "svhn"))
    assert hasattr(datasets, known.dataset)


def test_the_class_names_are_those_of_the_sets_authors() -> None:
    assert NAMED["mnist"].classes == NAMED["svhn"].classes == tuple("0123456789")
    assert NAMED["fashion-mnist"].classes == tuple(datasets.FashionMNIST.classes)
    assert NAMED["stl10"].classes[:3] == ("airplane", "bird", "car")


def test_digits_are_not_flippable_and_clothing_is(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_fashion(tmp_path)
    assert not open_named("mnist", tmp_path, download=False).flippable
    assert open_named("fashion-mnist", tmp_path, download=False).flippable


def test_grey_images_take_no_threefold_memory(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    train = open_named("mnist", tmp_path, download=False).train
    assert isinstance(train, TensorDataset)
    assert train.images.untyped_storage().nbytes() == COUNTS["train"] * 28 * 28


@pytest.mark.parametrize("name", NAMED)
def test_absent_files_are_refused_with_the_place_where_they_belong(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name} .*downloading") as caught:
        open_named(name, tmp_path, download=False)
    assert f"its files belong at {tmp_path / NAMED[name].files.split('/')[0].split(' ')[0]}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "trouble", [urllib.error.URLError("no route"), RuntimeError("no route\nTried b"), OSError("no route")]
)
def test_a_failed_download_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise trouble

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    with pytest.raises(DataError, match=r"cifar10 .*no route") as caught:
        open_named("cifar10", tmp_path, download=True)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    images = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(gzip.compress(images.read_bytes()))  # somebody forgot to unpack it
    with pytest.raises(DataError, match="mnist"):
        open_named("mnist", tmp_path, download=False)


@pytest.mark.parametrize(
    "trouble", [ImportError("no torchvision"), RuntimeError("operator torchvision::nms"), OSError("x.so")]
)
def test_a_broken_torchvision_is_a_clear_message(monkeypatch: pytest.MonkeyPatch, trouble: Exception) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise trouble

    monkeypatch.setitem(sys.modules, "torchvision", Broken("torchvision"))
    with pytest.raises(DataError, match=r"torchvision"):
        open_named("cifar10", "data", download=False)


def test_an_unknown_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"cifar10, .*Did you mean 'cifar100'"):
        open_named("cifar1000", "data", download=False)


def test_a_name_wins_over_a_folder_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    splits = open_data("mnist", root=tmp_path, download=False)
    assert splits.notes[-1] == "There is also a folder 'mnist' here; write ./mnist to mean it."
    assert splits.train.labels.dtype == torch.int64
