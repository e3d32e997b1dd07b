"""Tar shards: read in place, exact, and with a firm word for what a shard must not hold."""

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
import torch

from conftest import CUE_CLASSES, cue_image
from heedmap.cli.main import main
from heedmap.data import FolderDataset, Splits, TensorDataset, open_data
from heedmap.data.audit.findings import audit
from heedmap.data.decoding import read_image, square, to_tensor
from heedmap.data.loader import Share, Store, TrainingBatches
from heedmap.data.transforms import Augmentation
from heedmap.data.webdataset.dataset import ShardDataset, open_shards, pack
from heedmap.data.webdataset.index import expand_braces, expand_shards, index_shard, is_sharded, read_member, split_key
from heedmap.errors import DataError, ImageError
from heedmap.runs import Run


def png(name: str, seed: int) -> bytes:
    content = io.BytesIO()
    cue_image(name, seed)[0].save(content, "PNG", compress_level=1)
    return content.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def cue_members(count: int, first: int = 0, label: str = "folder") -> list[tuple[str, bytes]]:
    """Cue images of all classes in turn, each labelled in one of the ways there are."""
    members = []
    for number in range(first, first + count):
        place = number % 3
        name = CUE_CLASSES[place]
        key = f"{name}/{number:05d}" if label == "folder" else f"{number:05d}"
        labels = {"cls": str(place), "txt": name, "json": json.dumps({"label": name, "by": "hand"})}
        members.append((f"{key}.png", png(name, number)))
        if label != "folder":
            members.append((f"{key}.{label}", labels[label].encode()))
    return members


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder with three shards of eight images to learn from and one of nine to test on."""
    for number in range(3):
        write_tar(tmp_path / "set" / "train" / f"{number:03d}.tar", cue_members(8, 8 * number))
    write_tar(tmp_path / "set" / "test" / "000.tar", cue_members(9, 1000))
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("name", "key", "kind"),
    [
        ("0001.jpg", "0001", "jpg"),
        ("a.b/c.seg.png", "a.b/c", "seg.png"),
        ("a/b/no-kind", "a/b/no-kind", ""),
    ],
)
def test_the_key_is_the_path_up_to_the_first_dot_of_the_file(name: str, key: str, kind: str) -> None:
    assert split_key(name) == (key, kind)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("plain.tar", ["plain.tar"]),
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{one}/{0..1}", ["{one}/0", "{one}/1"]),
    ],
)
def test_braces_are_written_out_as_a_shell_does(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_braces_that_stand_for_too_many_names_are_refused() -> None:
    for pattern in ("{0..9999999}", "{0..9999}{0..9999}"):
        with pytest.raises(DataError, match="100,000"):
            expand_braces(pattern)


def test_an_image_from_a_shard_is_the_image_that_was_packed(sharded: Path) -> None:
    train = open_shards(sharded).train
    assert isinstance(train, ShardDataset)
    for place, name in enumerate(train.names):
        number = int(name.rpartition("/")[2].partition(".")[0])
        whole = read_image(io.BytesIO(png(CUE_CLASSES[number % 3], number)))
        assert torch.equal(train.load(place, 24), to_tensor(square(whole, 24)))
        assert train.classes[train.labels[place]] == CUE_CLASSES[number % 3]
        assert train.length(place) == len(train.data(place))


@pytest.mark.parametrize("label", ["folder", "cls", "txt", "json"])
def test_labels_come_from_members_or_from_the_folder(tmp_path: Path, label: str) -> None:
    write_tar(tmp_path / "train-0.tar", cue_members(12, label=label))
    write_tar(tmp_path / "test-0.tar", cue_members(6, 100, label=label))
    (tmp_path / "classes.txt").write_text("\n".join(CUE_CLASSES))
    splits = open_shards(tmp_path)
    assert splits.classes == CUE_CLASSES
    assert splits.train.labels.tolist() == [0, 1, 2] * 4
    assert splits.test is not None
    assert splits.test.labels.tolist() == [1, 2, 0] * 2


def test_a_label_member_is_believed_before_the_folder(tmp_path: Path) -> None:
    members = [("wrong/1.jpg", b""), ("wrong/1.txt", b"caption"), ("wrong/1.cls", b"4")]
    assert index_shard(write_tar(tmp_path / "a.tar", members)).labels == ("4",)


def test_numbers_without_names_are_classes_by_number(tmp_path: Path) -> None:
    splits = open_shards(write_tar(tmp_path / "a.tar", cue_members(30, label="cls")))
    assert splits.classes == ("0", "1", "2")
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (24, 6)


def test_a_companion_is_no_image_but_a_dotted_name_is(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.seg.png", b"22"), ("a.cls", b"0"), ("b.v2.jpg", b"333"), ("._c.jpg", b"4")]
    index = index_shard(write_tar(tmp_path / "a.tar", members))
    assert index.names == ("a.jpg", "b.v2.jpg")
    assert index.sizes == (1, 3)
    assert index.skipped == 1


def test_a_leading_dot_slash_is_no_part_of_the_key(tmp_path: Path) -> None:
    assert index_shard(write_tar(tmp_path / "a.tar", [("./x/1.jpg", b"1")])).names == ("x/1.jpg",)


# ---- training


def test_an_epoch_over_shards_is_a_permutation_shared_by_processes(sharded: Path) -> None:
    store = Store(open_shards(sharded).train, 20, 0, 0)  # nothing in memory: every image is read when it is asked for
    shares = [TrainingBatches(store, 16, 8, Augmentation("crop", True), 5, Share(rank, 2)) for rank in range(2)]
    for epoch in (0, 3):
        seen = [index for share in shares for batch in share.epoch(epoch) for index in batch.indices.tolist()]
        assert sorted(seen) == list(range(24))


def test_batches_of_shards_are_those_of_the_folder_that_was_packed(sharded: Path, tmp_path: Path) -> None:
    splits = open_shards(sharded)
    resident, streamed = Store(splits.train, 20, 1, 1e9), Store(splits.train, 20, 0, 0)
    for one, other in zip(
        TrainingBatches(resident, 16, 6, Augmentation("crop", True), 1).epoch(2, 1),
        TrainingBatches(streamed, 16, 6, Augmentation("crop", True), 1).epoch(2, 1),
        strict=True,
    ):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)


def test_parts_without_train_beside_them_are_drawn_the_same_way_again(sharded: Path) -> None:
    once, again = (open_shards(f"{sharded}/train/{{000..002}}.tar", test=0.25, seed=3) for _ in range(2))
    assert once.test is not None
    assert again.test is not None
    assert once.test.names == again.test.names
    assert not set(once.train.names) & set(once.test.names)
    assert len(once.train) + len(once.test) == 24


# ---- packing


def test_what_was_packed_is_the_folder_again(cue_folder: Path, tmp_path: Path) -> None:
    folder, out = open_data(str(cue_folder)), tmp_path / "packed"
    packed = pack(folder, out, shard_bytes=20_000)
    assert packed.images == {"train": 36, "test": 36}
    assert packed.shards["train"] > 2
    shards = open_data(str(out))
    assert shards.classes == folder.classes
    for part, images in folder.parts.items():
        again = shards.parts[part]
        assert isinstance(images, FolderDataset)
        assert isinstance(again, ShardDataset)
        before = sorted((images.path(i).read_bytes(), int(images.labels[i])) for i in range(36))
        assert sorted((again.data(i), int(again.labels[i])) for i in range(36)) == before
        assert again.labels.tolist() != sorted(again.labels.tolist())  # all classes everywhere


def test_packing_again_gives_the_same_bytes_and_true_sums(cue_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(open_data(str(cue_folder)), tmp_path / name, shard_bytes=20_000)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "one" / "sha256sums.txt").read_text().splitlines())
    assert sums == {
        str(file): hashlib.sha256((tmp_path / "one" / file).read_bytes()).hexdigest()
        for file in files
        if file.suffix == ".tar"
    }


def test_names_that_would_not_survive_as_keys_are_made_to(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for name in ("red/a.b.png", "red/a.c.png", "red/a_b.png", "blue/x/1.png", "blue/y/1.PNG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(name.partition("/")[0], len(name)))
    pack(open_data(str(folder), test_share=0.1), tmp_path / "out")
    names = [name for part in ("train", "test") for name in index_shard(tmp_path / "out" / part / "000000.tar").names]
    assert len(set(names)) == 5
    assert {name.partition(".")[2] for name in names} == {"png"}


def test_a_full_folder_and_a_set_without_files_are_refused(cue_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not empty"):
        pack(open_data(str(cue_folder)), cue_folder)
    images = TensorDataset(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), ("a", "b"), ("1", "2"))
    with pytest.raises(DataError, match="no image files"):
        pack(Splits("in-memory", ("a", "b"), images, None, None), tmp_path / "out")


def test_a_run_learns_from_packed_shards_what_it_learns_from_the_folder(cue_folder: Path, tmp_path: Path) -> None:
    words = ["--image-size", "24", "--epochs", "2", "--batch-size", "12", "--workers", "0", "--memory", "0"]
    main(["pack", str(cue_folder), str(tmp_path / "packed"), "--shard-size", "0.02"])
    main(["train", str(tmp_path / "packed"), "--out", str(tmp_path / "run"), *words])
    run = Run.open(tmp_path / "run")
    assert run.read_json("evaluation.json")["count"] == 36
    main(["train", f"{tmp_path}/packed/train/*.tar", "--out", str(tmp_path / "other"), *words])
    assert Run.open(tmp_path / "other").config["options"]["data"] == f"{tmp_path}/packed/train/*.tar"


def test_the_audit_finds_copies_in_shards(tmp_path: Path) -> None:
    duplicate = png("red", 7)
    members = [*cue_members(9), ("red/duplicate.png", duplicate), ("blue/duplicate.png", duplicate)]
    found = audit(open_shards(write_tar(tmp_path / "a.tar", members), test=0.1), depth="full")
    assert "conflicting-labels" in {finding.kind for finding in found.findings}


# ---- the index


def test_the_index_is_cached_and_made_again_when_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, cache = write_tar(tmp_path / "a.tar", cue_members(4)), tmp_path / "cache"
    first = index_shard(shard, cache)
    with monkeypatch.context() as without:
        without.setattr(tarfile, "open", lambda **_: pytest.fail("the shard was read again"))
        assert index_shard(shard, cache) == first
    write_tar(shard, cue_members(5))
    assert len(index_shard(shard, cache)) == 5
    for damaged in ("", "{}", "[1, 2]", '{"fingerprint": null}'):
        next(cache.iterdir()).write_text(damaged)
        assert len(index_shard(shard, cache)) == 5


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert len(index_shard(write_tar(tmp_path / "a.tar", cue_members(2)), tmp_path / "cache")) == 2


# ---- what must not be


def special(kind: bytes, name: str = "x.jpg", link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "word"),
    [
        (special(tarfile.SYMTYPE, link="/etc/passwd"), "is a link"),
        (special(tarfile.LNKTYPE, link="a.jpg"), "is a link"),
        (special(tarfile.CHRTYPE), "is a device"),
        (special(tarfile.FIFOTYPE), "is a device"),
        (special(tarfile.REGTYPE, "/etc/x.jpg"), "leads out of the shard"),
        (special(tarfile.REGTYPE, "a/../../x.jpg"), "leads out of the shard"),
        (special(tarfile.REGTYPE, "a\\..\\x.jpg"), "leads out of the shard"),
    ],
)
def test_links_devices_and_paths_that_lead_out_are_refused(tmp_path: Path, info: tarfile.TarInfo, word: str) -> None:
    shard = write_tar(tmp_path / "a.tar", cue_members(1))
    with tarfile.open(shard, "a") as tar:
        tar.addfile(info)
    with pytest.raises(DataError, match=word) as caught:
        index_shard(shard)
    assert str(shard) in str(caught.value)
    assert list(tmp_path.iterdir()) == [shard]


@pytest.mark.parametrize("cut", [100, 700, 3000])
def test_a_shard_that_was_cut_short_is_reported_with_its_whole_images(tmp_path: Path, cut: int) -> None:
    whole = write_tar(tmp_path / "whole.tar", cue_members(6))
    index = index_shard(whole)
    shard = tmp_path / "cut.tar"
    shard.write_bytes(whole.read_bytes()[: index.offsets[5] + index.sizes[5] - min(cut, index.sizes[5] + 400)])
    found = index_shard(shard)
    assert found.names == index.names[:5]
    assert "damaged after byte" in found.trouble
    with pytest.raises(DataError, match="damaged after byte"):
        open_shards(shard)


def test_a_damaged_header_in_the_middle_is_no_silent_end(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", cue_members(6))
    index, content = index_shard(shard), bytearray(shard.read_bytes())
    header = index.offsets[3] - 512
    content[header : header + 100] = random.Random(0).randbytes(100)
    shard.write_bytes(content)
    found = index_shard(shard)
    assert found.names == index.names[: len(found)]
    assert "damaged after byte" in found.trouble


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**33
    shard = tmp_path / "a.tar"
    shard.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(DataError, match="8,589,934,592"):
        index_shard(shard)


def test_a_compressed_shard_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    with pytest.raises(DataError, match=r"not a plain tar file .*gunzip"):
        index_shard(tmp_path / "a.tar")


def test_a_member_above_the_guard_or_beyond_the_end_is_not_read(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", cue_members(1))
    with pytest.raises(ImageError, match=r"^n: .*above the guard"):
        read_member(shard, 0, 2**40, "n")
    with pytest.raises(ImageError, match="ends before it does"):
        read_member(shard, shard.stat().st_size - 5, 6, "n")
    with pytest.raises(ImageError, match="cannot be read"):
        read_member(tmp_path / "gone.tar", 0, 1, "n")


def test_an_image_that_cannot_be_decoded_is_named_by_shard_and_member(tmp_path: Path) -> None:
    splits = open_shards(write_tar(tmp_path / "a.tar", [*cue_members(6), ("red/x.jpg", b"no image")]), test=0.5)
    parts = [part for part in splits.parts.values() if "a.tar/red/x.jpg" in part.names]
    with pytest.raises(ImageError, match=r"^a\.tar/red/x\.jpg: it is not an image"):
        parts[0].load(parts[0].names.index("a.tar/red/x.jpg"), 16)


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([("1.jpg", b"")], "has no label"),
        ([("a/1.jpg", b"")], "one class only"),
        ([("readme.md", b"")], "hold no images"),
    ],
)
def test_shards_that_cannot_be_learned_from_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], word: str
) -> None:
    with pytest.raises(DataError, match=word):
        open_shards(write_tar(tmp_path / "a.tar", members))


def test_a_label_that_the_list_of_classes_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("blue\ngreen\n")
    for label in ("cls", "txt"):
        with pytest.raises(DataError, match=r"classes\.txt .*'(2|red)'"):
            open_shards(write_tar(tmp_path / "a.tar", cue_members(6, label=label)))


def test_a_shard_that_is_not_there_is_named_with_its_neighbour(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-00.tar", cue_members(3))
    with pytest.raises(DataError, match=r"no shard .*trian-00\.tar\. Did you mean 'train-00\.tar'"):
        expand_shards(tmp_path / "trian-00.tar")
    with pytest.raises(DataError, match=r"no shard .*train-01\.tar"):
        expand_shards(str(tmp_path / "train-{00..01}.tar"))


def test_a_tar_file_beside_class_folders_is_not_the_data(tmp_path: Path, sharded: Path, cue_folder: Path) -> None:
    assert is_sharded(sharded)
    assert is_sharded(sharded / "train")
    assert is_sharded("shards/{00..10}.tar")
    assert not is_sharded(cue_folder)
    (tmp_path / "d" / "train" / "a").mkdir(parents=True)
    write_tar(tmp_path / "d" / "all.tar", [])
    write_tar(tmp_path / "d" / "train" / "all.tar", [])
    assert not is_sharded(tmp_path / "d")
