"""Readouts and gates against slow definitions in float64, and the contract of the registry of attentions."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from heedmap.attention import (
    ATTENTIONS,
    CompatibilityReadout,
    FeatureAttention,
    MeanReadout,
    Readout,
    TapFeatures,
    attention_options,
)
from heedmap.errors import ModelError
from heedmap.heads.classification import ConcatHead, IndepHead, ResidualHead

SIZES = [(1, 1), (3, 5), (4, 4)]
EVERY = [(name, weights) for name, options in ATTENTIONS.items() for weights in options.KINDS_OF_WEIGHTS]
QUERY_AWARE = [("dot", "softmax"), ("dot", "sigmoid"), ("additive", "softmax"), ("parametrised", "sigmoid")]
# Every readout that can be built: score, weights, project, paper, C, D.
READOUTS = [
    (score, weights, project, paper, channels, query)
    for score, weights, project, paper, (channels, query) in itertools.product(
        ("parametrised", "dot", "additive"),
        ("softmax", "sigmoid"),
        ("query", "features"),
        (False, True),
        ((4, 4), (4, 6)),
    )
    if not (score == "additive" and project == "features")
]


def built(name: str, weights: str, channels: int, height: int, width: int) -> Readout:
    return attention_options(name, weights).build(TapFeatures(channels, 6, height, width))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def stirred(module):
    """The module after some training, as it were: away from its zero start, statistics included."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.2 if tensor.ndim == 1 else torch.randn_like(tensor) * 0.7)
    return module.double().eval()


def slow_readout(readout: CompatibilityReadout, features: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """One image's vector and map by the definition, position by position: features (C, H, W), query (D,)."""
    g = query if readout.query_map is None else readout.query_map(query[None])[0]
    if readout.query_map is None and readout.projection is None and len(query) != len(features):
        g = torch.zeros(readout.channels, dtype=query.dtype)  # parametrised + softmax: the query may be anything
    bias = 0.0 if readout.scorer is None or readout.scorer.bias is None else readout.scorer.bias[0]

    def scored(vector: Tensor) -> Tensor:
        return readout.scale * sum(a * b for a, b in zip(readout.scorer.weight[0], vector, strict=True)) + bias

    places = list(itertools.product(range(features.shape[1]), range(features.shape[2])))
    locals_, scores = [], []
    for row, column in places:
        local = features[:, row, column]
        if readout.projection is not None:
            local = readout.projection(local)
        locals_.append(local)
        if readout.score == "parametrised":
            scores.append(scored(local + g))
        elif readout.score == "dot":
            scores.append(readout.scale * sum(a * b for a, b in zip(local, g, strict=True)))
        else:
            scores.append(scored(torch.tanh(readout.feature_map(local) + g)))
    if readout.weights == "softmax":
        total = sum(math.exp(score) for score in scores)
        weights = [math.exp(score) / total for score in scores]
        vector = sum(weight * local for weight, local in zip(weights, locals_, strict=True))
    else:
        weights = [1 / (1 + math.exp(-score)) for score in scores]
        vector = sum(weight * local for weight, local in zip(weights, locals_, strict=True)) / len(places)
    return vector, torch.tensor(weights, dtype=torch.float64).view(features.shape[1:])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("score", "weights", "project", "paper", "channels", "width"), READOUTS)
