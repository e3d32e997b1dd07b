"""Mistakes of users: status 2, one line that names the value and the way out, and nothing left behind."""

import builtins
import errno
import os
import pickle
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import Refusal, cue_image, write_cue_part
from heedmap.config import TrainOptions
from heedmap.errors import DataError
from heedmap.progress import Progress

SMALL = ("--image-size", 32, "--epochs", 1, "--batch-size", 16, "--workers", 0)
Folder = Callable[..., Path]


class Messages(Progress):
    """Records the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def bomb(path: Path) -> None:
    """A PNG of 68 bytes that promises 108 million pixels: more than heedmap allows, less than Pillow refuses."""
    header = struct.pack(">IIBBBBB", 12000, 9000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


def truncated(path: Path) -> None:
    cue_image("red", 5)[0].save(path)
    path.write_bytes(path.read_bytes()[:-300])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero-byte": (lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    "truncated": (truncated, "damaged"),
    "text": (lambda path: path.write_text("not an image"), "not an image"),
    "bomb": (bomb, "above the guard of 100 million; shrink it"),
}


# ---- folders


def make_flat(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            cue_image("red", number)[0].save(folder / name / f"{number}.png")
    return folder


def unreadable_class(folder: Path) -> Path:
    make_flat(folder, {"cat": 3, "dog": 0})
    (folder / "dog" / "0.png").write_bytes(b"")
    (folder / "dog" / "1.png").write_bytes(b"")
    return folder


def unknown_class(folder: Path) -> Path:
    write_cue_part(folder / "train", 2, 0)
    write_cue_part(folder / "test", 2, 0)
    (folder / "test" / "red").rename(folder / "test" / "rot")
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder, "There is no folder"),
        (lambda folder: folder.mkdir() or folder, "is empty; "),
        (lambda folder: folder.write_text("x") and folder, "is a file, not a folder of images"),
        (lambda folder: make_flat(folder, {"cat": 3}), "'cat'"),
        (lambda folder: make_flat(folder, {"cat": 3, "dog": 0}), "no images of class 'dog'"),
        (unreadable_class, "class 'dog'"),
        (unknown_class, "class 'rot'"),
    ],
    ids=["missing", "empty", "file", "one-class", "class-without-images", "class-unreadable", "class-unknown"],
)
@pytest.mark.parametrize("command", ["train", "audit"])
def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, refusal: Refusal, make: Callable[[Path], Path], said: str, command: str
) -> None:
    folder, out = make(tmp_path / "images"), tmp_path / "run"
    line = refusal("train", folder, "--out", out, *SMALL) if command == "train" else refusal("audit", folder)
    assert said in line
    assert "images" in line
    assert not out.exists()


def test_a_folder_with_nearly_the_right_name_is_proposed(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "flowers").mkdir()
    assert "Did you mean 'flowers'?" in refusal("train", tmp_path / "flwers")
    assert "Did you mean 'cifar10'?" in refusal("train", "cifar-10", *SMALL)


# ---- files


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_among_many_is_named_counted_and_skipped(make_cue_folder: Folder, kind: str) -> None:
    from heedmap.workflows.train.setup import prepare

    folder, progress = make_cue_folder(train=20, test=3), Messages()
    BROKEN[kind][0](folder / "train" / "red" / "broken.png")
    prepared = prepare(TrainOptions(data=str(folder), image_size=32, workers=0), progress)
    ((path, reason),) = prepared.splits.unreadable
    assert path == "train/red/broken.png"
    assert BROKEN[kind][1] in reason
    assert any("train/red/broken.png" in message and reason in message for message in progress.messages)
    assert len(prepared.splits.train) == 3 * 20 - len(prepared.validation or ())


@pytest.mark.parametrize("kind", BROKEN)
def test_training_stops_when_more_than_a_small_share_is_broken(
    make_cue_folder: Folder, refusal: Refusal, tmp_path: Path, kind: str
) -> None:
    folder = make_cue_folder(train=4, test=3).rename(tmp_path / "my images")
    BROKEN[kind][0](folder / "train" / "red" / "broken.png")
    line = refusal("train", folder, "--out", tmp_path / "run", *SMALL)
    assert f"`heedmap audit '{folder}'` lists them" in line
    assert "1 of 22 images cannot be read, the first is train/red/broken.png" in line
    assert BROKEN[kind][1] in line
    assert "--allow-unreadable" in line
    assert not (tmp_path / "run").exists()


def test_packing_stops_when_more_than_a_small_share_is_broken_unless_told_to_go_on(
    make_cue_folder: Folder, refusal: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from heedmap.cli.main import main

    folder = make_cue_folder(train=5, test=0) / "train"
    BROKEN["text"][0](folder / "red" / "000.png")
    line = refusal("pack", folder, tmp_path / "shards")
    assert "1 of 15 images cannot be read, the first is red/000.png" in line
    assert "--allow-unreadable goes on without them" in line
    assert not (tmp_path / "shards").exists()
    main(["pack", str(folder), str(tmp_path / "shards"), "--allow-unreadable"])
    text = capsys.readouterr().out
    counts = {line.split()[0]: line.split()[1] for line in text.splitlines() if " in 1 shard" in line}
    assert f"{counts['train']} images to learn from, {counts['test']} to test on." in text.replace("\n", " ")
    assert int(counts["train"]) + int(counts["test"]) == 14


def test_training_goes_on_without_broken_images_when_told_to(make_cue_folder: Folder) -> None:
    from heedmap.workflows.train.setup import prepare

    folder = make_cue_folder(train=4, test=3)
    BROKEN["text"][0](folder / "train" / "red" / "broken.png")
    options = TrainOptions(data=str(folder), image_size=32, workers=0, allow_unreadable=True)
    assert len(prepare(options, Progress()).splits.unreadable) == 1


def test_drawing_skips_broken_images_and_names_them(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from heedmap.cli.main import main

    folder = tmp_path / "images"
    folder.mkdir()
    cue_image("red", 1)[0].save(folder / "good.png")
    for kind, (make, _) in BROKEN.items():
        make(folder / f"{kind}.png")
    main(["visualize", str(finished_run), str(folder), "--out", str(tmp_path / "maps")])
    said = capsys.readouterr()
    assert "1 image drawn" in said.out
    assert "4 skipped" in said.out
    for kind, (_, reason) in BROKEN.items():
        assert any(f"{kind}.png" in line and reason in line for line in said.err.splitlines())


def test_drawing_nothing_but_broken_images_is_refused(finished_run: Path, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    line = refusal("visualize", finished_run, tmp_path / "a.png", "--out", tmp_path / "maps")
    assert "a.png" in line
    assert "the file is empty" in line
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("https://example.org/cat.jpg",), "https://example.org/cat.jpg is an address; heedmap reads files only"),
        (("absent.jpg",), "There is no file or folder absent.jpg"),
        (("absent/*.jpg",), "absent/*.jpg"),
        ((), "No images were named"),
    ],
)
def test_images_that_are_not_there_are_named(
    finished_run: Path, tmp_path: Path, refusal: Refusal, words: tuple[str, ...], said: str
) -> None:
    assert said in refusal("visualize", finished_run, *words, "--out", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_a_query_that_cannot_be_read_is_named(
    finished_run: Path, cue_folder: Path, tmp_path: Path, refusal: Refusal
) -> None:
    image = cue_folder / "test" / "red" / "000.png"
    line = refusal("visualize", finished_run, image, "--query", "absent.jpg", "--out", tmp_path / "maps")
    assert "Query absent.jpg: there is no such file" in line
    assert not (tmp_path / "maps").exists()


# ---- options


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "resnt18"), "Unknown model 'resnt18'. Did you mean 'resnet18'?"),
        (("--model", "compct"), "Unknown model 'compct'. Did you mean 'compact'?"),
        (("--taps", "stage9"), "No tap 'stage9'"),
        (("--model", "paper-vgg", "--image-size", 16, "--taps", "conv99"), "conv99"),
        (("--image-size", 8, "--model", "paper-vgg"), "An image of 8 x 8 is too small for paper-vgg"),
        (("--image-size", 8, "--model", "resnet18"), "An image of 8 x 8 is too small for timm/resnet18"),
        (("--pretrained", "hub"), "compact has no pretrained weights"),
        (("--model", "resnet18", "--pretrained", "absent.pt"), "No weights file absent.pt"),
        (("--head", "residual"), "head 'residual'"),
    ],
)
def test_a_model_that_cannot_be_built_is_named(
    cue_folder: Path, tmp_path: Path, refusal: Refusal, words: tuple[object, ...], said: str
) -> None:
    if "resn" in " ".join(map(str, words)) or "compct" in words:
        pytest.importorskip("timm")
    sized = () if "--image-size" in words else ("--image-size", 32)
    line = refusal("train", cue_folder, "--out", tmp_path / "run", "--workers", 0, "--epochs", 1, *sized, *words)
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--attention", "none", "--attention-weights", "sigmoid"), "Attention 'none' has no weights 'sigmoid'"),
        (("--model", "compct"), "Unknown model 'compct'"),
        (("--taps", "stage9"), "No tap 'stage9'"),
    ],
)
def test_what_needs_no_images_is_refused_before_they_are_read(
    tmp_path: Path, refusal: Refusal, words: tuple[str, ...], said: str
) -> None:
    if "--model" in words:
        pytest.importorskip("timm")
    assert said in refusal("train", tmp_path / "absent", *words)


def test_the_error_of_an_unknown_tap_names_the_taps_there_are(
    cue_folder: Path, tmp_path: Path, refusal: Refusal
) -> None:
    line = refusal("train", cue_folder, "--out", tmp_path / "run", *SMALL, "--taps", "stage22")
    assert "stage1, stage2, stage3" in line
    assert "Did you mean 'stage2'?" in line


def test_weights_that_are_a_pickled_module_are_refused(cue_folder: Path, tmp_path: Path, refusal: Refusal) -> None:
    pytest.importorskip("timm")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"a": 1}))
    for name in ("whole.pt", "bare.pt"):
        words = ("--model", "resnet18", "--pretrained", tmp_path / name, "--out", tmp_path / "run")
        line = refusal("train", cue_folder, *SMALL, *words)
        assert name in line
        assert "torch.save(net.state_dict(), ...)" in line or "fetch it anew" in line
    assert not (tmp_path / "run").exists()


class Trap:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_no_file_of_weights_runs_code(cue_folder: Path, copied_run: Path, tmp_path: Path, refusal: Refusal) -> None:
    mark, trap = tmp_path / "ran", Trap(tmp_path / "ran")
    pickle.loads(pickle.dumps(trap))
    assert mark.exists()
    mark.unlink()
    (copied_run / "manifest.json").unlink()
    places = (tmp_path / "trap.pt", copied_run / "checkpoint.safetensors")
    for write in (lambda path: torch.save({"w": trap}, path), lambda path: path.write_bytes(pickle.dumps(trap))):
        for path in places:
            write(path)
        words = ("--model", "resnet18", "--pretrained", places[0], "--out", tmp_path / "run")
        assert "trap.pt" in refusal("train", cue_folder, *SMALL, *words)
        assert "checkpoint.safetensors is a pickle, which can run code" in refusal("train", "--resume", copied_run)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trian", "x"), "Unknown command 'trian'; there are demo, train"),
        (("trian", "x"), "Did you mean 'train'?"),
        (("train", "x", "--epoch", "3"), "--epoch, 3. Perhaps you meant --epochs?"),
        (("train", "x", "--epochs=many"), "--epochs: no type matching INT could be instantiated from ['many']"),
        (
            ("train", "x", "--learning-rate", "fast"),
            "--learning-rate: no type matching FLOAT could be instantiated from ['fast']",
        ),
        (("train", "x", "--attention-weights", "sofmax"), "'sofmax' for argument '--attention-weights'"),
        (("train", "x", "--zzyzx"), "--zzyzx. See heedmap train --help."),
        (("train", "x", "--foo"), "--foo. See heedmap train --help."),
        (("train", "x", "--epochs"), "'--epochs'"),
        (("train", "x", "--epochs", "0"), "epochs = 0 is out of range"),
        (("train", "x", "--attention", "dott"), "'dott'"),
        (("train", "x", "y", "z"), "y, z. See"),
        (("train",), "Name the data"),
        (("evaluate",), "heedmap evaluate: RUN "),
        (("visualize",), "heedmap visualize: RUN "),
        (("visualize", "r", "p", "--batch-size", "0"), "batch_size = 0 is out of range"),
        (("audit", "digit-scenes", "--show", "-3"), "show = -3 is out of range"),
        (("audit",), "heedmap audit: DATA "),
        (("train", "x", "--taps", "a", "--taps", "b"), "--taps is given twice"),
        (("train", "x", "--fli"), "Perhaps you meant --flip?"),
        (("list", "modles"), "'modles' for argument 'what'"),
        (("train", "x", "--config", "absent.yaml"), "absent.yaml"),
        (("evaluate", "x", "--device", "warp"), "No run folder x"),
    ],
)
def test_a_typing_error_is_named(refusal: Refusal, words: tuple[str, ...], said: str) -> None:
    assert said in refusal(*words)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("atention: dot", "Unknown option 'atention' in {path}. Did you mean 'attention'?"),
        ("epochs: many", "'epochs' in {path} cannot be 'many'"),
        ("- a\n- b", "{path}"),
        ("a: [", "{path}"),
        ("epochs: 0", "epochs = 0 is out of range"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path: Path, refusal: Refusal, content: str, said: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(content)
    assert said.format(path=path) in refusal("train", "digit-scenes", "--config", path)


def test_a_device_that_is_not_there_is_named(
    finished_run: Path, cue_folder: Path, tmp_path: Path, refusal: Refusal
) -> None:
    words = ("visualize", finished_run, cue_folder / "test", "--out", tmp_path / "maps", "--device")
    assert "Device 'warp' cannot be used here" in refusal(*words, "warp")
    assert "Device 'cuda:99' cannot be used here" in refusal(*words, "cuda:99")
    assert not (tmp_path / "maps").exists()


# ---- where it is put


def test_an_output_that_exists_is_not_written_into(finished_run: Path, cue_folder: Path, refusal: Refusal) -> None:
    before = sorted(path.name for path in finished_run.iterdir())
    line = refusal("train", cue_folder, "--out", finished_run, *SMALL)
    assert f"{finished_run} exists already as a finished run; name another --out." in line
    line = refusal("visualize", finished_run, cue_folder / "test", "--out", finished_run)
    assert f"{finished_run} is not empty" in line
    assert sorted(path.name for path in finished_run.iterdir()) == before


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "the disk is full; free some space"), (errno.EROFS, "the disk is read-only")]
)
def test_a_disk_that_does_not_take_the_run_is_named_and_nothing_is_left(
    cue_folder: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def no_room(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", no_room)
    line = refusal("train", cue_folder, "--out", tmp_path / "run", *SMALL)
    assert said in line
    assert str(tmp_path / "run") in line
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_later_keeps_the_last_state(
    cue_folder: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heedmap.runs import CHECKPOINT, MODEL, Run

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    from heedmap import runs

    real = runs.write_whole
    monkeypatch.setattr(
        runs, "write_whole", lambda path, content: (full if path.name == MODEL else real)(path, content)
    )
    line = refusal("train", cue_folder, "--out", tmp_path / "run", *SMALL)
    assert "model.safetensors: the disk is full" in line
    run = Run.open(tmp_path / "run", finished=False)
    assert (run.path / CHECKPOINT).is_file()
    assert not list(run.path.rglob(".*.partial"))
    monkeypatch.setattr(runs, "write_whole", real)
    from heedmap.cli.main import main

    main(["train", "--resume", str(run.path)])
    assert Run.open(run.path).is_finished


def test_a_place_that_may_not_be_written_is_named(
    finished_run: Path, cue_folder: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def denied(path: Path, *args: object, **named: object) -> None:
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", denied)
    locked = tmp_path / "locked" / "out"
    assert "no permission to write there" in refusal("train", cue_folder, "--out", locked, *SMALL)
    line = refusal("visualize", finished_run, cue_folder / "test", "--out", locked)
    assert "locked" in line
    assert "Permission denied" in line
    assert "no permission to write there" in refusal("evaluate", finished_run, "--out", locked)


def test_images_that_may_not_be_read_are_named(
    make_cue_folder: Folder, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, real = make_cue_folder(train=2, test=2), builtins.open

    def denied(file: object, *args: object, **named: object) -> object:
        if str(file).endswith("train/red/000.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *args, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", denied)
    line = refusal("train", folder, "--out", tmp_path / "run", *SMALL)
    assert "train/red/000.png (no permission to read it)" in line


# ---- a torchvision of another torch


class Torn(MetaPathFinder):
    """Imports torchvision as it comes in when it was built for another torch."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname.partition(".")[0] == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")


