"""The networks of "Learn To Pay Attention": published parameter counts, shapes, taps, and that they train."""

import pytest
import torch
from torch import nn

from heedmap.attention import MeanReadout
from heedmap.backbones.base import Backbone
from heedmap.backbones.paper import LEVELS, PaperResNet, PaperVGG, PlainVGG
from heedmap.errors import ModelError
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.learn_to_pay_attention import paper_resnet_att, paper_vgg_att

# Parameters of the published code at T = 10 and T = 100 classes.
PUBLISHED = {
    "att": (19_714_123, 19_760_293, {"taps": 1}),
    "att2": (19_720_780, 19_813_030, {"taps": 2}),
    "att3": (19_856_461, 19_971_751, {"taps": 3}),
    "att3-up": (19_860_045, 19_998_375, {"taps": 3, "project": "features"}),
}


@pytest.fixture(scope="module")
def vgg() -> PaperVGG:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PaperVGG().eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def logits(classifier: AttentionClassifier, images: torch.Tensor) -> torch.Tensor:
    return classifier(images * classifier.std + classifier.mean).logits


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_equal_the_published_ones(name):
    ten, hundred, options = PUBLISHED[name]
    with torch.device("meta"):
        assert count(paper_vgg_att(10, **options)) == ten
        assert count(paper_vgg_att(100, **options)) == hundred


def test_the_plain_vgg_has_the_published_parameter_count():
    with torch.device("meta"):
        assert count(PlainVGG(10)) == 14_991_946
        assert count(PlainVGG(100)) == 15_038_116


def test_a_quarter_of_the_parametrised_net_is_dead_and_frozen():
    with torch.device("meta"):
        classifier = paper_vgg_att(100)
    dead = sum(parameter.numel() for parameter in classifier.backbone.query_parameters())
    frozen = sum(p.numel() for p in classifier.attentions.parameters() if not p.requires_grad)
    assert dead == 4_984_320
    assert dead + frozen == 5_116_672 + 3  # the three inert biases of u


def test_the_taps_keep_32_16_and_8_positions_a_side_as_the_stages_state(vgg):
    taps = LEVELS[3]
    with torch.no_grad():
        trunk = vgg(torch.rand(2, 3, 32, 32), taps, True)
    shapes = {tap: tuple(features.shape) for tap, features in trunk.features.items()}
    assert shapes == {"conv7": (2, 256, 32, 32), "conv10": (2, 512, 16, 16), "conv13": (2, 512, 8, 8)}
    assert trunk.query.shape == (2, 512)
    assert trunk.logits is None


