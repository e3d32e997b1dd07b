"""The loop: that it learns and looks at the right place, and each of its parts against an oracle."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from conftest import CUE_CLASSES, CUE_IMAGE_SIDE, cue_image
from heedmap.config import TrainOptions
from heedmap.data import transforms as views
from heedmap.data.dataset import TensorDataset
from heedmap.data.decoding import to_tensor
from heedmap.data.loader import Share, Store, TrainingBatches, plain_batches
from heedmap.data.transforms import Augmentation
from heedmap.errors import OptionError, TrainingError
from heedmap.metrics.localization.pointing_game import pointing, random_pointing
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.training.optimizers import FLOOR, SCHEDULES, make_optimizer
from heedmap.training.precision import autocast, computes_in_bf16, resolve
from heedmap.training.tasks import ClassificationTask, Task, ValidationResult
from heedmap.training.trainer import Fitting, fit
from heedmap.types import Batch, Output, StepReport

CPU = torch.device("cpu")


def cue_images(count: int, first_seed: int) -> TensorDataset:
    """Images whose class only the cue tells, with the cue's box."""
    names = [CUE_CLASSES[i % 3] for i in range(count)]
    drawn = [cue_image(name, first_seed + i) for i, name in enumerate(names)]
    return TensorDataset(
        torch.stack([to_tensor(image) for image, _ in drawn]),
        torch.arange(count) % 3,
        CUE_CLASSES,
        [f"{i}.png" for i in range(count)],
        boxes=torch.tensor([box for _, box in drawn]) / CUE_IMAGE_SIDE,
    )


def settings(**changes: Any) -> TrainOptions:
    given = {"epochs": 2, "learning_rate": 0.05, "weight_decay": 5e-4, "batch_size": 6, "precision": "float32"}
    return TrainOptions(**{**given, "cutmix": 0.0, "label_smoothing": 0.0, **changes})


def batches_of(
    images: TensorDataset, batch_size: int = 6, size: int = 16, kind: str = "none", share: Share | None = None
) -> TrainingBatches:
    store = Store(images, size, 1, 1e9)
    return TrainingBatches(store, size, batch_size, Augmentation(kind, False), 0, share or Share())


def net(size: int = 16, classes: tuple[str, ...] = CUE_CLASSES, **changes: Any) -> AttentionClassifier:
    torch.manual_seed(0)
    given = {"attention": "parametrised", "attention_weights": None, "head": "concat", "taps": None, **changes}
    return build_classifier(Architecture(model="compact", image_size=size, classes=classes, **given))


def evaluating(images: TensorDataset, size: int = 16) -> Callable[[], Iterator[Batch]]:
    store = Store(images, size, 1, 1e9)
    return lambda: plain_batches(store, 100)


class Probe(nn.Module):
    """Stands for a classifier: logits are a linear map of the image's mean colour, and there is no attention."""

    attentions, taps, classes = (), (), CUE_CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Output:
        return Output(self.linear(images.mean((2, 3))), {})


def probe() -> Any:
    torch.manual_seed(0)
    return Probe()


def test_it_learns_the_cue_and_the_attention_lies_on_it() -> None:
    size = CUE_IMAGE_SIDE
    train, test = cue_images(90, 0), cue_images(60, 5000)
    classifier = net(size)
    options = settings(epochs=8, batch_size=15, learning_rate=0.05)
    reports = list(fit(classifier, batches_of(train, 15, size, "shift"), evaluating(test, size), options))
    assert [report.epoch for report in reports] == list(range(1, 9))
    assert reports[-1].train_loss < 0.5 * reports[0].train_loss
    assert max(report.validation["accuracy"] for report in reports) >= 0.97
    with torch.no_grad():
        output = classifier(test.images.float() / 255)
    assert (output.logits.argmax(1) == test.labels).double().mean() >= 0.97
    assert not classifier.training
    assert test.boxes is not None
    assert random_pointing(test.boxes) < 0.1  # the cue covers a sixteenth of the image
    assert max(pointing(weights, test.boxes) for weights in output.attention.values()) >= 0.9


