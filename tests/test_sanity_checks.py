"""Randomized weights: similarity against slow definitions, weights restored, and verdicts known in advance."""

import math

import pytest
import torch
from torch import nn

from heedmap.errors import DataError, ModelError, OptionError
from heedmap.metrics.faithfulness.sanity_checks import (
    RandomizationOptions,
    is_constant,
    randomization_check,
    randomize,
    ranks,
    restored,
    spearman,
    ssim,
)
from heedmap.metrics.maps import edge_map, learned_map, unit_range


class OwnScale(nn.Module):
    """A layer that is not torch's."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None])

    def forward(self, features):
        return features * self.scale


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), OwnScale(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    net(torch.rand(8, 3, 16, 16))  # running statistics that are not those of a fresh layer
    return net


def grad_cam(model, images, targets):
    """Grad-CAM of the net above, whose head is pooling and a linear layer: features weighted by the target's row."""
    features = model[:4](images)
    row = model[6].weight[targets]
    return (features * row[:, :, None, None]).sum(1).relu()


def cam(model, images, targets):
    """The same with its sign, so that it is not blank where nothing speaks for the class."""
    features = model[:4](images)
    return (features * model[6].weight[targets][:, :, None, None]).sum(1)


def gradient(model, images, targets):
    pixels = images.detach().requires_grad_(True)
    logits = model(pixels).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(logits, pixels)[0].abs().amax(1)


def slow_ranks(row):
    return [sum(other < value for other in row) + (sum(other == value for other in row) + 1) / 2 for value in row]


def slow_correlation(one, two):
    first, second = slow_ranks(one), slow_ranks(two)
    middle = (len(one) + 1) / 2
    shared = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    return shared / math.sqrt(sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second))


def test_rank_correlation_is_its_definition_ties_included(generator):
    first = torch.randint(0, 6, (5, 4, 5), generator=generator).double()
    second = torch.randint(-3, 3, (5, 4, 5), generator=generator).double()
    for row, found in enumerate(spearman(first, second).tolist()):
        assert found == pytest.approx(slow_correlation(first[row].flatten().tolist(), second[row].flatten().tolist()))
    assert ranks(torch.tensor([[5.0, 1, 5, 7]])).tolist() == [[2.5, 1, 2.5, 4]]


def test_rank_correlation_equals_scipys(generator):
    from scipy.stats import spearmanr

    first, second = torch.rand(2, 6, 6, generator=generator).round(decimals=1)
    assert spearman(first[None], second[None]).item() == pytest.approx(
        spearmanr(first.flatten().numpy(), second.flatten().numpy()).statistic
    )


def test_rank_correlation_is_one_under_any_rising_scale_and_zero_of_a_constant(generator):
    maps = torch.rand(3, 7, 7, generator=generator)
    assert spearman(maps, maps.exp() * 5 - 3).tolist() == pytest.approx([1.0] * 3)
    assert spearman(maps, -maps).tolist() == pytest.approx([-1.0] * 3)
    assert spearman(maps, torch.ones(3, 7, 7)).tolist() == [0.0] * 3
    assert is_constant(torch.stack((maps[0], torch.ones(7, 7)))).tolist() == [False, True]


def slow_ssim(one, two):
    """Wang et al., window by window, in Python's own numbers."""
    height, width = len(one), len(one[0])
    window = [[math.exp(-((y - 5) ** 2 + (x - 5) ** 2) / (2 * 1.5**2)) for x in range(11)] for y in range(11)]
    total, found = sum(map(sum, window)), []
    for top in range(height - 10):
        for left in range(width - 10):
            cells = [(window[y][x] / total, one[top + y][left + x], two[top + y][left + x])
                     for y in range(11) for x in range(11)]  # fmt: skip
            mean_a, mean_b = sum(w * a for w, a, _ in cells), sum(w * b for w, _, b in cells)
            spread_a = sum(w * (a - mean_a) ** 2 for w, a, _ in cells)
            spread_b = sum(w * (b - mean_b) ** 2 for w, _, b in cells)
            shared = sum(w * (a - mean_a) * (b - mean_b) for w, a, b in cells)
            top_half = (2 * mean_a * mean_b + 1e-4) * (2 * shared + 9e-4)
            found.append(top_half / ((mean_a**2 + mean_b**2 + 1e-4) * (spread_a + spread_b + 9e-4)))
    return sum(found) / len(found)


