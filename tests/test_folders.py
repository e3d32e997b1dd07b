import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from heedmap.data import FolderDataset, open_data, open_folder, split_by_class, verify_images
from heedmap.data.folders import find_parts
from heedmap.errors import DataError, OptionError


def put(root: Path, *names: str) -> Path:
    """Write a small image under each of these names (``{n}`` of a name counts 0, 1, 2)."""
    for name in names:
        for number in range(3 if "{n}" in name else 1):
            path = root / name.format(n=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path.with_suffix(".png"))
            path.with_suffix(".png").rename(path)
    return root


def files(images: object) -> list[str]:
    assert isinstance(images, FolderDataset)
    return list(images.names)


def test_train_and_test_are_read_with_classes_in_natural_order(tmp_path: Path) -> None:
    put(tmp_path, "train/class10/{n}.png", "train/class2/{n}.png", "train/Class1/{n}.png")
    put(tmp_path, "test/class2/x.png", "test/class10/y.png", "test/Class1/z.png")
    splits = open_folder(tmp_path)
    assert splits.classes == ("Class1", "class2", "class10")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert files(splits.train)[:3] == ["train/Class1/0.png", "train/Class1/1.png", "train/Class1/2.png"]
    assert files(splits.test) == ["test/Class1/z.png", "test/class2/x.png", "test/class10/y.png"]
    assert splits.validation is None
    assert splits.notes == ()
    assert splits.train.load(4, 4)[0].unique().tolist() == [1]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_a_lone_validation_part_is_the_test_part_and_that_is_noted(tmp_path: Path, name: str) -> None:
    put(tmp_path, "Train/a/{n}.png", "Train/b/{n}.png", f"{name}/a/x.png", f"{name}/b/x.png")
    splits = open_folder(tmp_path)
    assert files(splits.test) == [f"{name}/a/x.png", f"{name}/b/x.png"]
    assert splits.validation is None
    assert splits.notes == (f"There is no test folder, so {name!r} is the test part.",)


def test_validation_beside_test_stays_validation(tmp_path: Path) -> None:
    put(tmp_path, *(f"{part}/{name}/{{n}}.png" for part in ("train", "TEST", "valid") for name in "ab"))
    splits = open_folder(tmp_path)
    assert len(splits.train) == len(splits.parts["validation"]) == len(splits.parts["test"]) == 6
    assert files(splits.validation)[0] == "valid/a/0.png"
    assert list(splits.parts) == ["train", "validation", "test"]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_a_test_part_one_is_drawn_by_class_with_a_recorded_seed(tmp_path: Path, prefix: str) -> None:
    put(tmp_path, *(f"{prefix}{name}/{number}.png" for name in "ab" for number in range(10)), f"{prefix}c/0.png")
    splits = open_folder(tmp_path, test=0.3, seed=5)
    assert torch.bincount(splits.train.labels).tolist() == [7, 7, 1]
    assert torch.bincount(splits.parts["test"].labels).tolist() == [3, 3]
    assert set(files(splits.train)).isdisjoint(files(splits.test))
    assert splits.notes == (
        "There is no test part, so 30% of each class was set apart as one with seed 5: "
        "15 images to learn from, 6 to test on.",
        "One image only, so none to test on: class c.",
    )
    assert files(open_folder(tmp_path, test=0.3, seed=5).test) == files(splits.test)
    assert files(open_folder(tmp_path, test=0.3, seed=6).test) != files(splits.test)


def test_system_files_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, "a/{n}.png", "b/{n}.png")
    put(tmp_path, ".git/x.png", ".ipynb_checkpoints/x.png", "__MACOSX/a/x.png", "a/.ipynb_checkpoints/0.png")
    put(tmp_path, "a/._0.png", "b/__MACOSX/x.png", "a/.hidden/x.png")
    for name in ("a/Thumbs.db", "a/desktop.ini", "b/.DS_Store"):
        (tmp_path / name).touch()
    splits = open_folder(tmp_path)
    assert splits.classes == ("a", "b")
    assert sorted(files(splits.train) + files(splits.test)) == [f"{name}/{n}.png" for name in "ab" for n in range(3)]
    assert len(splits.notes) == 1


def test_endings_count_in_any_case_and_other_files_are_noted(tmp_path: Path) -> None:
    endings = (".JPG", ".jpeg", ".Png", ".bmp", ".gif", ".webp", ".tif", ".TIFF", ".ppm", ".pgm")
    put(tmp_path, *(f"train/a/x{ending}" for ending in endings), "train/b/{n}.png", "test/a/0.png", "test/b/0.png")
    for name in ("one.heic", "two.heic", "labels.csv", "README"):
        (tmp_path / "train/a" / name).touch()
    splits = open_folder(tmp_path)
    assert len(splits.train) == len(endings) + 3
    assert splits.notes == ("Files in 'train' that are not images by their ending: 2 .heic, 1 without ending, 1 .csv.",)