def test_missing_options_are_refused_by_name() -> None:
    for name in ("epochs", "learning_rate", "weight_decay"):
        with pytest.raises(OptionError, match=name):
            fit(net(), batches_of(cue_images(6, 0)), None, settings(**{name: None}))


def test_one_image_a_step_is_refused_where_the_head_normalises_over_the_batch() -> None:
    batches = batches_of(cue_images(6, 0), batch_size=1)
    with pytest.raises(OptionError, match="batch_size"):
        fit(net(), batches, None, settings())
    list(fit(probe(), batches, None, settings()))


def test_a_loss_that_is_not_finite_stops_and_the_last_good_state_is_saved() -> None:
    states = []
    fitting: Fitting

    def keep(report: StepReport) -> None:
        states.append((report.step, fitting.state()))
        if report.step == 3:
            with torch.no_grad():
                classifier.head.linear.weight.fill_(math.nan)

    classifier = net()
    fitting = fit(classifier, batches_of(cue_images(24, 0)), None, settings(), on_step=keep)
    with pytest.raises(TrainingError, match=r"nan .*epoch 1, step 4.*0\.05"):
        list(fitting)
    assert [step for step, _ in states] == [1, 2, 3]
    tensors, progress = states[-1][1]
    assert progress["step"] == 3
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())
    with pytest.raises(TrainingError, match="step 3"):
        fitting.state()  # nobody can overwrite the good one with this


def test_a_state_does_not_change_while_training_goes_on() -> None:
    taken: list[dict[str, Tensor]] = []
    copies: list[dict[str, Tensor]] = []
    fitting: Fitting

    def keep(report: StepReport) -> None:
        if report.step == 2:
            taken.append(fitting.state()[0])
            copies.append({name: value.clone() for name, value in taken[0].items()})

    fitting = fit(net(), batches_of(cue_images(24, 0)), None, settings(epochs=1), on_step=keep)
    list(fitting)
    assert all(torch.equal(taken[0][name], value) for name, value in copies[0].items())


def test_training_stops_early_when_validation_does_not_improve() -> None:
    validation = cue_images(6, 100)
    wrong = TensorDataset(validation.images, (validation.labels + 1) % 3, CUE_CLASSES, validation.names)
    options = settings(epochs=30, patience=2, learning_rate=0.5, averaging=0.0)
    fitting = fit(probe(), batches_of(cue_images(12, 0)), evaluating(wrong), options)
    reports = list(fitting)
    assert len(reports) == fitting.best_epoch + 2 < 30
    assert [report.is_best for report in reports[-3:]] == [True, False, False]


def test_after_training_the_classifier_holds_the_weights_of_the_best_epoch() -> None:
    accuracies = [0.3, 0.7, 0.7, 0.7, 0.5]
    losses = [1.0, 0.9, 0.8, 0.8, 0.1]  # of two alike the first is kept
    classifier = probe()
    options = settings(epochs=5, averaging=0.0)
    fitting = fit(classifier, batches_of(cue_images(12, 0)), list, options)
    results = iter([ValidationResult({"accuracy": a, "loss": b}) for a, b in zip(accuracies, losses, strict=True)])
    fitting.task.validate = lambda *_given: next(results)  # type: ignore[method-assign]
    after: list[Tensor] = []
    best = []
    for report in fitting:
        after.append(classifier.linear.weight.detach().clone())
        best.append(report.is_best)
    assert best == [True, True, True, False, False]
    assert fitting.best_epoch == 3
    assert torch.equal(classifier.linear.weight, after[2])
    assert not torch.equal(after[2], after[4])


def test_without_validation_the_last_weights_are_used() -> None:
    classifier = probe()
    fitting = fit(classifier, batches_of(cue_images(12, 0)), None, settings(epochs=3, averaging=0.0))
    reports, after = [], []
    for report in fitting:
        reports.append(report)
        after.append(classifier.linear.weight.detach().clone())
    assert all(report.is_best and report.validation == {} for report in reports)
    assert torch.equal(classifier.linear.weight, after[-1])


