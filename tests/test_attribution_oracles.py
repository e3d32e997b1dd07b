"""Maps against slow definitions in float64, against captum and torchcam, and against numbers derived by hand."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from heedmap.attribution import explain
from heedmap.errors import ModelError


class Small(nn.Module):
    """A net in float64 whose head is a mean and a linear layer; ``conv2`` is the last spatial layer by name."""

    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1, stride=2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.between = nn.Sequential(nn.Linear(6, 6), nn.Tanh()) if hidden else nn.Identity()
        self.linear = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu2(self.conv2(self.relu1(self.conv1(images))))
        return self.linear(self.between(self.pool(features).flatten(1)))


@pytest.fixture(params=[False, True], ids=["closed", "hidden"])
def net(request: pytest.FixtureRequest) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Small(request.param).double().eval()


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(3, 3, 12, 8, generator=generator, dtype=torch.float64)


def slow_activation_and_gradient(net: Small, image: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Activation and gradient (C, h, w) of one image, from the plain definition."""
    features = net.relu2(net.conv2(net.relu1(net.conv1(image[None])))).detach().requires_grad_()
    logits = net.linear(net.between(features.mean((2, 3))))
    (gradient,) = torch.autograd.grad(logits[0, target], features)
    return features[0].detach(), gradient[0]


def slow_cam(method: str, activation: Tensor, gradient: Tensor) -> Tensor:
    """The CAM family as the papers write it, in loops."""
    channels, height, width = activation.shape
    total = torch.zeros(height, width, dtype=torch.float64)
    for c in range(channels):
        a, g = activation[c], gradient[c]
        if method == "grad-cam":
            total += g.sum() / (height * width) * a
        elif method == "hires-cam":
            total += g * a
        elif method == "layer-cam":
            total += g.clamp_min(0) * a
        else:
            weight = torch.zeros((), dtype=torch.float64)
            for i in range(height):
                for j in range(width):
                    if g[i, j] != 0:
                        weight += g[i, j] ** 2 / (2 * g[i, j] ** 2 + a.sum() * g[i, j] ** 3) * g[i, j].clamp_min(0)
            total += weight * a
    return total.clamp_min(0)


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "hires-cam", "layer-cam"])
def test_each_cam_equals_its_definition_for_every_class(net: Small, images: Tensor, method: str) -> None:
    maps = explain(net, images, method, target="all").values

    for row, image in enumerate(images):
        for target in range(4):
            wanted = slow_cam(method, *slow_activation_and_gradient(net, image, target))
            torch.testing.assert_close(maps[row, target], wanted.float(), rtol=1e-5, atol=1e-7)


def test_cam_is_the_weighted_sum_of_features(images: Tensor) -> None:
    net = Small().double()
    found = explain(net, images, "cam", target=2)

    features = net.relu2(net.conv2(net.relu1(net.conv1(images)))).detach()
    wanted = torch.einsum("c,bchw->bhw", net.linear.weight[2].detach(), features)
    torch.testing.assert_close(found.values[:, 0], wanted.float())


def test_saliency_is_the_largest_absolute_gradient(net: Small, images: Tensor) -> None:
    found = explain(net, images, "saliency", target=[1, 0, 3])
    signed = explain(net, images, "saliency", target=[1, 0, 3], settings={"channels": "signed"})

    for row, target in enumerate((1, 0, 3)):
        gradient = torch.autograd.functional.jacobian(lambda one: net(one[None])[0], images[row])[target]
        torch.testing.assert_close(found.values[row, 0], gradient.abs().amax(0).float())
        torch.testing.assert_close(signed.values[row, 0].abs(), found.values[row, 0])
        largest = gradient.flatten(1).gather(0, gradient.flatten(1).abs().argmax(0)[None])[0]
        torch.testing.assert_close(signed.values[row, 0].flatten(), largest.float())


