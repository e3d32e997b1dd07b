"""The classifier's contract over every attention and head, what a query does, and attention put into a trained net."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.attention import ATTENTIONS, CompatibilityReadout
from heedmap.attribution import explain
from heedmap.backbones import OWN_BACKBONES
from heedmap.backbones.compact import Compact
from heedmap.errors import ModelError
from heedmap.exporters.wrapper import NamedOutputs
from heedmap.heads.classification import ConcatHead
from heedmap.metrics.maps import learned_map
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier, attention_maps, combined_map
from heedmap.models.factory import attach, build_classifier

CLASSES = ("ant", "bee", "cat")
ALL = [(attention, weights) for attention, kind in ATTENTIONS.items() for weights in kind.KINDS_OF_WEIGHTS]
READOUTS = [(attention, weights) for attention, weights in ALL if "feature" not in attention]


def made(attention: str = "parametrised", weights: str | None = None, **changes: Any) -> AttentionClassifier:
    """A classifier whose scores are not zero, in eval mode: for 32 pixels, and 16 where a dense matrix needs it."""
    size = 16 if attention == "feature-dense" else 32
    settings = {"model": "compact", "head": "concat", "taps": None, "image_size": size, "classes": CLASSES, **changes}
    torch.manual_seed(0)
    classifier = build_classifier(Architecture(attention=attention, attention_weights=weights, **settings)).eval()
    return awake(classifier)


def awake(classifier: AttentionClassifier) -> AttentionClassifier:
    """Scores start at zero, where nothing depends on anything: give what makes them other values."""
    with torch.no_grad():
        for module in classifier.attentions.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.3)
    return classifier


def fitting(classifier: AttentionClassifier, images: Tensor) -> Tensor:
    """The top left corner of the images, of the size that the classifier was made for."""
    return images[..., : classifier.image_size, : classifier.image_size]


class Trained(nn.Module):
    """A small network of somebody's own, with running statistics that are not those of a fresh one."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.answer = nn.Linear(12, outputs)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.answer(self.high(self.low(images)).mean((2, 3)))
        return answer


@pytest.fixture
def trained(generator: torch.Generator) -> Trained:
    torch.manual_seed(1)
    net = Trained()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, 32, 32, generator=generator))
    return net.eval()


@pytest.mark.parametrize("head", ["concat", "indep"])
@pytest.mark.parametrize(("attention", "weights"), ALL)
def test_every_attention_and_head_returns_logits_and_the_maps_it_used(
    attention: str, weights: str, head: str, images: Tensor
) -> None:
    classifier = made(attention, weights, head=head)
    with torch.no_grad():
        output = classifier(fitting(classifier, images))
    assert output.logits.shape == (4, 3)
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.probabilities.sum(1), torch.ones(4))
    assert tuple(output.attention) == classifier.taps
    assert classifier.taps == (("stage3",) if "feature" in attention else ("stage2", "stage3"))
    side = 4 if attention == "feature-dense" else 8
    for weight in output.attention.values():
        assert weight.shape == (4, 1, side, side)
        assert weight.dtype == torch.float32
        assert weight.min() >= 0
        if "feature" in attention and weights == "softmax":  # softmax over all features, times their number
            torch.testing.assert_close(weight.mean((1, 2, 3)), torch.ones(4))
        elif weights == "softmax":
            torch.testing.assert_close(weight.sum((1, 2, 3)), torch.ones(4))
        else:
            assert weight.max() < 1
    assert set(output.features) == ({"before", "after"} if "feature" in attention else set())
    assert classifier.attention_weights == weights


