"""The whitened backbone: its first layer, its grids, and how fast its parts learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from heedmap.backbones import Whitened
from heedmap.backbones.whitened import FILTERS
from heedmap.config import TrainOptions
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.training.optimizers import SHARES, make_optimizer


def images(count: int = 64, size: int = 16) -> Tensor:
    """Smooth images, whose neighbouring pixels are alike, as those of photographs are."""
    noise = torch.rand(count, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bilinear") - 0.5


def small(attention: str = "parametrised") -> AttentionClassifier:
    torch.manual_seed(0)
    return build_classifier(Architecture("whitened", attention, None, "concat", None, 32, ("a", "b")))


def test_the_first_layer_makes_patches_uncorrelated_and_of_one_variance() -> None:
    pixels, backbone = images(), Whitened((4, 8, 8))
    backbone.whiten([pixels])
    answers = backbone.first(pixels).detach().double()[:, : FILTERS // 2].transpose(0, 1).flatten(1)
    moments = answers @ answers.T / answers.shape[1]
    off = moments - moments.diag().diag()
    assert off.abs().max() < 1e-3
    # A direction of variance v is brought to v / (v + 0.0005): one where there is anything to see, less in noise.
    assert moments.diag().max() == pytest.approx(1, abs=0.02)
    assert moments.diag().max() <= 1 + 1e-6


def test_the_second_half_of_the_filters_is_the_opposite_of_the_first() -> None:
    backbone = Whitened((4, 8, 8))
    backbone.whiten([images()])
    first, second = backbone.first.weight.chunk(2)
    torch.testing.assert_close(first, -second, rtol=0, atol=0)
    assert first.abs().max() > 0.1


def test_whitening_leaves_learning_to_the_bias() -> None:
    backbone = Whitened((4, 8, 8))
    assert not backbone.first.weight.requires_grad
    assert backbone.first.bias is not None
    assert backbone.first.bias.requires_grad


@pytest.mark.parametrize(("size", "grids"), [(32, (16, 8, 8)), (28, (14, 7, 7)), (48, (24, 12, 12)), (9, (5, 3, 3))])
def test_all_stages_but_the_last_halve_the_grid_and_a_rest_counts_as_a_position(
    size: int, grids: tuple[int, ...]
) -> None:
    backbone = Whitened((4, 8, 8))
    taps = ("stage1", "stage2", "stage3")
    with torch.no_grad():
        trunk = backbone(images(2, 64)[..., :size, :size], taps, need_query=True)
    assert [tuple(trunk.features[tap].shape[2:]) for tap in taps] == [(grid, grid) for grid in grids]
    assert [backbone.grid_side(tap, size) for tap in taps] == list(grids)
    assert trunk.query is not None
    assert trunk.query.shape == (2, 8)


def test_every_kernel_starts_as_the_identity_on_its_first_channels() -> None:
    kernel = Whitened((64, 8, 8)).stage1[0].weight
    features = torch.rand(1, FILTERS, 5, 5, generator=torch.Generator().manual_seed(1))
    passed = torch.nn.functional.conv2d(features, kernel, padding=1)[:, :FILTERS]
    torch.testing.assert_close(passed, features)


def test_stages_behind_the_last_tap_are_not_run_and_not_trained() -> None:
    classifier = build_classifier(Architecture("whitened", "parametrised", None, "concat", ("stage2",), 32, ("a", "b")))
    assert not any(parameter.requires_grad for parameter in classifier.backbone.stage3.parameters())
    classifier.backbone.stage3.forward = None  # type: ignore[method-assign]  # called, it would raise
    with torch.no_grad():
        assert classifier.eval()(torch.rand(2, 3, 32, 32)).logits.shape == (2, 2)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_biases_learn_faster_and_attention_and_head_at_a_part_of_that(optimizer: Any) -> None:
    classifier = small()
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    options = TrainOptions(optimizer=optimizer, learning_rate=0.1, weight_decay=0.01)
    groups = make_optimizer(classifier, options, fused=False).param_groups
    told = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(told) == sorted(name for name, p in classifier.named_parameters() if p.requires_grad)
    assert {group["share"] for group in groups} == {1.0, *SHARES[optimizer]}
    shares = {names[id(p)]: group["share"] for group in groups for p in group["params"]}
    fast = {name for name, share in shares.items() if share == SHARES[optimizer].fast}
    biases = {f"backbone.stage{s}.{i}.bias" for s in (1, 2, 3) for i in (2, 5)}
    assert fast == biases | ({"backbone.first.bias"} if optimizer == "muon" else set())
    assert {share for name, share in shares.items() if name.startswith("head")} == {SHARES[optimizer].head}
    assert {share for name, share in shares.items() if name.startswith("attentions")} == {SHARES[optimizer].attentions}
    turned = {names[id(p)] for group in groups if group.get("orthogonal") for p in group["params"]}
    kernels = {f"backbone.stage{s}.{i}.weight" for s in (1, 2, 3) for i in (0, 4)}
    assert turned == (kernels if optimizer == "muon" else set())


def test_under_adamw_all_learn_alike() -> None:
    options = TrainOptions(optimizer="adamw", learning_rate=0.1, weight_decay=0.01)
    groups = make_optimizer(small(), options, fused=False).param_groups
    assert {group["share"] for group in groups} == {1.0}
