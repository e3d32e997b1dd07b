"""Any network as a backbone: same logits, its own features, and nothing left behind in it."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from heedmap.backbones import registry as zoo
from heedmap.backbones.base import IMAGENET, Trunk
from heedmap.backbones.inspection import survey
from heedmap.backbones.registry import list_library_models, read_weights
from heedmap.backbones.wrapped import WrappedBackbone, build_wrapped
from heedmap.errors import ModelError

SETTINGS = {"normalization": IMAGENET}


class Dynamic(nn.Module):
    """Decides in Python as it goes: what tracing cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.bright = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        if float(images.mean()) < -1e6:
            raise RuntimeError("too dark to see")
        for _ in range(2 if images.shape[0] > 1 else 1):
            x = torch.relu(x)
        x = self.block(x)
        if float(images.mean()) > 0.9:
            x = self.bright(x)
        return self.fc(x.mean(dim=(2, 3)))


class InPlace(nn.Module):
    """Normalises, then cuts off at zero in place, as torchvision's DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu_(self.norm(self.conv(images))).mean(dim=(2, 3)))


class ChannelsLast(nn.Module):
    """Keeps its features as (B, H, W, C), like Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, stride=4)
        self.mix = nn.ModuleList(nn.Linear(12, 12) for _ in range(6))
        self.fc = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).permute(0, 2, 3, 1)
        for layer in self.mix:
            x = layer(x)
        return self.fc(x.mean(dim=(1, 2)))


def flat_net() -> nn.Sequential:
    """Flattens its features, so that only images of 32 x 32 fit; its last convolution is pointwise."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1),
        nn.Flatten(),
        nn.Linear(256, 5),
    )


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """timm's ResNet-18 with random weights, in evaluation mode; copy it before wrapping."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("resnet18", num_classes=10).eval()


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=generator)


@pytest.fixture
def wrapped(resnet: nn.Module) -> WrappedBackbone:
    return WrappedBackbone(copy.deepcopy(resnet), keep_head=True, probe_size=64, **SETTINGS)


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_the_logits_of_a_wrapped_resnet_are_those_of_the_plain_one_to_the_last_bit(
    resnet: nn.Module, wrapped: WrappedBackbone, images: Tensor
) -> None:
    logits = wrapped(images, ("layer2", "layer3"), True).logits
    assert logits is not None
    assert torch.equal(logits, resnet(images))


def test_features_and_query_are_those_taken_by_hand(
    resnet: nn.Module, wrapped: WrappedBackbone, images: Tensor
) -> None:
    x = resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(images))))
    second = resnet.layer2(resnet.layer1(x))
    third = resnet.layer3(second)
    trunk = wrapped(images, ("layer3", "layer2"), True)
    assert list(trunk.features) == ["layer3", "layer2"]
    assert torch.equal(trunk.features["layer2"], second)
    assert torch.equal(trunk.features["layer3"], third)
    assert trunk.query is not None
    assert torch.equal(trunk.query, resnet.layer4(third).mean(dim=(2, 3)))


def test_without_need_of_a_query_there_is_none_and_without_a_head_no_logits(resnet: nn.Module, images: Tensor) -> None:
    trunk = WrappedBackbone(copy.deepcopy(resnet), keep_head=False, probe_size=64)(images, ("layer3",), False)
    assert trunk.query is None
    assert trunk.logits is None


def test_gradients_flow_through_the_taps(wrapped: WrappedBackbone, images: Tensor) -> None:
    trunk = wrapped(images, ("layer2",), False)
    trunk.features["layer2"].sum().backward()
    assert wrapped.net.conv1.weight.grad is not None
    assert wrapped.net.layer3[0].conv1.weight.grad is None


