"""Small things that several test files share."""

import os
import shutil

# Before torch is imported: its thread pools take their size from here, and other work may share the machine.
# Of several processes (`pytest -n 2`) each has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

# pytest-xdist sets it in its workers, and a console keeps for good the width that it finds when it is made.
os.environ.pop("COLUMNS", None)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(min(2, torch.get_num_threads()))

CUE_CLASSES = ("blue", "green", "red")
CUE_COLOURS = {"blue": (30, 60, 230), "green": (30, 200, 60), "red": (230, 40, 30)}
CUE_SIDE = 10
CUE_IMAGE_SIDE = 40

Box = tuple[int, int, int, int]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEEDMAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness on the CPU; no test touches the global one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    """(4, 3, 32, 32) float32 in [0, 1]: a batch of noise."""
    return torch.rand(4, 3, 32, 32, generator=generator)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were decoded, as they are."""
    from heedmap.data import FolderDataset

    seen: list[str] = []
    load = FolderDataset.load

    def note(self: FolderDataset, index: int, size: int) -> torch.Tensor:
        seen.append(self.names[index])
        return load(self, index, size)

    monkeypatch.setattr(FolderDataset, "load", note)
    return seen


def cue_image(name: str, seed: int, side: int = CUE_IMAGE_SIDE) -> tuple[Image.Image, Box]:
    """Draw an image of class ``name`` and return it with its cue's box, (left, top, right, bottom) in pixels.

    Grey noise all over, and a square of the class's colour at a random place: only the square tells the class.
    """
    random = np.random.default_rng([seed, CUE_CLASSES.index(name)])
    pixels = np.repeat(random.integers(60, 196, (side, side, 1), dtype=np.uint8), 3, axis=2)
    left, top = (int(place) for place in random.integers(0, side - CUE_SIDE + 1, 2))
    pixels[top : top + CUE_SIDE, left : left + CUE_SIDE] = CUE_COLOURS[name]
    return Image.fromarray(pixels), (left, top, left + CUE_SIDE, top + CUE_SIDE)


def write_cue_part(folder: Path, count: int, first_seed: int, classes: tuple[str, ...] = CUE_CLASSES) -> dict[str, Box]:
    """Write ``count`` cue images per class to ``folder/CLASS/NNN.png``; return "CLASS/NNN.png" -> the cue's box."""
    boxes: dict[str, Box] = {}
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, box = cue_image(name, first_seed + number)
            image.save(folder / name / f"{number:03d}.png", compress_level=1)
            boxes[f"{name}/{number:03d}.png"] = box
    return boxes


@pytest.fixture(scope="session")
def _cue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cue")
    write_cue_part(folder / "train", 12, first_seed=0)
    write_cue_part(folder / "test", 12, first_seed=1000)
    return folder


@pytest.fixture
def cue_folder(_cue_folder: Path) -> Path:
    """A folder with ``train`` and ``test``: three classes (blue, green, red), twelve 40x40 PNG of each in each part.

    One copy serves the whole run of the suite: read it, do not change it; ``make_cue_folder`` gives one to change.
    """
    return _cue_folder


@pytest.fixture
def make_cue_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function ``make(train=12, test=12, classes=...) -> Path``: a fresh cue folder; 0 leaves a part out."""

    def make(train: int = 12, test: int = 12, classes: tuple[str, ...] = CUE_CLASSES) -> Path:
        folder = tmp_path / "images"
        for part, count, first_seed in (("train", train, 0), ("test", test, 1000)):
            if count:
                write_cue_part(folder / part, count, first_seed, classes)
        return folder

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights that may lie beside the repository; the test is skipped without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def _finished_run(_cue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from heedmap import TrainOptions, train

    out = tmp_path_factory.mktemp("run") / "run"
    options = TrainOptions(
        data=str(_cue_folder), out=str(out), image_size=32, epochs=2, batch_size=16, validation=0.2, workers=0
    )
    return train(options, command=f"heedmap train {_cue_folder}").path


@pytest.fixture
def finished_run(_finished_run: Path) -> Path:
    """A finished run of ``compact`` on ``cue_folder`` at 32 pixels, two epochs.

    One serves the whole run of the suite: read it, do not change it; ``copied_run`` is one to change.
    """
    return _finished_run


@pytest.fixture
def copied_run(_finished_run: Path, tmp_path: Path) -> Path:
    """A copy of ``finished_run`` that a test may damage."""
    return Path(shutil.copytree(_finished_run, tmp_path / "copied-run"))


class Refusal(Protocol):
    """See :func:`refusal`."""

    def __call__(self, *words: object, status: int = 2) -> str: ...


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """A function ``refusal("train", folder, ...) -> str``: the one line with which the command line refuses."""
    from heedmap.cli.main import main

    def refused(*words: object, status: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        line = capsys.readouterr().err.removesuffix("\n")
        assert stop.value.code == status, line
        assert line.startswith("error: ") == (status == 2)  # a stop is no error
        assert "\n" not in line
        assert "Traceback" not in line
        return line.removeprefix("error: ")

    return refused
