"""Maps against slow definitions in float64, against captum and torchcam, and against numbers derived by hand."""

import pytest
import torch
from torch import Tensor, nn

from heedmap.maps import explain


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
def pictures(generator: torch.Generator) -> Tensor:
    return torch.rand(3, 3, 12, 8, generator=generator, dtype=torch.float64)


def slow_activation_and_gradient(net: Small, picture: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Activation and gradient (C, h, w) of one picture, from the plain definition."""
    features = net.relu2(net.conv2(net.relu1(net.conv1(picture[None])))).detach().requires_grad_()
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
def test_each_cam_equals_its_definition_for_every_class(net: Small, pictures: Tensor, method: str) -> None:
    maps = explain(net, pictures, method, target="all").values

    for row, picture in enumerate(pictures):
        for target in range(4):
            wanted = slow_cam(method, *slow_activation_and_gradient(net, picture, target))
            torch.testing.assert_close(maps[row, target], wanted.float(), rtol=1e-5, atol=1e-7)


def test_cam_is_the_weighted_sum_of_features(pictures: Tensor) -> None:
    net = Small().double()
    found = explain(net, pictures, "cam", target=2)

    features = net.relu2(net.conv2(net.relu1(net.conv1(pictures)))).detach()
    wanted = torch.einsum("c,bchw->bhw", net.linear.weight[2].detach(), features)
    torch.testing.assert_close(found.values[:, 0], wanted.float())


def test_saliency_is_the_largest_absolute_gradient(net: Small, pictures: Tensor) -> None:
    found = explain(net, pictures, "saliency", target=[1, 0, 3])
    signed = explain(net, pictures, "saliency", target=[1, 0, 3], settings={"channels": "signed"})

    for row, target in enumerate((1, 0, 3)):
        gradient = torch.autograd.functional.jacobian(lambda one: net(one[None])[0], pictures[row])[target]
        torch.testing.assert_close(found.values[row, 0], gradient.abs().amax(0).float())
        torch.testing.assert_close(signed.values[row, 0].abs(), found.values[row, 0])
        largest = gradient.flatten(1).gather(0, gradient.flatten(1).abs().argmax(0)[None])[0]
        torch.testing.assert_close(signed.values[row, 0].flatten(), largest.float())


def test_grad_cam_of_a_net_set_by_hand_is_what_a_pencil_says() -> None:
    # One picture 4 x 4 holding 0 to 15 in its first channel. The convolution sums the red of each 2 x 2 block into
    # channel 0 and gives half of that to channel 1: A0 = (10, 18, 42, 50), A1 = (5, 9, 21, 25).
    # Logit 0 = 3 mean(A0) - 2 mean(A1): gradients 3/4 and -2/4 everywhere, so the map is 0.75 A0 - 0.5 A1.
    # Logit 1 = -mean(A0): the map would be negative, and its positive part is nothing.
    conv, linear = nn.Conv2d(3, 2, 2, stride=2, bias=False), nn.Linear(2, 2, bias=False)
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    with torch.no_grad():
        conv.weight.zero_()[:, 0] = torch.tensor([1.0, 0.5])[:, None, None]
        linear.weight.copy_(torch.tensor([[3.0, -2.0], [-1.0, 0.0]]))
    picture = torch.zeros(1, 3, 4, 4)
    picture[0, 0] = torch.arange(16.0).view(4, 4)

    maps = explain(net, picture, "grad-cam", target="all").values

    torch.testing.assert_close(maps[0, 0], torch.tensor([[5.0, 9.0], [21.0, 25.0]]))
    torch.testing.assert_close(maps[0, 1], torch.zeros(2, 2))
