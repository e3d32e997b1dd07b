"""Recipes: what is derived from the images, and that what the user said stays."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from heedmap.config import TrainOptions
from heedmap.data import Splits, TensorDataset
from heedmap.errors import OptionError
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier
from heedmap.training.recipes import FAST, NORMALISED, derive, early_views


def splits(count: int, size: int, flippable: bool = True) -> Splits:
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8).expand(count, -1, -1, -1)  # one image's memory
    labels = torch.arange(count) % 2
    part = TensorDataset(images, labels, ("a", "b"), tuple(map(str, range(count))))
    return Splits("drawn", ("a", "b"), part, None, None, (), (), flippable)


@pytest.mark.parametrize(
    ("count", "size", "model"),
    [(10_000, 32, "whitened"), (9_999, 32, "compact"), (10_000, 48, "whitened"), (10_000, 64, "compact")],
)
def test_many_small_images_take_the_whitened_net(count: int, size: int, model: str) -> None:
    assert derive(TrainOptions(), splits(count, size)).model == model


def test_the_fast_recipe_takes_fewer_passes_and_changes_nothing_else() -> None:
    data = splits(12_000, 32)
    standard, fast = (derive(TrainOptions(recipe=recipe), data) for recipe in ("standard", "fast"))
    passes = 2650 / math.sqrt(12_000)
    assert (standard.epochs, fast.epochs) == (round(passes), round(passes * FAST))
    differing = {name for name in vars(standard) if getattr(standard, name) != getattr(fast, name)}
    assert differing == {"recipe", "epochs"}


def test_the_fast_recipe_shows_photographs_smaller_at_first_and_small_images_never() -> None:
    fast = TrainOptions(recipe="fast", augment="crop", epochs=10)
    assert early_views(fast, 128) == (6, 96)
    assert early_views(replace(fast, epochs=1), 128) == (1, 96)
    for other in (replace(fast, recipe="standard"), replace(fast, augment="shift")):
        assert early_views(other, 128)[0] == 0


@pytest.mark.parametrize(
    "said",
    [
        {"model": "compact"},
        {"epochs": 3, "recipe": "fast"},
        {"optimizer": "adamw", "learning_rate": 0.5},
        {"weight_decay": 0.0, "label_smoothing": 0.0, "cutmix": 0.0},
        {"batch_size": 7, "augment": "none", "flip": False, "image_size": 40},
    ],
)
def test_options_of_the_user_stay(said: dict[str, Any]) -> None:
    derived = derive(TrainOptions(**said), splits(12_000, 32))
    assert {name: getattr(derived, name) for name in said} == said


def test_nothing_is_left_open() -> None:
    for count, size in ((200, 32), (20_000, 32), (200, 150)):
        derived = vars(derive(TrainOptions(), splits(count, size)))
        needed = ("model", "image_size", "augment", "flip", "cutmix", "batch_size", "epochs", "optimizer")
        needed += ("learning_rate", "weight_decay", "label_smoothing")
        assert [name for name in needed if derived[name] is None] == []


def test_the_shift_follows_the_side_and_the_net_and_must_leave_something() -> None:
    assert derive(TrainOptions(model="compact"), splits(12_000, 32)).shift == 4
    assert derive(TrainOptions(), splits(12_000, 32)).shift == 2
    assert derive(TrainOptions(shift=0), splits(12_000, 32)).shift == 0
    assert derive(TrainOptions(), splits(200, 150)).shift is None
    with pytest.raises(OptionError, match="shift = 32 leaves nothing of images of 32 pixels"):
        derive(TrainOptions(shift=32), splits(12_000, 32))
    with pytest.raises(OptionError, match="shift = 5 is for augment = shift; here augment is crop"):
        derive(TrainOptions(shift=5), splits(200, 150))


def test_muon_is_refused_where_kernels_are_not_normalised() -> None:
    for count in (200, 12_000):
        assert derive(TrainOptions(optimizer="muon"), splits(count, 32)).optimizer == "muon"
    with pytest.raises(OptionError, match="muon' is for networks whose kernels are each followed by a normalisation"):
        derive(TrainOptions(optimizer="muon", model="paper-vgg"), splits(200, 32))


def test_every_network_that_the_recipes_give_to_muon_normalises() -> None:
    for name in NORMALISED:
        classifier = build_classifier(Architecture(name, "dot", None, "concat", None, 32, ("a", "b")))
        assert classifier.backbone.normalises