def test_a_readout_equals_its_slow_definition(score, weights, project, paper, channels, width, size):
    readout = stirred(CompatibilityReadout(channels, width, score, weights, project, paper=paper))
    features, query = torch.randn(3, channels, *size).double(), torch.randn(3, width).double()
    with torch.no_grad():
        attended = readout(features, query)
        for row in range(3):
            vector, weight_map = slow_readout(readout, features[row], query[row])
            torch.testing.assert_close(attended.features[row], vector, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(attended.attention[row, 0], weight_map, rtol=1e-10, atol=1e-12)
    assert attended.features.shape == (3, readout.channels)


def test_levelled_scores_under_a_sigmoid_are_divided_by_the_root_of_the_width_once():
    readout = stirred(CompatibilityReadout(4, 4, "parametrised", "sigmoid", rescale=True))
    features, query = torch.randn(2, 4, 3, 3).double(), torch.randn(2, 4).double()
    with torch.no_grad():
        found = readout(features, query).attention.flatten(1)
        scale = features.square().mean((1, 2, 3)).sqrt()
        flat, direction = features.flatten(2), readout.scorer.weight[0] / 2
        scores = torch.einsum("c,bcn->bn", direction, flat) / scale[:, None]
        scores = scores + (query @ direction)[:, None] + readout.scorer.bias
    torch.testing.assert_close(found, scores.sigmoid(), rtol=1e-10, atol=1e-12)


def test_scores_are_divided_by_the_root_of_the_width_where_documented():
    for score, weights in itertools.product(("parametrised", "dot", "additive"), ("softmax", "sigmoid")):
        scale = 0.5 if score == "dot" or weights == "sigmoid" else 1.0
        assert CompatibilityReadout(4, 6, score, weights).scale == scale
        assert CompatibilityReadout(4, 6, score, weights, paper=True).scale == 1.0


@pytest.mark.parametrize("channels", [4, 6])
@pytest.mark.parametrize("paper", [False, True])
def test_the_parametrised_softmax_map_does_not_move_with_the_query(channels, paper):
    readout = stirred(CompatibilityReadout(channels, 6, "parametrised", "softmax", paper=paper)).float()
    features = torch.randn(2, channels, 5, 5)
    one, other = (readout(features, torch.randn(2, 6) * 50).attention for _ in range(2))
    none = readout(features, None).attention
    assert not readout.uses_query
    assert (one - other).abs().max() <= 1e-6
    assert (one - none).abs().max() <= 1e-6


def test_leaving_the_query_out_of_parametrised_softmax_changes_nothing_since_softmax_cancels_it():
    readout = stirred(CompatibilityReadout(6, 6, "parametrised", "softmax"))
    features, query = torch.randn(2, 6, 4, 3).double(), torch.randn(2, 6).double() * 10
    with_query = torch.einsum("bchw,c->bhw", features + query[:, :, None, None], readout.scorer.weight[0])
    expected = with_query.flatten(1).softmax(1).view(2, 1, 4, 3)
    torch.testing.assert_close(readout(features, query).attention, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("score", "weights"), QUERY_AWARE)
@pytest.mark.parametrize("paper", [False, True])
def test_every_other_score_moves_its_map_with_the_query_and_requires_one(score, weights, paper):
    readout = stirred(CompatibilityReadout(4, 6, score, weights, paper=paper))
    features, query = torch.randn(2, 4, 5, 5).double(), torch.randn(2, 6).double()
    first, second = readout(features, query).attention, readout(features, query.flip(0)).attention
    assert readout.uses_query
    assert (first - second).abs().max() > 1e-3
    with pytest.raises(ModelError, match="query"):
        readout(features, None)


def test_one_query_for_all_images_is_the_same_as_giving_it_to_each():
    readout = stirred(CompatibilityReadout(4, 6, "additive"))
    features, query = torch.randn(3, 4, 2, 2).double(), torch.randn(1, 6).double()
    torch.testing.assert_close(readout(features, query), readout(features, query.repeat(3, 1)))


def test_the_dot_attends_to_the_place_that_agrees_with_the_query():
    readout = CompatibilityReadout(2, 2, "dot", paper=True)
    features = torch.zeros(1, 2, 2, 2)
    features[0, :, 1, 0] = torch.tensor([0.0, math.log(5.0)])  # score log 5 against three places of score 0
    attended = readout(features, torch.tensor([[7.0, 1.0]]))
    torch.testing.assert_close(attended.attention[0, 0], torch.tensor([[1 / 8, 1 / 8], [5 / 8, 1 / 8]]))
    torch.testing.assert_close(attended.features, torch.tensor([[0.0, 5 / 8 * math.log(5.0)]]))


@pytest.mark.parametrize(("score", "weights", "project"), [case[:3] for case in READOUTS if case[3:] == (False, 4, 4)])
def test_our_readout_starts_uniform_and_as_the_mean(score, weights, project):
    readout = CompatibilityReadout(4, 4, score, weights, project)
    features, query = torch.randn(2, 4, 3, 5) * 10, torch.randn(2, 4) * 10
    attended, control = readout(features, query), MeanReadout(4)(features, None)
    if weights == "softmax":
        torch.testing.assert_close(attended, control)
    else:
        torch.testing.assert_close(attended.attention, torch.full((2, 1, 3, 5), 0.5))
        torch.testing.assert_close(attended.features, control.features / 2)


@pytest.mark.parametrize(("score", "weights", "project", "paper", "channels", "width"), READOUTS)
def test_the_gradient_reaches_every_parameter_that_is_not_frozen(score, weights, project, paper, channels, width):
    readout = CompatibilityReadout(channels, width, score, weights, project, paper=paper)
    trained = {name for name, parameter in readout.named_parameters() if parameter.requires_grad}
    for step in range(2):  # v and u start at zero, so what stands behind them moves from the second step on
        readout.zero_grad()
        features, query = torch.randn(8, channels, 3, 3), torch.randn(8, width, requires_grad=True)
        (readout(features, query).features * torch.randn(8, readout.channels)).sum().backward()
        with torch.no_grad():
            for parameter in readout.parameters():
                if step == 0 and parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    reached = {name for name, p in readout.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == trained
    assert (query.grad is not None and bool(query.grad.abs().max() > 0)) == readout.uses_query


def test_the_first_step_already_moves_the_map():
    for score, weights in [*QUERY_AWARE, ("parametrised", "softmax")]:
        readout = CompatibilityReadout(4, 6, score, weights)
        (readout(torch.randn(2, 4, 3, 3), torch.randn(2, 6)).features * torch.randn(2, 4)).sum().backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in readout.parameters()), (score, weights)


def test_the_paper_form_keeps_what_softmax_makes_inert_frozen_and_counted():
    readout = CompatibilityReadout(256, 512, "parametrised", "softmax", paper=True)
    frozen = sum(p.numel() for p in readout.parameters() if not p.requires_grad)
    assert sum(p.numel() for p in readout.query_map.parameters()) == 132_352
    assert frozen == 132_352 + 1
    assert sum(p.numel() for p in readout.parameters()) == 132_352 + 257


@pytest.mark.parametrize(("name", "weights"), EVERY)
@pytest.mark.parametrize("size", SIZES)
def test_contract_every_attention_gives_its_shapes_and_its_weights(name, weights, size):
    module = stirred(built(name, weights, 4, *size)).float()
    features, query = torch.randn(3, 4, *size), torch.randn(3, 6)
    attended = module(features, query)
    places = size[0] * size[1]
    assert attended.attention.dtype == torch.float32
    assert torch.isfinite(attended.features).all()
    assert isinstance(module, Readout)
    assert (module.name, module.weights) == (name, weights)
    assert attended.features.shape == (3, module.channels)
    assert attended.attention.shape == (3, 1, *size)
    assert module.is_share == (weights == "softmax" and "feature" not in name)
    total = attended.attention.sum((1, 2, 3))
    if weights == "softmax":
        torch.testing.assert_close(total, torch.full((3,), 1.0 if module.is_share else float(places)))
        assert attended.attention.min() >= 0
    else:
        assert 0 < attended.attention.min() <= attended.attention.max() < 1


@pytest.mark.parametrize(("name", "weights"), EVERY)
def test_contract_permuting_the_batch_permutes_the_output(name, weights):
    module = stirred(built(name, weights, 4, 3, 3))
    features, query = torch.randn(4, 4, 3, 3).double(), torch.randn(4, 6).double()
    order = torch.tensor([2, 0, 3, 1])
    straight, permuted = module(features, query), module(features[order], query[order])
    torch.testing.assert_close(permuted.features, straight.features[order])
    torch.testing.assert_close(permuted.attention, straight.attention[order])


@pytest.mark.parametrize(("name", "weights"), EVERY)
def test_contract_channels_last_gives_the_same_output(name, weights):
    module = stirred(built(name, weights, 4, 3, 2))
    features, query = torch.randn(2, 4, 3, 2).double(), torch.randn(2, 6).double()
    torch.testing.assert_close(
        module(features.to(memory_format=torch.channels_last), query), module(features, query), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(("name", "weights"), EVERY)
def test_contract_under_bfloat16_autocast_the_weights_are_float32_and_sum_to_one(name, weights):
    module = stirred(built(name, weights, 16, 9, 11)).float()
    features = torch.randn(2, 16, 9, 11).bfloat16().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        attended = module(features, torch.randn(2, 6).bfloat16())
    assert attended.attention.dtype == torch.float32
    if weights == "softmax":
        expected = 1.0 if module.is_share else 99.0
        torch.testing.assert_close(attended.attention.sum((1, 2, 3)) / expected, torch.ones(2), rtol=0, atol=1e-5)
    if "feature" not in name:
        assert attended.features.dtype == torch.float32


def test_an_unknown_attention_or_word_names_the_nearest():
    with pytest.raises(ModelError, match="'parametrised'"):
        attention_options("parametrized")
    with pytest.raises(ModelError, match="'sigmoid'"):
        CompatibilityReadout(4, 4, weights="sigmod")
    with pytest.raises(ModelError, match="score 'dots'"):
        CompatibilityReadout(4, 4, score="dots")
    with pytest.raises(ModelError, match="project 'both'"):
        CompatibilityReadout(4, 4, project="both")
    with pytest.raises(ModelError, match="project"):
        CompatibilityReadout(4, 4, score="additive", project="features")
    with pytest.raises(ModelError, match="'sigmoid'"):
        attention_options("none", "sigmoid")
    with pytest.raises(ModelError, match="'dense'"):
        FeatureAttention(4, 2, 2, form="dens")


@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
@pytest.mark.parametrize("form", ["dense", "conv"])
def test_soft_feature_attention_equals_its_slow_definition(form, weights):
    gate = stirred(FeatureAttention(3, 2, 4, form, weights))
    features = torch.randn(2, 3, 2, 4).double()
    matrix, bias, outer = gate.inner.weight, gate.inner.bias, gate.outer
    with torch.no_grad():
        attended = gate(features)
        for image in range(2):
            scores = torch.zeros(3, 2, 4).double()
            for channel, row, column in itertools.product(range(3), range(2), range(4)):
                if form == "dense":
                    unit, inputs = (channel * 2 + row) * 4 + column, features[image].reshape(-1)
                else:
                    unit, inputs = channel, features[image, :, row, column]
                inner = sum(matrix[unit, i] * inputs[i] for i in range(len(inputs))) + bias[unit]
                scores[channel, row, column] = outer[unit] * max(inner, 0.0)
            expected = 1 / (1 + torch.exp(-scores))
            if weights == "softmax":
                expected = torch.exp(scores) / torch.exp(scores).sum() * 24
            torch.testing.assert_close(attended.attention[image], expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(attended.features[image], features[image] * expected)


def test_the_sigmoid_gate_is_one_half_where_the_inner_unit_is_off():
    gate = FeatureAttention(2, 2, 2, "conv", "sigmoid")
    nn.init.constant_(gate.inner.bias, -100.0)
    assert torch.equal(gate(torch.rand(1, 2, 2, 2)).attention, torch.full((1, 2, 2, 2), 0.5))


@pytest.mark.parametrize("form", ["dense", "conv"])
def test_the_gradient_reaches_every_parameter_of_the_gate(form):
    gate = FeatureAttention(3, 2, 2, form, "softmax")
    gate(torch.randn(4, 3, 2, 2)).features.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in gate.parameters())


def test_a_dense_matrix_that_does_not_fit_is_refused_before_it_is_made():
    with pytest.raises(ModelError, match=r"17,920 .*4\.8 GiB.*--attention feature"):
        FeatureAttention(70, 16, 16, "dense")
    FeatureAttention(70, 16, 16, "conv")
    with torch.device("meta"):
        FeatureAttention(8, 32, 32, "dense")  # 8,192 features: 16 * 8192 ** 2 bytes are exactly one GiB
        with pytest.raises(ModelError, match="GiB"):
            FeatureAttention(8, 32, 33, "dense")
        original = FeatureAttention(70, 16, 16, "dense", max_bytes=6 * 2**30)
    assert sum(parameter.numel() for parameter in original.parameters()) == 17_920**2 + 2 * 17_920


def test_the_dense_form_refuses_features_of_another_size_and_the_conv_form_takes_them():
    with pytest.raises(ModelError, match=r"2 x 3 x 3, not 2 x 4 x 3"):
        FeatureAttention(2, 3, 3, "dense")(torch.rand(1, 2, 4, 3))
    assert FeatureAttention(2, 3, 3, "conv")(torch.rand(1, 2, 4, 3)).features.shape == (1, 2, 4, 3)


@pytest.mark.parametrize("normalise", ["paper", "batch-norm", "layer-norm"])
def test_indep_is_the_mean_of_the_taps_probabilities(normalise):
    head = stirred(IndepHead({"a": 4, "layer.b": 6}, 5, normalise))
    vectors = {"layer.b": torch.randn(3, 6).double(), "a": torch.randn(3, 4).double()}
    logits = head(vectors)
    each = [head.linears[i](head.norms[i](vectors[tap])).softmax(1) for i, tap in enumerate(("a", "layer.b"))]
    mean = ((each[0] + each[1]) / 2).detach()
    labels = torch.tensor([0, 4, 2])
    torch.testing.assert_close(logits.exp(), mean)
    expected = -sum(math.log(mean[row, label]) for row, label in enumerate(labels.tolist())) / 3
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-12)


def test_indep_stays_finite_where_a_probability_underflows():
    head = IndepHead({"a": 1}, 2, "layer-norm")
    with torch.no_grad():
        head.linears[0].bias.copy_(torch.tensor([1000.0, -1000.0]))
    assert torch.isfinite(head({"a": torch.zeros(1, 1)})).all()


def test_concat_takes_the_vectors_in_the_order_of_the_taps_whatever_order_they_come_in():
    head = stirred(ConcatHead({"a": 2, "b": 3}, 4, "batch-norm"))
    vectors = {"a": torch.randn(5, 2).double(), "b": torch.randn(5, 3).double()}
    expected = head.linear(torch.cat([head.norms[0](vectors["a"]), head.norms[1](vectors["b"])], 1))
    torch.testing.assert_close(head(dict(reversed(vectors.items()))), expected)


@pytest.mark.parametrize("normalise", ["paper", "batch-norm", "layer-norm"])
@pytest.mark.parametrize("train", [False, True])
def test_the_residual_head_starts_as_the_networks_own_logits_and_learns_at_once(normalise, train):
    head = ResidualHead({"a": 2, "b": 3}, 4, normalise).train(train)
    base = torch.randn(5, 4) * 10
    logits = head({"a": torch.randn(5, 2) * 100, "b": torch.randn(5, 3)}, base)
    assert torch.equal(logits, base)
    nn.functional.cross_entropy(logits, torch.arange(5) % 4).backward()
    assert head.linear.weight.grad.abs().max() > 0


def test_a_head_without_taps_or_with_an_unknown_word_is_refused():
    with pytest.raises(ModelError, match="tap"):
        ConcatHead({}, 3)
    with pytest.raises(ModelError, match="'batch-norm'"):
        ConcatHead({"a": 2}, 3, "batchnorm")


@pytest.mark.parametrize("score", ["parametrised", "dot", "additive"])
def test_levelled_scores_do_not_know_the_scale_of_the_features(score: str, generator: torch.Generator) -> None:
    readout = CompatibilityReadout(6, 6, score, "softmax", rescale=True).double()
    for parameter in readout.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    features = torch.randn(2, 6, 3, 3, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    plain, large = readout(features, query), readout(features * 50, query)
    torch.testing.assert_close(plain.attention, large.attention)
    torch.testing.assert_close(plain.features * 50, large.features)
    flat = features.flatten(2) / features.flatten(1).square().mean(1).sqrt()[:, None, None]
    if score == "parametrised":
        assert readout.scorer is not None
        expected = torch.einsum("c,bcn->bn", readout.scorer.weight[0], flat) / 6**0.5
        torch.testing.assert_close(plain.attention.flatten(1), expected.softmax(1))