def test_an_empty_validation_part_is_as_none() -> None:
    reports = list(fit(net(), batches_of(cue_images(12, 0)), lambda: iter([]), settings(epochs=1)))
    assert reports[0].validation == {}
    assert reports[0].is_best


@pytest.mark.parametrize("averaging", [None, 0.6, 0.0])
def test_the_averaged_weights_are_a_moving_average_with_a_growing_horizon(averaging: float | None) -> None:
    classifier = net()
    seen: list[dict[str, Tensor]] = []
    batches = batches_of(cue_images(36, 0))
    options = settings(epochs=2, averaging=averaging)
    fitting = fit(
        classifier, batches, None, options,
        on_step=lambda _: seen.append({k: v.detach().clone() for k, v in classifier.state_dict().items()}),
    )  # fmt: skip
    for _ in fitting:
        pass
    decay = 1 - 8 / 16 if averaging is None else averaging  # 12 steps in all; a horizon is never below two
    oracle = {name: value.double() for name, value in seen[0].items()}
    for taken, weights in enumerate(seen[1:], start=1):
        keep = min(decay, (1 + taken) / (10 + taken))
        oracle = {name: keep * oracle[name] + (1 - keep) * value.double() for name, value in weights.items()}
    averaged = fitting.averaged.state_dict()
    for name, value in averaged.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), oracle[name], atol=1e-5, rtol=1e-5, msg=name)
        else:
            assert torch.equal(value, seen[-1][name])


def test_validation_evaluates_the_averaged_weights_and_training_does_not_touch_their_statistics() -> None:
    validation = cue_images(30, 100)
    fitting = fit(net(), batches_of(cue_images(24, 0)), evaluating(validation), settings(epochs=1))
    (report,) = list(fitting)
    with torch.no_grad():
        small = torch.stack([validation.load(i, 16) for i in range(30)]).float() / 255
        output = fitting.averaged(small)
    right = (output.logits.argmax(1) == validation.labels).double().mean().item()
    assert report.validation["accuracy"] == pytest.approx(right)
    cross_entropy = F.cross_entropy(output.logits, validation.labels).item()
    assert report.validation["loss"] == pytest.approx(cross_entropy, rel=1e-5)
    for tap, weights in output.attention.items():
        assert report.attention_peak[tap] == pytest.approx(weights.flatten(1).amax(1).mean().item(), rel=1e-5)


def test_one_cycle_goes_straight_up_for_a_fifth_and_straight_down() -> None:
    rate = SCHEDULES["one-cycle"]
    expected = {0.0: FLOOR, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 0.8: 0.25, 1.0: FLOOR}
    assert {place: pytest.approx(rate(place)) for place in expected} == expected


