"""The audit finds what was planted, and nothing where nothing was."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from heedmap.data.audit.findings import audit, leakage_flag
from heedmap.data.audit.near_duplicates import _stands_out, find_near_duplicates, thumbnail
from heedmap.data.cache.verified import verify_images
from heedmap.data.dataset import FolderDataset, Splits, TensorDataset
from heedmap.data.digit_scenes import digit_scenes, open_digit_scenes
from heedmap.data.folders import open_folder
from heedmap.data.webdataset.dataset import open_shards, pack
from heedmap.errors import DataError
from heedmap.types import Audit

SCENES = digit_scenes("train", 60, seed=9).images


def image(number, size=128):
    return Image.fromarray(SCENES[number].permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)


def put(path: Path, image: Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def jpeg(image, quality):
    kept = io.BytesIO()
    image.save(kept, "JPEG", quality=quality)
    return Image.open(kept).convert("RGB")


@pytest.fixture
def folder(tmp_path):
    """20 + 8 + 6 + 4 different images, two classes, two parts."""
    places = [("train", "ash", 20), ("train", "oak", 8), ("test", "ash", 6), ("test", "oak", 4)]
    number = 0
    for part, kind, count in places:
        for _ in range(count):
            put(tmp_path / part / kind / f"{number:02d}.jpg", image(number), quality=92)
            number += 1
    return tmp_path


def found(folder, depth, kind):
    result = audit(open_folder(folder), depth)
    return [(set(finding.paths), finding.splits) for finding in result.findings if finding.kind == kind], result


def test_different_images_raise_no_alarm(folder):
    for depth in ("cheap", "full"):
        result = audit(open_folder(folder), depth)
        assert result.findings == ()
        assert result.leaked == 0
        assert result.depth == depth


def test_the_counts_are_those_of_the_folder(folder):
    result = audit(open_folder(folder))
    assert result.images == {"train": 28, "test": 10}
    assert result.per_class == {"train": {"ash": 20, "oak": 8}, "test": {"ash": 6, "oak": 4}}
    assert result.seconds > 0


@pytest.mark.parametrize("depth", ["cheap", "full"])
def test_copies_are_found_across_parts_and_under_another_class(folder, depth):
    data = (folder / "train/ash/03.jpg").read_bytes()
    (folder / "test/ash/copy.jpg").write_bytes(data)
    (folder / "train/oak/wrong.jpg").write_bytes(data)
    group = {"train/ash/03.jpg", "test/ash/copy.jpg", "train/oak/wrong.jpg"}
    exact, result = found(folder, depth, "exact-duplicate")
    assert exact == [(group, ("train", "test"))]
    conflicts, _ = found(folder, depth, "conflicting-labels")
    assert conflicts == [(group, ("train", "test"))]
    assert result.leaked == 1
    assert not found(folder, depth, "near-duplicate")[0]


def test_the_same_pixels_in_another_container_are_an_exact_duplicate(folder):
    put(folder / "test/oak/again.png", Image.open(folder / "train/oak/22.jpg"))
    put(folder / "train/oak/again.bmp", Image.open(folder / "train/oak/22.jpg"))
    exact, result = found(folder, "full", "exact-duplicate")
    assert exact == [({"train/oak/22.jpg", "test/oak/again.png", "train/oak/again.bmp"}, ("train", "test"))]
    assert result.leaked == 1
    assert not found(folder, "cheap", "exact-duplicate")[0]


CHANGES = {
    "half size": lambda image: image.resize((64, 64), Image.Resampling.LANCZOS),
    "double size": lambda image: image.resize((256, 256), Image.Resampling.BICUBIC),
    "another shape": lambda image: image.resize((160, 120)),
    "quality 15": lambda image: jpeg(image, 15),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "grey": lambda image: image.convert("L"),
    "cropped by 4 % a side": lambda image: image.crop((5, 5, 123, 123)),
    "cropped at a corner": lambda image: image.crop((0, 0, 118, 118)),
    "mirrored": ImageOps.mirror,
    "small, coarse and cropped": lambda image: jpeg(image.crop((6, 0, 128, 122)).resize((70, 70)), 35),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("number", [4, 11])
def test_a_changed_copy_in_test_is_a_near_duplicate_and_leaks(folder, change, number):
    put(folder / "test/oak/changed.jpg", change(Image.open(folder / f"train/ash/{number:02d}.jpg")), quality=90)
    duplicates = {f"train/ash/{number:02d}.jpg", "test/oak/changed.jpg"}
    near, result = found(folder, "full", "near-duplicate")
    assert near == [(duplicates, ("train", "test"))]
    assert found(folder, "full", "conflicting-labels")[0] == near
    assert result.leaked == 1


def test_a_mirror_image_is_no_twin_where_mirroring_changes_the_class():
    images = torch.cat([SCENES, SCENES[:1].flip(3)])
    labels = torch.zeros(len(images), dtype=torch.int64)
    dataset = TensorDataset(images, labels, ("a", "b"), [f"train/{n}" for n in range(len(images))])
    for flippable in (True, False):
        splits = Splits("s", ("a", "b"), dataset, None, None, (), (), flippable)
        kinds = [finding.kind for finding in audit(splits, "full").findings]
        assert ("near-duplicate" in kinds) is flippable


def test_images_in_memory_are_audited_too():
    splits = open_digit_scenes(40, 20)
    images = splits.test.images.clone()
    images[3] = splits.train.images[5]
    images[4] = (splits.train.images[6].float() * 0.7).to(torch.uint8)
    test = TensorDataset(images, splits.test.labels, splits.classes, splits.test.names)
    leaky = Splits("s", splits.classes, splits.train, None, test, (), (), False)
    assert audit(splits, "full").leaked == 0
    assert audit(leaky, "cheap").leaked == 1
    assert audit(leaky, "full").leaked == 2


def test_hundreds_of_drawn_scenes_raise_no_alarm():
    scenes = digit_scenes("train", 500, seed=2).images
    assert find_near_duplicates([thumbnail(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in scenes]) == []


def test_a_twin_must_stand_out_where_eight_images_are_near():
    rows = torch.tensor([0] * 8 + [1] * 2)
    near = torch.tensor([0.96, 0.94] + [0.91] * 5 + [0.90, 0.92, 0.91])
    # image 0: 1 - 0.96 is below half of 1 - 0.90, 1 - 0.94 is not; image 1 has no eight candidates, so no rival
    assert _stands_out(rows, near, 2).tolist() == [True] + [False] * 7 + [True, True]


def horizon(seed, sky=(110, 110, 110)):
    """Bright over dark, the same in every image, with faint structure of its own in each."""
    generator = torch.Generator().manual_seed(seed)
    faint = torch.nn.functional.interpolate(torch.randn(1, 1, 12, 12, generator=generator), (128, 128), mode="bicubic")
    light = faint[0] * 9 + torch.where(torch.arange(128) < 64, 60, -60)[None, :, None]
    pixels = light + torch.tensor(sky)[:, None, None]
    return Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def test_images_that_share_only_a_horizon_are_no_twins():
    assert find_near_duplicates([thumbnail(horizon(seed)) for seed in range(20)]) == []
    assert len(find_near_duplicates([thumbnail(horizon(1)), thumbnail(jpeg(horizon(1), 50))], mirrored=False)) == 1


def test_images_of_other_colours_are_no_twins_but_a_grey_copy_is():
    blue, orange = (thumbnail(horizon(1, sky)) for sky in ((70, 110, 180), (160, 100, 60)))
    assert find_near_duplicates([blue, orange], mirrored=False) == []
    assert len(find_near_duplicates([blue, thumbnail(horizon(1, (70, 110, 180)).convert("L").convert("RGB"))])) == 1


def test_broken_files_are_named_with_their_reasons(folder):
    (folder / "train/oak/empty.jpg").touch()
    (folder / "train/oak/text.jpg").write_text("not an image")
    whole = (folder / "test/ash/28.jpg").read_bytes()
    (folder / "test/ash/28.jpg").write_bytes(whole[: len(whole) // 2])
    broken, result = found(folder, "full", "unreadable")
    names = {"train/oak/empty.jpg", "train/oak/text.jpg", "test/ash/28.jpg"}
    assert set().union(*(paths for paths, _ in broken)) == names
    notes = {finding.paths[0]: finding.note for finding in result.findings if finding.kind == "unreadable"}
    assert "empty" in notes["train/oak/empty.jpg"]
    assert "not an image" in notes["train/oak/text.jpg"]
    assert all(notes.values())


def test_several_empty_files_are_unreadable_but_not_twins(folder):
    (folder / "train/oak/empty1.jpg").touch()
    (folder / "train/oak/empty2.jpg").touch()
    assert len(found(folder, "cheap", "unreadable")[0]) == 2
    assert not found(folder, "cheap", "exact-duplicate")[0]


def test_what_is_known_to_be_unreadable_is_repeated(folder):
    splits = open_folder(folder)
    known = Splits(splits.name, splits.classes, splits.train, None, splits.test, (("train/ash/x.jpg", "why"),))
    (finding,) = audit(known).findings
    assert (finding.kind, finding.paths, finding.note) == ("unreadable", ("train/ash/x.jpg",), "why")


def test_odd_files_are_found(folder):
    put(folder / "train/oak/size.jpg", image(50, 100))
    put(folder / "train/oak/grey.jpg", image(51).convert("L"))
    put(folder / "test/oak/lie.png", image(52), format="JPEG")
    put(folder / "train/oak/plain.jpg", Image.new("RGB", (128, 128), "navy"))
    put(folder / "train/oak/long.jpg", image(53).resize((400, 128)))
    odd = {
        finding.note.partition(" ")[2]: finding.paths
        for finding in audit(open_folder(folder), "full").findings
        if finding.kind == "odd"
    }
    words = ("size", "grey", "suffix", "3 : 1", "colour only")
    by_word = {word: paths for note, paths in odd.items() for word in words if word in note}
    assert by_word["suffix"] == ("test/oak/lie.png",)
    assert by_word["grey"] == ("train/oak/grey.jpg",)
    assert by_word["colour only"] == ("train/oak/plain.jpg",)
    assert by_word["3 : 1"] == ("train/oak/long.jpg",)
    assert by_word["size"] == ("train/oak/long.jpg", "train/oak/size.jpg")


def test_a_grey_set_is_not_odd_in_being_grey(tmp_path):
    for number in range(12):
        put(tmp_path / f"{'ab'[number % 2]}/{number}.png", image(number).convert("L"))
    assert audit(open_folder(tmp_path), "full").findings == ()


def test_imbalanced_classes_are_found_in_train(folder):
    for path in list((folder / "train/oak").iterdir())[:5]:
        path.unlink()
    (finding,) = audit(open_folder(folder)).findings
    assert finding.kind == "imbalance"
    assert "'ash' has 20" in finding.note
    assert "'oak' only 3" in finding.note


def test_a_depth_that_does_not_exist_names_the_nearest(folder):
    with pytest.raises(DataError, match="Did you mean 'full'"):
        audit(open_folder(folder), "ful")


def audited(leaked, depth="full"):
    return Audit({"train": 100, "test": 1000}, {}, (), leaked, 0.1, depth)


@pytest.mark.parametrize(
    ("accuracy", "leaked", "flagged"),
    [
        (0.99, 0, False),  # nothing leaked: a high accuracy alone is no offence
        (0.70, 10, False),  # exactly 1 %
        (0.70, 11, True),
        (0.97, 7, False),  # 30 wrong: 7 leaked are less than a quarter of them
        (0.97, 8, True),
        (0.96, 10, False),
        (1.00, 1, True),
    ],
)
def test_leakage_is_flagged_where_it_could_explain_the_accuracy(accuracy, leaked, flagged):
    assert (leakage_flag(accuracy, audited(leaked), 1000) is not None) is flagged


def test_the_flag_states_what_is_left_without_the_leaked_images():
    sentence = leakage_flag(0.9, audited(200), 1000)
    assert "200 of 1,000" in sentence
    assert "87.5%" in sentence  # (900 - 200) / 800
    assert "byte-identical" in leakage_flag(0.9, audited(200, "cheap"), 1000)


def test_a_test_part_that_is_the_train_part_is_reported():
    assert "no test image that was not trained on" in leakage_flag(0.998, audited(1000), 1000)


def test_a_test_part_that_is_the_train_part_leaks_all(folder):
    splits = open_folder(folder)
    same = Splits("s", splits.classes, splits.train, None, splits.train)
    assert audit(same, "cheap").leaked == 28


def test_an_accuracy_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        leakage_flag(99.8, audited(1), 1000)


@pytest.fixture
def read(monkeypatch):
    """How often an image's file was read."""
    seen = []
    data = FolderDataset.data
    monkeypatch.setattr(FolderDataset, "data", lambda self, index: seen.append(self.names[index]) or data(self, index))
    return seen