def test_structural_similarity_is_its_definition(generator):
    first, second = torch.rand(2, 2, 13, 14, generator=generator, dtype=torch.float64)
    found = ssim(first, second).tolist()
    assert found == pytest.approx([slow_ssim(first[row].tolist(), second[row].tolist()) for row in range(2)], abs=1e-9)
    assert ssim(first, first).tolist() == pytest.approx([1.0, 1.0])


def test_a_map_is_brought_to_the_unit_interval_by_itself():
    maps = torch.stack((torch.tensor([[1.0, 3.0], [2.0, 5.0]]), torch.full((2, 2), 4.0)))
    assert unit_range(maps).tolist() == [[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]


# ---- weights


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model, before):
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_named_layer_gets_new_weights_and_no_other(model):
    before = state(model)
    randomize(model, ["0"], seed=1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias"}


def test_a_batch_norm_resets_its_statistics_too(model):
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, 0.6, 0.7, 0.8]))
    randomize(model, ["1"], seed=1)
    assert model[1].running_var.eq(1).all()
    assert model[1].running_mean.eq(0).all()
    assert (
        model[1].weight.unique().numel() == 4
    )  # fresh ones are all the same, so they are drawn around what was learned


class OwnBatchNorm(nn.BatchNorm2d):
    """Torch's, with an activation, as timm's BatchNormAct2d."""

    def forward(self, features):
        return super().forward(features).relu()


