"""The two seams: a gate of one's own inside the loop over stages, and a task of one's own in the trainer."""

import copy
import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.attention import ATTENTIONS, Attended, AttentionOptions, Gate, Readout, TapFeatures
from heedmap.attention.readouts import MeanReadout
from heedmap.backbones.base import Backbone
from heedmap.backbones.compact import Compact
from heedmap.backbones.paper import PaperVGG
from heedmap.backbones.whitened import Whitened
from heedmap.backbones.wrapped import WrappedBackbone
from heedmap.config import TrainOptions
from heedmap.data.dataset import TensorDataset
from heedmap.data.loader import Store, TrainingBatches, plain_batches
from heedmap.data.transforms import Augmentation
from heedmap.errors import ModelError
from heedmap.heads.classification import ConcatHead, ResidualHead
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier, attention_maps, further_maps
from heedmap.models.factory import build_classifier
from heedmap.training.tasks import Task
from heedmap.training.trainer import fit
from heedmap.types import AttentionMap, Axis, Batch, Output

CLASSES = ("ant", "bee", "cat")


class ChannelGate(Gate):
    """Each channel times twice a sigmoid of a linear function of all channels' means; starts at one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Attended:
        factor = 2 * self.linear(features.mean((2, 3))).sigmoid()[:, :, None, None]
        return Attended(features * factor, factor.float())


class PlaceGate(Gate):
    """Each position times twice a sigmoid of a linear function of its channels; starts at one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, features: Tensor) -> Attended:
        factor = 2 * self.score(features).sigmoid()
        return Attended(features * factor, factor.float())


def classifier_on(
    backbone: Backbone, taps: tuple[str, ...], gates: dict[str, type[Gate]], image_size: int
) -> AttentionClassifier:
    """A classifier of averaged taps, with the gates that are named by their stages."""
    widths = {tap: backbone.stage(tap).channels for tap in taps}
    keeps_head = isinstance(backbone, WrappedBackbone) and backbone.keep_head
    head = ResidualHead(widths, 3) if keeps_head else ConcatHead(widths, 3)
    return AttentionClassifier(
        backbone, {tap: MeanReadout(width) for tap, width in widths.items()}, head, classes=CLASSES,
        image_size=image_size, gates={name: gate(backbone.stage(name).channels) for name, gate in gates.items()},
    ).eval()  # fmt: skip


def resnet() -> WrappedBackbone:
    torch.manual_seed(0)
    return WrappedBackbone(timm.create_model("resnet18", num_classes=3), ("layer3",), keep_head=True, probe_size=64)


CASES: dict[str, tuple[Callable[[], Backbone], tuple[str, ...], str, int]] = {
    "compact": (Compact, ("stage2", "stage3"), "stage2", 32),
    "whitened": (Whitened, ("stage2", "stage3"), "stage1", 32),
    "paper-vgg": (PaperVGG, ("conv10", "conv13"), "conv10", 32),
    "resnet18": (resnet, ("layer3",), "layer2.0", 64),
}


def pair(name: str, gate: type[Gate], keep: bool = True) -> tuple[AttentionClassifier, AttentionClassifier, str]:
    """The same classifier without and with a gate, and the gate's place."""
    make, taps, place, size = CASES[name]
    torch.manual_seed(0)
    plain = classifier_on(make(), taps, {}, size)
    gated = classifier_on(copy.deepcopy(plain.backbone), taps, {place: gate}, size)
    gated.head = copy.deepcopy(plain.head)
    return plain, gated, place


@pytest.mark.parametrize("gate", [ChannelGate, PlaceGate])
@pytest.mark.parametrize("name", CASES)
def test_a_gate_inside_a_stage_gives_its_map_and_at_one_leaves_the_logits_as_they_are(
    name: str, gate: type[Gate], generator: torch.Generator
) -> None:
    plain, gated, place = pair(name, gate)
    images = torch.rand(2, 3, plain.image_size, plain.image_size, generator=generator)
    with torch.no_grad():
        before, after = plain(images), gated(images)
    assert torch.equal(after.logits, before.logits)
    assert before.maps == {}
    assert tuple(after.maps) == (place,)
    values, kind, axis = after.maps[place]
    channels, side = gated.backbone.stage(place).channels, gated.backbone.grid_side(place, plain.image_size)
    assert kind == "gate"
    assert values.shape == ((2, channels, 1, 1) if gate is ChannelGate else (2, 1, side, side))
    assert (axis is not None) == (gate is ChannelGate)
    assert torch.equal(values, torch.ones_like(values))