def test_class_folders_are_searched_to_the_bottom(tmp_path: Path) -> None:
    put(tmp_path, "train/a/x/y/{n}.png", "train/a/0.png", "train/b/{n}.png", "test/a/q/0.png", "test/b/0.png")
    splits = open_folder(tmp_path)
    assert splits.classes == ("a", "b")
    assert files(splits.train)[:4] == ["train/a/0.png", "train/a/x/y/0.png", "train/a/x/y/1.png", "train/a/x/y/2.png"]


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/{n}.png", "data/train/b/{n}.png", "data/test/a/0.png", "data/test/b/0.png")
    root = tmp_path / "data"
    (root / "train/a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "train/b/up").symlink_to(root, target_is_directory=True)
    (root / "train/b/self").symlink_to(root / "train/b", target_is_directory=True)
    (root / "train/b/one.png").symlink_to(tmp_path / "elsewhere/0.png")
    splits = open_folder(root)
    assert files(splits.train)[:3] == [f"train/a/{number}.png" for number in range(3)]
    assert files(splits.train)[3:] == [*(f"train/b/{number}.png" for number in range(3)), "train/b/one.png"]


def test_a_dangling_link_is_counted_as_unreadable(tmp_path: Path) -> None:
    put(tmp_path, "train/a/{n}.png", "train/b/{n}.png", "test/a/0.png", "test/b/0.png")
    (tmp_path / "train/a/lost.png").symlink_to(tmp_path / "nowhere.png")
    splits = verify_images(open_folder(tmp_path), workers=1).splits
    assert splits.unreadable == (("train/a/lost.png", "there is no such file"),)


def test_composed_and_decomposed_letters_are_the_same_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    put(tmp_path, f"train/{composed}/0.png", "train/b/0.png", f"test/{decomposed}/0.png", "test/b/0.png")
    splits = open_folder(tmp_path)
    assert splits.classes == ("b", composed)
    assert splits.parts["test"].labels.tolist() == [0, 1]
    assert splits.parts["test"].load(1, 4).shape == (3, 4, 4)


def test_a_vehicle_called_train_is_a_class(tmp_path: Path) -> None:
    put(tmp_path, "bus/{n}.png", "car/{n}.png", "train/{n}.png")
    splits = open_folder(tmp_path)
    assert splits.classes == ("bus", "car", "train")
    assert "'train' is read as a class, not as a part of the data." in splits.notes


def test_valid_and_invalid_are_classes(tmp_path: Path) -> None:
    put(tmp_path, "valid/{n}.png", "invalid/{n}.png")
    assert open_folder(tmp_path).classes == ("invalid", "valid")
    assert find_parts(tmp_path) == {}


def test_images_without_class_beside_class_folders_are_noted(tmp_path: Path) -> None:
    put(tmp_path, "train/a/{n}.png", "train/b/{n}.png", "train/{n}.png", "test/a/0.png", "test/b/0.png", "pred/x.png")
    assert open_folder(tmp_path).notes == (
        "Skipped beside train: pred.",
        "3 images lie directly in 'train', without class, and are skipped.",
    )


def test_equal_subfolders_in_every_class_are_pointed_out(tmp_path: Path) -> None:
    put(tmp_path, *(f"{part}/{name}/{{n}}.png" for part in ("seg_train", "seg_test") for name in ("sea", "street")))
    assert any("should the outer ones be train and test?" in note for note in open_folder(tmp_path).notes)


def test_a_class_absent_from_test_is_noted(tmp_path: Path) -> None:
    put(tmp_path, "train/a/{n}.png", "train/b/{n}.png", "test/a/0.png")
    assert open_folder(tmp_path).notes == ("'test' has no images of class b.",)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_folder(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    put(tmp_path, "flowers/a/0.png")
    assert refusal(tmp_path / "flower") == f"There is no folder '{tmp_path}/flower'. Did you mean 'flowers'?"


def test_a_file_is_refused_as_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "x.png")
    assert "x.png is a file, not a folder of images" in refusal(tmp_path / "x.png")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path} is empty; expected DIR/train/CLASS")
    (tmp_path / "train").mkdir()
    assert "holds no images" in refusal(tmp_path) or "is empty" in refusal(tmp_path)


def test_folders_without_images_are_refused_with_what_lies_there(tmp_path: Path) -> None:
    for name in ("a/1.heic", "b/2.heic"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert "holds no images (but 2 .heic)" in refusal(tmp_path)


def test_one_class_only_is_refused_and_a_wrapping_folder_seen_through(tmp_path: Path) -> None:
    put(tmp_path, "dataset/cats/{n}.png")
    assert "holds one class only, 'dataset'; a classifier needs two or more." in refusal(tmp_path)
    (tmp_path / "manifest.json").touch()
    assert refusal(tmp_path).endswith("is a run, not a folder of images; name the images.")
    (tmp_path / "manifest.json").unlink()
    put(tmp_path, "dataset/dogs/{n}.png")
    assert refusal(tmp_path).endswith(f"Did you mean {tmp_path}/dataset?")


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    put(tmp_path, "train/a/{n}.png", "train/b/{n}.png", "test/a/0.png")
    (tmp_path / "train/hollow").mkdir()
    assert "no images of class 'hollow'; add some or remove the folder." in refusal(tmp_path)


def test_classes_of_test_unknown_to_train_are_named_with_the_nearest(tmp_path: Path) -> None:
    put(tmp_path, "train/mountain/{n}.png", "train/sea/{n}.png", "test/Mountains/0.png", "test/sea/0.png")
    assert refusal(tmp_path) == (
        f"{tmp_path}/test: train has no class 'Mountains'; name the folders as in train. Did you mean 'mountain'?"
    )


def test_images_without_any_class_folder_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "flat", "{n}.png")
    assert "3 images lie in it without class folders; sort them into CLASS/." in refusal(tmp_path / "flat")
    put(tmp_path / "parts", "train/{n}.png", "test/a/0.png")
    assert "train: 3 images lie in it without class folders" in refusal(tmp_path / "parts")
    put(tmp_path / "kaggle", "train/a/0.png", "train/b/0.png", "test/{n}.png")
    assert "test: 3 images lie in it without class folders" in refusal(tmp_path / "kaggle")