@pytest.mark.slow
def test_real_squeezenet_weights_give_the_logits_of_the_plain_network(
    shared_data: Path, generator: torch.Generator
) -> None:
    path = shared_data / "weights" / "squeezenet1_0_imagenet_dc.pt"
    if not path.is_file():
        pytest.skip(f"no {path}")
    plain = torchvision.models.squeezenet1_0().eval()
    plain.load_state_dict(torch.load(path, weights_only=True))
    backbone = build_wrapped("torchvision/squeezenet1_0", pretrained=str(path), keep_head=True, num_classes=1000).eval()
    images = torch.rand(2, 3, 96, 96, generator=generator)
    trunk = backbone(images, backbone.default_taps, True)
    assert backbone.default_taps == ("features.10", "features.12")
    assert trunk.logits is not None
    assert torch.equal(trunk.logits, plain(images))
    assert torch.equal(trunk.features["features.12"], plain.features(images))
    headless = build_wrapped("torchvision/squeezenet1_0", pretrained=str(path))
    assert headless.left_out == ("classifier.1.weight", "classifier.1.bias")
    assert torch.equal(
        headless.eval()(images, ("features.10",), False).features["features.10"], trunk.features["features.10"]
    )


def test_taps_of_a_resnet_follow_the_size_of_the_images(wrapped: WrappedBackbone) -> None:
    assert wrapped.taps_for(224) == ("layer3", "layer4")
    assert wrapped.taps_for(64) == wrapped.default_taps == ("layer2", "layer3")
    with pytest.raises(ModelError, match="At 4 pixels"):
        wrapped.taps_for(4)


def test_strides_and_channels_are_those_of_the_architecture(wrapped: WrappedBackbone) -> None:
    found = {name: (wrapped.stage(name).channels, wrapped.stage(name).stride) for name in ("conv1", "layer1", "layer4")}
    assert found == {"conv1": (64, 2), "layer1": (64, 4), "layer4": (512, 32)}
    assert wrapped.query_channels == 512
    assert wrapped.fixed_size is None
    assert wrapped.least_size == 32
    assert not {"global_pool", "fc", ""} & {stage.name for stage in wrapped.stages}


def test_a_mobilenet_is_tapped_at_its_stages_and_not_inside_the_next_ones_expansion() -> None:
    backbone = build_wrapped("mobilenetv3_small_100")
    assert backbone.default_taps == ("blocks.3", "blocks.5")
    assert backbone.dropped == ("classifier", "conv_head")  # from the end backwards, and all of it
    assert backbone.grid_side("blocks.3", 72) == 5


def test_the_grid_side_is_the_true_one_where_the_stride_does_not_divide_the_image(wrapped: WrappedBackbone) -> None:
    assert [wrapped.grid_side("layer3", size) for size in (64, 72, 227)] == [4, 5, 15]


