"""Frozen features are what the head reads, and the probe on them is honest: C inside train, test once."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from heedmap import Architecture, build_classifier, open_data
from heedmap.data.dataset import Splits, TensorDataset
from heedmap.errors import DataError, ModelError, OptionError
from heedmap.metrics import linear_probe
from heedmap.metrics.linear_probe import FeatureOptions, ProbeOptions, features_of, probe, transfer


@pytest.fixture(scope="module")
def digits():
    """Scikit-learn's digits: 8 x 8 pixels as features, 1000 to train on and 797 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    features, labels = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target)
    return features[:1000], labels[:1000], features[1000:], labels[1000:]


def own(attention, head="concat"):
    torch.manual_seed(0)
    return build_classifier(Architecture("compact", attention, None, head, None, 32, ("a", "b", "c"))).eval()


def test_digits_are_classified_as_by_the_plain_recipe(digits):
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.preprocessing import normalize
    from sklearn.svm import LinearSVC

    train, train_labels, test, test_labels = digits
    found = probe(*digits, ProbeOptions(costs=(0.1, 1.0)))
    search = GridSearchCV(
        LinearSVC(dual="auto", max_iter=20_000, random_state=0), {"C": [0.1, 1.0]},
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    )  # fmt: skip
    search.fit(normalize(train.numpy()), train_labels.numpy())
    assert found.cost == search.best_params_["C"]
    assert found.fold_mean == pytest.approx(search.best_score_)
    assert found.accuracy == pytest.approx(search.score(normalize(test.numpy()), test_labels.numpy()))
    assert found.accuracy > 0.9
    assert found.low < found.accuracy < found.high
    assert found.folds == 5
    assert (found.train, found.test, found.width) == (1000, 797, 64)
    assert found.converged
    most = train_labels.bincount().argmax()
    assert found.majority == pytest.approx((test_labels == most).double().mean().item())


def test_the_test_set_does_not_influence_the_choice(digits):
    train, train_labels, test, test_labels = digits
    first = probe(train[:200], train_labels[:200], test, test_labels, ProbeOptions(costs=(0.1, 1.0)))
    other = probe(train[:200], train_labels[:200], test[:9], 9 - test_labels[:9], ProbeOptions(costs=(0.1, 1.0)))
    assert (first.cost, first.fold_mean, first.fold_spread) == (other.cost, other.fold_mean, other.fold_spread)


def test_shuffled_labels_are_at_chance(digits, generator):
    train, train_labels, test, test_labels = digits
    shuffled = train_labels[torch.randperm(len(train_labels), generator=generator)]
    found = probe(train, shuffled, test, test_labels, ProbeOptions(costs=(0.01,)))
    assert found.accuracy == pytest.approx(0.1, abs=0.05)


def test_the_length_of_a_feature_vector_does_not_matter(digits):
    train, train_labels, test, test_labels = digits
    scale = torch.linspace(1, 50, 200)[:, None]
    plain = probe(train[:200], train_labels[:200], test, test_labels, ProbeOptions(costs=(1.0,)))
    assert (
        probe(train[:200] * scale, train_labels[:200], test, test_labels, ProbeOptions(costs=(1.0,))).accuracy
        == plain.accuracy
    )


def test_a_small_class_lowers_the_number_of_folds(digits):
    train, train_labels, test, test_labels = digits
    keep = torch.cat([(train_labels == label).nonzero()[:3, 0] for label in range(10)])
    assert probe(train[keep], train_labels[keep], test, test_labels, ProbeOptions(costs=(1.0,))).folds == 3


def test_a_solver_that_does_not_converge_is_reported_and_other_warnings_pass(digits, monkeypatch):
    monkeypatch.setattr(linear_probe, "ROUNDS", 1)
    train, train_labels, test, test_labels = digits
    assert not probe(train, train_labels, test, test_labels, ProbeOptions(costs=(100.0,))).converged

    from sklearn.svm import LinearSVC

    plain = LinearSVC.fit

    def warning_fit(self, *given):
        warnings.warn("look out", UserWarning, stacklevel=1)
        return plain(self, *given)

    monkeypatch.setattr(LinearSVC, "fit", warning_fit)
    with pytest.warns(UserWarning, match="look out"):
        probe(train[:100], train_labels[:100], test, test_labels, ProbeOptions(costs=(1.0,)))


# ---- features