@pytest.mark.parametrize("name", CASES)
def test_a_gate_changes_the_tap_at_its_stage_and_all_later_stages(name: str, generator: torch.Generator) -> None:
    _, gated, place = pair(name, ChannelGate)
    backbone, taps = gated.backbone, (place, gated.taps[-1])
    images = torch.rand(2, 3, gated.image_size, gated.image_size, generator=generator)
    with torch.no_grad():
        plain = backbone(images, taps, True)
        halved = backbone(images, taps, True, {place: lambda features: features * 0.5})
    torch.testing.assert_close(halved.features[place], plain.features[place] * 0.5)
    assert not torch.allclose(halved.features[taps[-1]], plain.features[taps[-1]])
    assert halved.query is not None
    assert not torch.allclose(halved.query, plain.query)
    with torch.no_grad():
        again = backbone(images, taps, True)  # nothing of the change is left behind
    assert torch.equal(again.features[place], plain.features[place])


def gradients_of_share(rank: int, world: int, port: int, results: Any) -> None:
    """The gradients in one of several joined processes, each with its share of four images."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    gated = pair("compact", ChannelGate)[1]  # in eval mode: no statistics over a share of the batch
    images, labels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    joined = nn.parallel.DistributedDataParallel(gated)  # a name, for it must live until the backward pass
    output = joined(images[rank::world])
    F.cross_entropy(output.logits, labels[rank::world]).backward()
    results.put((tuple(output.maps), {name: p.grad.numpy() for name, p in gated.named_parameters() if p.requires_grad}))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_joined_processes_average_the_gradients_of_gates_too() -> None:
    context, results = multiprocessing.get_context("spawn"), {}
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        queue = context.Queue()
        joined = [context.Process(target=gradients_of_share, args=(rank, world, port, queue)) for rank in range(world)]
        for each in joined:
            each.start()
        results[world] = [queue.get(timeout=120) for _ in joined]
        for each in joined:
            each.join(60)
    (maps, alone), *others = results[1] + results[2]
    assert maps == ("stage2",)
    assert alone["gates.0.linear.weight"].any()
    for places, gradients in others:
        assert places == maps
        for name, gradient in gradients.items():
            torch.testing.assert_close(torch.from_numpy(gradient), torch.from_numpy(alone[name]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["compact", "resnet18"])
def test_a_gated_classifier_trains_copies_and_exports(name: str, generator: torch.Generator) -> None:
    _, gated, place = pair(name, PlaceGate)
    images = torch.rand(4, 3, gated.image_size, gated.image_size, generator=generator)
    optimizer = torch.optim.SGD([p for p in gated.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # a residual head starts at zero: what stands before it moves from the second step on
        optimizer.zero_grad()
        F.cross_entropy(gated.train()(images).logits, torch.tensor([0, 1, 2, 0])).backward()
        assert all(p.grad is not None for p in gated.parameters() if p.requires_grad)
        optimizer.step()
    double = copy.deepcopy(gated).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert double(images).maps[place].values.dtype == torch.float32
    with torch.no_grad():
        output = double(images)
    assert output.maps[place].values.std() > 0
    twin = pair(name, PlaceGate)[1]
    twin.load_state_dict(double.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(images).logits, output.logits)

    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = double

        def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
            found = self.classifier(given)
            return found.logits, found.maps[place].values

    program = torch.export.export(Exported().eval(), (images,)).module()
    for found, expected in zip(program(images), (output.logits, output.maps[place].values), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_maps_of_gates_are_data_with_kind_and_axis() -> None:
    _, gated, place = pair("compact", ChannelGate)
    with torch.no_grad():
        output = gated(torch.rand(2, 3, 32, 32))
    found = further_maps(output, 1)[place]
    assert (found.kind, found.tap, found.axis) == ("gate", place, Axis("channel"))
    assert found.values.shape == (128, 1, 1)
    assert found.plane(5).values.shape == (1, 1)
    assert set(attention_maps(gated, output, 1)) == {"stage2", "stage3", "combined"}
    assert all(drawn.kind == "readout" for drawn in attention_maps(gated, output, 1).values())


def test_a_map_with_an_axis_is_taken_apart_by_its_labels_and_a_wrong_shape_is_refused() -> None:
    words = AttentionMap(torch.rand(2, 3, 4), "decoder", "soft", 0.0, 1.0, kind="word", axis=Axis("word", ("a", "dog")))
    assert torch.equal(words.plane(1).values, words.values[1])
    assert (words.plane(1).tap, words.plane(1).axis) == ("decoder dog", None)
    for shape, axis in [((2, 3, 4), None), ((3, 4), Axis("word", ("a",))), ((2, 3, 4), Axis("word", ("a",)))]:
        with pytest.raises(ValueError, match="'decoder'"):
            AttentionMap(torch.rand(shape), "decoder", "soft", 0.0, 1.0, axis=axis)


def test_a_gate_that_nothing_reads_or_at_no_stage_is_refused() -> None:
    with pytest.raises(ModelError, match="'stage3'"):
        classifier_on(Compact(), ("stage2",), {"stage3": ChannelGate}, 32)
    with pytest.raises(ModelError, match="'stage4'"):
        classifier_on(Compact(), ("stage2",), {"stage4": ChannelGate}, 32)


def test_an_attention_is_added_by_a_class_and_a_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(Readout):
        name = "largest"

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels

        def forward(self, features: Tensor, query: Tensor | None = None) -> Attended:
            place = features.norm(dim=1).flatten(1).argmax(1)
            weights = F.one_hot(place, features[0, 0].numel()).to(features.dtype)
            vector = torch.einsum("bn,bcn->bc", weights, features.flatten(2))
            return Attended(vector, weights.view(len(features), 1, *features.shape[2:]).float())

    class LargestOptions(AttentionOptions):
        """The longest local feature alone."""

        name = "largest"

        def build(self, tap: TapFeatures) -> Readout:
            return Largest(tap.channels)

    monkeypatch.setitem(ATTENTIONS, "largest", LargestOptions)
    classifier = build_classifier(Architecture("compact", "largest", None, "concat", None, 32, CLASSES)).eval()
    output = classifier(torch.rand(2, 3, 32, 32))
    assert (classifier.attention_name, LargestOptions.sentence()) == ("largest", "The longest local feature alone")
    assert torch.equal(output.attention["stage3"].sum((1, 2, 3)), torch.ones(2))


class Brightness(Task):
    """The first logit is the image's mean; figures are the errors' mean and square."""

    figures = ("absolute_error", "squared_error")
    monitor = "squared_error"

    def loss(self, output: Output, batch: Batch) -> Tensor:
        return F.mse_loss(output.logits[:, 0].float(), batch.images.mean((1, 2, 3)))

    def sums(self, output: Output, batch: Batch) -> list[Tensor]:
        error = output.logits[:, 0].float() - batch.images.mean((1, 2, 3))
        return [error.abs().sum(), error.square().sum()]

    def predict(self, output: Output) -> Tensor:
        return output.logits[:, 0]


class SeveralLabels(Task):
    """Each class by itself: is the image's label at most that class?"""

    figures = ("share_right",)
    monitor, higher_is_better = "share_right", True

    def _targets(self, batch: Batch) -> Tensor:
        return (batch.labels[:, None] <= torch.arange(3)).float()

    def loss(self, output: Output, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(output.logits.float(), self._targets(batch))

    def sums(self, output: Output, batch: Batch) -> list[Tensor]:
        return [(self.predict(output) == self._targets(batch)).float().mean(1).sum()]

    def predict(self, output: Output) -> Tensor:
        return (output.logits > 0).float()


def trained(task: Task, epochs: int) -> tuple[AttentionClassifier, list[Any], list[dict[str, Tensor]], Store]:
    """A classifier trained for the task on grey images whose brightness tells the label, and the weights of epochs."""
    levels = torch.rand(48, generator=torch.Generator().manual_seed(0))
    pixels = (levels[:, None, None, None] * 255).round().expand(-1, 3, 16, 16).to(torch.uint8)
    dataset = TensorDataset(pixels, (levels * 3).long(), CLASSES, [str(row) for row in range(48)])
    store = Store(dataset, 16, 1, 1e9)
    batches = TrainingBatches(store, 16, 12, Augmentation("none", False), 0)
    torch.manual_seed(0)
    classifier = build_classifier(Architecture("compact", "dot", None, "concat", None, 16, CLASSES))
    options = TrainOptions(
        epochs=epochs,
        optimizer="adamw",
        learning_rate=0.003,
        weight_decay=0.0,
        batch_size=12,
        precision="float32",
        averaging=0.0,
    )
    fitting = fit(classifier, batches, lambda: plain_batches(store, 20), options, task=task)
    reports, weights = [], []
    for report in fitting:
        reports.append(report)
        weights.append({name: value.clone() for name, value in fitting.averaged.state_dict().items()})
    return classifier, reports, weights, store


@pytest.mark.parametrize("task", [Brightness(), SeveralLabels()])
def test_a_task_of_its_own_is_trained_and_its_own_rule_finds_the_best_epoch(task: Task) -> None:
    classifier, reports, weights, store = trained(task, 8)
    course = [report.validation[task.monitor] for report in reports]
    assert all(tuple(report.validation) == task.figures for report in reports)
    better = max if task.higher_is_better else min
    best = course.index(better(course))
    assert course[best] != course[0]
    bests = [number for number, report in enumerate(reports) if report.is_best]
    assert bests[-1] == best
    assert all(torch.equal(value, weights[best][name]) for name, value in classifier.state_dict().items())
    (batch,) = plain_batches(store, 48)
    with torch.no_grad():
        output = classifier(batch.images)
    expected = [float(value) / 48 for value in task.sums(output, batch)]
    assert list(reports[best].validation.values()) == pytest.approx(expected, rel=1e-4)


def test_brightness_is_learned() -> None:
    classifier, reports, _, store = trained(Brightness(), 12)
    (batch,) = plain_batches(store, 48)
    with torch.no_grad():
        found = Brightness().predict(classifier(batch.images))
    assert min(report.validation["absolute_error"] for report in reports) < 0.1
    assert torch.corrcoef(torch.stack((found, batch.images.mean((1, 2, 3)))))[0, 1] > 0.95