@pytest.fixture
def _torn_torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "timm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Torn(), *sys.meta_path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        del sys.modules[name]


@pytest.mark.usefixtures("_torn_torchvision")
def test_without_torchvision_own_models_learn_from_folders_and_the_rest_says_why_not(
    cue_folder: Path, tmp_path: Path, refusal: Refusal
) -> None:
    from heedmap.cli.main import main

    main([str(word) for word in ("train", cue_folder, "--out", tmp_path / "run", *SMALL)])
    assert (tmp_path / "run" / "manifest.json").is_file()
    words = ("--out", tmp_path / "other", *SMALL)
    assert "torchvision::nms does not exist" in refusal("train", "cifar10", "--no-download", *words)
    line = refusal("train", cue_folder, "--model", "resnet18", *words)
    assert "torchvision::nms does not exist" in line
    assert "heedmap's own models" in line
    assert not (tmp_path / "other").exists()


def test_a_named_set_that_is_not_there_says_where_it_belongs(tmp_path: Path, refusal: Refusal) -> None:
    pytest.importorskip("torchvision")
    root = tmp_path / "sets"
    line = refusal("train", "cifar10", "--root", root, "--no-download", "--out", tmp_path / "run")
    assert str(root / "cifar-10-batches-py") in line
    assert "downloading is off" in line
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_evaluated_on_classes_that_it_does_not_know(
    finished_run: Path, tmp_path: Path, refusal: Refusal
) -> None:
    folder = make_flat(tmp_path / "images", {"green": 2, "rot": 2, "blue": 2})
    assert "Class 'rot' is unknown to the run, which has blue, green, red" in refusal("evaluate", finished_run, folder)
    folder = make_flat(tmp_path / "fewer", {"green": 2, "blue": 2})
    assert "The data has no class 'red'" in refusal("evaluate", finished_run, folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda run: (run / "manifest.json").unlink(), "heedmap train --resume"),
        (lambda run: (run / "config.yaml").write_text("schema: 99"), "Install a newer heedmap"),
        (lambda run: (run / "config.yaml").unlink(), "is not a run"),
        (lambda run: torch.save({}, run / "model.safetensors"), "model.safetensors was changed"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_a_run_that_cannot_be_trusted_is_not_used(
    copied_run: Path, cue_folder: Path, refusal: Refusal, damage: Callable[[Path], None], said: str, command: str
) -> None:
    damage(copied_run)
    words = [cue_folder / "test"] if command == "visualize" else []
    line = refusal(command, copied_run, *words)
    assert said in line
    assert str(copied_run) in line


def test_a_finished_run_is_not_resumed(finished_run: Path, refusal: Refusal) -> None:
    assert "is finished already" in refusal("train", "--resume", finished_run)
    assert "No run folder absent" in refusal("train", "--resume", "absent")


def test_a_damaged_image_is_an_error_of_the_data_in_python_too(tmp_path: Path) -> None:
    from heedmap.data import open_data

    with pytest.raises(DataError):
        open_data(tmp_path / "absent")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="without class folders"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".", "is a folder; name a file in it, such as"),
        ("absent/a.json", "There is no folder"),
        ("mine.json", "mine.json"),
    ],
)
def test_a_wrong_file_for_findings_is_refused_before_the_audit(
    cue_folder: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setattr("heedmap.data.audit.findings.audit", lambda *_, **__: pytest.fail("the audit was begun"))
    (tmp_path / "mine.json").write_text('{"title": "mine"}')
    assert said in refusal("audit", cue_folder, "--json", tmp_path / name)
    assert (tmp_path / "mine.json").read_text() == '{"title": "mine"}'


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [
        ("predict", "m.onnx", "m.onnx"),
        ("evaluate", "m.onnx", "heedmap visualize"),
        ("visualize", "m.pt2", "torch.export.load"),
        ("predict", "m.txt", ".onnx"),
    ],
)
def test_a_file_in_place_of_a_run_is_described(
    cue_folder: Path, tmp_path: Path, refusal: Refusal, command: str, name: str, said: str
) -> None:
    (tmp_path / name).write_bytes(b"PK")
    line = refusal(command, tmp_path / name, cue_folder)
    assert said in line
    assert "heedmap train" not in line


def test_predicting_nothing_but_broken_images_is_refused(finished_run: Path, tmp_path: Path, refusal: Refusal) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.png").write_bytes(b"")
    for _ in range(2):  # the second time the table is there already
        line = refusal("predict", finished_run, tmp_path / "a.png", "--out", tmp_path / "out")
        assert str(tmp_path / "out" / "unreadable") in line
