"""One contract over the table of map methods: shapes, types, nothing left behind, every kind of model and mode."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import heedmap
from heedmap.attribution import METHODS, Explanation, explain
from heedmap.errors import HeedmapError, ModelError, OptionError
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier

SIDES = (16, 24)
QUICK: dict[str, dict[str, Any]] = {
    "smoothgrad": {"count": 2},
    "integrated-gradients": {"steps": 3},
    "rise": {"count": 8, "cells": 4},
    "occlusion": {"window": 8},
    "gradient-shap": {"count": 2},
    "kernel-shap": {"cells": 2, "count": 12},
}
BY_CLASS = [name for name, line in METHODS.items() if line.per_class]


class Cnn(nn.Module):
    """Two convolutions, an in-place ReLU after each, a mean, a linear layer; ``fails`` makes its head raise."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.last = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(6, 5)
        self.fails = False

    def forward(self, images: Tensor) -> Tensor:
        features = self.last(self.features(images))
        if self.fails:
            raise RuntimeError("broken on purpose")
        return self.linear(self.dropout(features.mean((2, 3))))


class Block(nn.Module):
    """A transformer's block whose attention is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.mix(self.norm(tokens)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(seen.transpose(1, 2).flatten(2))
        return tokens + self.mlp(tokens)


class Vit(nn.Module):
    """A small vision transformer: 8-pixel patches, a class token, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(Block(), Block())
        self.linear = nn.Linear(8, 5)
        self.fails = False

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.blocks(torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1))
        if self.fails:
            raise RuntimeError("broken on purpose")
        return self.linear(tokens[:, 0])


def ours() -> AttentionClassifier:
    classes = ("a", "b", "c", "d", "e")
    return build_classifier(Architecture("compact", "parametrised", None, "concat", None, 24, classes))


