"""Attacks worked out by hand, the ball never left, the model unchanged, and masked gradients detected."""

import math

import pytest
import torch
from torch import nn

from heedmap.errors import DataError, OptionError
from heedmap.metrics.maps import learned_map
from heedmap.metrics.robustness import (
    PgdOptions,
    RobustnessOptions,
    RobustnessRow,
    evaluate_robustness,
    fgsm,
    masking,
    noise,
    pgd,
    stability,
)
from heedmap.types import Output

SIZE = 8 / 255


class Sum(nn.Module):
    """Class 1 where the weighted sum of the pixels is above a bar."""

    def __init__(self, weight, bar=0.0):
        super().__init__()
        self.weight, self.bar = nn.Parameter(weight), bar

    def forward(self, images):
        second = (images * self.weight).sum((1, 2, 3)) - self.bar
        return torch.stack((torch.zeros_like(second), second), dim=1)


@pytest.fixture
def weight(generator):
    return torch.randn(3, 4, 4, generator=generator)


@pytest.fixture
def small(generator):
    return torch.rand(5, 3, 4, 4, generator=generator)


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
                          nn.Linear(16, 3))  # fmt: skip
    return model.train()


def test_fgsm_of_a_linear_model_is_worked_out_by_hand(weight, small):
    labels = torch.tensor([0, 1, 0, 1, 1])
    moved = fgsm(Sum(weight), small, labels, SIZE)
    for row, label in enumerate(labels.tolist()):
        away = weight.sign() * (1 if label == 0 else -1)  # the loss rises where the other class gains
        assert torch.allclose(moved[row], (small[row] + SIZE * away).clamp(0, 1), atol=1e-7)


def test_fgsm_moves_a_linear_models_logit_by_epsilon_times_the_sum_of_its_weights(weight):
    images, labels = torch.full((1, 3, 4, 4), 0.5), torch.tensor([1])
    model = Sum(weight)
    fall = (model(images) - model(fgsm(model, images, labels, SIZE)))[0, 1].item()
    assert fall == pytest.approx(SIZE * weight.abs().sum().item(), rel=1e-4)


def test_pgd_of_a_linear_model_ends_where_fgsm_does(weight, small):
    labels = torch.tensor([0, 1, 0, 1, 1])
    model = Sum(weight)
    expected = fgsm(model, small, labels, SIZE)
    for random_start in (True, False):
        assert torch.allclose(
            pgd(model, small, labels, SIZE, PgdOptions(random_start=random_start)), expected, atol=1e-6
        )


@pytest.mark.parametrize("epsilon", [1 / 255, 16 / 255, 0.5, 1.0])
@pytest.mark.parametrize("step_size", [None, 10.0, 1e-3])
def test_pgd_never_leaves_the_ball_or_the_range(net, images, epsilon, step_size):
    images = images[:, :, :4, :4]
    for seed in range(3):
        moved = pgd(net, images, torch.arange(4) % 3, epsilon, PgdOptions(step_size=step_size, seed=seed, steps=3))
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert (moved - images).abs().max().item() <= epsilon + 1e-7


def test_pgd_goes_step_by_step_as_a_slow_loop_does(net, images):
    images, labels = images[:, :, :4, :4], torch.arange(4) % 3
    found = pgd(net, images, labels, SIZE, PgdOptions(steps=4, random_start=False))
    net.eval()
    moved = images.clone()
    for _ in range(4):
        rows = []
        for row in range(4):
            pixels = moved[row : row + 1].clone().requires_grad_(True)
            loss = -net(pixels).log_softmax(1)[0, labels[row]]
            (slope,) = torch.autograd.grad(loss, pixels)
            stepped = pixels.detach() + 2.5 * SIZE / 4 * slope.sign()
            rows.append(stepped.clamp(images[row] - SIZE, images[row] + SIZE).clamp(0, 1)[0])
        moved = torch.stack(rows)
    assert torch.allclose(found, moved, atol=1e-6)


def test_a_random_start_is_a_function_of_the_seed(net, images):
    images, labels = images[:, :, :4, :4], torch.arange(4) % 3
    first = pgd(net, images, labels, SIZE, PgdOptions(steps=1, step_size=1e-9, seed=1))
    assert torch.equal(first, pgd(net, images, labels, SIZE, PgdOptions(steps=1, step_size=1e-9, seed=1)))
    assert not torch.equal(first, pgd(net, images, labels, SIZE, PgdOptions(steps=1, step_size=1e-9, seed=2)))
    assert (first - images).abs().max() > SIZE / 2