@pytest.mark.parametrize("attention", ["parametrised", "none"])
@pytest.mark.parametrize("head", ["concat", "indep"])
def test_the_features_are_what_the_head_reads(attention, head, images):
    """The readouts of all taps, or the control's pooled features, put together by hand."""
    model = own(attention, head)
    for parameter in model.attentions.parameters():
        nn.init.normal_(parameter)
    features = features_of(model, images.split(3))
    with torch.no_grad():
        trunk = model.backbone((images - model.mean) / model.std, model.taps, model.uses_query)
        vectors = []
        for tap, attention_module, norm in zip(model.taps, model.attentions, model.head.norms, strict=True):
            weights = attention_module(trunk.features[tap], trunk.query).attention
            vectors.append(norm((trunk.features[tap] * weights).sum((2, 3))))
    assert torch.allclose(features, torch.cat(vectors, dim=1), atol=1e-5)
    if attention == "none":
        pooled = [
            norm(trunk.features[tap].mean((2, 3))) for tap, norm in zip(model.taps, model.head.norms, strict=True)
        ]
        assert torch.allclose(features, torch.cat(pooled, dim=1), atol=1e-5)


def test_any_other_network_gives_the_input_of_its_last_linear_layer(images):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = features_of(model, [images])
    deep = features_of(model, [images], layer="0.2")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model[3]._forward_pre_hooks
    with torch.no_grad():
        model.eval()
        assert torch.allclose(found, model[:3](images), atol=1e-6)
        assert torch.allclose(deep, body[:2](images).mean((2, 3)), atol=1e-6)


def test_hooks_are_removed_after_an_error(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 2))
    with pytest.raises(RuntimeError):
        features_of(model, [images])
    assert not model[1]._forward_pre_hooks


@pytest.mark.parametrize(
    ("model", "layer", "word"),
    [
        (nn.Sequential(nn.Linear(1, 1)), "1", "'1'"),
        (nn.Sequential(nn.Conv2d(3, 2, 1)), None, "Sequential"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(model, layer, word, images):
    with pytest.raises(ModelError, match=word):
        features_of(model, [images], layer)


def test_a_layer_that_does_not_run_is_refused(images):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, images):
            return images

    with pytest.raises(ModelError, match="did not run"):
        features_of(Idle(), [images])


# ---- the table


def test_several_models_on_several_sets_make_one_table(cue_folder):
    sets = {"cues": open_data(cue_folder)}
    models = {"attention": own("parametrised"), "control": own("none")}
    report = transfer(models, sets, ProbeOptions(costs=(1.0,)), FeatureOptions(workers=0))
    assert [(row.model, row.data) for row in report.rows] == [("attention", "cues"), ("control", "cues")]
    for row in report.rows:
        assert (row.probe.train, row.probe.test) == (36, 36)
        assert row.probe.majority == pytest.approx(1 / 3)
        assert row.probe.accuracy > 0.5  # colours are there in any filters, trained or not
    assert report.as_dict()["rows"][0]["probe"]["width"] == report.rows[0].probe.width
    assert report.settings["costs"] == [1.0]


def tiny_set(test=True, validation=False):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (12, 3, 32, 32), dtype=np.uint8))
    part = TensorDataset(pixels, torch.arange(12) % 2, ("x", "y"), [str(number) for number in range(12)])
    return Splits("tiny", ("x", "y"), part, part if validation else None, part if test else None, (), (), True)


def test_a_validation_part_is_trained_on_too():
    report = transfer({"own": own("none")}, {"tiny": tiny_set(validation=True)}, ProbeOptions(costs=(1.0,)))
    found = report.rows[0].probe
    assert (found.train, found.test) == (24, 12)


def test_what_cannot_be_transferred_is_refused(digits):
    with pytest.raises(DataError, match="tiny"):
        transfer({"own": own("none")}, {"tiny": tiny_set(test=False)})
    with pytest.raises(OptionError, match="plain"):
        transfer({"plain": nn.Linear(2, 2)}, {"tiny": tiny_set()})
    with pytest.raises(OptionError, match="no model"):
        transfer({}, {"tiny": tiny_set()})
    train, train_labels, test, test_labels = digits
    for given, word in (
        ((train[:5], train_labels[:4], test, test_labels), "train"),
        ((train / 0, train_labels, test, test_labels), "not finite"),
        ((train[:, :5], train_labels, test, test_labels), "5 .* 64"),
        ((train[:11], train_labels[:11], test, test_labels), "two classes"),
    ):
        with pytest.raises(DataError, match=word):
            probe(*given)
    with pytest.raises(OptionError, match="costs"):
        ProbeOptions(costs=(0.0,))