def test_grad_cam_of_a_net_set_by_hand_is_what_a_pencil_says() -> None:
    # One image 4 x 4 holding 0 to 15 in its first channel. The convolution sums the red of each 2 x 2 block into
    # channel 0 and gives half of that to channel 1: A0 = (10, 18, 42, 50), A1 = (5, 9, 21, 25).
    # Logit 0 = 3 mean(A0) - 2 mean(A1): gradients 3/4 and -2/4 everywhere, so the map is 0.75 A0 - 0.5 A1.
    # Logit 1 = -mean(A0): the map would be negative, and its positive part is nothing.
    conv, linear = nn.Conv2d(3, 2, 2, stride=2, bias=False), nn.Linear(2, 2, bias=False)
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    with torch.no_grad():
        conv.weight.zero_()[:, 0] = torch.tensor([1.0, 0.5])[:, None, None]
        linear.weight.copy_(torch.tensor([[3.0, -2.0], [-1.0, 0.0]]))
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0] = torch.arange(16.0).view(4, 4)

    maps = explain(net, image, "grad-cam", target="all").values

    torch.testing.assert_close(maps[0, 0], torch.tensor([[5.0, 9.0], [21.0, 25.0]]))
    torch.testing.assert_close(maps[0, 1], torch.zeros(2, 2))


TARGETS = [1, 0, 3]


def pixel_gradient(net: nn.Module, image: Tensor, target: int) -> Tensor:
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf[None])[0, target], leaf)
    return gradient


def test_input_x_gradient_adds_up_the_channels(net: Small, images: Tensor) -> None:
    maps = explain(net, images, "input-x-gradient", TARGETS).values[:, 0]
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        torch.testing.assert_close(found, (image * pixel_gradient(net, image, target)).sum(0).float())


def test_the_score_may_be_the_probability(net: Small, images: Tensor) -> None:
    maps = explain(net, images, "saliency", TARGETS, settings={"score": "probability"}).values[:, 0]
    softened = nn.Sequential(net, nn.Softmax(1))
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        torch.testing.assert_close(found, pixel_gradient(softened, image, target).abs().amax(0).float())


def test_smoothgrad_is_the_mean_over_its_noisy_copies(net: Small, images: Tensor) -> None:
    settings = {"count": 4, "noise": 0.2, "seed": 7}
    maps = explain(net, images, "smoothgrad", TARGETS, settings=settings).values[:, 0]
    source = torch.Generator().manual_seed(7)
    draws = [torch.randn(1, 3, 12, 8, generator=source)[0].double() for _ in range(4)]
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        spread = 0.2 * (image.max() - image.min())
        mean = sum(pixel_gradient(net, image + spread * draw, target) for draw in draws) / 4
        assert isinstance(mean, Tensor)
        torch.testing.assert_close(found, mean.abs().amax(0).float())


def test_integrated_gradients_add_up_to_the_change_of_the_score(net: Small, images: Tensor) -> None:
    maps = explain(net, images, "integrated-gradients", TARGETS, settings={"steps": 400, "baseline": 0.5}).values
    start = net(torch.full_like(images, 0.5))
    for row, target in enumerate(TARGETS):
        wanted = (net(images)[row, target] - start[row, target]).item()
        assert maps[row].sum().item() == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("method", ["smoothgrad", "integrated-gradients", "input-x-gradient", "saliency"])