@pytest.mark.parametrize("make", [PaperVGG, lambda: PlainVGG(3), lambda: PaperResNet(20)])
@pytest.mark.parametrize("size", [(32, 32), (45, 38)])
def test_every_stage_can_be_tapped_and_has_the_channels_and_stride_it_claims(make, size):
    network: Backbone = make().eval()
    taps = tuple(stage.name for stage in network.stages)
    with torch.no_grad():
        trunk = network(torch.rand(1, 3, *size), taps, True)
    assert tuple(trunk.features) == taps
    for stage in network.stages:
        sides = tuple(-(-side // stage.stride) for side in size)  # pools round up
        assert trunk.features[stage.name].shape == (1, stage.channels, *sides)
    assert trunk.query.shape == (1, network.query_channels)


@pytest.mark.parametrize("make", [PaperVGG, lambda: PaperResNet(11)])
def test_the_smallest_image_it_claims_to_take_works(make):
    network = make().eval()
    side = network.least_size
    with torch.no_grad():
        assert torch.isfinite(network(torch.rand(1, 3, side, side), network.default_taps, True).query).all()
    with pytest.raises(ModelError, match="too small"):
        network.check_size(side - 1, side)
    network.check_size(side, side)


def test_without_a_query_nothing_behind_the_last_tap_is_run_and_the_taps_are_the_same(vgg):
    ran = []
    hooks = [conv.register_forward_hook(lambda *_: ran.append(1)) for conv in [*vgg.convs, *vgg.added]]
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        short = vgg(images, ("conv7",), False)
        assert len(ran) == 7
        whole = vgg(images, ("conv10", "conv7"), True)
        assert len(ran) == 7 + 15
    for hook in hooks:
        hook.remove()
    assert short.query is None
    assert tuple(whole.features) == ("conv10", "conv7")
    torch.testing.assert_close(short.features["conv7"], whole.features["conv7"])


def test_a_tap_is_read_before_dropout_and_after_relu():
    network = PaperVGG().train()
    with torch.no_grad():
        tapped = network(torch.rand(4, 3, 16, 16), ("conv5",), False).features["conv5"]
    # Dropout of 0.4 would leave at most 60 % of the units on; BatchNorm and ReLU leave about half of them on, and
    # dropout after ReLU would scale those by 1 / 0.6 and leave about 30 %.
    assert tapped.min() == 0
    assert (tapped > 0).float().mean() > 0.4


def test_batch_norm_has_the_published_eps_and_convs_their_published_spread(vgg):
    norms = [module for module in vgg.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 15
    assert {norm.eps for norm in norms} == {1e-3}
    weight = vgg.convs[12][0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("head", ["concat", "indep"])
@pytest.mark.parametrize("score", ["parametrised", "dot", "additive"])
def test_the_small_resnet_learns_bright_and_dark(head, score):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = paper_resnet_att(2, depth=11, score=score, head=head)
        trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.02, momentum=0.9)
        labels = torch.arange(16) % 2
        losses = []
        for _ in range(12):
            images = torch.randn(16, 3, 16, 16) + (labels * 2.0 - 1)[:, None, None, None]
            loss = nn.functional.cross_entropy(logits(classifier, images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.6 * losses[0]


@pytest.mark.parametrize("head", ["concat", "indep"])
@pytest.mark.parametrize("score", ["parametrised", "dot"])
def test_one_step_of_the_vgg_reaches_every_parameter_that_is_not_dead(head, score):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = paper_vgg_att(3, taps=2, score=score, head=head)
        nn.functional.cross_entropy(logits(classifier, torch.randn(2, 3, 32, 32)), torch.tensor([0, 2])).backward()
    dead = {id(parameter) for parameter in classifier.backbone.query_parameters()} if score == "parametrised" else set()
    for name, parameter in classifier.backbone.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in dead), name
    for readout in classifier.attentions:
        assert all((p.grad is not None) == p.requires_grad for p in readout.parameters())
    assert all(parameter.grad is not None for parameter in classifier.head.parameters())


@pytest.mark.parametrize(("make", "taps"), [(PaperVGG, ("conv4", "conv2")), (lambda: PaperResNet(11), ("stage1",))])
def test_the_parameters_that_no_tap_reads_are_exactly_known(make, taps):
    network = make()
    trunk = network(torch.rand(2, 3, 16, 16), taps, False)
    sum(features.square().sum() for features in trunk.features.values()).backward()
    unread = {id(parameter) for parameter in network.unread_parameters(taps)}
    assert {id(parameter) for parameter in network.parameters() if parameter.grad is None} == unread
    assert {id(parameter) for parameter in network.query_parameters()} < unread


def test_taps_can_be_named_and_no_attention_averages_them():
    with torch.device("meta"):
        control = paper_vgg_att(10, taps=("conv10", "conv13"), score="none")
        attentive = paper_vgg_att(10, taps=2)
        assert paper_resnet_att(10, 11, taps=["stage3"]).taps == ("stage3",)
    assert count(attentive) - count(control) == 2 * 513
    assert all(isinstance(readout, MeanReadout) for readout in control.attentions)


def test_the_resnet_has_164_layers_by_default_and_taps_the_raw_sums_of_its_last_two_stages():
    with torch.device("meta"):
        network = PaperResNet()
        classifier = paper_resnet_att(100)
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    shortcuts = sum(1 for name, _ in network.named_modules() if name.endswith("shortcut"))
    # 164 layers = stem + 18 units x 3 convs x 3 stages + the last linear; shortcuts and the query's conv are extra.
    assert len(convs) - shortcuts - 1 == 163
    assert network.default_taps == ("stage2", "stage3")
    assert [stage.channels for stage in network.stages] == [64, 128, 256]
    assert classifier.head.linear.in_features == 384
    assert PaperResNet(11).eval()(torch.rand(1, 3, 32, 32), ("stage2",), False).features["stage2"].min() < 0


def test_bfloat16_and_channels_last_give_nearly_the_same_features():
    network = PaperResNet(11).eval().to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = network(images, network.default_taps, True)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(images, network.default_taps, True)
    assert rough.features["stage3"].is_contiguous(memory_format=torch.channels_last)
    scale = exact.features["stage3"].abs().max()
    assert (rough.features["stage3"].float() - exact.features["stage3"]).abs().max() < 0.05 * scale


def test_impossible_networks_are_refused_with_the_way_out(vgg):
    with pytest.raises(ModelError, match="1, 2 or 3 levels of attention, not 4"):
        paper_vgg_att(10, taps=4)
    with pytest.raises(ModelError, match=r"Depth 100 is not 9 n \+ 2.*take 92 or 101"):
        PaperResNet(100)
    with pytest.raises(ModelError, match="take 11 or 20"):
        PaperResNet(3)
    with pytest.raises(ModelError, match="Did you mean 'concat'"), torch.device("meta"):
        paper_vgg_att(10, head="conct")
    with pytest.raises(ModelError, match=r"No tap 'conv77' in paper-vgg; it has conv1, .*Did you mean 'conv7'"):
        vgg.check_taps(("conv77",))
    with pytest.raises(ModelError, match="named twice"):
        vgg.check_taps(("conv7", "conv7"))
