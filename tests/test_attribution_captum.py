"""The methods taken from captum, against their definitions in float64, and refused where captum cannot follow a net."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heedmap.attribution import explain
from heedmap.errors import ModelError, OptionError
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier

pytest.importorskip("captum")
TARGETS = [1, 0, 2]
BASELINE = 0.25


class Small(nn.Module):
    """Every ReLU a module of its own, used once: what captum's DeepLift can follow. A bias and signs of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 5, 3, stride=2), nn.ReLU()
        self.linear = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.relu2(self.conv2(self.relu1(self.conv1(images)))).mean((2, 3)))


class Squared(nn.Module):
    """Scores with products of pixels, so that Shapley values are no plain sum; one number a class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3))

    def forward(self, images: Tensor) -> Tensor:
        half = images.sum(1).flatten(1).chunk(2, 1)
        return self.weight * (half[0].sum(1) * half[1].sum(1))[:, None] + half[0].sum(1, keepdim=True)


class Linear(nn.Module):
    """No step at all, so that every method has to give the weights times the difference."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def seeded(build: type[nn.Module], *settings: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*settings)


@pytest.fixture
def net() -> Small:
    return seeded(Small).double().eval()


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(3, 3, 8, 6, generator=generator, dtype=torch.float64)


def slow_deep_lift(net: Small, image: Tensor, target: int) -> Tensor:
    """The rescale rule as written: multipliers of linear parts are weights, of a ReLU the ratio of differences."""
    even = torch.full_like(image, BASELINE)
    before = [net.conv1(each[None]) for each in (image, even)]
    after = [net.conv2(each.relu()) for each in before]
    count = after[0].shape[2] * after[0].shape[3]
    multiplier = (net.linear.weight[target] / count)[None, :, None, None].expand_as(after[0])
    multiplier = multiplier * (after[0].relu() - after[1].relu()) / (after[0] - after[1])
    multiplier = F.conv_transpose2d(multiplier, net.conv2.weight, stride=2, output_padding=(1, 1))
    multiplier = multiplier * (before[0].relu() - before[1].relu()) / (before[0] - before[1])
    multiplier = F.conv_transpose2d(multiplier, net.conv1.weight, padding=1)
    return (multiplier[0] * (image - even)).sum(0).detach()


def test_deep_lift_is_the_rescale_rule(net: Small, images: Tensor) -> None:
    maps = explain(net, images, "deep-lift", TARGETS, settings={"baseline": BASELINE}).values[:, 0]
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        torch.testing.assert_close(found, slow_deep_lift(net, image, target).float(), rtol=1e-5, atol=1e-7)


def test_gradient_shap_is_the_mean_of_gradients_at_random_points_on_the_way(net: Small, images: Tensor) -> None:
    count, noise = 4000, 0.1
    settings = {"count": count, "noise": noise, "baseline": BASELINE, "seed": 3}
    found = explain(net, images[:1], "gradient-shap", 1, settings=settings).values[0, 0].double()

    source = torch.Generator().manual_seed(11)  # draws of its own: only the expectation is the same
    noisy = images[0] + noise * torch.randn(count, 3, 8, 6, generator=source, dtype=torch.float64)
    place = torch.rand(count, 1, 1, 1, generator=source, dtype=torch.float64)
    points = (BASELINE + place * (noisy - BASELINE)).requires_grad_()
    (gradients,) = torch.autograd.grad(net(points)[:, 1].sum(), points)
    draws = ((noisy - BASELINE) * gradients).sum(1).detach()
    spread = draws.std(0) * math.sqrt(2 / count)  # of the difference of two means over as many draws
    distance = (found - draws.mean(0)).abs() / spread
    assert distance.max() < 4.5
    assert distance.mean() < 1.2
    assert distance.mean() > 0.4  # the spread is not overestimated


def test_gradient_shap_without_noise_of_a_linear_net_is_exact(images: Tensor) -> None:
    net = seeded(Linear).double()
    settings = {"count": 2, "noise": 0.0, "baseline": BASELINE}
    maps = explain(net, images, "gradient-shap", TARGETS, settings=settings).values[:, 0]
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        weight = net.linear.weight[target].detach().view(3, 8, 6)
        torch.testing.assert_close(found, (weight * (image - BASELINE)).sum(0).float())