def test_with_digests_of_the_files_nothing_is_read_and_the_same_is_found(folder, tmp_path_factory, read):
    (folder / "test/oak/copy.jpg").write_bytes((folder / "train/ash/03.jpg").read_bytes())
    (folder / "train/oak/duplicate.jpg").write_bytes((folder / "train/ash/03.jpg").read_bytes())
    cache = tmp_path_factory.mktemp("kept")
    plain = audit(open_folder(folder))
    assert plain.leaked == 1
    for again in (False, True):
        read.clear()
        checked = verify_images(open_folder(folder), 2, cache)
        result = audit(checked.splits, digests=checked.digests)
        assert len(read) == (0 if again else 40)
        assert result.findings == plain.findings
        assert result.leaked == 1


def test_a_broken_file_has_no_digest_and_shifts_no_other(folder, tmp_path):
    (folder / "train/ash/00.jpg").write_bytes(b"broken")
    (folder / "test/oak/copy.jpg").write_bytes((folder / "train/ash/03.jpg").read_bytes())
    checked = verify_images(open_folder(folder), 1, None)
    assert [len(digests) for digests in checked.digests.values()] == [27, 11]
    result = audit(checked.splits, digests=checked.digests)
    assert result.leaked == 1
    assert {f.kind: set(f.paths) for f in result.findings}["exact-duplicate"] == {
        "train/ash/03.jpg",
        "test/oak/copy.jpg",
    }


def test_an_image_whose_shard_is_gone_is_reported_as_unreadable(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed")
    pack(open_folder(folder), out)
    splits = open_shards(out)
    same = Splits("s", splits.classes, splits.train, None, splits.train)
    for shard in (out / "train").glob("*.tar"):
        shard.write_bytes(b"")
    kinds = {finding.kind for finding in audit(same).findings}
    assert "unreadable" in kinds
