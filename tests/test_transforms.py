"""Views of images: each against an oracle that does it one image and one pixel at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heedmap.data import transforms as views
from heedmap.data.transforms import Augmentation

KINDS = ("none", "shift", "crop")


@pytest.fixture
def stored(generator: torch.Generator) -> Tensor:
    """(6, 3, 36, 36) uint8 noise: images as they are stored for crops of 32 pixels."""
    return torch.randint(0, 256, (6, 3, 36, 36), dtype=torch.uint8, generator=generator)


def middle(count: int) -> Tensor:
    """Numbers of a draw that mean: no shift, the middle of every range."""
    return torch.full((count, 7), 0.5)


def never(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool)


@pytest.mark.parametrize("kind", KINDS)
def test_views_have_the_requested_size_and_values_from_zero_to_one(kind: str, generator: torch.Generator) -> None:
    augmentation = Augmentation(kind, flip=True, colour=0.9)
    side = 36 if kind == "crop" else 32
    pixels = torch.randint(0, 2, (16, 3, side, side), generator=generator).mul(255).to(torch.uint8)
    made = views.apply(pixels, views.draw(16, generator), torch.arange(16) % 2 == 0, augmentation, 32)
    assert made.shape == (16, 3, 32, 32)
    assert made.dtype == torch.float32
    assert made.min() >= 0
    assert made.max() <= 1
    assert made.isfinite().all()


@pytest.mark.parametrize(("size", "view"), [(16, 16), (36, 32), (72, 64), (144, 128), (160, 144)])
def test_a_network_trains_on_crops_of_eight_ninths_of_the_size_at_which_it_is_evaluated(size: int, view: int) -> None:
    assert views.view_size(size, Augmentation("crop", True)) == view
    assert views.view_size(size, Augmentation("shift", True)) == size


def test_small_images_are_shifted_and_photographs_cropped() -> None:
    assert views.choose(32, True) == Augmentation("shift", True)
    assert views.choose(64, False) == Augmentation("shift", False)
    assert views.choose(65, True) == Augmentation("crop", True)


def test_a_full_crop_without_colour_is_a_plain_resize(stored: Tensor) -> None:
    whole = Augmentation("crop", flip=False, least_area=1.0, colour=0.0)
    made = views.apply(stored, middle(6), never(6), whole, 32)
    plain = F.interpolate(stored.double() / 255, (32, 32), mode="bilinear")
    torch.testing.assert_close(made.double(), plain, atol=1.01 / 255, rtol=0)


def test_a_crop_shows_the_place_that_its_numbers_name() -> None:
    # Columns count up from 0 to 143; a quarter of the area at the right edge shows the columns from 72 on.
    ramp = torch.arange(144).to(torch.uint8).expand(1, 3, 144, 144)
    numbers = torch.tensor([[0.0, 0.5, 0.999, 0.5, 0.5, 0.5, 0.5]])
    quarter = Augmentation("crop", flip=True, least_area=0.25, colour=0.0)
    made = views.apply(ramp, numbers, never(1), quarter, 72)[0, 0, 0] * 255
    torch.testing.assert_close(made, torch.arange(72.0, 144.0), atol=1e-2, rtol=0)
    mirrored = views.apply(ramp, numbers, ~never(1), quarter, 72)[0, 0, 0] * 255
    torch.testing.assert_close(mirrored, made.flip(0), atol=1e-2, rtol=0)


def test_no_crop_looks_beyond_the_image(generator: torch.Generator) -> None:
    # An image of one value, among which padding of any other value would be seen.
    same = torch.full((64, 3, 36, 36), 200, dtype=torch.uint8)
    made = views.apply(same, views.draw(64, generator), never(64), Augmentation("crop", True, colour=0.0), 32)
    torch.testing.assert_close(made, torch.full_like(made, 200 / 255), atol=1e-5, rtol=0)


def test_without_augmentation_an_image_is_itself(stored: Tensor, generator: torch.Generator) -> None:
    made = views.apply(stored, views.draw(6, generator), ~never(6), Augmentation("none", flip=False), 36)
    assert torch.equal(made, stored.float() / 255)


@pytest.mark.parametrize(("shift", "reach"), [(None, 4), (2, 2), (0, 0)])  # an eighth of 36 pixels, rounded down
def test_a_shift_is_a_crop_of_the_image_with_reflected_borders(
    shift: int | None, reach: int, stored: Tensor, generator: torch.Generator
) -> None:
    numbers = views.draw(6, generator)
    numbers[0, :2], numbers[1, :2] = 0.0, 0.9999  # the ends of the reach
    mirrored = torch.tensor([False, False, True, True, False, True])
    made = views.apply(stored, numbers, mirrored, Augmentation("shift", flip=True, shift=shift), 36)
    padded = F.pad(stored.double() / 255, (reach,) * 4, mode="reflect")
    for row in range(6):
        down, across = (int(number * (2 * reach + 1)) for number in numbers[row, :2].tolist())
        oracle = padded[row, :, down : down + 36, across : across + 36]
        oracle = oracle.flip(2) if mirrored[row] else oracle
        torch.testing.assert_close(made[row].double(), oracle, atol=1e-6, rtol=0)


def test_all_shifts_within_reach_occur_equally_often(generator: torch.Generator) -> None:
    position = torch.arange(16).to(torch.uint8).expand(4000, 3, 1, 16).expand(-1, -1, 16, -1)
    made = views.apply(position, views.draw(4000, generator), never(4000), Augmentation("shift", False), 16)
    shifts = (made[:, 0, 0, 8] * 255).round().long() - 8
    counts = (shifts + 2).bincount()
    assert len(counts) == 5
    assert (counts - 800).abs().max() < 130  # 5 standard deviations of a fair die with 5 sides


def test_every_image_is_mirrored_in_every_other_epoch() -> None:
    rows = torch.arange(1000)
    for seed in (0, 1, 77):
        epochs = [views.flips(rows, epoch, seed) for epoch in range(4)]
        assert torch.equal(epochs[0], ~epochs[1])
        assert torch.equal(epochs[0], epochs[2])
        assert torch.equal(epochs[1], epochs[3])
        assert 450 < epochs[0].sum() < 550


def test_which_images_are_mirrored_first_depends_on_the_seed_and_not_on_the_parity_of_the_row() -> None:
    rows = torch.arange(1000)
    first = views.flips(rows, 0, 0)
    assert any(not torch.equal(first, views.flips(rows, 0, seed)) for seed in range(1, 8))
    assert 200 < first[::2].sum() < 300


def test_digits_are_not_mirrored(stored: Tensor) -> None:
    for kind in KINDS:
        kept = Augmentation(kind, flip=False)
        one = views.apply(stored, middle(6), never(6), kept, 36)
        other = views.apply(stored, middle(6), ~never(6), kept, 36)
        assert torch.equal(one, other)


def test_colours_move_brightness_contrast_and_saturation_by_their_factors(generator: torch.Generator) -> None:
    image = torch.rand(1, 3, 8, 8, generator=generator) * 0.4 + 0.3
    reach, numbers = 0.2, torch.tensor([[0, 0, 0, 0, 0.75, 0.25, 1.0]])
    factors = (1 + reach * (numbers[:, 4:] * 2 - 1)).T
    made = views._colour(image.permute(0, 2, 3, 1) * 255, factors).permute(0, 3, 1, 2)
    grey = image.double().mean(1, keepdim=True)
    saturated = grey + 1.2 * (image - grey)
    contrasted = grey.mean() + 0.9 * (saturated - grey.mean())
    torch.testing.assert_close(made.double(), 1.1 * contrasted, atol=1e-6, rtol=0)


def by_the_definition(images: Tensor, numbers: Tensor, mirrored: Tensor, size: int, colour: float) -> Tensor:
    """A crop with colours as torchvision has them: cut out, resized, mirrored, one image at a time, in float64."""
    made = []
    for image, drawn, turned in zip(images.double() / 255, numbers.tolist(), mirrored.tolist(), strict=True):
        side, area, aspect = image.shape[-1], 0.35 + 0.65 * drawn[0], math.exp((drawn[1] * 2 - 1) * 0.2877)
        width, height = (max(1, min(side, round(side * share**0.5))) for share in (area * aspect, area / aspect))
        left, top = int(drawn[2] * (side - width + 1)), int(drawn[3] * (side - height + 1))
        cut = image[None, :, top : top + height, left : left + width]
        view = F.interpolate(cut, (size, size), mode="bilinear")[0]
        view = view.flip(2) if turned else view
        brightness, contrast, saturation = (1 + colour * (number * 2 - 1) for number in drawn[4:])
        grey = view.mean(0, keepdim=True)
        view = grey + saturation * (view - grey)
        made.append(brightness * (grey.mean() + contrast * (view - grey.mean())))
    return torch.stack(made).clamp(0, 1)


def in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops as accelerators make them."""
    monkeypatch.setattr(views, "_cropped_bytes", views._sampled)