@pytest.mark.parametrize(("attention", "weights"), ALL)
def test_maps_stay_float32_under_bf16_and_softmax_still_sums_to_one(
    attention: str, weights: str, images: Tensor
) -> None:
    classifier = made(attention, weights)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = classifier(fitting(classifier, images))
    assert output.logits.dtype == torch.float32
    for weight in output.attention.values():
        assert weight.dtype == torch.float32
        if weights == "softmax" and "feature" not in attention:
            torch.testing.assert_close(weight.sum((1, 2, 3)), torch.ones(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("attention", "weights"), ALL)
def test_an_image_has_the_same_output_alone_and_in_a_batch(attention: str, weights: str, images: Tensor) -> None:
    classifier = made(attention, weights).double()
    several = fitting(classifier, images.double())
    with torch.no_grad():
        together, alone = classifier(several), classifier(several[2:3])
    torch.testing.assert_close(together.logits[2:3], alone.logits, atol=1e-9, rtol=0)
    for tap in classifier.taps:
        torch.testing.assert_close(together.attention[tap][2:3], alone.attention[tap], atol=1e-9, rtol=0)


@pytest.mark.parametrize(("attention", "weights"), READOUTS)
def test_a_query_of_another_image_moves_the_map_just_where_the_score_sees_it(
    attention: str, weights: str, images: Tensor
) -> None:
    classifier = made(attention, weights)
    blind = attention == "none" or (attention, weights) == ("parametrised", "softmax")
    with torch.no_grad():
        other = classifier.query(images.flip(3) ** 3)
        own, moved = classifier(images), classifier(images, query=other)
    assert classifier.uses_query is not blind
    for tap in classifier.taps:
        change = (own.attention[tap] - moved.attention[tap]).abs().max()
        if blind:
            assert change <= 1e-6
        else:
            assert change > 1e-5, f"{tap} moved by {change} only"


@pytest.mark.parametrize(("attention", "weights"), READOUTS)
def test_an_images_own_query_given_by_hand_changes_nothing(attention: str, weights: str, images: Tensor) -> None:
    classifier = made(attention, weights)
    with torch.no_grad():
        own, by_hand = classifier(images), classifier(images, query=classifier.query(images))
    torch.testing.assert_close(own.logits, by_hand.logits, atol=1e-6, rtol=0)


def test_one_query_may_serve_a_whole_batch(images: Tensor) -> None:
    classifier = made("dot")
    with torch.no_grad():
        query = classifier.query(images[:1])
        one, many = classifier(images, query=query), classifier(images, query=query.expand(4, -1))
    torch.testing.assert_close(one.logits, many.logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("head", ["concat", "indep"])
def test_the_baseline_has_the_trunk_and_the_head_of_the_net_with_attention(head: str, images: Tensor) -> None:
    def parameters(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    control, parametrised = made("none", head=head), made("parametrised", head=head)
    assert parameters(control.backbone) == parameters(parametrised.backbone)
    assert parameters(control.head) == parameters(parametrised.head)
    assert parameters(control.attentions) == 0
    assert parameters(parametrised.attentions) == 128 + 256  # u at each of the two taps
    with torch.no_grad():
        maps = control(images).attention
    assert torch.equal(maps["stage3"], torch.full((4, 1, 8, 8), 1 / 64))


def test_a_fresh_net_with_attention_has_the_logits_of_its_baseline(images: Tensor) -> None:
    shape = Architecture("compact", "parametrised", None, "concat", None, 32, CLASSES)
    attention = build_classifier(shape).eval()
    control = build_classifier(Architecture("compact", "none", None, "concat", None, 32, CLASSES)).eval()
    control.load_state_dict({k: v for k, v in attention.state_dict().items() if not k.startswith("attentions")})
    with torch.no_grad():
        torch.testing.assert_close(attention(images).logits, control(images).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "side"), [(8, 2), (17, 5), (50, 7), (100, 7)])
@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name != "feature-dense"])
def test_odd_and_small_images_work(attention: str, size: int, side: int, generator: torch.Generator) -> None:
    classifier = made(attention, image_size=size)
    with torch.no_grad():
        output = classifier(torch.rand(2, 3, size, size, generator=generator))
    assert classifier.backbone.grid_side("stage3", size) == side
    assert output.attention["stage3"].shape == (2, 1, side, side)


def test_a_dense_gate_that_would_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="GiB"):
        made("feature-dense", image_size=160)


def test_the_normalisation_is_part_of_the_model(images: Tensor) -> None:
    classifier = made()
    shifted = copy.deepcopy(classifier)
    shifted.mean = shifted.mean + 0.1
    with torch.no_grad():
        torch.testing.assert_close(classifier(images).logits, shifted(images + 0.1).logits, atol=1e-4, rtol=0)
        grey = classifier.backbone((images - 0.45) / 0.25, classifier.taps, True)
        torch.testing.assert_close(classifier.query(images), grey.query)