class OwnLinear(nn.Linear):
    """Draws in a way of its own, which starts at zero."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class FrozenNorm(nn.Module):
    """Weights and statistics in buffers, as torchvision's and timm's frozen batch norm."""

    def __init__(self):
        super().__init__()
        for name, value in (("weight", 2.0), ("bias", 3.0), ("running_mean", 4.0), ("running_var", 5.0)):
            self.register_buffer(name, value + torch.linspace(-1, 1, 4))


def moved(norm):
    """Statistics and weights that training has moved."""
    with torch.no_grad():
        for value in (*norm.parameters(), *norm.buffers()):
            value.copy_(2 + torch.linspace(-1, 1, value.numel()).view(value.shape).to(value.dtype))
    return norm


@pytest.mark.parametrize("norm", [OwnBatchNorm(4), nn.BatchNorm2d(4, affine=False), nn.SyncBatchNorm(4), FrozenNorm()])
def test_every_kind_of_batch_norm_resets_its_statistics(norm, images):
    norm = moved(norm)
    before = state(norm)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.LazyLinear(3))
    net.eval()(images) if not isinstance(norm, nn.SyncBatchNorm | FrozenNorm) else net[3](torch.zeros(1, 784))
    randomize(net, ["1"], seed=1)
    assert norm.running_mean.eq(0).all()
    assert norm.running_var.eq(1).all()
    for name in {"weight", "bias"} & set(before):
        assert not torch.equal(getattr(norm, name), before[name])
        assert getattr(norm, name).unique().numel() == 4  # around what was learned, not all the same
    stages = randomization_check(nn.Sequential(*net[:2]), images, edge_map, torch.zeros(len(images)).long()).cascading
    assert [stage.layers for stage in stages] == [("1",), ("0",)]


def test_timms_batch_norm_resets_its_statistics():
    layers = pytest.importorskip("timm.layers")
    for kind in (layers.BatchNormAct2d, layers.FrozenBatchNormAct2d):
        norm = moved(kind(4))
        randomize(nn.Sequential(norm), ["0"], seed=1)
        assert norm.running_mean.eq(0).all(), kind
        assert norm.running_var.eq(1).all(), kind
        assert norm.weight.unique().numel() == 4, kind


def test_a_layer_made_of_torchs_that_draws_in_its_own_way_is_drawn_around_what_it_learned():
    layer = OwnLinear(400, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(2, 4, 4000).view(10, 400))
    randomize(nn.Sequential(layer), ["0"], seed=0)
    assert layer.weight.mean().item() == pytest.approx(3, abs=0.05)
    assert layer.weight.std().item() == pytest.approx(2 / math.sqrt(12), rel=0.05)


def test_a_layer_that_is_not_torchs_keeps_its_mean_and_spread():
    layer = OwnScale()
    layer.scale = nn.Parameter(torch.linspace(2, 4, 4000)[:, None, None])
    randomize(nn.Sequential(layer), ["0"], seed=0)
    assert layer.scale.mean().item() == pytest.approx(3, abs=0.05)
    assert layer.scale.std().item() == pytest.approx(2 / math.sqrt(12), rel=0.05)
    assert not layer.scale.flatten().equal(torch.linspace(2, 4, 4000))


def test_new_weights_are_a_function_of_the_seed_and_the_global_random_state_stays(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with restored(model):
        randomize(model, ["0", "6"], seed=3)
        first = state(model)
    with restored(model):
        randomize(model, ["0", "6"], seed=3)
        assert_same(model, first)
    assert torch.equal(torch.rand(3), expected)


def test_weights_and_statistics_come_back_bit_by_bit(model, images):
    model[0].weight.requires_grad_(False)
    model.train()
    model[1].eval()
    before = state(model)
    randomization_check(model, images, grad_cam)
    assert_same(model, before)
    assert [module.training for module in model][:2] == [True, False]
    assert not model[0].weight.requires_grad
    assert all(value.grad is None for value in model.parameters())


def test_weights_come_back_when_the_map_fails_half_way(model, images):
    before, calls = state(model), []

    def failing(model, images, targets):
        calls.append(1)
        if len(calls) == 3:
            assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
            raise RuntimeError("on purpose")
        return grad_cam(model, images, targets)

    with pytest.raises(RuntimeError, match="on purpose"):
        randomization_check(model, images, failing)
    assert_same(model, before)


# ---- verdicts


def test_an_edge_filter_stays_at_one_and_is_reported_to_show_the_image(model, images):
    report = randomization_check(model, images, edge_map)
    for stage in report.cascading + report.independent:
        assert (stage.absolute, stage.signed, stage.ssim, stage.constant) == pytest.approx((1, 1, 1, 0))
    assert report.depends is False
    assert "No: with all weights randomized its rank correlation with itself is 1.00" in report.verdict
    assert "nearer to zero than 0.5: yes; from 0.9 on, of either sign: no" in report.verdict


def trained(model, images, labels):
    """Colour decides the class, so that the gradient and Grad-CAM have something to depend on."""
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture
def cues(generator):
    """(24, 3, 16, 16) noise with a bright square in the channel of the class, and the labels."""
    images, labels = torch.rand(24, 3, 16, 16, generator=generator) * 0.7, torch.arange(24) % 3
    for row, label in enumerate(labels.tolist()):
        left, top = torch.randint(0, 10, (2,), generator=generator).tolist()
        images[row, :, top : top + 6, left : left + 6] = 0.1
        images[row, label, top : top + 6, left : left + 6] = 1.0
    return images, labels


def test_cam_of_a_trained_net_falls_below_a_half_where_the_edge_filter_does_not(model, cues):
    images, labels = cues
    trained(model, images, labels)
    report = randomization_check(model, images, cam, labels)
    assert report.cascading[-1].absolute < 0.5
    assert report.depends is True
    assert "Yes: " in report.verdict
    assert randomization_check(model, images, edge_map, labels).depends is False


def test_the_cascade_begins_at_the_top_and_ends_with_every_layer(model, images):
    report = randomization_check(model, images, gradient)
    assert [stage.layers for stage in report.cascading] == [("6",), ("3",), ("1",), ("0",)]
    assert report.independent[0] == report.cascading[0]
    assert report.independent[-1] != report.cascading[-1]
    assert (
        randomization_check(model, images, gradient, options=RandomizationOptions(independent=False)).independent == ()
    )
    assert randomization_check(model, images, gradient, options=RandomizationOptions(layers=("0", "6"))).cascading[
        0
    ].layers == ("6",)


def test_many_layers_are_joined_with_their_neighbours(model, images):
    report = randomization_check(model, images, edge_map, options=RandomizationOptions(most=3))
    assert [stage.layers for stage in report.cascading] == [("6",), ("3", "1"), ("0",)]


def test_constant_maps_are_left_out_and_too_many_of_them_leave_no_verdict(model, images):
    def uniform(model, images, targets):
        return torch.ones(len(images), 4, 4)

    def mostly_uniform(model, images, targets):
        return uniform(model, images, targets) * images[:, 0, :4, :4] * (torch.arange(len(images)) == 0)[:, None, None]

    report = randomization_check(model, images, mostly_uniform)
    assert (report.count, report.left_out, report.depends) == (1, 3, None)
    assert "3 of 4 maps are constant" in report.verdict
    assert report.cascading[0].absolute == pytest.approx(1)
    assert math.isnan(randomization_check(model, images, uniform).cascading[0].absolute)


def going_blank(count):
    """The image's edges, but from the first randomization on the last ``count`` maps are blank."""
    calls = []

    def method(model, images, targets):
        calls.append(1)
        keep = torch.arange(len(images)) < len(images) - (count if len(calls) > 1 else 0)
        return edge_map(model, images, targets) * keep[:, None, None]

    return method