@pytest.mark.parametrize("attack", [fgsm, pgd, lambda model, images, labels, epsilon: noise(images, epsilon)])
def test_epsilon_zero_changes_no_bit(net, images, attack):
    images = images[:, :, :4, :4]
    assert torch.equal(attack(net, images, torch.arange(4) % 3, 0.0), images)


def test_noise_moves_every_pixel_by_epsilon_within_the_range():
    moved = noise(torch.full((2, 3, 4, 4), 0.5), SIZE)
    assert torch.allclose((moved - 0.5).abs(), torch.tensor(SIZE))
    assert abs((moved > 0.5).double().mean().item() - 0.5) < 0.25
    assert noise(torch.zeros(2, 3, 4, 4), SIZE).min() == 0


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_nothing_of_the_model_changes(net, images, attack):
    images = images[:, :, :4, :4].clone().requires_grad_(True)
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        attack(net, images, torch.arange(4) % 3, SIZE)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert net[5].weight.grad.eq(1).all()
    assert net[5].bias.grad is None
    assert images.grad is None


def test_an_attack_works_inside_inference_mode_and_under_autocast_as_outside(net, images):
    images, labels = images[:, :, :4, :4], torch.arange(4) % 3
    expected = pgd(net, images, labels, SIZE)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = pgd(net, images.clone(), labels.clone(), SIZE)
    assert torch.equal(found, expected)


def test_weights_in_bfloat16_are_attacked_in_float32(net, images):
    """Near 0.99 two bfloat16 numbers are 1/256 apart: half a grey level would be lost."""
    images, labels = (images[:, :, :4, :4] * 0.02 + 0.97).float(), torch.arange(4) % 3
    net.to(torch.bfloat16)
    moved = fgsm(net, images, labels, 0.5 / 255)
    assert net[0].weight.dtype == torch.bfloat16
    assert moved.dtype == torch.float32
    changed = (moved - images).abs()
    assert changed[changed > 0].numpy() == pytest.approx(0.5 / 255, rel=1e-3)
    assert (changed > 0).double().mean() > 0.9


# ---- the table


def test_accuracy_and_fooling_are_those_of_a_model_known_by_hand():
    """Brightness above the bar is class 1. Four images, right by 0.5, 2.5 and 100 grey levels, one of them wrong."""
    weight = torch.full((3, 4, 4), 25.5 / 48)  # a tenth of a logit for each grey level
    levels = torch.tensor([100.5, 102.5, 200.0, 50.0])
    images = (levels / 255)[:, None, None, None].expand(4, 3, 4, 4).contiguous()
    options = RobustnessOptions(attacks=("fgsm", "pgd"), epsilons=(1 / 255, 4 / 255))
    report = evaluate_robustness({"sum": Sum(weight, bar=10.0)}, images, torch.ones(4).long(), options)
    rows = {(row.attack, round(row.epsilon * 255)): row for row in report.models["sum"]}
    for attack in ("fgsm", "pgd"):
        assert [rows[attack, level].accuracy for level in (0, 1, 4)] == [0.75, 0.5, 0.25]
        assert [rows[attack, level].fooled for level in (0, 1, 4)] == pytest.approx([0, 1 / 3, 2 / 3])
        assert [rows[attack, level].changed for level in (0, 1, 4)] == [0, 0.25, 0.5]
    assert rows["fgsm", 1].low < 0.5 < rows["fgsm", 1].high
    assert rows["fgsm", 1].stability is None
    assert report.warnings["sum"] == ()
    assert report.as_dict()["models"]["sum"][0]["attack"] == "fgsm"


def test_fooling_is_undefined_where_nothing_was_right(weight, small):
    predicted = Sum(weight)(small).argmax(1)
    rows = evaluate_robustness(
        {"sum": Sum(weight)}, small, 1 - predicted, RobustnessOptions(attacks=("noise",), epsilons=(0.0,))
    ).models["sum"]
    assert rows[0].accuracy == 0
    assert math.isnan(rows[0].fooled)