def test_a_container_that_holds_the_other_tap_is_skipped() -> None:
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()]
    net = nn.Sequential()
    net.add_module("features", nn.Sequential(*layers))
    net.add_module("tail", nn.Sequential(nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    backbone = WrappedBackbone(net, keep_head=False)
    assert backbone.default_taps == ("features.1", "features.3")
    assert backbone.dropped == ("tail",)


def test_the_stride_is_that_of_the_layers_although_unpadded_borders_shrink_the_grid() -> None:
    backbone = build_wrapped("torchvision/squeezenet1_0")  # 13 x 13 at 224, which is 17.2 pixels per position
    assert [backbone.stage(tap).stride for tap in ("features.2", "features.10", "features.12")] == [4, 8, 16]


def test_what_only_looks_like_features_cannot_be_tapped() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=4, padding=1)
            self.often = nn.ReLU()
            self.nothing = nn.Identity()
            self.weigh = nn.Softmax(dim=-1)
            self.places = nn.Parameter(torch.zeros(16, 4))  # learned for 4 x 4 positions: one size only
            self.fc = nn.Linear(4, 5)

        def forward(self, images: Tensor) -> Tensor:
            x = self.nothing(self.often(self.often(self.conv(images))))
            tokens = x.flatten(2).transpose(1, 2)[:, None] + self.places
            return self.fc((self.weigh(tokens @ tokens.transpose(2, 3)) @ tokens).mean(dim=(1, 2)))

    assert [module.stage.name for module in survey(Looks(), "net", 16).modules] == ["conv"]


def test_a_network_that_takes_one_size_only_refuses_others() -> None:
    backbone = WrappedBackbone(flat_net(), keep_head=True)
    assert backbone.fixed_size == 32
    assert backbone.default_taps == ("1", "3")
    assert backbone.logit_channels == 5
    with pytest.raises(ModelError, match="32 x 32"):
        backbone.check_size(64, 64)


def test_a_module_that_decides_in_python_works(images: Tensor) -> None:
    torch.manual_seed(0)
    net = Dynamic()
    plain = copy.deepcopy(net)
    backbone = WrappedBackbone(net, ("stem", "block"), keep_head=True)
    for count in (1, 2):
        trunk = backbone(images[:count], ("block",), True)
        assert torch.equal(trunk.logits, plain(images[:count]))
        assert torch.equal(trunk.features["block"], plain.block(plain.stem(images[:count]).relu()))


def test_a_tap_that_does_not_run_or_is_not_spatial_in_a_later_pass_is_named() -> None:
    class Moody(Dynamic):
        def forward(self, images: Tensor) -> Tensor:
            x = self.block(self.stem(images))
            if float(images.mean()) > 0.3:
                x = self.bright(x)
            return self.fc(x.mean(dim=(2, 3)))

    backbone = WrappedBackbone(Moody(), keep_head=True)
    assert backbone(torch.ones(1, 3, 32, 32), ("bright",), True).query.shape == (1, 8)
    with pytest.raises(ModelError, match="'bright' of Moody"):
        backbone(torch.zeros(1, 3, 32, 32), ("bright",), False)

    class Folding(nn.Module):
        folds = False

        def forward(self, features: Tensor) -> Tensor:
            return features.flatten(2) if self.folds else features

    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), Folding(), nn.Flatten(), nn.Linear(4 * 16 * 16, 5))
    backbone = WrappedBackbone(net, ("1",), keep_head=True)
    net[1].folds = True
    with pytest.raises(ModelError, match="'1' of Sequential"):
        backbone(torch.zeros(1, 3, 64, 64), ("1",), False)


def test_a_deep_copy_catches_its_own_features(wrapped: WrappedBackbone, images: Tensor) -> None:
    double = copy.deepcopy(wrapped)
    with torch.no_grad():
        for weight in double.parameters():
            weight.mul_(0.5)
    before = wrapped(images, ("layer3",), True)
    other = double(images, ("layer3",), True)
    after = wrapped(images, ("layer3",), True)
    assert torch.equal(before.features["layer3"], after.features["layer3"])
    assert torch.equal(before.query, after.query)
    assert not torch.equal(before.features["layer3"], other.features["layer3"])
    assert double._catch is not wrapped._catch
    assert not double._catch.caught
    assert hooks(double) == hooks(wrapped)


def test_a_pickled_copy_works_as_processes_that_are_spawned_need_it(wrapped: WrappedBackbone, images: Tensor) -> None:
    double = pickle.loads(pickle.dumps(wrapped))
    assert torch.equal(double(images, ("layer3",), False).logits, wrapped(images, ("layer3",), False).logits)


def test_nothing_stays_caught_after_a_forward_nor_after_one_that_raised(images: Tensor) -> None:
    backbone = WrappedBackbone(Dynamic(), keep_head=True)
    backbone(images, ("block",), True)
    assert not backbone._catch.caught
    assert not backbone._catch.requested
    with pytest.raises(RuntimeError, match="too dark"):
        backbone(images - 1e7, ("stem",), True)
    assert not backbone._catch.caught
    assert not backbone._catch.requested
    backbone.net(images)  # the bare network, outside of the backbone's forward
    assert not backbone._catch.caught


def test_the_state_dict_has_the_networks_keys_behind_one_prefix(resnet: nn.Module, wrapped: WrappedBackbone) -> None:
    assert list(wrapped.state_dict()) == [f"net.{key}" for key in resnet.state_dict()]


