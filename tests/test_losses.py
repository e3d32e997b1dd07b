"""Loss terms on the maps: each by hand, and that training lowers it."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from heedmap.config import TrainOptions
from heedmap.data.dataset import TensorDataset
from heedmap.data.digit_scenes import digit_scenes
from heedmap.data.loader import Store, TrainingBatches
from heedmap.data.transforms import Augmentation, apply_to_masks
from heedmap.errors import DataError
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import combined_map
from heedmap.models.factory import build_classifier
from heedmap.training.losses import (
    LEAST_SIDE,
    WHOLE,
    Window,
    disagreement,
    entropy,
    mismatch,
    second_view,
    window_of,
)
from heedmap.training.trainer import fit
from heedmap.types import Output


def grid(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)[None, None]


def test_a_uniform_map_has_entropy_one_and_a_point_has_none() -> None:
    even, point = torch.full((2, 1, 4, 4), 1 / 16), grid([0.0, 1.0], [0.0, 0.0])
    assert float(entropy({"a": even})) == pytest.approx(1)
    assert float(entropy({"a": point})) == pytest.approx(0)
    assert float(entropy({"a": even, "b": point.expand(2, -1, -1, -1)})) == pytest.approx(0.5)


def test_the_entropy_of_two_places_of_four_is_a_half() -> None:
    assert float(entropy({"a": grid([0.5, 0.5], [0.0, 0.0])})) == pytest.approx(math.log(2) / math.log(4))


def test_a_map_of_one_place_has_no_entropy_to_speak_of() -> None:
    assert float(entropy({"a": torch.ones(3, 1, 1, 1)})) == 0


def test_a_map_that_follows_the_mirror_does_not_disagree_and_one_that_stays_does() -> None:
    left, right = grid([1.0, 0.0], [0.0, 0.0]), grid([0.0, 1.0], [0.0, 0.0])
    assert float(disagreement({"a": left}, {"a": right})) == pytest.approx(0)
    assert float(disagreement({"a": left}, {"a": left})) == pytest.approx(1)
    half = grid([0.5, 0.5], [0.0, 0.0])
    assert float(disagreement({"a": left}, {"a": half})) == pytest.approx(0.5)


def test_the_second_view_of_a_map_is_the_mirrored_window_enlarged() -> None:
    values = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(second_view(values, WHOLE), values.flip(3))
    # The left upper quarter of the mirrored map: columns 3 and 2. Linear from 2.75 and 0.75 / 2 cells on.
    seen = second_view(values, Window(0.0, 0.0, 0.5))
    across, down = torch.tensor([3.0, 2.75, 2.25, 1.75]), torch.tensor([0.0, 0.25, 0.75, 1.25])  # the border is kept
    torch.testing.assert_close(seen[0, 0], across[None] + 4 * down[:, None])
    # The right lower quarter of it: what stands at the left of the map itself.
    seen = second_view(values, Window(0.5, 0.5, 0.5))
    across, down = torch.tensor([1.25, 0.75, 0.25, 0.0]), torch.tensor([1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(seen[0, 0], across[None] + 4 * down[:, None])


def test_a_map_that_follows_the_window_does_not_disagree_and_one_that_stays_does() -> None:
    whole = torch.zeros(1, 1, 8, 8)
    whole[..., 0:4, 4:8] = 1  # the right upper quarter, which the mirrored view has at its left
    window = Window(0.0, 0.0, 0.5)
    followed = second_view(whole, window)
    assert float(followed.min()) > 0.4  # all of the window is lit, its inner edges half
    assert float(disagreement({"a": whole}, {"a": followed}, window)) == pytest.approx(0, abs=1e-6)
    assert float(disagreement({"a": whole}, {"a": whole}, window)) > 0.5


def test_a_window_lies_within_the_image_and_has_at_least_its_side() -> None:
    for numbers in torch.cat((torch.rand(200, 3, generator=torch.Generator().manual_seed(0)), torch.ones(1, 3))):
        left, top, side = window_of(numbers)
        assert LEAST_SIDE - 1e-6 <= side <= 1
        assert 0 <= left <= 1 - side + 1e-6
        assert 0 <= top <= 1 - side + 1e-6


def test_the_mismatch_is_the_divergence_from_a_uniform_map_over_the_mask() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2] = True  # the upper two of four cells
    assert float(mismatch({"a": grid([0.5, 0.5], [0.0, 0.0])}, mask)) == pytest.approx(0, abs=1e-6)
    assert float(mismatch({"a": grid([0.25, 0.25], [0.25, 0.25])}, mask)) == pytest.approx(math.log(2), abs=1e-6)
    # All on one cell of the two: half of the object is met at log 1/2, half at the least that is counted.
    assert float(mismatch({"a": grid([1.0, 0.0], [0.0, 0.0])}, mask)) == pytest.approx(
        -math.log(2) - 0.5 * math.log(1e-6), abs=1e-4
    )
    mask[0, 1, 2:] = False  # of the right one only half is covered now
    assert float(mismatch({"a": grid([2 / 3, 1 / 3], [0.0, 0.0])}, mask)) == pytest.approx(0, abs=1e-6)
    none, even = torch.zeros_like(mask), grid([0.25, 0.25], [0.25, 0.25])
    assert float(mismatch({"a": even}, none)) == 0
    both = mismatch({"a": even.repeat(2, 1, 1, 1)}, torch.cat((mask, none)))
    assert float(both) == pytest.approx(float(mismatch({"a": even}, mask)))


@pytest.mark.parametrize("term", ["entropy", "disagreement", "mismatch"])
def test_a_step_down_each_term_lowers_it(term: str) -> None:
    scores = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, :4, :4] = True

    def value(scores: Tensor) -> Tensor:
        maps = {"a": scores.flatten(1).softmax(1).view_as(scores)}
        return {
            "entropy": lambda: entropy(maps),
            "disagreement": lambda: disagreement(maps, maps),
            "mismatch": lambda: mismatch(maps, masks),
        }[term]()

    (slope,) = torch.autograd.grad(value(scores), scores)
    assert value(scores - 0.5 * slope) < value(scores)


@pytest.mark.parametrize("kind", ["none", "shift", "crop"])
def test_masks_are_augmented_like_their_images(kind: str) -> None:
    drawn = digit_scenes("train", 8, size=48)
    assert drawn.masks is not None
    white = drawn.masks[:, None].expand(-1, 3, -1, -1).to(torch.uint8) * 255  # images that are their own masks
    images = TensorDataset(white, drawn.labels, drawn.classes, drawn.names, drawn.boxes, drawn.masks)
    augmentation = Augmentation(kind, True, colour=0.0)
    batches = TrainingBatches(Store(images, 48, 1, 1e9), 48, 8, augmentation, 0, with_masks=True)
    for epoch in range(2):
        (batch,) = batches.epoch(epoch)
        assert batch.masks is not None
        assert batch.masks.any()
        torch.testing.assert_close(batch.masks, batch.images[:, 0] >= 0.5)


def test_masks_of_another_size_are_resized_to_the_images() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = True
    still = apply_to_masks(masks, 8, torch.zeros(1, 7), torch.tensor([False]), Augmentation("none", False), 8)
    assert still[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_missing_masks_are_refused() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    dataset = TensorDataset(images, torch.zeros(4, dtype=torch.long), ("a",), tuple("wxyz"))
    with pytest.raises(DataError, match="map_supervision"):
        TrainingBatches(Store(dataset, 8, 1, 1e9), 8, 4, Augmentation("none", False), 0, with_masks=True)


@functools.cache
def after_training(**weights: float) -> dict[str, float]:
    """What each term comes to on the images learned from, after a few steps."""
    scenes = digit_scenes("train", 64, size=48)
    assert scenes.masks is not None
    torch.manual_seed(0)
    classifier = build_classifier(Architecture("compact", "parametrised", None, "concat", None, 48, scenes.classes))
    for attention in classifier.attentions:  # uniform maps, with which training begins, leave entropy no slope
        torch.nn.init.normal_(attention.scorer.weight, std=0.1)
    options = TrainOptions(epochs=3, learning_rate=0.003, weight_decay=0.0, precision="float32", **weights)  # type: ignore[arg-type]
    batches = TrainingBatches(
        Store(scenes, 48, 1, 1e9), 48, 16, Augmentation("shift", False), 0, with_masks="map_supervision" in weights
    )
    list(fit(classifier, batches, None, options))
    with torch.no_grad():
        images = scenes.images.float() / 255
        maps, mirrored = classifier(images).attention, classifier(images.flip(3)).attention
    return {
        "map_supervision": float(mismatch(maps, scenes.masks)),
        "map_consistency": float(disagreement(maps, mirrored)),
        "map_entropy": float(entropy(maps)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["map_supervision", "map_consistency", "map_entropy"])
def test_each_map_term_is_lowered_by_training(name: str) -> None:
    assert after_training(**{name: 1.0})[name] < after_training()[name]


@pytest.mark.slow
def test_a_learned_combination_is_learned_and_leaves_the_maps_alone() -> None:
    scenes = digit_scenes("train", 64, size=48)
    assert scenes.masks is not None

    def trained(combine: Any) -> Output:
        torch.manual_seed(0)
        architecture = Architecture("compact", "parametrised", None, "concat", None, 48, scenes.classes, combine)
        classifier = build_classifier(architecture)
        options = TrainOptions(
            combine=combine, map_supervision=1.0, epochs=6, learning_rate=0.01, weight_decay=0.0, precision="float32"
        )
        store = Store(scenes, 48, 1, 1e9)
        batches = TrainingBatches(store, 48, 16, Augmentation("shift", False), 0, with_masks=True)
        list(fit(classifier, batches, None, options))
        with torch.no_grad():
            return classifier(scenes.images.float() / 255)

    root, learned = trained("root"), trained("learned")
    for tap, values in root.attention.items():
        torch.testing.assert_close(learned.attention[tap], values)
    assert learned.shares is not None
    assert float(learned.shares.sum()) == pytest.approx(1)
    assert float((learned.shares - 0.5).abs().min()) > 0.001  # 24 steps


def test_the_tap_that_lies_on_the_object_gains_share() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, :2] = True
    maps = {"on": grid([0.7, 0.1], [0.1, 0.1]), "off": grid([0.1, 0.1], [0.1, 0.7])}
    scores = torch.zeros(2, requires_grad=True)
    before = mismatch({"combined": combined_map(maps, scores.softmax(0))}, mask)
    (slope,) = torch.autograd.grad(before, scores)
    assert slope[0] < 0 < slope[1]
    assert mismatch({"combined": combined_map(maps, (scores - slope).softmax(0))}, mask) < before


def test_a_step_without_masks_still_gives_the_shares_a_gradient() -> None:
    scenes = digit_scenes("train", 16, size=48)
    architecture = Architecture("compact", "parametrised", None, "concat", None, 48, scenes.classes, "learned")
    options = TrainOptions(
        combine="learned", map_supervision=1.0, epochs=1, learning_rate=0.01, weight_decay=0.0, cutmix=1.0
    )
    classifier = build_classifier(architecture)
    store = Store(scenes, 48, 1, 1e9)
    fitting = fit(
        classifier, TrainingBatches(store, 48, 8, Augmentation("none", False), 0, with_masks=True), None, options
    )
    seen: list[Tensor | None] = []
    assert classifier.tap_scores is not None
    classifier.tap_scores.register_hook(lambda slope: seen.append(slope))
    list(fitting)
    assert [slope is not None and float(slope.abs().max()) == 0 for slope in seen] == [True, True]


def test_images_and_maps_are_cut_alike_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset: list[Window] = []
    maps: list[Window] = []

    def seen(images: Tensor, window: Window) -> Tensor:
        dataset.append(window)
        return second_view(images, window)

    def evaluated(found: dict[str, Tensor], others: dict[str, Tensor], window: Window) -> Tensor:
        maps.append(window)
        return disagreement(found, others, window)

    monkeypatch.setattr("heedmap.training.losses.second_view", seen)
    monkeypatch.setattr("heedmap.training.losses.disagreement", evaluated)
    after_training.__wrapped__(map_consistency=1.0)
    cut = [window for window in dataset if window != WHOLE]
    assert len(set(maps)) == len(maps) == 12
    assert set(cut) == set(maps)


def test_a_map_that_was_cut_away_counts_nothing() -> None:
    far = torch.full((1, 1, 8, 8), 1e-9)
    far[..., 7, 0] = 1  # left below; the window is the mirrored map's left upper quarter
    window = Window(0.0, 0.0, 0.5)
    other = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(disagreement({"a": far}, {"a": other}, window)) < 1e-6


def test_shut_gates_do_not_make_the_consistency_infinite() -> None:
    shut, window = torch.zeros(1, 1, 4, 4), Window(0.1, 0.1, 0.7)
    assert torch.isfinite(disagreement({"a": shut}, {"a": shut}, window))


def test_no_attention_with_a_learned_combination_gives_its_shares_a_gradient() -> None:
    scenes = digit_scenes("train", 16, size=48)
    classifier = build_classifier(Architecture("compact", "none", None, "concat", None, 48, scenes.classes, "learned"))
    options = TrainOptions(
        attention="none", combine="learned", map_supervision=1.0, epochs=1, learning_rate=0.01, weight_decay=0.0
    )
    batches = TrainingBatches(Store(scenes, 48, 1, 1e9), 48, 8, Augmentation("none", False), 0, with_masks=True)
    seen: list[Tensor] = []
    assert classifier.tap_scores is not None
    classifier.tap_scores.register_hook(seen.append)
    list(fit(classifier, batches, None, options))
    assert len(seen) == 2


def test_constant_maps_get_no_term() -> None:
    def losses(**asked: float) -> list[float]:
        scenes = digit_scenes("train", 16, size=48)
        torch.manual_seed(0)
        classifier = build_classifier(Architecture("compact", "none", None, "concat", None, 48, scenes.classes))
        options = TrainOptions(attention="none", epochs=2, learning_rate=0.01, weight_decay=0.0, **asked)  # type: ignore[arg-type]
        batches = TrainingBatches(
            Store(scenes, 48, 1, 1e9), 48, 8, Augmentation("none", False), 0, with_masks="map_supervision" in asked
        )
        return [report.train_loss for report in fit(classifier, batches, None, options)]

    plain = losses()
    assert losses(map_entropy=1.0) == plain
    assert losses(map_supervision=1.0) == plain


def test_ignored_cells_are_in_neither_sum() -> None:
    regions = torch.zeros(1, 4, 4, dtype=torch.uint8)
    regions[0, :2, :2] = 1  # the left upper of four cells
    maps = {"a": grid([0.4, 0.4], [0.1, 0.1])}
    regions[0, :2, 2:] = 2  # the right upper: what lies there is neither right nor wrong
    assert float(mismatch(maps, regions)) == pytest.approx(math.log(0.6 / 0.4), abs=1e-6)
    regions[0, 0, 2:] = 0  # half of it may be evaluated again, and the whole cell with it
    assert float(mismatch(maps, regions)) == pytest.approx(-math.log(0.4), abs=1e-6)
    regions[0, :2, :2] = torch.tensor([[1, 2], [2, 2]])  # hardly any of the object may be evaluated
    both = torch.cat((regions, torch.where(torch.arange(16).view(1, 4, 4) < 8, 1, 0).to(torch.uint8)))
    even = {"a": torch.full((2, 1, 2, 2), 0.25)}
    assert float(mismatch(even, both)) == pytest.approx(math.log(2), abs=1e-6)  # of the second image alone


def test_a_mask_of_two_values_and_its_region_cost_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 9, 9, generator=generator) < 0.3
    maps = {"a": torch.rand(6, 1, 4, 4, generator=generator), "b": torch.rand(6, 1, 7, 7, generator=generator)}
    assert float(mismatch(maps, masks)) == float(mismatch(maps, masks.to(torch.uint8)))


@pytest.mark.parametrize("kind", ["none", "shift", "crop"])
def test_regions_are_augmented_like_masks(kind: str) -> None:
    from heedmap.data.transforms import draw

    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(0, 3, (8, 6, 6), generator=generator).to(torch.uint8).repeat_interleave(8, 1)
    regions = regions.repeat_interleave(8, 2)
    numbers, mirrored = draw(8, generator), torch.arange(8) % 2 == 0
    asked = (48, numbers, mirrored, Augmentation(kind, True), 48)
    found = apply_to_masks(regions, *asked)
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found == 1, apply_to_masks(regions == 1, *asked))
    ignored = apply_to_masks(regions == 2, *asked)
    torch.testing.assert_close(found == 2, ignored & (found != 1))


def test_packed_regions_come_back_as_they_were_in_a_quarter_of_the_bytes(tmp_path: Any) -> None:
    from heedmap.data.dataset import FolderDataset
    from heedmap.data.masks import PackedRegions

    regions = torch.randint(0, 3, (5, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    regions[3] = 2
    packed = PackedRegions.pack(iter(regions), 5, 12)
    assert packed.packed.nbytes == 5 * 12 * 12 // 4
    assert packed.marked == 4
    torch.testing.assert_close(packed[torch.tensor([4, 0, 0])], regions[[4, 0, 0]])
    torch.testing.assert_close(torch.stack(list(packed)), regions)
    images = FolderDataset(tmp_path, [f"{row}.png" for row in range(5)], torch.zeros(5).long(), ("a",))
    kept = images.with_masks(packed).subset([2, 1]).masks
    assert isinstance(kept, PackedRegions)
    torch.testing.assert_close(kept[torch.arange(2)], regions[[2, 1]])


def test_ignored_regions_reach_the_training(tmp_path: Any) -> None:
    import json

    from PIL import Image

    from heedmap.data.dataset import FolderDataset
    from heedmap.workflows.train.setup import _with_masks

    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    boxes = [{"bbox": [0, 0, 8, 8], "iscrowd": 0}, {"bbox": [8, 8, 8, 8], "iscrowd": 1}]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 16, "height": 16}],
        "annotations": [{"image_id": 1, **box} for box in boxes],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    images = FolderDataset(tmp_path, ["1.png"], torch.tensor([0]), ("a",))
    found, notes = _with_masks(images, TrainOptions(annotations=str(tmp_path / "coco.json")), 4)
    assert notes[-1] == "1 of 1 training images have objects for map_supervision."
    batches = TrainingBatches(Store(found, 4, 1, 1e9), 4, 1, Augmentation("none", False), 0, with_masks=True)
    (batch,) = batches.epoch(0)
    assert batch.masks is not None
    assert batch.masks[0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]]
