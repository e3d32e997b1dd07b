"""The pointing game on maps whose answer is known by hand."""

import math

import pytest
import torch

from heedmap.metrics.localization.pointing_game import (
    centre_pointing,
    hottest_points,
    pointing,
    pointing_table,
    random_pointing,
)

QUARTERS = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])


def peak(row, column, height=4, width=8):
    one = torch.zeros(1, height, width)
    one[0, row, column] = 1.0
    return one


def test_the_hottest_point_is_the_centre_of_the_hottest_cell():
    maps = torch.stack([peak(0, 0), peak(3, 5)])
    assert torch.equal(hottest_points(maps), torch.tensor([[0.5 / 8, 0.5 / 4], [5.5 / 8, 3.5 / 4]]))


def test_among_equal_cells_the_first_in_raster_order_counts():
    maps = torch.stack([torch.ones(1, 4, 8), peak(2, 7) + peak(1, 6), peak(3, 0) + peak(2, 1)])
    assert torch.equal(hottest_points(maps) * torch.tensor([8, 4]) - 0.5, torch.tensor([[0.0, 0], [6, 1], [1, 2]]))


def test_negative_maps_have_a_hottest_point_too():
    assert torch.equal(hottest_points(peak(1, 2)[None] - 5), hottest_points(peak(1, 2)[None]))


def test_pointing_counts_the_maps_that_hit():
    assert pointing(torch.stack([peak(0, 3), peak(2, 4)]), QUARTERS) == 1.0
    assert pointing(torch.stack([peak(0, 4), peak(2, 4)]), QUARTERS) == 0.5
    assert pointing(torch.stack([peak(0, 4), peak(1, 4)]), QUARTERS) == 0.0


def test_a_map_that_is_the_mask_itself_scores_one():
    from heedmap.data.digit_scenes import digit_scenes

    scenes = digit_scenes("test", 50)
    table = pointing_table({"mask": scenes.masks[:, None].float()}, scenes.boxes)
    assert table["mask"] == 1.0
    assert list(table) == ["mask", "centre", "random"]


def test_a_random_map_scores_the_mean_area_of_the_boxes():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.25, 0.0, 0.75, 0.5]]).expand(4000, 4)
    maps = torch.rand(4000, 1, 16, 16, generator=generator)
    assert random_pointing(boxes) == pytest.approx(0.25)
    assert pointing(maps, boxes) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))


def test_the_centre_is_inside_a_box_that_holds_or_touches_the_middle():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.4, 0.4, 0.6, 0.6], [0.51, 0.0, 1.0, 1.0], [0.0, 0.6, 1.0, 0.9]])
    assert centre_pointing(boxes) == 0.5


@pytest.mark.parametrize(
    ("maps", "boxes", "word"),
    [
        (torch.ones(2, 3, 4, 4), QUARTERS, r"\(N, 1, h, w\)"),
        (torch.ones(3, 1, 4, 4), QUARTERS, "3 maps for 2 boxes"),
        (torch.full((2, 1, 4, 4), float("nan")), QUARTERS, "not finite"),
        (torch.ones(0, 1, 4, 4), torch.ones(0, 4), "at least 1"),
        (torch.ones(2, 1, 4, 4), QUARTERS * 64, "shares"),
        (torch.ones(2, 1, 4, 4), QUARTERS.flip(1), "left < right"),
    ],
)
def test_what_cannot_be_scored_is_refused(maps, boxes, word):
    with pytest.raises(ValueError, match=word):
        pointing(maps, boxes)


def test_a_tap_may_not_pose_as_a_baseline():
    with pytest.raises(ValueError, match="centre"):
        pointing_table({"centre": torch.ones(2, 1, 4, 4)}, QUARTERS)