def test_probing_leaves_no_trace(images: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 3, 2, 1))
    net[1].eval()  # a frozen normalisation in a network in training
    net[3].weight.requires_grad_(False)
    state, random = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    survey(net, "net")
    assert hooks(net) == 0
    WrappedBackbone(net, ("0", "3"), keep_head=False)
    assert hooks(net) == 2
    assert [part.training for part in net] == [True, False, True, True]
    assert not net[3].weight.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_probing_a_network_that_draws_at_random_leaves_the_global_random_state_alone() -> None:
    class Draws(Dynamic):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + torch.rand_like(images))

    before = torch.random.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        net = Draws()
    WrappedBackbone(net, keep_head=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_the_head_every_trainable_parameter_gets_a_gradient(resnet: nn.Module, images: Tensor) -> None:
    backbone = WrappedBackbone(copy.deepcopy(resnet), ("layer2", "layer3"), keep_head=False, probe_size=64)
    assert backbone.dropped == ("fc",)
    assert not any("fc" in key for key in backbone.state_dict())
    trunk = backbone(images, backbone.default_taps, True)
    (trunk.query.sum() + sum(features.sum() for features in trunk.features.values())).backward()
    assert all(weight.grad is not None for weight in backbone.parameters() if weight.requires_grad)


def test_query_parameters_are_those_behind_the_last_tap(resnet: nn.Module) -> None:
    backbone = WrappedBackbone(copy.deepcopy(resnet), ("layer2", "layer3"), keep_head=False, probe_size=64)
    only = {id(weight) for weight in backbone.net.layer4.parameters()}
    assert {id(weight) for weight in backbone.query_parameters()} == only
    assert {id(weight) for weight in backbone.unread_parameters(("layer3",))} == only
    assert backbone.unread_parameters(("layer4",)) == []


def test_with_the_head_kept_no_parameter_is_the_querys_alone(wrapped: WrappedBackbone) -> None:
    assert wrapped.query_parameters() == []
    assert wrapped.logit_channels == 10
    assert wrapped.dropped == ()


def test_a_head_that_cannot_be_taken_off_is_frozen(images: Tensor) -> None:
    class Reads(Dynamic):
        def forward(self, inner: Tensor) -> Tensor:
            return super().forward(inner) + self.fc.bias

    backbone = WrappedBackbone(Reads(), keep_head=False)
    assert backbone.dropped == ("bright",)
    assert [name for name, weight in backbone.named_parameters() if not weight.requires_grad] == [
        "net.fc.weight",
        "net.fc.bias",
    ]
    assert backbone(images, ("block",), True).query.shape == (2, 8)


def test_a_network_frozen_by_its_owner_stays_frozen_and_whole() -> None:
    net = Dynamic().requires_grad_(False)
    backbone = WrappedBackbone(net, keep_head=True)
    assert backbone.dropped == ()
    assert not any(weight.requires_grad for weight in backbone.parameters())
    assert backbone(torch.zeros(1, 3, 32, 32), ("stem",), False).logits.shape == (1, 5)


def test_a_tap_sees_what_the_rest_of_the_network_sees_after_a_step_in_place(images: Tensor) -> None:
    net = InPlace().eval()
    backbone = WrappedBackbone(net, ("norm",), keep_head=True)
    assert torch.equal(backbone(images, ("norm",), False).features["norm"], net.norm(net.conv(images)).relu())


def test_a_network_that_keeps_its_features_channels_last_is_refused_unless_its_patches_are_named() -> None:
    with pytest.raises(ModelError, match=r"After 'patch' ChannelsLast keeps its features as tokens or \(B, H, W, C\)"):
        WrappedBackbone(ChannelsLast(), keep_head=True)
    assert WrappedBackbone(ChannelsLast(), ("patch",), keep_head=True).default_taps == ("patch",)
    with pytest.raises(ModelError, match="has nothing to tap"):
        WrappedBackbone(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)), keep_head=True)