def model_for(method: str, seed: int = 0) -> nn.Module:
    """A model that the method can explain, in training mode, its normalisations with a history."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if method == "attention":
            return ours()
        model = Vit() if method in ("attention-rollout", "relevance") else Cnn()
        with torch.no_grad():
            model(torch.randn(8, 3, *SIDES))
            model.linear.weight.mul_(10)  # so that a difference of two logits survives in bfloat16
    return model


def ask(model: nn.Module, images: Tensor, method: str, target: Any = None, **settings: Any) -> Explanation:
    return explain(model, images, method, target, settings=QUICK.get(method, {}) | settings)


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(3, 3, *SIDES, generator=generator)


def state_of(model: nn.Module) -> list[Any]:
    """All that a call may not change; tensors by identity and by value."""
    parts = [
        (name, part.training, len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks))
        for name, part in model.named_modules()
    ]
    weights = [(name, id(each), each.requires_grad, id(each.grad)) for name, each in model.named_parameters()]
    values = {name: each.clone() for name, each in model.state_dict().items()}
    return [parts, weights, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), values]


def assert_same_state(before: list[Any], after: list[Any]) -> None:
    assert before[:4] == after[:4]
    assert all(torch.equal(value, after[4][name]) for name, value in before[4].items())


@pytest.mark.parametrize("method", METHODS)
def test_a_map_has_the_promised_shapes_and_types(method: str, images: Tensor) -> None:
    found = ask(model_for(method), images, method, target=[[0, 1], [2, 3], [4, 0]])

    assert found.values.shape[:2] == found.targets.shape == (3, 2)
    assert 1 <= found.values.shape[2] <= SIDES[0]
    assert 1 <= found.values.shape[3] <= SIDES[1]
    assert found.values.dtype == found.logits.dtype == torch.float32
    assert found.targets.dtype == torch.int64
    assert found.logits.shape == (3, 5)
    assert found.method == method
    assert (found.layer is not None) == METHODS[method].needs_layer
    assert found.signed == METHODS[method].signed
    assert found.signed or (found.values >= 0).all()
    assert not found.values.requires_grad
    assert not found.logits.requires_grad
    assert not found.values.is_inference()
    assert found.resized(*SIDES).shape == (3, 2, *SIDES)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(method: str, images: Tensor) -> None:
    model = model_for(method)
    model.get_submodule("linear" if not isinstance(model, AttentionClassifier) else "head").eval()  # flags may be mixed
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    list(model.parameters())[1].requires_grad_(False)
    before, given, dice = state_of(model), images.clone(), torch.get_rng_state()

    ask(model, images, method)

    assert_same_state(before, state_of(model))
    assert torch.equal(images, given)
    assert not images.requires_grad
    assert torch.equal(dice, torch.get_rng_state())


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"attention"}))
def test_nothing_is_left_behind_when_the_model_raises(method: str, images: Tensor) -> None:
    model = model_for(method)
    ask(model, images, method)  # so that the layer is known, and the failure comes while its hook is on
    model.fails = True
    before, dice = state_of(model), torch.get_rng_state()

    with pytest.raises(RuntimeError, match="on purpose"):
        ask(model, images, method)

    assert_same_state(before, state_of(model))
    assert torch.equal(dice, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_model_gives_the_same_maps(method: str, images: Tensor) -> None:
    model = model_for(method)
    free = ask(model, images, method).values
    frozen = ask(model.requires_grad_(False), images, method).values

    assert torch.equal(free, frozen)
    assert not any(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", METHODS)
def test_the_callers_gradient_mode_changes_nothing(method: str, mode: Any, images: Tensor) -> None:
    plain = ask(model_for(method), images, method).values
    with mode():
        made_here, copied = model_for(method), images.clone()  # weights and images that autograd cannot save
        found = ask(made_here, copied, method)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)

    torch.testing.assert_close(found.values, plain)
    assert not found.values.is_inference()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_bfloat16_gives_nearly_the_same_maps(method: str, images: Tensor) -> None:
    model = model_for(method)
    target = [0, 1, 2]
    exact = ask(model, images, method, target).values
    rough = ask(copy.deepcopy(model).bfloat16(), images, method, target).values

    assert rough.dtype == torch.float32
    assert (exact - rough).abs().mean() <= 0.15 * exact.abs().mean() + 1e-6


@pytest.mark.parametrize("method", ["attention", "grad-cam", "saliency", "score-cam"])
def test_our_own_classifier_can_be_asked_under_autocast(method: str, images: Tensor) -> None:
    model = ours()
    exact = ask(model, images, method, 1).values
    with torch.autocast("cpu", torch.bfloat16):
        rough = ask(model, images, method, 1).values

    assert rough.dtype == torch.float32
    assert (exact - rough).abs().mean() <= 0.1 * exact.abs().mean() + 1e-6


@pytest.mark.parametrize("method", BY_CLASS)
def test_all_classes_at_once_equal_one_by_one(method: str, images: Tensor) -> None:
    model, images = model_for(method).double(), images.double()  # so that what is left is no rounding
    together = ask(model, images, method, "all").values

    assert together.shape[1] == 5
    for target in range(5):
        alone = ask(model, images, method, target).values[:, 0]
        torch.testing.assert_close(together[:, target], alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_rows(method: str, images: Tensor) -> None:
    model = model_for(method)
    together = ask(model, images, method, [0, 3, 2]).values

    for row, target in enumerate((0, 3, 2)):
        alone = ask(model, images[row : row + 1], method, target).values
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_predicted_class_is_asked_about_where_none_is_named(method: str, images: Tensor) -> None:
    model = model_for(method)
    found = ask(model, images, method)

    assert torch.equal(found.targets[:, 0], found.logits.argmax(1))
    assert torch.equal(found.values, ask(model, images, method, found.targets[:, 0]).values)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_even_image_gives_a_finite_map(method: str, value: float) -> None:
    found = ask(model_for(method), torch.full((1, 3, *SIDES), value), method)

    assert found.values.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_twice_the_same_question_has_the_same_answer(method: str, images: Tensor) -> None:
    model = model_for(method)

    assert torch.equal(ask(model, images, method).values, ask(model, images, method).values)


@pytest.mark.parametrize("method", METHODS)
def test_wrapped_and_compiled_models_are_unwrapped(method: str, images: Tensor) -> None:
    model = model_for(method)
    plain = ask(model, images, method).values

    assert torch.equal(ask(nn.DataParallel(model), images, method).values, plain)
    assert torch.equal(ask(torch.compile(model, backend="eager"), images, method).values, plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_line_of_the_table_says_what_is_to_know(method: str) -> None:
    line = METHODS[method]

    assert not line.sentence.endswith(".")
    assert line.source[-4:].isdigit()
    assert line.function.__doc__
    assert line.cost
    assert "question" not in line.settings


@pytest.mark.parametrize("method", METHODS)
def test_a_map_differs_from_class_to_class_where_the_table_says_so(method: str, images: Tensor) -> None:
    found = ask(model_for(method), images, method, "all").values
    assert torch.allclose(found[:, 0], found[:, 1]) != METHODS[method].per_class


def test_our_own_classifier_takes_every_method_that_reads_features(images: Tensor) -> None:
    model = ours()
    for method in sorted(set(METHODS) - {"cam", "attention-rollout", "relevance", "deep-lift"}):
        found = ask(model, images, method)
        assert found.values.shape[:2] == (3, 1), method


def test_the_name_is_in_the_front_room() -> None:
    assert heedmap.explain is explain


def test_images_that_the_model_does_not_take_are_told_in_one_line() -> None:
    for shape, words in (((2, 16, 24, 3), "take images.permute(0, 3, 1, 2)"), ((2, 1, 16, 24), "(2, 1, 16, 24)")):
        with pytest.raises(OptionError) as refusal:
            explain(model_for("grad-cam"), torch.rand(shape), "grad-cam")
        assert "The model does not take images of" in str(refusal.value)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "gradcam"}, "Did you mean 'grad-cam'?"),
        ({"settings": {"rellu": False}}, "no setting 'rellu'"),
        ({"method": "saliency", "layer": "last"}, "reads no layer"),
        ({"method": "saliency", "settings": {"channels": "sum"}}, "channels 'sum'"),
        ({"settings": {"score": "logits"}}, "Did you mean 'logit'?"),
        ({"target": 5}, "target 5 is no class; the model has 5, 0 to 4"),
        ({"target": -1}, "target -1 is no class"),
        ({"target": [0, 1]}, "for 3 images"),
        ({"target": 1.5}, "class indices are integers"),
        ({"target": "every"}, "'all'"),
        ({"images": torch.zeros(3, 16, 24)}, "must be a tensor"),
        ({"images": torch.zeros(0, 3, 16, 24)}, "at least one image"),
        ({"images": torch.zeros(1, 3, 16, 24, dtype=torch.uint8)}, "floating point"),
        ({"images": torch.full((1, 3, 16, 24), torch.nan)}, "NaN"),
        ({"images": torch.zeros(1, 3, 16, 24).index_fill(3, torch.tensor([7]), -torch.inf)}, "NaN"),
    ],
)
def test_a_wrong_question_is_refused_in_one_line(change: dict[str, Any], words: str, images: Tensor) -> None:
    request: dict[str, Any] = {"images": images, "method": "grad-cam"} | change
    with pytest.raises(OptionError) as refusal:
        explain(model_for("grad-cam"), **request)

    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("smoothgrad", {"count": 0}),
        ("smoothgrad", {"noise": -1.0}),
        ("integrated-gradients", {"steps": 2.5}),
        ("occlusion", {"window": 17}),
        ("occlusion", {"window": 4, "stride": 5}),
        ("rise", {"keep": 1.5}),
        ("rise", {"cells": 30}),
        ("score-cam", {"chunk": 0}),
        ("attention-rollout", {"heads": "sum"}),
        ("kernel-shap", {"cells": 99}),
    ],
)
def test_a_setting_out_of_range_is_refused(method: str, settings: dict[str, Any], images: Tensor) -> None:
    with pytest.raises(OptionError):
        explain(model_for(method), images, method, settings=settings)


def test_a_map_that_cannot_be_had_is_refused_with_the_way_out(images: Tensor) -> None:
    for method, model, words in (
        ("attention", Cnn(), "heedmap.attach"),
        ("cam", ours(), "take grad-cam"),
        ("attention-rollout", ours(), "takes a ViT"),
        ("relevance", ours(), "takes a ViT"),
        ("guided-backprop", nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "take saliency"),
        ("relevance", Cnn(), "takes a ViT"),
        ("grad-cam", Vit(), "attention-rollout"),
        ("grad-cam", nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 24, 2)), "saliency"),
        ("saliency", nn.Conv2d(3, 2, 3), "(B, K)"),
    ):
        with pytest.raises(ModelError) as refusal:
            explain(model, images, method)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert issubclass(ModelError, HeedmapError)
