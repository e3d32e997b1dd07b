"""The meaning of a heatmap: the hottest value is drawn hottest, at its own place, on the scale that is named."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from heedmap.types import AttentionMap
from heedmap.visualization.heatmap import COLOURS, heatmap, hottest, is_flat, overlay, peak_text, scale_of
from heedmap.visualization.panel import (
    PAPER,
    RIGHT,
    WRONG,
    Caption,
    Row,
    _drawable,
    _fit,
    _font,
    _write,
    draw_panel,
    legend,
)


def luminance(image: Image.Image) -> np.ndarray:
    """Relative luminance: light, so the sRGB curve is undone first (IEC 61966-2-1)."""
    coded = np.asarray(image, np.float64) / 255
    light = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    return light @ (0.2126, 0.7152, 0.0722)


def drawn_map(values: torch.Tensor, tap: str = "stage3") -> AttentionMap:
    return AttentionMap(values, tap, "parametrised, softmax", *scale_of(values))


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image) == colour).all(-1).any())


def test_ones_are_drawn_in_the_last_colour_and_zeros_in_the_first() -> None:
    assert (np.asarray(heatmap(torch.ones(3, 3), 0, 1)) == COLOURS[-1]).all()
    assert (np.asarray(heatmap(torch.zeros(3, 3), 0, 1)) == COLOURS[0]).all()
    assert (np.asarray(heatmap(torch.ones(3, 3), 0, 1, 50)) == COLOURS[-1]).all()


def test_hotter_is_lighter_all_the_way() -> None:
    steps = np.diff(luminance(heatmap(np.linspace(0, 1, 256)[None], 0, 1))[0])
    assert (steps > 0).all()


def test_every_value_has_the_colour_of_its_place_on_the_scale() -> None:
    values = np.array([[-1.0, 2.0, 4.0, 6.0, 9.0]])
    assert (np.asarray(heatmap(values, 2, 6))[0] == COLOURS[[0, 0, 128, 255, 255]]).all()


def test_a_scale_is_never_stretched_to_the_map() -> None:
    faint = np.full((4, 4), 0.1)
    assert (np.asarray(heatmap(faint, 0, 1)) == COLOURS[26]).all()


@pytest.mark.parametrize("draw", [lambda v: heatmap(v, 0, 1), lambda v: overlay(Image.new("RGB", (9, 9)), v, 0, 1)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused(draw, bad: float) -> None:
    values = torch.zeros(3, 3)
    values[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        draw(values)


def test_a_map_has_two_axes_and_a_scale_has_a_length() -> None:
    with pytest.raises(ValueError, match="shape"):
        heatmap(torch.zeros(1, 3, 3), 0, 1)
    with pytest.raises(ValueError, match="from low to high"):
        heatmap(torch.zeros(3, 3), 1, 1)
    with pytest.raises(ValueError, match="opacity"):
        overlay(Image.new("RGB", (9, 9)), torch.zeros(3, 3), 0, 1, 1.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("smooth", [True, False])
def test_the_lightest_spot_lies_at_the_largest_value(seed: int, smooth: bool) -> None:
    values = np.random.default_rng(seed).random((7, 7)) * 0.8
    row, column = np.random.default_rng([seed, 1]).integers(0, 7, 2)
    values[row, column] = 1
    light = luminance(heatmap(values, 0, 1, 224, smooth=smooth))
    y, x = np.unravel_index(light.argmax(), light.shape)
    assert (y // 32, x // 32) == (row, column)
    share_x, share_y = hottest(values)
    assert (share_x * 7, share_y * 7) == pytest.approx((column + 0.5, row + 0.5))


def test_interpolation_is_the_bilinear_one_of_torch(generator: torch.Generator) -> None:
    values = torch.rand(5, 5, generator=generator)
    expected = torch.nn.functional.interpolate(values[None, None], (60, 60), mode="bilinear")[0, 0].numpy()
    drawn = np.asarray(heatmap(values, 0, 1, 60), np.int64)
    assert np.abs(drawn - COLOURS[(expected * 255).round().astype(int)]).max() <= 8  # one step of the table


def test_half_precision_maps_are_drawn() -> None:
    assert (np.asarray(heatmap(torch.ones(2, 2, dtype=torch.bfloat16), 0, 1)) == COLOURS[-1]).all()


def test_cold_places_of_an_overlay_stay_the_photograph_and_the_hottest_shows_its_colour() -> None:
    grey = Image.new("RGB", (64, 64), (120, 120, 120))
    values = torch.zeros(8, 8)
    values[2, 5] = 1
    drawn = np.asarray(overlay(grey, values, 0, 1, 1.0, smooth=False))
    assert (drawn[20, 44] == COLOURS[-1]).all()
    assert (drawn[50, 10] == 120).all()
    assert (np.asarray(overlay(grey, values, 0, 1, 0.0)) == 120).all()


def test_an_overlay_is_the_mixture_of_its_definition(generator: torch.Generator) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    values = torch.rand(5, 5, generator=generator)
    wide = np.asarray(Image.fromarray(values.numpy()).resize((40, 40), Image.Resampling.BILINEAR), np.float64)
    heat = (wide / 0.8).clip(0, 1)
    ground = np.asarray(ImageEnhance.Color(image).enhance(0.25), np.float64)
    opaque = 0.6 * np.sqrt(heat)[..., None]
    expected = opaque * COLOURS[(heat * 255).round().astype(int)] + (1 - opaque) * ground
    drawn = np.asarray(overlay(image, values, 0, 0.8, 0.6), np.float64)
    assert np.abs(drawn - expected).max() <= 2  # of 255: opacity and mixture are rounded to bytes


@pytest.mark.parametrize("anchor", ["la", "ra"])
def test_a_line_that_is_kept_looks_like_one_drawn_anew(anchor: str) -> None:
    for text in ("gypsum, 97.5 %", "0.0547"):
        ours, theirs = (Image.new("RGB", (240, 60), (247, 247, 245)) for _ in range(2))
        ImageDraw.Draw(theirs).text((120, 20), text, (90, 20, 30), ImageFont.load_default(15), anchor=anchor)
        for _ in range(2):  # drawn, then kept
            ours.paste((247, 247, 245), (0, 0, 240, 60))
            end = _write(ImageDraw.Draw(ours), (120, 20), text, 15, (90, 20, 30), anchor=anchor)
            assert end > 120
            assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_a_map_goes_from_zero_to_its_largest_value_unless_told() -> None:
    assert scale_of(torch.tensor([[0.25, 0.75]])) == (0, 0.75)
    assert scale_of(torch.tensor([[-2.0, 1.0]])) == (-2, 1)
    assert scale_of(torch.zeros(2, 2)) == (0, 1)


def test_the_peak_is_told_as_a_multiple_of_an_even_spread() -> None:
    even = torch.full((4, 4), 1 / 16)
    assert peak_text(even) == "peak 0.0625 = 1.0 x uniform"
    assert peak_text(torch.tensor([[1.0, 0], [0, 0]])) == "peak 1 = 4.0 x uniform"
    assert peak_text(torch.tensor([[0.9, 0.3]])) == "peak 0.9 = 1.5 x its mean"
    assert peak_text(torch.zeros(2, 2)) == "peak 0"


def test_a_legend_runs_from_the_first_colour_to_the_last() -> None:
    bar = np.asarray(legend(0, 0.5, "text", 300))
    assert bar.shape == (44, 300, 3)
    assert np.abs(bar[4, 0].astype(int) - COLOURS[0]).max() <= 4
    assert np.abs(bar[4, -1].astype(int) - COLOURS[-1]).max() <= 4
    assert (bar[12:26] != PAPER).any()


def test_a_panel_has_a_column_for_the_image_and_one_for_each_map() -> None:
    image = Image.new("RGB", (90, 90), (30, 90, 160))
    one, three = (
        draw_panel([Row(image, "image", (drawn_map(torch.eye(4)),) * count)], Caption("sea", 0.9), tile=100)
        for count in (1, 3)
    )
    assert three.width - one.width == 2 * (100 + 16)
    assert has_colour(one, (30, 90, 160))


def test_a_map_that_is_flat_to_rounding_gets_no_ring() -> None:
    def ringed(values: torch.Tensor) -> bool:
        row = Row(Image.new("RGB", (64, 64)), "image", (AttentionMap(values, "a", "", 0.0, 1e9),))
        return has_colour(draw_panel([row], Caption("sea", 0.5)).crop((294, 92, 550, 348)), (255, 255, 255))

    even = torch.full((4, 4), 1 / 16)
    assert not ringed(even + 1e-7 * torch.eye(4))
    assert ringed(even + 0.01 * torch.eye(4))
    assert [is_flat(values) for values in (even, torch.zeros(3, 3), -even, torch.eye(3) - 1)] == [
        True,
        True,
        True,
        False,
    ]


def test_a_second_row_and_a_note_make_the_panel_taller() -> None:
    row = Row(Image.new("RGB", (90, 90)), "image", (drawn_map(torch.eye(4)),), top=(("sea", 0.9), ("ice", 0.1)))
    heights = [
        draw_panel(rows, Caption("sea", 0.9), note).height
        for rows, note in (([row], ""), ([row], "a\nb"), ([row] * 2, ""))
    ]
    assert heights[0] < heights[1] < heights[2]


def test_right_and_wrong_have_their_colour_and_an_unknown_truth_has_none() -> None:
    row = Row(Image.new("RGB", (90, 90)), "image", (drawn_map(torch.eye(4)),))
    found = {}
    for label in ("sea", "ice", None):
        drawn = draw_panel([row], Caption("sea", 0.9, label)).crop((0, 0, 560, 60))
        found[label] = has_colour(drawn, RIGHT), has_colour(drawn, WRONG)
    assert found == {"sea": (True, False), "ice": (False, True), None: (False, False)}


def test_a_box_is_outlined_where_it_is_given() -> None:
    row = Row(Image.new("RGB", (90, 90), (30, 90, 160)), "image", (drawn_map(torch.eye(4)),))
    one, other = (0.25, 0.25, 0.75, 0.75), (0.1, 0.4, 0.2, 0.9)
    plain, boxed, both, alone = (
        np.asarray(draw_panel([row], Caption("sea", 0.9), boxes=boxes, tile=100))
        for boxes in ((), (one,), (one, other), (other,))
    )
    assert ((both != plain) == ((boxed != plain) | (alone != plain))).all()
    rows, columns = (plain != boxed).any(-1).nonzero()
    image = columns < 22 + 100
    assert (columns[image].min() - 22, columns[image].max() - 22) == (24, 75)
    assert rows[image].max() - rows[image].min() == 51


def test_long_names_are_cut_in_the_middle_and_fit() -> None:
    name = "a/very/long/path/that/never/seems/to/come/to/its/end/image.png"
    cut = _fit(name, 12, 150)
    assert _font(cut, 12).getlength(cut) <= 150
    assert cut.startswith("a/very")
    assert cut.endswith(".png")
    assert _fit("short", 12, 150) == "short"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x85", "\u2028", "\u2029", "\x00"])
def test_a_name_that_holds_the_end_of_a_line_is_drawn_on_one(end: str) -> None:
    # A shaper of other writing than ASCII refuses some of these, and that once ended a training after its last step.
    assert _fit(f"Zürich{end}See", 12, 500).split(end) == ["Zürich", "See"]
    assert _drawable(f"a{end}b") == f"a{' ' * len(end)}b"
    row = Row(Image.new("RGB", (90, 90)), f"Zürich{end}See.png", (drawn_map(torch.eye(4)),))
    draw_panel([row], Caption("sea", 0.5, None, f"Zürich{end}See.png"))


def test_other_writing_than_ascii_can_always_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedmap.visualization.panel._other_font", lambda size: None)
    assert _drawable("café") == "cafe"
    assert _drawable("猫") == "?"
    row = Row(Image.new("RGB", (90, 90)), "image", (drawn_map(torch.eye(4)),))
    draw_panel([row], Caption("Ägypten 猫", 0.9))