def test_a_network_that_never_runs_is_named_with_its_own_reason() -> None:
    with pytest.raises(ModelError, match=r"^Grey takes 1 input channel; three are needed"):
        WrappedBackbone(nn.Sequential(nn.Conv2d(1, 4, 3)), keep_head=False, name="Grey")
    with pytest.raises(ModelError, match=r"^Sequential did not run .*shapes.*image_size\.$"):
        WrappedBackbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(46 * 46 * 4, 2)), keep_head=True)


def test_a_network_for_one_unusual_size_is_probed_at_the_size_of_the_images() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(46 * 46 * 4, 2))
    assert WrappedBackbone(net, keep_head=True, image_size=48).fixed_size == 48


def test_a_network_without_logits_has_no_head_to_keep() -> None:
    with pytest.raises(ModelError, match="logits"):
        WrappedBackbone(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), keep_head=True)
    assert WrappedBackbone(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), keep_head=False).default_taps == ("0",)


def test_a_tap_that_does_not_exist_is_refused_with_those_that_do(resnet: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"No tap 'layr3' .* layer4 and \d+ more.*Did you mean 'layer3'"):
        WrappedBackbone(copy.deepcopy(resnet), ("layr3",), keep_head=True, probe_size=64)
    with pytest.raises(
        ModelError, match=r"Module 'fc' of ResNet has no \(B, C, H, W\) output to tap; take one of .*layer4"
    ):
        WrappedBackbone(copy.deepcopy(resnet), ("fc",), keep_head=True, probe_size=64)
    with pytest.raises(ModelError, match="named twice"):
        WrappedBackbone(copy.deepcopy(resnet), ("layer3", "layer3"), keep_head=True, probe_size=64)