def test_a_test_part_without_train_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "test/a/0.png", "test/b/0.png", "val/a/0.png")
    assert "there is 'test' but no 'train'" in refusal(tmp_path)


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "train/b/0.png", "val/a/0.png", "valid/a/0.png")
    assert "'val' and 'valid' both claim to be the validation part" in refusal(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "b/0.png")
    (tmp_path / "b").chmod(0)
    try:
        assert "No permission to read the folder" in refusal(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_no_permission_reads_as_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/0.png", "b/0.png")

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"No permission to read the folder '{tmp_path}'" in refusal(tmp_path)


def test_the_split_takes_the_share_of_each_class_but_never_all_nor_none() -> None:
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] + [3] * 100)
    kept, taken = split_by_class(labels, 0.25, seed=0)
    assert torch.bincount(labels[taken], minlength=4).tolist() == [3, 1, 0, 25]  # 2.5 rounds up; 0.5 rounds up to 1
    assert torch.cat([kept, taken]).sort().values.tolist() == list(range(len(labels)))
    _, tiny = split_by_class(labels, 0.001, seed=0)
    assert torch.bincount(labels[tiny], minlength=4).tolist() == [1, 1, 0, 1]
    _, huge = split_by_class(labels, 0.999, seed=0)
    assert torch.bincount(labels[huge], minlength=4).tolist() == [9, 1, 0, 99]


def test_the_split_repeats_for_a_seed_and_leaves_the_global_generator_alone() -> None:
    labels = torch.arange(200) % 4
    before = torch.get_rng_state()
    first, again, other = (split_by_class(labels, 0.2, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_most_lowers_the_share() -> None:
    labels = torch.arange(10_000) % 10
    assert len(split_by_class(labels, 0.5, 0, most=1000)[1]) == 1000
    assert len(split_by_class(labels, 0.5, 0, most=10_000)[1]) == 5000


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match="between 0 and 1"):
        split_by_class(torch.zeros(4, dtype=torch.int64), share, 0)


def broken_folder(root: Path) -> Path:
    put(root, "train/a/{n}.jpg", "train/b/{n}.jpg", "test/a/{n}.jpg", "test/b/{n}.jpg")
    (root / "train/a/1.jpg").write_bytes(b"")
    (root / "test/b/0.jpg").write_text("not an image")
    Image.effect_noise((64, 64), 50).save(root / "train/b/2.jpg")
    whole = (root / "train/b/2.jpg").read_bytes()
    (root / "train/b/2.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    return root


def test_unreadable_images_are_named_and_left_out(tmp_path: Path) -> None:
    splits = open_folder(broken_folder(tmp_path))
    assert isinstance(splits.train, FolderDataset)
    checked = verify_images(splits, workers=2).splits
    assert [name for name, _ in checked.unreadable] == ["train/a/1.jpg", "train/b/2.jpg", "test/b/0.jpg"]
    assert checked.unreadable[0][1] == "the file is empty (0 bytes)"
    assert "truncated" in checked.unreadable[1][1]
    assert checked.unreadable[2][1] == "it is not an image that heedmap reads"
    assert (len(checked.train), len(checked.parts["test"])) == (4, 5)
    assert checked.train.labels.tolist() == [0, 0, 1, 1]


def test_a_class_without_readable_images_is_refused_by_name(tmp_path: Path) -> None:
    splits = open_folder(broken_folder(tmp_path))
    with pytest.raises(DataError, match="'a'"):
        splits.without({"train": [(index, "it is damaged") for index in range(3)]})
    with pytest.raises(DataError, match=r"test part.*it is damaged"):
        splits.without({"test": [(index, "it is damaged") for index in range(6)]})


def test_open_data_distinguishes_a_misspelt_set_from_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean 'digit-scenes'\?"):
        open_data("digit_scenes")
    with pytest.raises(DataError, match="There is no folder"):
        open_data(tmp_path / "nothing-like-it")
    put(tmp_path, "a/{n}.png", "b/{n}.png")
    assert open_data(tmp_path, seed=3, test_share=0.4).notes[0].startswith("There is no test part, so 40% of each")