def shapley(net: nn.Module, image: Tensor, target: int, cells: list[tuple[slice, slice]]) -> list[float]:
    """Shapley values by all orders of the cells."""

    def worth(shown: tuple[int, ...]) -> float:
        seen = torch.full_like(image, BASELINE)
        for number in shown:
            seen[:, *cells[number]] = image[:, *cells[number]]
        return float(net(seen[None])[0, target].item())

    total, orders = [0.0] * len(cells), list(itertools.permutations(range(len(cells))))
    for order in orders:
        for place, number in enumerate(order):
            total[number] += worth(order[: place + 1]) - worth(order[:place])
    return [each / len(orders) for each in total]


def test_kernel_shap_gives_each_cell_its_shapley_value(images: Tensor) -> None:
    net = Squared().double()
    cells = [(slice(y, y + 4), slice(x, x + 3)) for y in (0, 4) for x in (0, 3)]
    settings = {"cells": 2, "count": 1500, "baseline": BASELINE}
    maps = explain(net, images[:2], "kernel-shap", TARGETS[:2], settings=settings).values[:, 0]
    for image, target, found in zip(images, TARGETS, maps, strict=False):
        wanted = shapley(net, image, target, cells)
        for (rows, columns), value in zip(cells, wanted, strict=True):
            assert found[rows, columns].unique().numel() == 1
            # What is left is the noise of 1,500 draws.
            assert found[rows, columns][0, 0].item() == pytest.approx(value, abs=0.05 * max(map(abs, wanted)))


def test_kernel_shap_of_a_linear_net_is_exact(images: Tensor) -> None:
    net = seeded(Linear).double()
    settings = {"cells": 2, "count": 40, "baseline": BASELINE}
    maps = explain(net, images, "kernel-shap", TARGETS, settings=settings).values[:, 0]
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        each = (net.linear.weight[target].detach().view(3, 8, 6) * (image - BASELINE)).sum(0)
        wanted = each.view(2, 4, 2, 3).sum((1, 3)).repeat_interleave(4, 0).repeat_interleave(3, 1)
        torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-5)


class Functional(nn.Module):
    """A net whose steps are functions, which captum's hooks never see."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.conv, self.linear, self.step = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3), step

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images * 4 - 2)
        if self.step == "relu":
            return self.linear(F.relu(features).mean((2, 3)))
        weights = features[:, :1].flatten(2).softmax(2)
        return self.linear((weights * features.flatten(2)).sum(2))


def relu6() -> nn.Module:
    scaled = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(6 * 6 * 4, 3))
    with torch.no_grad():
        scaled[0].weight.mul_(10)
    return scaled


def ours() -> nn.Module:
    return build_classifier(Architecture("compact", "parametrised", None, "concat", None, 24, ("a", "b", "c")))


def whitened() -> nn.Module:
    return build_classifier(Architecture("whitened", "parametrised", None, "concat", None, 24, ("a", "b", "c")))


@pytest.mark.parametrize(
    ("build", "settings", "side"),
    [
        (Functional, ("relu",), 8),
        (Functional, ("softmax",), 8),
        (relu6, (), (8, 6)),
        (ours, (), 24),
        (whitened, (), 24),
    ],
)
def test_deep_lift_is_refused_where_captum_cannot_follow(
    build: type[nn.Module], settings: tuple[str, ...], side: int | tuple[int, int], generator: torch.Generator
) -> None:
    height, width = (side, side) if isinstance(side, int) else side
    images = torch.rand(2, 3, height, width, generator=generator)
    with pytest.raises(ModelError) as refusal:
        explain(seeded(build, *settings), images, "deep-lift", "all")
    assert "integrated-gradients" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_deep_lift_of_a_network_that_captum_can_follow_adds_up(generator: torch.Generator) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("resnet18", num_classes=3).eval()
    images = torch.rand(2, 3, 32, 32, generator=generator)
    found = explain(net, images, "deep-lift", "all")
    with torch.no_grad():
        change = net(images) - net(torch.zeros_like(images))
    torch.testing.assert_close(found.values.sum((2, 3)), change, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("settings", [{"cells": 1}, {"cells": 2, "count": 1}])
def test_kernel_shap_with_nothing_to_tell_apart_is_refused(settings: dict[str, int], images: Tensor) -> None:
    with pytest.raises(OptionError, match="2 or more"):
        explain(Squared().double(), images, "kernel-shap", settings=settings)