def test_many_targets_keep_no_gradients_by_colour(method: str, images: Tensor) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 300)

        def forward(self, inner: Tensor) -> Tensor:
            return self.linear(self.conv(inner).sigmoid().mean((2, 3)))

    net, settings = Wide().double(), {"smoothgrad": {"count": 2}, "integrated-gradients": {"steps": 2}}.get(method, {})
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            done = func(*args, **(kwargs or {}))
            if isinstance(done, Tensor):
                largest = max(largest, done.untyped_storage().nbytes() // 8)
            return done

    with Watch():
        together = explain(net, images, method, "all", settings=settings).values
    assert largest <= 3 * 300 * 12 * 8  # one value a pixel and target
    alone = explain(net, images, method, 299, settings=settings).values[:, 0]
    torch.testing.assert_close(together[:, 299], alone, rtol=1e-6, atol=0)


def test_occlusion_is_the_mean_fall_over_the_squares_that_cover_a_pixel(net: Small, images: Tensor) -> None:
    settings = {"window": 5, "stride": 3, "fill": 0.25, "chunk": 4}
    maps = explain(net, images, "occlusion", TARGETS, settings=settings).values[:, 0]
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        falls, times = torch.zeros(12, 8).double(), torch.zeros(12, 8).double()
        for top in (0, 3, 6, 9):
            for left in (0, 3):
                covered = image.clone()
                covered[:, top : top + 5, left : left + 5] = 0.25
                fall = (net(image[None]) - net(covered[None]))[0, target].detach()
                falls[top : top + 5, left : left + 5] += fall
                times[top : top + 5, left : left + 5] += 1
        torch.testing.assert_close(found, (falls / times).float())


def test_score_cam_is_what_the_paper_s_algorithm_says(net: Small, images: Tensor) -> None:
    maps = explain(net, images, "score-cam", TARGETS, settings={"chunk": 4}).values[:, 0]
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        activation, _ = slow_activation_and_gradient(net, image, target)
        rises = []
        for channel in activation:
            even = channel.max() == channel.min()
            mask = torch.zeros_like(channel) if even else (channel - channel.min()) / (channel.max() - channel.min())
            large = nn.functional.interpolate(mask[None, None], (12, 8), mode="bilinear", align_corners=False)[0]
            rises.append((net((image * large)[None]) - net(image[None]))[0, target].detach())
        weights = torch.stack(rises).softmax(0)
        wanted = sum(weight * channel for weight, channel in zip(weights, activation, strict=True))
        assert isinstance(wanted, Tensor)
        torch.testing.assert_close(found, wanted.clamp_min(0).float())


def slow_mask(grid: Tensor, shift: tuple[int, int], height: int, width: int) -> Tensor:
    """One of RISE's masks, pixel by pixel: the coarse grid enlarged, bilinear between cell centres, then shifted."""
    cells = len(grid)
    cell = (math.ceil(height / cells), math.ceil(width / cells))
    mask = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            total = 0.0
            places = []
            for at, side in ((y + shift[0], cell[0]), (x + shift[1], cell[1])):
                place = max((at + 0.5) * cells / ((cells + 1) * side) - 0.5, 0.0)
                low = min(int(place), cells - 1)
                places.append((low, min(low + 1, cells - 1), place - low))
            (top, bottom, down), (left, right, along) = places
            for row, weight in ((top, 1 - down), (bottom, down)):
                total += weight * ((1 - along) * grid[row, left].item() + along * grid[row, right].item())
            mask[y, x] = total
    return mask


def test_rise_is_the_weighed_mean_of_its_masks(net: Small, images: Tensor) -> None:
    count, cells, keep, seed = 12, 3, 0.4, 5
    settings = {"count": count, "cells": cells, "keep": keep, "seed": seed, "chunk": 4}
    maps = explain(net, images, "rise", TARGETS, settings=settings).values[:, 0]
    source = torch.Generator().manual_seed(seed)
    grids = (torch.rand(count, 1, cells, cells, generator=source) < keep)[:, 0].double()
    shifts = [torch.randint(0, side, (count,), generator=source).tolist() for side in (4, 3)]  # 12 / 3, 8 / 3 upwards
    masks = [slow_mask(grids[n], (shifts[0][n], shifts[1][n]), 12, 8) for n in range(count)]
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        total = torch.zeros(12, 8, dtype=torch.float64)
        for mask in masks:
            total += net((image * mask)[None]).softmax(1)[0, target].detach() * mask
        torch.testing.assert_close(found, (total / (count * keep)).float(), rtol=1e-5, atol=1e-6)


def test_rise_finds_the_one_pixel_that_is_read() -> None:
    class Reader(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images[:, 0, 3, 10], 1 - images[:, 0, 3, 10]], 1)

    maps = explain(Reader(), torch.ones(1, 3, 8, 16), "rise", target="all", settings={"count": 3000, "cells": 4}).values

    assert divmod(int(maps[0, 0].argmax()), 16) == (3, 10)
    assert maps[0, 1, 3, 10] == maps[0, 1].min()
    # Masks are kept with probability 1/2: the pixel itself is weighed with the mean square of a mask over its mean.
    assert (maps[0].sum(0) - maps[0].sum(0).mean()).abs().max() < 0.1  # both classes together: the masks' own mean