class Attending(nn.Module):
    """A map that is the image's first channel, and a control that gives none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(48, 2)

    def forward(self, images):
        return Output(self.linear(images.flatten(1)), {"tap": images[:, :1]})


def test_models_are_compared_and_a_map_is_followed(small):
    labels = torch.zeros(5).long()
    models = {"attention": Attending(), "control": Sum(torch.ones(3, 4, 4))}
    report = evaluate_robustness(
        models, small, labels, RobustnessOptions(epsilons=(0.0, 0.5), batch_size=2), maps={"attention": learned_map}
    )
    assert list(report.models) == ["attention", "control"]
    rows = {(row.attack, row.epsilon): row for row in report.models["attention"]}
    still = rows["fgsm", 0.0].stability
    assert (still.count, still.rank, still.overlap, still.shift) == (5, pytest.approx(1), 1, 0)
    assert rows["noise", 0.5].stability.rank < 0.9
    assert all(row.stability is None for row in report.models["control"])


def test_heedmaps_own_classifier_is_attacked_and_its_attention_followed(images):
    from heedmap import Architecture, build_classifier

    torch.manual_seed(0)
    own = {
        name: build_classifier(Architecture("compact", name, None, "concat", None, 32, ("a", "b"))).eval()
        for name in ("parametrised", "none")
    }
    for parameter in own["parametrised"].attentions.parameters():
        nn.init.normal_(parameter)
    report = evaluate_robustness(
        own, images, torch.arange(4) % 2, RobustnessOptions(attacks=("fgsm",), epsilons=(4 / 255,))
    )
    assert report.models["parametrised"][1].stability.rank < 1
    assert report.models["none"][1].stability is None  # the control's map is uniform, so it has no order


def test_stability_is_worked_out_by_hand():
    before = torch.zeros(2, 4, 5)
    before[0, 0, 0], before[0, 0, 1] = 2, 1
    after = torch.zeros(2, 4, 5)
    after[0, 2, 0], after[0, 0, 1] = (
        2,
        1,
    )  # of the hottest two of twenty cells one stays, and the hottest moves down two
    found = stability(before, after)
    assert found.count == 1  # the other map is constant
    assert found.overlap == 0.5
    assert found.shift == pytest.approx(0.5)
    assert stability(before[1:], after[1:]) is None


# ---- masked gradients


def row(attack, level, accuracy):
    return RobustnessRow(attack, level / 255, accuracy, 0.0, 1.0, 0.0, 0.0, None)


@pytest.mark.parametrize(
    ("rows", "silent", "word"),
    [
        ([row("fgsm", 4, 0.3), row("pgd", 4, 0.5)], 0.0, "pgd at 4/255 leaves 50.0% right, fgsm only 30.0%"),
        ([row("noise", 4, 0.3), row("fgsm", 4, 0.5)], 0.0, "noise does more than the gradient"),
        ([row("pgd", 0, 0.9), row("pgd", 16, 0.6)], 0.0, "more than half of the clean accuracy"),
        ([row("fgsm", 4, 0.3)], 0.4, "The gradient of 40% of the images is zero"),
        ([row("fgsm", 4, 0.3), row("pgd", 4, 0.31)], 0.01, None),
        ([row("pgd", 0, 0.9), row("pgd", 8, 0.6), row("pgd", 16, 0.1)], 0.0, None),
    ],
)
def test_signs_of_masked_gradients_are_named(rows, silent, word):
    found = masking(rows, silent, count=100)
    assert (found == ()) if word is None else (len(found) == 1 and word in found[0])


def test_a_saturated_model_gets_a_warning(small):
    """Logits so far apart that the cross-entropy's gradient is zero in float32."""
    model = Sum(torch.full((3, 4, 4), 1e6))
    report = evaluate_robustness({"sure": model}, small, torch.ones(5).long(), RobustnessOptions(epsilons=(16 / 255,)))
    assert "100% of the images is zero in every pixel" in report.warnings["sure"][0]


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"attacks": ("fsgm",)}, OptionError, "Did you mean 'fgsm'"),
        ({"epsilons": (8,)}, OptionError, "8/255"),
        ({"models": {}}, OptionError, "no model"),
        ({"maps": {"sun": learned_map}}, OptionError, "Did you mean 'sum'"),
        ({"images": torch.full((5, 3, 4, 4), 255.0)}, DataError, r"\[0, 1\]"),
        ({"labels": torch.zeros(4).long()}, DataError, "targets"),
    ],
)
def test_what_cannot_be_attacked_is_refused(weight, small, change, error, word):
    given = {"models": {"sum": Sum(weight)}, "images": small, "labels": torch.zeros(5).long()} | change
    chosen = {key: given.pop(key) for key in ("attacks", "epsilons") if key in given}
    with pytest.raises(error, match=word):
        evaluate_robustness(**given, options=RobustnessOptions(**chosen))


def test_attacks_that_do_not_move_are_refused(weight, small):
    labels = torch.zeros(5).long()
    with pytest.raises(OptionError, match="steps = 0"):
        PgdOptions(steps=0)
    with pytest.raises(OptionError, match=r"epsilon = -0\.1"):
        fgsm(Sum(weight), small, labels, -0.1)