@pytest.mark.parametrize(("count", "size"), [(1, 16), (8, 32), (21, 40), (21, 49)])
@pytest.mark.parametrize("way", ["bytes", "floats"])
def test_crops_are_those_of_the_definition(
    count: int, size: int, way: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 256, (count, 3, 54, 54), dtype=torch.uint8, generator=generator)
    numbers, mirrored = views.draw(count, generator), torch.arange(count) % 3 == 0
    tolerance = 1.01 / 255  # bytes are rounded twice, once each way
    if way == "floats":
        in_floats(monkeypatch)
        tolerance = 1e-5
    made = views.apply(images, numbers, mirrored, Augmentation("crop", flip=True, colour=0.0), size)
    torch.testing.assert_close(
        made.double(), by_the_definition(images, numbers, mirrored, size, 0.0), atol=tolerance, rtol=0
    )
    made = views.apply(images, numbers, mirrored, Augmentation("crop", flip=True), size)
    oracle = by_the_definition(images, numbers, mirrored, size, 0.3)
    torch.testing.assert_close(made.double(), oracle, atol=2 * tolerance, rtol=0)  # colours stretch what is rounded


def test_views_have_a_pixels_channels_side_by_side_however_the_images_lie(generator: torch.Generator) -> None:
    planes = torch.randint(0, 256, (5, 3, 54, 54), dtype=torch.uint8, generator=generator)
    numbers, crop = views.draw(5, generator), Augmentation("crop", flip=True)
    pixels = planes.contiguous(memory_format=torch.channels_last)
    made = [views.apply(images, numbers, torch.arange(5) % 2 == 0, crop, 48) for images in (planes, pixels)]
    assert torch.equal(*made)
    assert made[0].is_contiguous(memory_format=torch.channels_last)