def test_rise_s_masks_do_not_depend_on_how_many_are_drawn_at_a_time(net: Small, images: Tensor) -> None:
    small, large = (
        explain(net, images, "rise", settings={"count": 40, "cells": 4, "chunk": chunk}).values for chunk in (3, 100)
    )
    torch.testing.assert_close(small, large)


def test_an_in_place_relu_after_the_layer_does_not_reach_the_map(images: Tensor) -> None:
    net = Small().double()
    before = explain(net, images, "hires-cam", target=1, layer="conv2", settings={"relu": False}).values
    net.relu2.inplace = True
    after = explain(net, images, "hires-cam", target=1, layer="conv2", settings={"relu": False}).values

    torch.testing.assert_close(after, before)
    features = net.conv2(net.relu1(net.conv1(images))).detach()
    gradient = net.linear.weight[1].detach()[:, None, None] / 24 * (features > 0)
    torch.testing.assert_close(before[:, 0], (features * gradient).sum(1).float())


class Guided(torch.autograd.Function):
    """ReLU, or ReLU6, whose way back is Springenberg's: positive gradients, where the input was inside."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, high: float) -> Tensor:
        ctx.inside = (features > 0) & (features < high)
        return features.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].clamp_min(0) * ctx.inside, None


class Steps(nn.Module):
    """Two convolutions, each with a step after it."""

    def __init__(self, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2, self.linear = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3), nn.Linear(6, 4)
        self.first, self.second = first, second
        with torch.no_grad():  # so that some features lie above 6
            self.conv1.weight.mul_(12)
            self.conv2.weight.mul_(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.second(self.conv2(self.first(self.conv1(images)))).mean((2, 3)))


def emptied(features: Tensor) -> Tensor:
    features.relu_()  # what it returns is thrown away
    return features


RELUS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "nn.ReLU": (math.inf, nn.ReLU()),
    "nn.ReLU in place": (math.inf, nn.ReLU(inplace=True)),
    "nn.ReLU6": (6, nn.ReLU6()),
    "nn.ReLU6 in place": (6, nn.ReLU6(inplace=True)),
    "F.relu6": (6, F.relu6),
    "F.hardtanh": (4, lambda features: F.hardtanh(features, 0, 4)),
    "F.hardtanh_": (4, lambda features: F.hardtanh_(features, 0.0, 4.0)),
    "clamp": (math.inf, lambda features: features.clamp(min=0)),
    "clamp in place": (math.inf, lambda features: features.clamp_(0)),
    "clamp to 6": (6, lambda features: torch.clamp(features, 0, 6)),
    "clamp_min": (math.inf, lambda features: features.clamp_min(0)),
    "relu_, its answer thrown away": (math.inf, emptied),
}


@pytest.mark.parametrize("second", RELUS)
@pytest.mark.parametrize("first", ["nn.ReLU", "nn.ReLU6"])
def test_guided_backprop_guides_at_every_kind_of_relu(first: str, second: str, images: Tensor) -> None:
    (low, one), (high, two) = RELUS[first], RELUS[second]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Steps(one, two).double()
    maps = explain(net, images, "guided-backprop", TARGETS).values[:, 0]
    slow = Steps(lambda features: Guided.apply(features, low), lambda features: Guided.apply(features, high)).double()
    slow.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(slow(images), net(images))
    for image, target, found in zip(images, TARGETS, maps, strict=True):
        torch.testing.assert_close(found, pixel_gradient(slow, image, target).abs().amax(0).float())


@pytest.mark.parametrize("step", [lambda x: x.clamp(0, 1), lambda x: x.clamp(min=1e-6), F.hardtanh, F.elu])
def test_what_is_no_relu_is_not_guided(step: Callable[[Tensor], Tensor], images: Tensor) -> None:
    with pytest.raises(ModelError, match="uses no ReLU"):
        explain(Steps(step, F.gelu).double(), images, "guided-backprop")


# What other libraries say, in float64.


@pytest.mark.parametrize("ours", ["saliency", "input-x-gradient", "integrated-gradients", "guided-backprop"])
def test_pixel_methods_equal_captum(net: Small, images: Tensor, ours: str) -> None:
    attr = pytest.importorskip("captum.attr")
    theirs = {
        "saliency": lambda: attr.Saliency(net).attribute(images, TARGETS).amax(1),
        "input-x-gradient": lambda: attr.InputXGradient(net).attribute(images, TARGETS).sum(1),
        "integrated-gradients": lambda: attr.IntegratedGradients(net).attribute(images, target=TARGETS).sum(1),
        "guided-backprop": lambda: attr.GuidedBackprop(net).attribute(images, TARGETS).abs().amax(1),
    }
    found = explain(net, images, ours, TARGETS).values[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it marks the images, or hangs hooks
        wanted = theirs[ours]().detach()
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("window", [(5, 3), (4, 4), (8, 2)])
def test_occlusion_equals_captum(net: Small, images: Tensor, window: tuple[int, int]) -> None:
    attr = pytest.importorskip("captum.attr")
    side, stride = window
    wanted = attr.Occlusion(net).attribute(
        images, (3, side, side), strides=(3, stride, stride), baselines=0.25, target=TARGETS
    )[:, 0]
    settings = {"window": side, "stride": stride, "fill": 0.25}
    found = explain(net, images, "occlusion", TARGETS, settings=settings).values[:, 0]
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "relu2"])
def test_grad_cam_equals_captum_at_any_layer(net: Small, images: Tensor, layer: str) -> None:
    attr = pytest.importorskip("captum.attr")
    wanted = attr.LayerGradCam(net, getattr(net, layer)).attribute(images, TARGETS).detach()[:, 0]
    found = explain(net, images, "grad-cam", TARGETS, layer, {"relu": False}).values[:, 0]
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layer", ["conv1", "relu2"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("grad-cam", "GradCAM"), ("layer-cam", "LayerCAM"), ("score-cam", "ScoreCAM")],
)
def test_cams_equal_torchcam(net: Small, images: Tensor, ours: str, theirs: str, layer: str) -> None:
    methods = pytest.importorskip("torchcam.methods")
    with getattr(methods, theirs)(net, layer, input_shape=(3, 12, 8)) as extractor:
        logits = net(images)
        wanted = extractor(TARGETS, logits, normalized=False)[0].detach()
    found = explain(net, images, ours, TARGETS, layer).values[:, 0]
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)


def test_cam_equals_torchcam_up_to_its_relu(images: Tensor) -> None:
    methods = pytest.importorskip("torchcam.methods")
    net = Small().double().eval()
    with methods.CAM(net, "relu2", "linear", input_shape=(3, 12, 8)) as extractor, torch.no_grad():
        net(images)
        wanted = extractor(TARGETS, normalized=False)[0]
    torch.testing.assert_close(explain(net, images, "cam", TARGETS).values[:, 0], wanted.float())


def test_grad_cam_plus_plus_equals_pytorch_grad_cam(net: Small, images: Tensor) -> None:
    # Not torchcam: in 0.5.0 its shares are not divided (an in-place division of a copy), see GradCAMpp._get_weights.
    theirs = pytest.importorskip("pytorch_grad_cam").GradCAMPlusPlus
    with torch.no_grad():  # large gradients: it adds 1e-6 to a square of them
        net.linear.weight.mul_(1e5)
    found = explain(net, images, "grad-cam++", TARGETS).values[:, 0]
    for image, target, ours in zip(images, TARGETS, found, strict=True):
        activation, gradient = slow_activation_and_gradient(net, image, target)
        weights = theirs.get_cam_weights(None, None, None, None, activation[None].numpy(), gradient[None].numpy())[0]
        wanted = torch.einsum("c,chw->hw", torch.from_numpy(weights), activation).clamp_min(0)
        torch.testing.assert_close(ours, wanted.float(), rtol=1e-5, atol=1e-5)