def test_torch_export_takes_the_hooks_along(wrapped: WrappedBackbone, images: Tensor) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = wrapped

        def forward(self, inner: Tensor) -> tuple[Tensor, Tensor]:
            trunk: Trunk = self.backbone(inner, ("layer3",), False)
            return trunk.features["layer3"], trunk.logits

    exported = torch.export.export(Plain().eval(), (images,)).module()
    for ours, theirs in zip(Plain().eval()(images), exported(images), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert not wrapped._catch.caught


# Weights


def saved_pt(weights: dict[str, Tensor], path: Path) -> Path:
    torch.save(weights, path)
    return path


def saved_checkpoint(weights: dict[str, Tensor], path: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    return path


def saved_safetensors(weights: dict[str, Tensor], path: Path) -> Path:
    save_file(weights, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("save", [saved_pt, saved_checkpoint, saved_safetensors])
def test_weights_from_a_file_are_the_files(
    save: Callable[[dict[str, Tensor], Path], Path], resnet: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    path = save(resnet.state_dict(), tmp_path / "net.pt")
    backbone = build_wrapped("resnet18", pretrained=str(path), keep_head=True, num_classes=10).eval()
    assert backbone.name == "timm/resnet18"
    assert torch.equal(backbone(images, ("layer3",), False).logits, resnet(images))


def test_a_head_of_another_shape_is_left_out_and_reported_or_refused_when_it_is_to_be_kept(
    resnet: nn.Module, tmp_path: Path
) -> None:
    path = saved_pt(resnet.state_dict(), tmp_path / "net.pt")
    backbone = build_wrapped("resnet18", pretrained=str(path), num_classes=3)
    assert backbone.left_out == ("fc.weight", "fc.bias")
    assert torch.equal(backbone.net.conv1.weight, resnet.conv1.weight)
    with pytest.raises(ModelError, match=r"2 of another shape \(fc.weight \(10, 512\) instead of \(3, 512\)"):
        build_wrapped("resnet18", pretrained=str(path), keep_head=True, num_classes=3)


def test_missing_unknown_and_misshapen_keys_are_refused_by_name(resnet: nn.Module, tmp_path: Path) -> None:
    weights = dict(resnet.state_dict())
    del weights["layer1.0.conv1.weight"]
    weights["layer9.weight"] = torch.zeros(1)
    weights["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    path = saved_pt(weights, tmp_path / "net.pt")
    with pytest.raises(ModelError) as refusal:
        build_wrapped("resnet18", pretrained=str(path))
    for part in (
        str(path),
        "1 missing (layer1.0.conv1.weight)",
        "1 not known (layer9.weight)",
        "conv1.weight (64, 1, 7, 7)",
    ):
        assert part in str(refusal.value)


class Anything:
    """Something that only a full pickle can hold."""


def test_files_that_hold_no_weights_are_refused_each_in_one_line(tmp_path: Path) -> None:
    bare = tmp_path / "whole.pt"
    torch.save(Anything(), bare)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(saved_pt({"a": torch.zeros(1000)}, tmp_path / "good.pt").read_bytes()[:900])
    unsafe = tmp_path / "bad.safetensors"
    unsafe.write_bytes(b"12345678nonsense")
    other = tmp_path / "net.onnx"
    other.write_bytes(b"")
    numbers = tmp_path / "numbers.pt"
    torch.save({"a": torch.zeros(1), "lr": 0.1}, numbers)
    empty = tmp_path / "empty.pt"
    empty.write_bytes(b"")
    for path, reason in [
        (tmp_path / "none.pt", "No weights file"),
        (bare, "is a pickle that holds more than tensors"),
        (damaged, "cannot be read as PyTorch weights|is a pickle"),
        (unsafe, "cannot be read as safetensors"),
        (other, "is not a weights file"),
        (numbers, "not a dictionary of tensors"),
        (empty, "cannot be read|is a pickle"),
    ]:
        with pytest.raises(ModelError, match=reason) as refusal:
            read_weights(path)
        assert path.name in str(refusal.value)
        assert "\n" not in str(refusal.value)


# Names


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(ModelError, match=r"Unknown model 'resnet81'.*Did you mean 'resnet.*heedmap list"):
        build_wrapped("resnet81")
    with pytest.raises(ModelError, match="Did you mean 'squeezenet1_0'"):
        build_wrapped("torchvision/squeezenet10")
    with pytest.raises(ModelError, match=r"Unknown library 'tim'.*Did you mean 'timm'"):
        build_wrapped("tim/resnet18")


def test_the_names_of_both_libraries_are_listed() -> None:
    assert {"timm/resnet18", "torchvision/squeezenet1_0"} <= set(list_library_models())


@pytest.mark.parametrize("kind", [ImportError, RuntimeError, OSError])
def test_a_missing_or_broken_library_is_a_clear_line(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise kind("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(zoo.importlib, "import_module", fail)
    with pytest.raises(ModelError, match=r"timm .*\(operator torchvision::nms does not exist\)"):
        build_wrapped("resnet18")


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_a_hub_out_of_reach_is_an_error_and_never_random_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: object, **_options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(zoo.socket, "getaddrinfo", lambda *_given: [])
    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(ModelError, match=r"Name or service not known.*--pretrained FILE.safetensors"):
        build_wrapped(name, pretrained="hub")


def test_without_a_network_the_hub_is_not_waited_for_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    def unresolved(*_given: object) -> None:
        raise OSError("Name or service not known")

    def fail(*_given: object, **_options: object) -> None:
        assert constants.HF_HUB_OFFLINE
        assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
        warnings.warn("a word of the hub's own", stacklevel=1)
        raise OSError("offline mode is enabled")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(zoo.urllib.request, "getproxies", dict)
    monkeypatch.setattr(zoo.socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ModelError, match=r"hub\.invalid.*--pretrained FILE"):
        build_wrapped("timm/resnet18", pretrained="hub")
    assert not constants.HF_HUB_OFFLINE
    assert logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


def test_hub_weights_with_a_head_for_other_classes_cannot_keep_it(
    resnet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.socket, "getaddrinfo", lambda *_given: [])
    monkeypatch.setattr(timm, "create_model", lambda *_given, **_options: copy.deepcopy(resnet))
    with pytest.raises(ModelError, match="10 classes, not 4"):
        build_wrapped("timm/resnet18", pretrained="hub", keep_head=True, num_classes=4)


def test_importing_the_room_imports_neither_library() -> None:
    code = "import sys, heedmap.backbones.wrapped; sys.exit(bool({'timm', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