def test_every_place_of_a_crop_is_drawn_equally_often(generator: torch.Generator) -> None:
    numbers = views.draw(4000, generator)
    numbers[:, 0] = 0.0  # the smallest crop: 12 of 20 pixels
    boxes = views._boxes(numbers, 20, Augmentation("crop", flip=False, least_area=0.36))
    square = boxes[(boxes[:, 1] - boxes[:, 0] == 12) & (boxes[:, 3] - boxes[:, 2] == 12)]
    for starts in (square[:, 0], square[:, 2]):
        counts = starts.bincount(minlength=9)
        assert len(counts) == 9
        mean = len(square) / 9
        assert (counts - mean).abs().max() < 5 * mean**0.5


def test_cutmix_share_is_the_share_of_pixels_that_stayed(generator: torch.Generator) -> None:
    # Each image has one value of its own, so every pixel tells whose it is.
    own = torch.arange(1.0, 6.0)[:, None, None, None].expand(5, 3, 20, 30)
    for _ in range(50):
        mixed, share = views.cutmix(own, torch.rand(3, generator=generator))
        stayed = mixed == own
        assert stayed.double().mean((1, 2, 3)).tolist() == pytest.approx([share] * 5)
        assert torch.equal(mixed[~stayed], own.roll(1, 0)[~stayed])


def test_cutmix_pastes_one_whole_rectangle_and_leaves_the_images_as_they_were() -> None:
    images = torch.arange(2.0)[:, None, None, None].repeat(1, 3, 10, 10)
    before = images.clone()
    mixed, share = views.cutmix(images, torch.tensor([0.25, 0.999, 0.0]))
    expected = torch.zeros(10, 10)
    expected[5:, :5] = 1  # a quarter of the area: 5 x 5, at the bottom left
    assert torch.equal(mixed[0, 0], expected)
    assert share == 0.75
    assert torch.equal(images, before)


def test_the_area_that_cutmix_pastes_is_uniform(generator: torch.Generator) -> None:
    images = torch.zeros(2, 3, 64, 64)
    shares = torch.tensor([views.cutmix(images, torch.rand(3, generator=generator))[1] for _ in range(800)])
    assert shares.mean() == pytest.approx(0.5, abs=0.06)  # truncation to whole pixels included
    assert shares.std() == pytest.approx(12**-0.5, abs=0.03)


def test_a_share_of_the_draw_gives_the_views_of_the_whole_batch(generator: torch.Generator) -> None:
    pixels = torch.randint(0, 256, (6, 3, 36, 36), dtype=torch.uint8, generator=generator)
    numbers, mirrored = views.draw(6, generator), torch.tensor([True, False, True, False, False, True])
    for kind in KINDS:
        augmentation = Augmentation(kind, flip=True)
        whole = views.apply(pixels, numbers, mirrored, augmentation, 36)
        for rank in (0, 1, 2):
            part = views.apply(pixels[rank::3], numbers[rank::3], mirrored[rank::3], augmentation, 36)
            torch.testing.assert_close(part, whole[rank::3], atol=1e-6, rtol=0)