def test_maps_that_become_blank_are_left_out_and_counted(model, images):
    report = randomization_check(model, images, going_blank(2))
    last = report.cascading[-1]
    assert (last.absolute, last.signed, last.ssim, last.constant) == pytest.approx((1, 1, 1, 0.5))
    assert report.depends is False
    assert "2 of 4 maps, constant then, left out" in report.verdict


@pytest.mark.parametrize("count", [3, 4])
def test_there_is_no_verdict_when_most_maps_become_blank(model, images, count):
    report = randomization_check(model, images, going_blank(count))
    assert report.depends is None
    assert f"with all weights randomized {count} of 4 maps are constant" in report.verdict
    assert report.cascading[-1].constant == count / 4
    assert math.isnan(report.cascading[-1].absolute) == (count == 4)


def test_a_report_of_maps_that_all_became_blank_can_be_written_and_drawn_again(model, images):
    from heedmap.files import finite
    from heedmap.report.sections import sections

    found = {
        "rows": [],
        "sample": {"evaluated": 4, "of": 4},
        "randomization": {"grad-cam": randomization_check(model, images, going_blank(4)).as_dict()},
    }
    for content in (found, finite(found)):
        table = sections({"faithfulness": content})[0].tables[1]
        assert table.rows == (("grad-cam", "-", "-"),)


def test_what_maps_have_in_common_stands_beside(model, images):
    def middle(model, images, targets):
        row = torch.arange(16.0)
        return (row * (15 - row)).expand(len(images), 16, 16)

    report = randomization_check(model, images, middle)
    assert report.between == pytest.approx(1)
    assert report.as_dict()["between"] == report.between


def test_the_sign_counts_only_in_the_signed_figure(model, images):
    calls = []

    def turning(model, images, targets):
        calls.append(1)
        return (images[:, 0] - 0.5) * (1 if len(calls) == 1 else -1)

    stage = randomization_check(model, images, turning).cascading[-1]
    assert (stage.absolute, stage.signed) == pytest.approx((1, -1))


def test_learned_attention_of_heedmaps_own_net_is_evaluated_like_any_map(images):
    from heedmap import Architecture, build_classifier

    torch.manual_seed(0)
    own = build_classifier(Architecture("compact", "parametrised", None, "concat", None, 32, ("a", "b")))
    for parameter in own.attentions.parameters():
        nn.init.normal_(parameter)  # away from the uniform start
    before = state(own)
    report = randomization_check(
        own.eval(), images, learned_map, options=RandomizationOptions(most=4, independent=False)
    )
    assert_same(own, before)
    assert report.left_out == 0
    assert len(report.cascading) == 4
    assert report.cascading[-1].constant == 0


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"layers": ("7",)}, ModelError, "'7'"),
        ({"layers": ()}, ModelError, "no weights"),
        ({"most": 0}, OptionError, "most = 0"),
        ({"images": torch.zeros(2, 3, 8, 8)}, DataError, "8, 8"),
        ({"targets": torch.zeros(2).long()}, DataError, "targets"),
    ],
)
def test_what_cannot_be_randomized_is_refused(model, images, change, error, word):
    given = {"model": model, "images": images, "method": edge_map} | change
    chosen = {key: given.pop(key) for key in ("layers", "most") if key in given}
    with pytest.raises(error, match=word):
        randomization_check(**given, options=RandomizationOptions(**chosen))