@pytest.mark.parametrize("attention", ["parametrised", "dot", "additive", "feature", "none"])
def test_every_weight_that_may_learn_gets_a_gradient(attention: str, images: Tensor) -> None:
    for taps in (None, ("stage1",), ("stage2",)):
        classifier = made(attention, taps=taps).train()
        F.cross_entropy(classifier(images).logits, torch.tensor([0, 1, 2, 0])).backward()
        dead = [n for n, p in classifier.named_parameters() if p.requires_grad and p.grad is None]
        frozen = [n for n, p in classifier.named_parameters() if not p.requires_grad]
        assert dead == []
        assert all(name.startswith("backbone.stage") for name in frozen)
        assert bool(frozen) == (taps is not None and not classifier.uses_query)


def test_combined_map_is_the_geometric_mean_on_the_finest_grid(generator: torch.Generator) -> None:
    fine = torch.rand(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    coarse = torch.rand(2, 1, 3, 3, generator=generator, dtype=torch.float64)
    wide = torch.rand(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    large = F.interpolate(coarse, (6, 6), mode="bilinear")
    oracle = (fine * large * wide) ** (1 / 3)
    for order in ({"a": fine, "b": coarse, "c": wide}, {"b": coarse, "a": fine, "c": wide}):
        torch.testing.assert_close(combined_map(order), oracle)
    torch.testing.assert_close(combined_map({"b": coarse}), coarse)


def test_shares_are_the_exponents_of_the_combined_map(generator: torch.Generator) -> None:
    fine, other = (torch.rand(2, 1, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    shares = torch.tensor([0.8, 0.2], dtype=torch.float64)
    torch.testing.assert_close(combined_map({"a": fine, "b": other}, shares), fine**0.8 * other**0.2)
    even = torch.full((2,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(combined_map({"a": fine, "b": other}, even), combined_map({"a": fine, "b": other}))


def test_a_learned_combination_starts_with_equal_shares_and_every_path_to_a_map_uses_it(images: Tensor) -> None:
    classifier = made(combine="learned")
    with torch.no_grad():
        assert torch.equal(classifier(images).shares, torch.tensor([0.5, 0.5]))
        classifier.tap_scores.copy_(torch.tensor([2.0, -1.0]))
        output = classifier(images)
        wanted = combined_map(output.attention, torch.tensor([2.0, -1.0]).softmax(0))
        assert not torch.allclose(wanted, combined_map(output.attention))
        torch.testing.assert_close(attention_maps(classifier, output, 1)["combined"].values, wanted[1, 0])
        torch.testing.assert_close(learned_map(classifier, images, torch.zeros(len(images)).long()), wanted[:, 0])
        torch.testing.assert_close(NamedOutputs(classifier)(images)["map_combined"], wanted)
    torch.testing.assert_close(explain(classifier, images, "attention").values[:, :1], wanted)
    assert made().shares() is None


def test_a_learned_combination_needs_several_taps() -> None:
    with pytest.raises(ModelError, match="stage3"):
        made(combine="learned", taps=("stage3",))
    with pytest.raises(ModelError, match="'learned'"):
        made(combine="lerned")


def test_where_one_tap_looks_away_the_combined_map_does_too() -> None:
    fine, coarse = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    fine[..., 0, 0] = 0
    combined = combined_map({"fine": fine, "coarse": coarse})
    assert combined[0, 0, 0, 0] < 1e-15
    torch.testing.assert_close(combined.flatten()[1:], torch.ones(15))


def test_maps_as_data_carry_their_tap_method_and_scale(images: Tensor) -> None:
    for weights, top in (("softmax", None), ("sigmoid", 1.0)):
        classifier = made("dot", weights)
        with torch.no_grad():
            output = classifier(images)
        maps = attention_maps(classifier, output, 1)
        assert tuple(maps) == ("stage2", "stage3", "combined")
        for tap, kept in maps.items():
            assert (kept.tap, kept.method, kept.low) == (tap, f"dot, {weights}", 0.0)
            assert kept.high == (top if top else float(kept.values.max()))
        assert torch.equal(maps["stage2"].values, output.attention["stage2"][1, 0])
        torch.testing.assert_close(maps["combined"].values, combined_map(output.attention)[1, 0])


def test_a_single_tap_has_no_combined_map(images: Tensor) -> None:
    classifier = made(taps=("stage2",))
    with torch.no_grad():
        assert tuple(attention_maps(classifier, classifier(images), 0)) == ("stage2",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": ("stage22",)}, r"'stage22' .*stage1, stage2, stage3.*'stage2'"),
        ({"taps": ("stage2", "stage2")}, "named twice"),
        ({"image_size": 3}, "3 x 3 .*compact.* 4"),
        ({"attention": "parametrized"}, "'parametrised'"),
        ({"attention_weights": "hardmax"}, "hardmax"),
        ({"attention": "none", "attention_weights": "sigmoid"}, "'none' .*'sigmoid'"),
        (
            {"model": "paper-vgg", "attention": "none", "attention_weights": "sigmoid"},
            "'none' .*'sigmoid'",
        ),
        ({"head": "concatt"}, "'concatt'.*'concat'"),
        ({"head": "residual"}, "residual.*compact"),
        ({"model": "paper-vgg", "head": "residual"}, "residual.*paper-vgg"),
        ({"model": "paper-vgg", "attention": "feature"}, "paper-vgg .*'feature'"),
        ({"model": "paper-vgg", "taps": ("conv14",)}, "'conv14'"),
        ({"model": "paper-vgg", "image_size": 8}, "8 x 8 .*paper-vgg"),
        ({"model": "resnet1818"}, "resnet18"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"attention": "parametrised", **changes}
    with pytest.raises(ModelError, match=message) as caught:
        made(settings.pop("attention"), settings.pop("attention_weights", None), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["compact", "whitened", "paper-vgg", "paper-resnet"])
def test_our_own_nets_have_no_pretrained_weights(model: str) -> None:
    with pytest.raises(ModelError, match=f"{model} .*'hub'"):
        build_classifier(Architecture(model, "dot", None, "concat", None, 32, CLASSES), pretrained="hub")


@pytest.mark.parametrize("attention", ["parametrised", "dot", "additive", "none"])
@pytest.mark.parametrize(
    ("model", "taps", "expected"),
    [
        ("paper-vgg", None, ("conv7", "conv10", "conv13")),
        ("paper-vgg", ("conv4", "conv13"), ("conv4", "conv13")),
        ("paper-resnet", None, ("stage2", "stage3")),
    ],
)
def test_the_papers_nets_are_built_by_name(
    model: str, taps: tuple[str, ...] | None, expected: tuple[str, ...], attention: str
) -> None:
    with torch.device("meta"):
        classifier = build_classifier(Architecture(model, attention, None, "indep", taps, 32, CLASSES))
    assert classifier.taps == expected
    assert (classifier.attention_name, classifier.attention_weights) == (attention, "softmax")
    assert classifier.uses_query == (attention in ("dot", "additive"))


def test_the_papers_vgg_runs_by_name(images: Tensor) -> None:
    classifier = made("dot", model="paper-vgg", taps=("conv10", "conv13"))
    with torch.no_grad():
        output = classifier(images[:1])
    assert {tap: tuple(weight.shape) for tap, weight in output.attention.items()} == {
        "conv10": (1, 1, 16, 16),
        "conv13": (1, 1, 8, 8),
    }


def test_attaching_attention_to_a_trained_net_keeps_its_logits(trained: Trained, images: Tensor) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    with torch.no_grad():
        before = trained((images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    state = copy.deepcopy(trained.state_dict())
    for attention, kind in ATTENTIONS.items():
        if attention == "feature-dense":
            continue
        for taps in (None, ("low", "high.0")):
            if kind.LAST_TAP_ONLY and taps is not None:
                taps = taps[:1]
            classifier = attach(
                copy.deepcopy(trained), classes=CLASSES, image_size=32, taps=taps, attention=attention,
                normalization=(mean, std),
            )  # fmt: skip
            classifier = awake(classifier).eval()
            with torch.no_grad():
                torch.testing.assert_close(classifier(images).logits, before, atol=1e-6, rtol=0)
            kept = classifier.backbone.state_dict()
            assert all(torch.equal(kept[f"net.{name}"], value) for name, value in state.items())


def test_the_first_step_of_training_moves_the_branch(trained: Trained, images: Tensor) -> None:
    classifier = attach(trained, classes=CLASSES, image_size=32, taps=("low", "high"))
    classifier.train()
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    labels = torch.tensor([0, 1, 2, 0])
    for _ in range(2):  # the head starts at zero, so the scores get their gradient from the second step on
        optimizer.zero_grad()
        F.cross_entropy(classifier(images).logits, labels).backward()
        optimizer.step()
    assert classifier.head.linear.weight.abs().max() > 0
    for attention in classifier.attentions:
        assert isinstance(attention, CompatibilityReadout)
        assert attention.scorer is not None
        assert attention.scorer.weight.abs().max() > 0


def test_attaching_attention_to_a_net_of_timm_keeps_its_logits(generator: torch.Generator) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64, generator=generator)
    classifier = attach(copy.deepcopy(net), classes=CLASSES, image_size=64, attention="dot").eval()
    with torch.no_grad():
        before = net((images - classifier.mean) / classifier.std)
        output = classifier(images)
    torch.testing.assert_close(output.logits, before, atol=1e-6, rtol=0)
    assert classifier.taps == ("layer2", "layer3")  # the two deepest with at least 4 x 4 positions at 64 pixels
    assert [tuple(weight.shape[2:]) for weight in output.attention.values()] == [(8, 8), (4, 4)]


@pytest.mark.parametrize(
    ("classes", "taps", "message"),
    [
        (("a", "b"), None, "3 classes.* 2 "),
        (("a", "b", "c", "d"), None, "3 classes.* 4 "),
        (CLASSES, ("lowe",), "'lowe'.*'low'"),
        (CLASSES, "lowe", "'lowe'.*'low'"),
        ("abc", None, "'abc'"),
        (("a", "b", "a"), None, "'a'"),
    ],
)
def test_attention_that_does_not_fit_a_trained_net_is_refused(
    trained: Trained, classes: str | tuple[str, ...], taps: str | tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        attach(trained, classes=classes, image_size=32, taps=taps)


def test_a_name_in_place_of_a_net_is_refused() -> None:
    with pytest.raises(ModelError, match="'resnet18'"):
        attach("resnet18", classes=CLASSES)  # type: ignore[arg-type]


def test_a_single_tap_may_be_given_by_its_name_alone(trained: Trained) -> None:
    assert attach(trained, classes=CLASSES, image_size=32, taps="low").taps == ("low",)


def test_a_net_with_one_output_cannot_be_spread_over_many_classes() -> None:
    with pytest.raises(ModelError, match="1 classes"):
        attach(Trained(1), classes=CLASSES, image_size=32, taps=("low",))


@pytest.mark.parametrize("build", [made, lambda: attach(Trained(), classes=CLASSES, image_size=32, taps=("low",))])
def test_the_weights_of_a_classifier_load_into_another_one(
    build: Callable[[], AttentionClassifier], images: Tensor
) -> None:
    one, other = build().eval(), build().eval()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.01)
        other.load_state_dict(one.state_dict())
        assert torch.equal(one(images).logits, other(images).logits)


def test_a_classifier_can_be_made_from_parts_by_hand(images: Tensor) -> None:
    backbone = Compact(stem_stride=1, widths=(4, 6, 8, 10))
    readouts = {tap: CompatibilityReadout(width, 10, "dot") for tap, width in (("stage2", 8), ("stage3", 10))}
    classifier = AttentionClassifier(
        backbone, readouts, ConcatHead({"stage2": 8, "stage3": 10}, 3),
        classes=CLASSES, image_size=32,
    )  # fmt: skip
    assert classifier(images).logits.shape == (4, 3)
    assert (classifier.attention_name, classifier.attention_weights) == ("dot", "softmax")


def test_every_model_that_is_listed_can_be_built() -> None:
    for name in OWN_BACKBONES:
        with torch.device("meta"):
            classifier = build_classifier(Architecture(name, "parametrised", None, "concat", None, 32, CLASSES))
        assert classifier.classes == CLASSES


@pytest.mark.parametrize("head", ["concat", "indep"])
@pytest.mark.parametrize("attention", ["parametrised", "dot", "additive", "feature", "none"])
def test_a_classifier_in_bfloat16_has_nearly_the_same_logits_and_maps_in_float32(attention: str, head: str) -> None:
    torch.manual_seed(0)
    built = build_classifier(Architecture("compact", attention, None, head, None, 32, ("a", "b", "c"))).eval()
    images = torch.rand(2, 3, 32, 32)
    exact = built(images)
    for given in (images, images.bfloat16()):
        rough = built.bfloat16()(given)
        assert torch.allclose(rough.logits, exact.logits, atol=0.1)
        assert all(values.dtype == torch.float32 for values in (rough.logits, *rough.attention.values()))