def test_cosine_goes_up_for_a_twentieth_and_half_a_cosine_down() -> None:
    rate = SCHEDULES["cosine"]
    expected = {0.0: FLOOR, 0.025: 0.5, 0.05: 1.0, 0.525: 0.5, 1.0: FLOOR}
    assert {place: pytest.approx(rate(place)) for place in expected} == expected
    assert rate(0.05 + 0.95 / 4) == pytest.approx((2 + 2**0.5) / 4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_of_every_step_is_the_schedules(schedule: str) -> None:
    steps: list[StepReport] = []
    options = settings(epochs=3, schedule=schedule, learning_rate=0.2)
    list(fit(probe(), batches_of(cue_images(25, 0)), None, options, on_step=steps.append))
    assert [step.step for step in steps] == list(range(1, 13))
    assert {step.total_steps for step in steps} == {12}
    assert [step.epoch for step in steps] == [1] * 4 + [2] * 4 + [3] * 4
    oracle = [0.2 * SCHEDULES[schedule]((step.step - 1) / 12) for step in steps]
    assert [step.learning_rate for step in steps] == pytest.approx(oracle)


def test_attention_that_collapsed_or_stayed_uniform_is_reported_once_half_of_training_is_over() -> None:
    peaks = {"point": 0.95, "flat": 1.04 / 64, "good": 0.3, "single": 1.0}
    positions = {"point": 64, "flat": 64, "good": 64, "single": 1}
    told = list(Task().warnings(ValidationResult({}, peaks, positions), 0.5))
    assert len(told) == 3
    assert "point has collapsed: its largest weight is 0.95" in told[0]
    assert "flat stays uniform: its largest weight is 1.04 x 1 / N" in told[1]
    assert "single stays uniform" in told[2]
    assert list(Task().warnings(ValidationResult({}, peaks, positions), 0.49)) == []


def test_gates_that_shut_are_reported_and_uniform_ones_are_not() -> None:
    peaks, positions = {"shut": 2e-11, "even": 0.5, "open": 1.0}, {"shut": 64, "even": 64, "open": 64}
    task = Task()
    task.has_gates = True
    (told,) = task.warnings(ValidationResult({}, peaks, positions), 0.5)
    assert "The gates of shut have shut: the largest is 2e-11 on average" in told


def test_gates_that_shut_are_seen_in_training() -> None:
    classifier = net(32, taps=("stage3",), attention_weights="sigmoid")
    with torch.no_grad():
        classifier.attentions[0].scorer.bias.fill_(-20.0)
    options = settings(epochs=1, learning_rate=1e-9, weight_decay=0.0)
    (report,) = fit(classifier, batches_of(cue_images(12, 0), size=32), evaluating(cue_images(12, 50), 32), options)
    assert "The gates of stage3 have shut" in report.warnings[0]
    assert report.attention_peak["stage3"] < 1e-6


def test_uniform_maps_without_attention_are_not_reported() -> None:
    images = cue_images(6, 0)
    (report,) = fit(net(attention="none"), batches_of(images), evaluating(images), settings(epochs=1))
    assert (report.warnings, report.attention_peak) == ((), {})
    assert 0 <= report.validation["accuracy"] <= 1


@pytest.mark.parametrize(("bias", "word"), [(0.0, "uniform"), (5000.0, "collapsed")])
def test_collapsed_and_uniform_maps_are_seen_in_training(bias: float, word: str) -> None:
    classifier = net(32, taps=("stage3",))
    with torch.no_grad():
        classifier.attentions[0].scorer.weight.fill_(bias)
    options = settings(epochs=1, learning_rate=1e-9, weight_decay=0.0)
    data = batches_of(cue_images(12, 0), size=32)
    (report,) = fit(classifier, data, evaluating(cue_images(12, 50), 32), options)
    assert len(report.warnings) == 1
    assert f"stage3 {'has' if word == 'collapsed' else 'stays'} {word}" in report.warnings[0]


def loss_of(options: TrainOptions, logits: Tensor, labels: Tensor, own: float = 1.0) -> float:
    return float(ClassificationTask(probe(), options).loss(Output(logits, {}), Batch(logits, labels, labels), own))


def test_the_loss_is_cross_entropy_with_smoothed_labels() -> None:
    logits, labels = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.tensor([0])
    # probabilities 1/2, 1/4, 1/4; smoothing 0.3 makes the target 0.8, 0.1, 0.1
    assert loss_of(settings(label_smoothing=0.0), logits, labels) == pytest.approx(math.log(2))
    smoothed = 0.8 * math.log(2) + 0.2 * math.log(4)
    assert loss_of(settings(label_smoothing=0.3), logits, labels) == pytest.approx(smoothed)


def test_the_loss_of_mixed_images_is_shared_by_area_with_the_image_one_row_up() -> None:
    logits = torch.tensor([[math.log(4), math.log(2), 0.0], [0.0, 0.0, math.log(6)], [0.0, math.log(2), 0.0]])
    labels = torch.tensor([0, 2, 1])
    # Rows have probabilities 4:2:1, 1:1:6 and 1:2:1; the labels of the rows above are 1 (the last one's), 0 and 2.
    own = (math.log(7 / 4) + math.log(8 / 6) + math.log(4 / 2)) / 3
    other = (math.log(7 / 2) + math.log(8 / 1) + math.log(4 / 1)) / 3
    assert loss_of(settings(), logits, labels, 0.7) == pytest.approx(0.7 * own + 0.3 * other)
    # The image that is pasted in and the label that goes with it are of the same row.
    images = labels.float()[:, None, None, None].expand(3, 3, 8, 8)
    mixed, _ = views.cutmix(images, torch.tensor([0.5, 0.0, 0.0]))
    assert mixed[:, 0, 0, 0].tolist() == [1, 0, 2]


def test_cutmix_is_used_in_its_share_of_the_steps_and_mixes_as_the_loss_does(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    original = ClassificationTask.loss

    def spy(self: ClassificationTask, output: Output, batch: Batch, own: float = 1.0) -> Tensor:
        shares.append(own)
        return original(self, output, batch, own)

    monkeypatch.setattr(ClassificationTask, "loss", spy)
    for cutmix, least, most in ((0.0, 0, 0), (0.5, 12, 36), (1.0, 46, 48)):
        shares.clear()
        list(fit(probe(), batches_of(cue_images(24, 0)), None, settings(epochs=12, cutmix=cutmix)))
        assert len(shares) == 48
        assert least <= sum(share < 1 for share in shares) <= most


def test_an_epochs_loss_is_the_mean_of_its_steps_losses() -> None:
    steps: list[StepReport] = []
    reports = list(fit(probe(), batches_of(cue_images(24, 0)), None, settings(epochs=2), on_step=steps.append))
    for epoch in (0, 1):
        losses = [step.loss for step in steps[4 * epoch : 4 * epoch + 4]]
        assert reports[epoch].train_loss == pytest.approx(sum(losses) / 4)


def test_a_step_is_sgd_with_nesterov_momentum() -> None:
    classifier, batches = probe(), batches_of(cue_images(6, 0))
    weight, bias = (p.detach().double().clone().requires_grad_() for p in classifier.linear.parameters())
    options = settings(epochs=3, weight_decay=0.1, schedule="cosine", averaging=0.0)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(3):
        (batch,) = batches.epoch(epoch)
        logits = batch.images.double().mean((2, 3)) @ weight.T + bias
        slopes = torch.autograd.grad(F.cross_entropy(logits, batch.labels), (weight, bias))
        rate = 0.05 * SCHEDULES["cosine"](epoch / 3)
        with torch.no_grad():
            for place, (value, slope, decay) in enumerate(zip((weight, bias), slopes, (0.1, 0.0), strict=True)):
                slope = slope + decay * value
                velocity[place] = 0.9 * velocity[place] + slope
                value -= rate * (slope + 0.9 * velocity[place])
    list(fit(classifier, batches, None, options))
    torch.testing.assert_close(classifier.linear.weight.double(), weight.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(classifier.linear.bias.double(), bias.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_matrices_and_kernels_decay(name: str) -> None:
    classifier = net(taps=("stage2",))
    optimizer = make_optimizer(classifier, settings(optimizer=name, weight_decay=0.1), fused=False)
    decaying, rest = optimizer.param_groups
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): key for key, parameter in classifier.named_parameters()}
    assert {names[id(p)] for p in decaying["params"]} >= {"head.linear.weight", "attentions.0.scorer.weight"}
    assert {p.ndim for p in decaying["params"]} == {2, 4}
    assert {p.ndim for p in rest["params"]} == {1}
    frozen = {name for name, p in classifier.named_parameters() if not p.requires_grad}
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    assert {names[id(p)] for p in learned} == set(names.values()) - frozen
    assert frozen
    assert isinstance(optimizer, torch.optim.AdamW if name == "adamw" else torch.optim.SGD)


def test_dropout_of_a_step_depends_on_seed_epoch_and_step_alone() -> None:
    def losses(seed: int, disturb: bool) -> list[float]:
        classifier = probe()
        classifier.linear = nn.Sequential(nn.Dropout(0.5), classifier.linear)
        steps: list[StepReport] = []

        def on_step(report: StepReport) -> None:
            steps.append(report)
            if disturb:
                torch.rand(7)

        list(fit(classifier, batches_of(cue_images(24, 0)), None, settings(seed=seed), on_step=on_step))
        return [step.loss for step in steps]

    assert losses(1, False) == losses(1, True)
    assert losses(1, False) != losses(2, False)


def test_two_trainings_with_the_same_seed_end_with_the_same_weights() -> None:
    ends = []
    for _ in range(2):
        classifier = net()
        options = settings(cutmix=0.5, label_smoothing=0.1, averaging=None)
        list(fit(classifier, batches_of(cue_images(24, 0), kind="shift"), evaluating(cue_images(9, 60)), options))
        ends.append(classifier.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_bf16_trains_with_weights_and_losses_in_float32() -> None:
    classifier = net()
    steps: list[StepReport] = []
    options = settings(precision="bf16", epochs=1)
    list(fit(classifier, batches_of(cue_images(12, 0)), evaluating(cue_images(6, 9)), options, on_step=steps.append))
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    assert all(math.isfinite(step.loss) for step in steps)


def test_precision_is_bf16_just_where_the_machine_computes_in_it() -> None:
    assert resolve("auto", CPU) == ("bf16" if computes_in_bf16(CPU) else "float32")
    assert resolve("bf16", CPU) == "bf16"
    assert not computes_in_bf16(torch.device("meta"))
    with pytest.raises(OptionError, match="fp16"):
        resolve("fp16", CPU)
    with autocast("bf16", CPU):
        assert torch.is_autocast_enabled("cpu")
    with autocast("float32", CPU):
        assert not torch.is_autocast_enabled("cpu")


def test_throughput_and_time_left_count_the_images_of_all_processes() -> None:
    steps: list[StepReport] = []
    (report,) = fit(probe(), batches_of(cue_images(24, 0)), None, settings(epochs=1), on_step=steps.append)
    assert [step.seconds_left > 0 for step in steps] == [True, True, True, False]
    assert report.images_per_second == pytest.approx(24 / report.seconds, rel=1e-6)


def test_the_gradients_of_two_shares_averaged_are_those_of_one_process() -> None:
    classifier = net(head="indep")
    for name, module in list(classifier.named_modules()):  # batch norm sees its own share; take it out
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            parent, _, child = name.rpartition(".")
            setattr(classifier.get_submodule(parent), child, nn.GroupNorm(1, module.num_features))
    images = cue_images(24, 0)

    def gradients(share: Share) -> list[Tensor]:
        (batch, *_) = batches_of(images, 12, kind="shift", share=share).epoch(0)
        classifier.zero_grad()
        F.cross_entropy(classifier(batch.images).logits, batch.labels, label_smoothing=0.1).backward()
        return [p.grad.clone() for p in classifier.parameters() if p.grad is not None]

    whole, first, second = (gradients(share) for share in (Share(), Share(0, 2), Share(1, 2)))
    for together, one, other in zip(whole, first, second, strict=True):
        torch.testing.assert_close((one + other) / 2, together, atol=1e-6, rtol=1e-4)


def test_an_accelerator_given_is_the_one_that_is_used() -> None:
    accelerator = Accelerator()
    fitting = fit(probe(), batches_of(cue_images(6, 0)), None, settings(), accelerator=accelerator)
    assert fitting.accelerator is accelerator


def test_options_are_not_changed_by_training() -> None:
    options = settings()
    before = replace(options)
    list(fit(probe(), batches_of(cue_images(12, 0)), None, options))
    assert options == before


def test_trained_weights_learn_at_a_tenth_of_the_rate_of_fresh_ones() -> None:
    classifier = build_classifier(Architecture("compact", "parametrised", None, "concat", None, 32, ("a", "b")))
    optimizer = make_optimizer(classifier, settings(pretrained="weights.safetensors"), fused=False)
    backbone = {id(parameter) for parameter in classifier.backbone.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["share"] == (0.1 if id(parameter) in backbone else 1.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(classifier.parameters()))
