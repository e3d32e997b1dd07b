"""Which layer is read: the last spatial one is found, names are checked; the closed form is taken only when true."""

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from heedmap.attribution import explain
from heedmap.attribution.layers import as_grid, token_grid
from heedmap.errors import ModelError
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier


def torchvision_model(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    settings = {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.get_model(name, weights=None, num_classes=7, **settings)


def timm_model(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=7)


@pytest.mark.parametrize(
    ("model", "layer", "closed"),
    [
        ("torchvision/resnet18", "layer4", True),
        ("torchvision/vgg11", "features", False),
        ("torchvision/squeezenet1_1", "features", False),
        ("torchvision/mobilenet_v2", "features", True),
        ("torchvision/densenet121", "features", False),
        ("timm/resnet18", "layer4", True),
        ("timm/efficientnet_b0", "bn2", True),
        ("timm/mobilenetv3_small_050", "blocks", False),
        ("timm/convnext_atto", "stages", False),
    ],
)
def test_the_last_spatial_layer_is_found(model: str, layer: str, closed: bool, generator: torch.Generator) -> None:
    house, _, name = model.partition("/")
    net = torchvision_model(name) if house == "torchvision" else timm_model(name)
    images = torch.rand(1, 3, 96, 64, generator=generator)

    with mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as backward:
        found = explain(net, images, target="all")

    assert found.layer == layer
    assert found.values.shape[2] > found.values.shape[3] > 1
    assert backward.call_count == (0 if closed else 7)
    with mock.patch("heedmap.attribution.cam.pooled_weights", return_value=None):
        by_autograd = explain(net, images, target="all")
    torch.testing.assert_close(found.values, by_autograd.values, rtol=1e-4, atol=1e-7)


class Pooled(nn.Module):
    """The head of the CIFAR ResNets that everyone copies: a pooling of a fixed size, a view, a linear layer."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.linear, self.side = nn.Linear(4, 3), side

    def forward(self, images: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(self.features(images), self.side)
        return self.linear(pooled.view(len(images), -1))


def test_a_pooling_over_the_whole_map_is_a_mean(generator: torch.Generator) -> None:
    net, images = Pooled(8), torch.rand(2, 3, 8, 8, generator=generator)
    with mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as backward:
        found = explain(net, images, "cam", "all")
    assert backward.call_count == 0
    features = net.features(images)
    wanted = torch.einsum("kc,bchw->bkhw", net.linear.weight, features).detach()
    torch.testing.assert_close(found.values, wanted)


def test_a_pooling_over_a_part_of_the_map_is_not_taken_for_a_mean(generator: torch.Generator) -> None:
    class Corner(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            return self.linear(nn.functional.avg_pool2d(self.features(images), 5).flatten(1))  # the last rows are lost

    net, some = Corner(5), torch.rand(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        net.features[0].weight.zero_()
        net.features[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # even features have the same mean everywhere
    with pytest.raises(ModelError, match="Corner"):
        explain(net, some, "cam")
    leaf = net.features(some).detach().requires_grad_()
    logits = net.linear(nn.functional.avg_pool2d(leaf, 5).flatten(1))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
    wanted = (gradient * leaf).sum(1).relu().detach()
    torch.testing.assert_close(explain(net, some, "hires-cam", 1).values[:, 0], wanted)


def test_a_relu_between_layer_and_mean_is_no_closed_form_though_the_numbers_agree(generator: torch.Generator) -> None:
    # On features that are not negative a second ReLU changes nothing, but where they are zero its gradient is zero.
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            self.linear = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.linear(self.features(images).relu().mean((2, 3)))

    net, some = Twice(), torch.rand(2, 3, 8, 8, generator=generator)
    features = net.features(some).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net.linear(features.relu().mean((2, 3)))[:, 1].sum(), features)
    wanted = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()

    torch.testing.assert_close(explain(net, some, target=1).values[:, 0], wanted.detach())
    with pytest.raises(ModelError, match="CAM needs a head"):
        explain(net, some, "cam")


def test_a_learned_readout_is_left_to_autograd(images: Tensor) -> None:
    net = build_classifier(Architecture("compact", "dot", None, "concat", None, 32, ("a", "b")))
    with mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as backward:
        found = explain(net, images)
    assert backward.call_count == 1
    assert found.layer == "backbone.stage3"

    features: list[Tensor] = []
    handle = net.backbone.stage3.register_forward_hook(lambda _part, _given, out: features.append(out))
    logits = net.eval()(images).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, found.targets).sum(), features[0])
    wanted = (gradient.mean((2, 3), keepdim=True) * features[0]).sum(1).relu()
    torch.testing.assert_close(found.values[:, 0], wanted.detach(), rtol=1e-4, atol=1e-7)


def test_a_tapped_foreign_network_is_read_at_its_features(generator: torch.Generator) -> None:
    pytest.importorskip("timm")
    net = build_classifier(Architecture("timm/resnet18", "parametrised", None, "concat", ("layer3",), 64, ("a", "b")))
    images = torch.rand(2, 3, 64, 64, generator=generator)

    found = explain(net, images)
    assert found.layer == "backbone.net.layer3"  # layer4 runs too, but nothing depends on it
    assert found.values.shape == (2, 1, 4, 4)
    with pytest.raises(ModelError, match="do not depend on layer"):
        explain(net, images, layer="backbone.net.layer4")
    assert explain(net, images, layer="layer3").layer == "backbone.net.layer3"  # by the tap's name
    assert explain(net, images, "attention").layer == "layer3"
    with pytest.raises(ModelError, match="Did you mean 'layer3'"):
        explain(net, images, "attention", layer="layer33")


def test_a_wrong_layer_is_an_error_that_names_the_nearest(generator: torch.Generator) -> None:
    net, images = torchvision_model("resnet18"), torch.rand(1, 3, 64, 64, generator=generator)

    with pytest.raises(ModelError, match="Did you mean 'layer4'"):
        explain(net, images, layer="layer5")
    with pytest.raises(ModelError, match="no grid of positions"):
        explain(net, images, layer="fc")
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ModelError, match="does not run"):
        explain(net, images, layer="spare")
    assert explain(nn.DataParallel(net), images, layer="module.layer3").values.shape == (1, 1, 4, 4)


def test_the_layer_is_found_again_when_the_network_changes(generator: torch.Generator) -> None:
    net, images = torchvision_model("resnet18"), torch.rand(1, 3, 64, 64, generator=generator)
    assert explain(net, images).layer == "layer4"
    assert explain(net, images[..., :32, :32]).layer == "layer3"  # a grid of one position says nothing
    net.layer4, net.fc = nn.Identity(), nn.Linear(256, 7)

    assert explain(net, images).layer == "layer3"


def test_a_layer_used_twice_is_read_where_it_runs_last(generator: torch.Generator) -> None:
    net, images = torchvision_model("resnet18"), torch.rand(1, 3, 64, 64, generator=generator)
    torch.testing.assert_close(explain(net, images, layer="layer4.1.relu").values, explain(net, images).values)


def test_features_behind_no_grad_are_read_all_the_same(generator: torch.Generator) -> None:
    class FrozenBackbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)
            self.linear = nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                features = self.features(images)
            return self.linear(features.mean((2, 3)))

    net, some = FrozenBackbone(), torch.rand(1, 3, 8, 8, generator=generator)
    assert explain(net, some).values.shape == (1, 1, 6, 6)
    with pytest.raises(ModelError, match="rise"):
        explain(net, some, "saliency")


def test_a_network_compiled_in_place_and_run_before_is_read_as_it_was_written(generator: torch.Generator) -> None:
    net, images = torchvision_model("resnet18").eval(), torch.rand(1, 3, 64, 64, generator=generator)
    plain = explain(net, images).values
    net.compile(backend="eager")
    net.layer4 = torch.compile(net.layer4, backend="eager")
    with torch.no_grad():
        net(images)

    assert torch.equal(explain(net, images, layer="layer4").values, plain)
    assert net._compiled_call_impl is not None


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((2, 5, 7, 9), (2, 5, 7, 9)),  # (B, C, h, w)
        ((2, 7, 9, 5), (2, 5, 7, 9)),  # (B, h, w, C)
        ((2, 63, 5), (2, 5, 7, 9)),  # tokens
        ((2, 64, 5), (2, 5, 7, 9)),  # and a class token
        ((2, 5, 1, 1), None),
        ((2, 5), None),
    ],
)
def test_outputs_are_laid_on_the_image(shape: tuple[int, ...], grid: tuple[int, ...] | None) -> None:
    found = as_grid(torch.zeros(shape), torch.zeros(2, 3, 70, 90))
    assert (found is None) == (grid is None)
    assert found is None or tuple(found.shape) == grid


def test_tokens_are_split_by_the_image_s_proportions() -> None:
    assert token_grid(197, 224, 224) == (1, 14, 14)
    assert token_grid(196, 224, 224) == (0, 14, 14)
    assert token_grid(201, 224, 224, prefix=5) == (5, 14, 14)
    assert token_grid(25, 32, 48) == (1, 4, 6)


def test_where_attention_reads_the_last_part_of_a_container_that_part_is_found() -> None:
    classes = ("a", "b", "c")
    shape = Architecture("torchvision/squeezenet1_1", "parametrised", None, "concat", ("features.12",), 64, classes)
    found = explain(build_classifier(shape), torch.rand(2, 3, 64, 64), "grad-cam")
    assert found.layer == "backbone.net.features.12"
