"""The embedded data set: what is promised about it, seen in its pixels."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from heedmap.data.digit_scenes import CLASSES, FIRST_TEST_DIGIT, _corner, _digits, digit_scenes, open_digit_scenes
from heedmap.errors import DataError


def test_the_same_index_is_the_same_scene_whatever_the_count():
    few, many = digit_scenes("test", 7, seed=3), digit_scenes("test", 260, seed=3)
    assert torch.equal(few.images, many.images[:7])
    assert torch.equal(few.labels, many.labels[:7])
    assert few.names[6] == many.names[6] == "test/000006"


def test_seed_part_and_index_change_the_scene():
    first = digit_scenes("train", 251)
    assert not torch.equal(first.images[0], first.images[250])  # the beginning of another chunk
    assert not torch.equal(first.images[:1], digit_scenes("train", 1, seed=1).images)
    # the ground is another as well, not only the digit
    assert (first.images[0] != digit_scenes("test", 1).images[0]).float().mean() > 0.9


def test_train_and_test_share_no_digit_and_each_has_every_class():
    digits = load_digits().images
    train, test = _digits("train"), _digits("test")
    assert len(train.labels) + len(test.labels) == len(digits)
    seen = {row.tobytes() for row in train.cells.numpy()}
    assert not any(row.tobytes() in seen for row in test.cells.numpy())
    for part in (train, test):
        assert part.labels.bincount(minlength=10).min() > 40


def test_the_cut_falls_where_a_writer_begins():
    labels = load_digits().target
    assert labels[FIRST_TEST_DIGIT : FIRST_TEST_DIGIT + 20].tolist() == list(range(10)) * 2


def test_the_box_is_the_tight_box_of_the_mask():
    scenes = digit_scenes("train", 60)
    for mask, box in zip(scenes.masks, scenes.boxes, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert torch.equal(box * 64, torch.stack(expected).float())


def test_the_digit_lies_wholly_inside_and_anywhere():
    boxes = digit_scenes("train", 500).boxes
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert boxes[:, :2].min() < 0.03
    assert boxes[:, 2:].max() > 0.97
    holds_the_middle = ((boxes[:, :2] <= 0.5) & (boxes[:, 2:] >= 0.5)).all(1).float().mean()
    assert 0.15 < holds_the_middle < 0.4


def test_a_digit_reaches_every_edge_and_crosses_none():
    inked = np.zeros((2000, 48), dtype=bool)
    inked[:, 5:30] = True
    corner = _corner(np.random.default_rng(0), inked, 64)
    assert (corner + 5).min() == 0
    assert (corner + 29).max() == 63


def test_the_masked_pixels_are_the_digit_in_one_ink_that_stands_out():
    scenes = digit_scenes("test", 60)
    light = torch.tensor([0.299, 0.587, 0.114]) @ scenes.images.float().flatten(2)
    for row, mask in zip(light, scenes.masks.flatten(1), strict=True):
        ink, ground = row[mask], row[~mask].median()  # clutter covers less than half of the ground
        assert (ink.median() - ground).abs() > 0.2 * 255


def test_clutter_is_as_strong_as_the_digit():
    # an image's strongest contrast lies outside the digit at least as often as in it, so it gives nothing away
    scenes = digit_scenes("train", 250)
    light = torch.tensor([0.299, 0.587, 0.114]) @ scenes.images.float().flatten(2)
    strongest = (light - light.median(1, keepdim=True).values).abs().argmax(1, keepdim=True)
    assert scenes.masks.flatten(1).gather(1, strongest).float().mean() < 0.5


def test_another_size_draws_the_same_kind_of_scene_in_proportion():
    scenes = digit_scenes("train", 30, size=48)
    assert scenes.images.shape == (30, 3, 48, 48)
    area = (scenes.boxes[:, 2:] - scenes.boxes[:, :2]).prod(1).mean()
    assert area == pytest.approx(0.105, abs=0.03)


def test_opened_as_a_data_set_it_has_two_parts_and_may_not_be_mirrored():
    splits = open_digit_scenes(train_count=20, test_count=10, seed=1)
    assert (len(splits.train), len(splits.test), splits.validation) == (20, 10, None)
    assert splits.classes == splits.train.classes == CLASSES
    assert not splits.flippable
    assert splits.unreadable == ()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("val", 3), "'val'"), (("train", 0), "count"), (("train", 3, -1), "seed"), (("train", 3, 0, 512), "512")],
)
def test_what_is_out_of_range_is_named(arguments, word):
    with pytest.raises(DataError, match=word):
        digit_scenes(*arguments)


def test_labels_are_those_of_the_digits_drawn():
    # shrunk to 8x8, a digit's box is nearer (in cosine) to the mean digit of its class than to the others
    scenes = digit_scenes("train", 200)
    digits = _digits("train")
    means = torch.stack([digits.cells[digits.labels == label].mean(0) for label in range(10)])[:, 1:9, 1:9]
    right = 0
    for mask, box, label in zip(scenes.masks, (scenes.boxes * 64).int().tolist(), scenes.labels.tolist(), strict=True):
        left, top, right_edge, bottom = box
        height = bottom - top
        middle = (left + right_edge) // 2
        wide = torch.zeros(height, 64 + 2 * height)
        wide[:, height : height + 64] = mask[top:bottom].float()
        crop = wide[:, height + middle - height // 2 : height + middle + height // 2]
        cells = torch.nn.functional.adaptive_avg_pool2d(crop[None], 8)[0]
        likeness = torch.nn.functional.cosine_similarity(means.flatten(1), cells.flatten()[None])
        right += int(likeness.argmax()) == label
    assert right >= 0.7 * len(scenes)  # the mean digits alone; chance is 0.1
