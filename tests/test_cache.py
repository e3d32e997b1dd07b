"""Images decoded once: the same batches, a changed image noticed, and no harm from interference."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import cue_image
from heedmap.cli.main import main
from heedmap.data import FolderDataset, load_many, open_data
from heedmap.data.cache import decoded as cache_module
from heedmap.data.cache.decoded import DecodedCache
from heedmap.data.cache.folder import cache_folder, partial_of
from heedmap.data.cache.verified import verify_images
from heedmap.data.dataset import ImageDataset, TensorDataset
from heedmap.data.loader import Store, TrainingBatches, plain_batches
from heedmap.data.transforms import Augmentation
from heedmap.data.webdataset.dataset import pack
from heedmap.data.webdataset.index import index_shard
from heedmap.errors import DataError

MUCH = 1e9


@pytest.fixture(autouse=True)
def _small_sets_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MIN_IMAGES", 1)
    monkeypatch.setattr(cache_module, "_FILE_BYTES", 12 * 3 * 20 * 20)  # twelve images a file


class Messages(list[str]):
    """What the cache reported."""


def cache_in(folder: Path, limit: float = MUCH) -> tuple[DecodedCache, Messages]:
    messages = Messages()
    return DecodedCache(folder, limit, messages.append), messages


def all_of(some: ImageDataset) -> torch.Tensor:
    return load_many(some, range(len(some)), 20, 1)[0]


def test_images_from_the_cache_are_the_images(cue_folder: Path, tmp_path: Path) -> None:
    train = open_data(str(cue_folder)).train
    cache, messages = cache_in(tmp_path)
    kept = cache.open(train, 20, 2)
    assert kept is not None
    assert torch.equal(kept.gather(torch.arange(36)), all_of(train))
    assert torch.equal(kept.gather(torch.tensor([30, 2, 2])), all_of(train)[[30, 2, 2]])
    assert len(messages) == 1
    assert "36 images of 20 px, 0 MB; 36 to decode once." in messages[0]
    assert str(tmp_path / "decoded") in messages[0]


@pytest.mark.parametrize("memory", [0, MUCH])
def test_batches_are_the_same_with_and_without_a_cache(cue_folder: Path, tmp_path: Path, memory: float) -> None:
    train = open_data(str(cue_folder)).train
    stores = [Store(train, 20, 0, MUCH), *(Store(train, 20, 0, memory, cache_in(tmp_path)[0]) for _ in range(2))]
    assert (stores[2].resident is None) == (memory == 0)
    for epoch in (0, 3):
        found = [list(TrainingBatches(store, 16, 6, Augmentation("crop", True), 2).epoch(epoch, 1)) for store in stores]
        for batches in zip(*found, strict=True):
            assert all(torch.equal(batches[0].images, batch.images) for batch in batches)
    assert sum(len(batch.labels) for batch in plain_batches(stores[1], 7)) == 36


def test_the_second_time_nothing_is_decoded(cue_folder: Path, tmp_path: Path, decoded: list[str]) -> None:
    splits = open_data(str(cue_folder))
    for again in (False, True):
        decoded.clear()
        checked = verify_images(splits, 1, tmp_path).splits
        Store(checked.train, 20, 1, MUCH, cache_in(tmp_path)[0])
        assert len(decoded) == (0 if again else 72 + 36)


def test_other_parts_of_the_same_folder_share_what_was_decoded(
    cue_folder: Path, tmp_path: Path, decoded: list[str]
) -> None:
    train = open_data(str(cue_folder)).train
    cache_in(tmp_path)[0].open(train.subset(range(20)), 20, 1)
    cache_in(tmp_path)[0].open(train.subset(range(10, 36)), 20, 1)
    assert sorted(decoded) == sorted(train.names)
    cache_in(tmp_path)[0].open(train, 24, 1)  # another size is another image
    assert len(decoded) == 72


def test_a_changed_image_is_noticed_and_only_that_one(
    make_cue_folder: object, tmp_path: Path, decoded: list[str]
) -> None:
    folder: Path = make_cue_folder(train=6, test=2)  # type: ignore[operator]
    splits = open_data(str(folder))
    changed = folder / "train" / "red" / "002.png"
    cue_image("red", 98)[0].save(changed, "BMP")  # whose length does not depend on what is in the image
    verify_images(splits, 1, tmp_path / "cache")
    cache_in(tmp_path / "cache")[0].open(splits.train, 20, 1)
    decoded.clear()
    before = changed.stat()
    cue_image("red", 99)[0].save(changed, "BMP")
    assert changed.stat().st_size == before.st_size
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    (folder / "train" / "blue" / "000.png").write_bytes(b"broken now")
    checked = verify_images(splits, 1, tmp_path / "cache").splits
    assert [name for name, _ in checked.unreadable] == ["train/blue/000.png"]
    assert sorted(decoded) == ["train/blue/000.png", "train/red/002.png"]
    kept = cache_in(tmp_path / "cache")[0].open(checked.train, 20, 1)
    assert kept is not None
    assert sorted(decoded)[1:] == ["train/red/002.png"] * 2
    assert torch.equal(kept.gather(torch.arange(17)), all_of(checked.train))


def test_a_damaged_row_or_index_is_decoded_again(cue_folder: Path, tmp_path: Path) -> None:
    train = open_data(str(cue_folder)).train
    cache_in(tmp_path)[0].open(train, 20, 1)
    home = next((tmp_path / "decoded").iterdir())
    rows, others = sorted(home.glob("*.rows")), sorted(home.glob("*.json"))
    assert len(rows) == len(others) == 3
    content = bytearray(rows[0].read_bytes())
    content[2000] ^= 255
    rows[0].write_bytes(content)  # a bit tipped over
    rows[1].write_bytes(rows[1].read_bytes()[:-1])  # cut short
    rows[2].with_suffix(".json").write_text('{"images": 3}')
    kept = cache_in(tmp_path)[0].open(train, 20, 1)
    assert kept is not None
    assert torch.equal(kept.gather(torch.arange(36)), all_of(train))


def test_an_interrupted_filling_goes_on_where_it_was(
    cue_folder: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_data(str(cue_folder)).train
    written = 0
    write = cache_module.write_shared

    def dies(target: Path, *contents: bytes | memoryview) -> None:
        nonlocal written
        written += 1
        if written == 4:  # the second file's index
            raise KeyboardInterrupt
        write(target, *contents)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "write_shared", dies)
        with pytest.raises(KeyboardInterrupt):
            cache_in(tmp_path)[0].open(train, 20, 1)
    decoded.clear()
    kept = cache_in(tmp_path)[0].open(train, 20, 1)
    assert kept is not None
    assert len(decoded) == 24  # all but the first file's
    assert torch.equal(kept.gather(torch.arange(36)), all_of(train))


def test_shards_are_cached_like_folders(cue_folder: Path, tmp_path: Path) -> None:
    pack(open_data(str(cue_folder)), tmp_path / "packed", shard_bytes=20_000)
    train = open_data(str(tmp_path / "packed")).train
    for _ in range(2):
        kept = cache_in(tmp_path / "cache")[0].open(train, 20, 1)
        assert kept is not None
        assert torch.equal(kept.gather(torch.arange(36)), all_of(train))


# ---- limits


def test_the_set_unused_for_longest_makes_room(tmp_path: Path, make_cue_folder: object) -> None:
    train = open_data(str(make_cue_folder(train=4, test=1))).train  # type: ignore[operator]
    row = 12 * 3
    for size, age in ((20, 300), (22, 200), (24, 100)):
        assert cache_in(tmp_path)[0].open(train, size, 1) is not None
        for home in (tmp_path / "decoded").iterdir():
            if home.stat().st_mtime > 1e6:
                os.utime(home, (1e6 - age, 1e6 - age))
    limit = row * (22 * 22 + 24 * 24 + 18 * 18) + 6000  # the indexes take some too
    assert cache_in(tmp_path, limit)[0].open(train, 18, 1) is not None
    sizes = {json.loads(next(home.glob("*.json")).read_text())["size"] for home in (tmp_path / "decoded").iterdir()}
    assert sizes == {22, 24, 18}


def test_a_set_beyond_the_limit_is_not_cached(cue_folder: Path, tmp_path: Path) -> None:
    train = open_data(str(cue_folder)).train
    cache, messages = cache_in(tmp_path, 1000)
    assert cache.open(train, 20, 1) is None
    assert "would grow beyond its limit" in messages[0]
    assert Store(train, 20, 1, MUCH, cache).resident is not None


def test_a_full_disk_is_no_error(cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_shared", full)
    splits = verify_images(open_data(str(cue_folder)), 1, tmp_path).splits
    cache, messages = cache_in(tmp_path)
    assert cache.open(splits.train, 20, 1) is None
    assert "No space left on device" in messages[-1]


def test_few_images_and_images_in_memory_are_not_cached(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, messages = cache_in(tmp_path)
    in_memory = TensorDataset(
        torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(9).long(), ("a",), list("123456789")
    )
    assert cache.open(in_memory, 20, 1) is None
    monkeypatch.setattr(cache_module, "MIN_IMAGES", 37)
    assert cache.open(open_data(str(cue_folder)).train, 20, 1) is None
    assert messages == []
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_decoded_any_more_is_named(make_cue_folder: object, tmp_path: Path) -> None:
    folder: Path = make_cue_folder(train=4, test=1)  # type: ignore[operator]
    train = open_data(str(folder)).train
    (folder / "train" / "red" / "001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^train/red/001\.png: .*Remove the file"):
        cache_in(tmp_path / "cache")[0].open(train, 20, 1)
    (folder / "train" / "red" / "001.png").unlink()
    assert cache_in(tmp_path / "cache")[0].open(train, 20, 1) is None  # whoever decodes it says so


# ---- where it is


def test_the_cache_is_in_the_named_folder_or_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("off") is None
    assert cache_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    monkeypatch.setenv("HEEDMAP_CACHE", "off")
    assert cache_folder() is None
    assert cache_folder(str(tmp_path / "c")) == tmp_path / "c"
    monkeypatch.delenv("HEEDMAP_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "heedmap"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    found = cache_folder()
    assert found is not None
    assert found.parent == tmp_path / "t"
    assert found.stat().st_mode & 0o077 == 0
    with pytest.raises(DataError, match="--cache"):
        cache_folder(str(tmp_path / "file" / "x"))


def test_a_second_run_finds_the_cache_and_ends_the_same(
    cue_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image-size", "24", "--epochs", "1", "--batch-size", "12", "--workers", "1", "--validation", "0.2"]
    models = []
    for name, cache in (("one", "kept"), ("two", "kept")):
        main(["train", str(cue_folder), "--out", str(tmp_path / name), "--cache", str(tmp_path / cache), *words])
        models.append((tmp_path / name / "model.safetensors").read_bytes())
        text = capsys.readouterr().out
        assert ("all there already" in text) == (name == "two")
        assert text.count("Cache ") == 2  # to learn from, and to choose by
    assert models[0] == models[1]


# ---- what the time of change does not tell


def bitmaps(folder: Path, count: int = 8) -> Path:
    """A folder of images of one length and one time of change, as an archive unpacks them."""
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:03}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (30 * number, 0, 90)).save(path)
        os.utime(path, ns=(10**18, 10**18))
    return folder


def test_images_that_change_places_are_noticed_although_length_and_time_are_the_same(tmp_path: Path) -> None:
    folder = bitmaps(tmp_path / "flat")
    images = FolderDataset(folder, [f"{'ab'[n % 2]}/{n:03}.bmp" for n in range(8)], torch.arange(8) % 2, "ab")
    assert cache_in(tmp_path / "cache")[0].open(images, 20, 1) is not None
    one, other = images.path(0), images.path(1)
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert one.stat().st_mtime_ns == other.stat().st_mtime_ns == 10**18
    kept = cache_in(tmp_path / "cache")[0].open(images, 20, 1)
    assert kept is not None
    assert torch.equal(kept.gather(torch.arange(8)), all_of(images))


def test_an_image_overwritten_with_its_time_put_back_is_noticed(tmp_path: Path) -> None:
    folder = bitmaps(tmp_path / "flat")
    images = FolderDataset(folder, ["a/000.bmp"], torch.tensor([0]), "a")
    assert cache_in(tmp_path / "cache")[0].open(images, 20, 1) is not None
    time.sleep(0.02)  # the system's clock of files has ticked
    images.path(0).write_bytes((folder / "b" / "003.bmp").read_bytes())
    os.utime(images.path(0), ns=(10**18, 10**18))
    kept = cache_in(tmp_path / "cache")[0].open(images, 20, 1)
    assert kept is not None
    assert torch.equal(kept.gather(torch.arange(1)), all_of(images))


def test_shards_that_change_places_are_read_again(cue_folder: Path, tmp_path: Path) -> None:
    pack(open_data(str(cue_folder)), tmp_path / "packed", shard_bytes=20_000)
    shards = sorted((tmp_path / "packed" / "train").glob("*.tar"))[:2]
    longest = max(shard.stat().st_size for shard in shards)
    for shard in shards:  # zeros after the end are no part of a tar file
        with shard.open("ab") as file:
            file.write(bytes(longest - shard.stat().st_size))
        os.utime(shard, ns=(10**18, 10**18))
    index_shard(shards[0], tmp_path / "cache")
    shards[0].rename(tmp_path / "aside")
    shards[1].rename(shards[0])
    assert index_shard(shards[0], tmp_path / "cache") == index_shard(shards[0])


# ---- what is old


def touch(folder: Path, names: Iterable[str], by: int) -> None:
    for name in names:
        os.utime(folder / name, ns=(10**18, 10**18 + by))


def test_a_touched_set_replaces_what_was_cached_of_it(make_cue_folder: object, tmp_path: Path) -> None:
    train = open_data(str(make_cue_folder(train=8, test=1))).train  # type: ignore[operator]
    row = 3 * 20 * 20
    limit = 1.5 * 24 * row
    for turn in range(4):
        kept = cache_in(tmp_path / "cache", limit)[0].open(train, 20, 1)
        assert kept is not None, turn
        assert torch.equal(kept.gather(torch.arange(24)), all_of(train))
        assert rows_in(tmp_path / "cache") <= limit
        # all; all again; every second one, so that no file is wholly old
        touch(train.root, train.names[:: 2 if turn == 2 else 1], turn)


def rows_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "decoded").glob("*/*.rows"))


def test_rows_of_images_that_are_gone_make_room_and_those_of_another_part_do_not(
    make_cue_folder: object, tmp_path: Path
) -> None:
    splits = open_data(str(make_cue_folder(train=8, test=4)))  # type: ignore[operator]
    row = 3 * 20 * 20
    assert splits.test is not None
    assert cache_in(tmp_path / "cache")[0].open(splits.train, 20, 1) is not None
    cache, messages = cache_in(tmp_path / "cache", 30 * row)
    assert cache.open(splits.test, 20, 1) is None  # 24 + 12 > 30
    assert "grow beyond its limit" in messages[0]
    assert rows_in(tmp_path / "cache") == 24 * row
    for name in splits.train.names[:12]:
        (splits.train.root / name).unlink()
    assert cache_in(tmp_path / "cache", 30 * row)[0].open(splits.test, 20, 1) is not None
    assert rows_in(tmp_path / "cache") == (12 + 12) * row


def test_other_sets_are_left_alone_where_the_new_one_cannot_fit_even_so(
    make_cue_folder: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_data(str(make_cue_folder(train=4, test=1))).train  # type: ignore[operator]
    small = train.subset(range(4))
    assert cache_in(tmp_path / "cache")[0].open(small, 24, 1) is not None
    before = rows_in(tmp_path / "cache")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=cache_module.SPARE_BYTES - before - 1))
    assert cache_in(tmp_path / "cache")[0].open(train, 20, 1) is None
    assert rows_in(tmp_path / "cache") == before


def test_what_the_dead_left_half_written_is_removed_and_what_the_living_write_counts(
    make_cue_folder: object, tmp_path: Path
) -> None:
    train = open_data(str(make_cue_folder(train=4, test=1))).train  # type: ignore[operator]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, row, other = platform.node(), 3 * 20 * 20, tmp_path / "cache" / "decoded" / "photos-00"
    other.mkdir(parents=True)
    written = {
        "dead": partial_of(other / "a.rows", here, dead.pid),
        "living": partial_of(other / "b.rows", here, os.getpid()),
        "elsewhere": partial_of(other / "c.rows", "another-machine", dead.pid),
        "long ago": partial_of(other / "d.rows", "another-machine", dead.pid),
    }
    for path in written.values():
        path.write_bytes(bytes(5 * row))
    os.utime(written["long ago"], (1e9, 1e9))
    cache, messages = cache_in(tmp_path / "cache")
    assert cache.open(train, 20, 1) is not None
    assert messages[-1].endswith("12 to decode once.")
    assert [word for word, path in written.items() if path.exists()] == ["living", "elsewhere"]
    both = 2 * 5 * row + 12 * row + 12 * 3 * 24 * 24
    assert cache_in(tmp_path / "cache", both)[0].open(train, 24, 1) is not None
    assert not other.exists()  # both, and their indexes, are more than both


def test_a_set_that_another_process_removes_meanwhile_is_decoded_as_needed(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_data(str(cue_folder)).train
    known = cache_module._known

    def and_gone(home: Path, size: int) -> object:
        found = known(home, size)
        if found:
            shutil.rmtree(home)
        return found

    assert cache_in(tmp_path)[0].open(train, 20, 1) is not None
    monkeypatch.setattr(cache_module, "_known", and_gone)
    cache, messages = cache_in(tmp_path)
    store = Store(train, 20, 1, MUCH, cache)
    assert store.resident is not None
    assert torch.equal(store.resident, all_of(train))
    assert "cannot be used" in messages[-1]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system knows no owners by number")
def test_a_named_folder_of_somebody_else_may_be_used_but_not_one_found_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert cache_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HEEDMAP_CACHE", "")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder() is None


def test_a_second_start_reads_no_image_but_a_sample(
    cue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heedmap.config import TrainOptions
    from heedmap.progress import Progress
    from heedmap.workflows.train.train import prepare

    read: list[str] = []
    opened = Path.read_bytes

    def note(self: Path) -> bytes:
        read.append(self.suffix)
        return opened(self)

    monkeypatch.setattr(Path, "read_bytes", note)
    counts = []
    for _ in range(2):
        read.clear()
        prepare(TrainOptions(data=str(cue_folder), cache=str(tmp_path)), Progress())
        counts.append(read.count(".png"))
    assert counts[0] - counts[1] == 72
    assert counts[1] <= 50  # a sample, for the size at which they are wanted


class Machine:
    """What an accelerator tells of one process, and the order of what it did."""

    def __init__(self, is_first: bool) -> None:
        self.is_local_main_process, self.did = is_first, list[str]()

    def wait_for_everyone(self) -> None:
        self.did.append("waited")


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_process_of_a_machine_prepares_before_the_others(is_first: bool) -> None:
    from heedmap.workflows.train.setup import prepare_on_each

    machine = Machine(is_first)
    assert prepare_on_each(machine, lambda: machine.did.append("prepared")) is None  # type: ignore[arg-type, func-returns-value, return-value]
    assert machine.did == (["prepared", "waited"] if is_first else ["waited", "prepared"])
    machine.did.clear()

    def fails() -> None:
        raise DataError("no images")

    with pytest.raises(DataError):
        prepare_on_each(machine, fails)  # type: ignore[arg-type]
    assert machine.did == ["waited"]
