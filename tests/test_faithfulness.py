"""Deletion, insertion, ROAD, average drop: against slow definitions, and on models whose perfect map is known."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch import nn

from heedmap.errors import DataError, ModelError, OptionError
from heedmap.metrics.faithfulness import deletion as removal
from heedmap.metrics.faithfulness.deletion import MappedImages
from heedmap.metrics.faithfulness.evaluation import FaithfulnessOptions, evaluate_faithfulness, random_maps
from heedmap.metrics.faithfulness.imputation import BLUR_SIGMA, blurred, imputed, stand_in
from heedmap.metrics.maps import centre_map, edge_map, explained, learned_map, learned_map_at, score
from heedmap.modules import evaluation_mode
from heedmap.types import Output

SIDE = 8


class Linear(nn.Module):
    """Two classes; the second one's logit is the sum of weight times brightness, so the weights are the perfect map."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        second = (images.mean(1) * self.weight).sum((1, 2))
        return torch.stack((torch.zeros_like(second), second), dim=1)


@pytest.fixture
def weight(generator):
    return torch.rand(SIDE, SIDE, generator=generator, dtype=torch.float64) * 0.3


@pytest.fixture
def model(weight):
    return Linear(weight).eval()


@pytest.fixture
def white():
    return torch.ones(6, 3, SIDE, SIDE, dtype=torch.float64)


@pytest.fixture
def small_images(generator):
    return torch.rand(6, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


@pytest.fixture
def targets():
    return torch.ones(6, dtype=torch.int64)


@pytest.fixture
def maps(generator):
    return torch.rand(6, SIDE, SIDE, generator=generator)


def probability(model, image, target):
    return model(image[None]).softmax(1)[0, target].item()


def slow_area(model, start, end, target, ranking, step):
    """RISE's CausalMetric, one image, one pixel at a time."""
    steps = (len(ranking) + step - 1) // step
    image, heights = start.clone(), []
    for number in range(steps + 1):
        heights.append(probability(model, image, target))
        for place in ranking[step * number : step * (number + 1)]:
            image[:, place // SIDE, place % SIDE] = end[:, place // SIDE, place % SIDE]
    return (sum(heights) - heights[0] / 2 - heights[-1] / 2) / steps


@pytest.mark.parametrize("step", [1, 8, 10, 64])
@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_deletion_and_insertion_are_rises_definition(model, small_images, targets, maps, step, batch_size):
    options = {"step": step, "batch_size": batch_size}
    with torch.no_grad():
        gone = removal.deletion(model, MappedImages(small_images, targets, maps), baseline="mean", **options)
        come = removal.insertion(model, MappedImages(small_images, targets, maps), baseline="blur", **options)
        for row, image in enumerate(small_images):
            ranking = maps[row].flatten().argsort(descending=True).tolist()
            empty = image.mean((1, 2))[:, None, None].expand_as(image)
            blur = blurred(image[None])[0]
            assert gone.area[row].item() == pytest.approx(slow_area(model, image, empty, 1, ranking, step), abs=1e-12)
            assert come.area[row].item() == pytest.approx(slow_area(model, blur, image, 1, ranking, step), abs=1e-12)
    assert gone.shares[0] == 0
    assert gone.shares[-1] == 1
    assert torch.equal(gone.kept, gone.probabilities > 0.5)


def whole_curve(model, ends, targets, maps, step, batch_size):
    """All images and baselines at once, as large as they are, mixed in the same batches."""
    first, last = ends
    ranks, pixels = removal.pixel_ranks(maps, *first.shape[2:], seed=3), first.shape[2] * first.shape[3]
    counts = (torch.arange(math.ceil(pixels / step) + 1) * step).clamp_max(pixels)
    found = []
    for pairs in torch.arange(len(first) * len(counts)).split(batch_size):
        row, place = pairs // len(counts), pairs % len(counts)
        changed = (ranks[row] < counts[place, None]).view(len(row), 1, *first.shape[2:])
        found.append(removal._predicted(model, torch.where(changed, last[row], first[row]), targets[row])[:, 0])
    return torch.cat(found).view(len(first), -1)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("baseline", ["mean", "blur", "black", torch.tensor([0.2, 0.4, 0.6])])
def test_few_images_at_a_time_give_the_figures_of_all_at_once_bit_by_bit(batch_size, baseline, generator):
    images, targets = torch.rand(9, 3, 12, 15, generator=generator), torch.arange(9) % 2
    maps = torch.rand(9, 3, 4, generator=generator).round(decimals=1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    options = {"step": 20, "seed": 3, "batch_size": batch_size, "baseline": baseline}
    other = stand_in(images, baseline)
    gone = removal.deletion(net, MappedImages(images, targets, maps), **options).probabilities
    come = removal.insertion(net, MappedImages(images, targets, maps), **options).probabilities
    assert torch.equal(gone, whole_curve(net, (images, other), targets, maps, 20, batch_size))
    assert torch.equal(come, whole_curve(net, (other, images), targets, maps, 20, batch_size))


def test_no_more_images_are_prepared_than_a_batch_needs(generator, monkeypatch):
    sizes = []
    monkeypatch.setattr(removal, "fitted", lambda model, images: sizes.append(len(images)) or images)
    monkeypatch.setattr(removal, "stand_in", lambda images, baseline: sizes.append(len(images)) or images * 0)
    images = torch.rand(40, 3, SIDE, SIDE, generator=generator)
    maps, targets = images[:, 0], torch.zeros(40, dtype=torch.int64)
    removal.deletion(Linear(torch.ones(SIDE, SIDE)), MappedImages(images, targets, maps), batch_size=12)
    assert max(sizes) == 2  # nine steps an image
    assert sizes.count(1) >= 40


def test_a_deletion_worked_out_by_hand():
    model = Linear(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float64))  # one pixel makes 3 : 1
    image, target = torch.ones(1, 3, 2, 2, dtype=torch.float64), torch.tensor([1])
    right, wrong = (torch.tensor([[row]]).view(1, 2, 2) for row in ([4.0, 3, 2, 1], [1.0, 2, 3, 4]))
    found = removal.deletion(model, MappedImages(image, target, right), step=1, baseline="black")
    assert found.probabilities[0].tolist() == pytest.approx([0.75, 0.5, 0.5, 0.5, 0.5])
    assert found.area.item() == pytest.approx((0.625 + 3 * 0.5) / 4)
    assert removal.deletion(
        model, MappedImages(image, target, wrong), step=1, baseline="black"
    ).area.item() == pytest.approx((3 * 0.75 + 0.625) / 4)


def test_no_map_deletes_or_inserts_better_than_a_linear_models_own_weights(model, weight, white, targets, generator):
    """On white images the logit falls by the weight of each pixel made black, so their order is the best there is."""
    perfect, worst = weight.expand(6, -1, -1), -weight.expand(6, -1, -1)
    areas = {}
    for name, maps in {"perfect": perfect, "worst": worst}.items():
        areas[name] = (
            removal.deletion(model, MappedImages(white, targets, maps), step=1, baseline="black").area[0].item()
        )
        grown = removal.insertion(model, MappedImages(white, targets, maps), step=1, baseline="black").area[0].item()
        areas[name + " grown"] = grown
    many = torch.rand(300, SIDE, SIDE, generator=generator)
    mapped = MappedImages(white[:1].expand(300, -1, -1, -1), torch.ones(300).long(), many)
    chance = removal.deletion(model, mapped, step=1, baseline="black").area
    assert areas["perfect"] < chance.min().item() <= chance.max().item() < areas["worst"]
    assert areas["worst grown"] < areas["perfect grown"]


def chance_area(model, weight, white):
    """Mean area over all orders where the probability is that of a share of the total: by many slow permutations."""
    found = []
    source = np.random.default_rng(7)
    flat = weight.flatten().numpy()
    for _ in range(4000):
        left = np.concatenate(([flat.sum()], flat.sum() - np.cumsum(flat[source.permutation(SIDE * SIDE)])))
        heights = 1 / (1 + np.exp(-left))
        found.append(trapezoid(heights, dx=1 / SIDE**2))
    return np.mean(found), np.std(found)


@pytest.mark.parametrize("kind", ["constant", "random"])
def test_a_constant_and_a_random_map_are_at_chance(model, weight, white, kind):
    count = 200
    maps = torch.full((count, SIDE, SIDE), 0.7)
    if kind == "random":
        maps = random_maps(maps, seed=3)
    images, targets = white[:1].expand(count, -1, -1, -1), torch.ones(count).long()
    found = removal.deletion(model, MappedImages(images, targets, maps), step=1, baseline="black").area.mean().item()
    mean, spread = chance_area(model, weight, white)
    assert found == pytest.approx(mean, abs=4 * spread * math.sqrt(1 / count + 1 / 4000))


def test_ties_are_broken_by_seed_and_image_and_by_nothing_else():
    flat = torch.zeros(3, SIDE, SIDE)
    first = removal.pixel_ranks(flat, SIDE, SIDE, seed=1)
    assert torch.equal(first[:2], removal.pixel_ranks(flat[:2], SIDE, SIDE, seed=1))
    assert not torch.equal(first, removal.pixel_ranks(flat, SIDE, SIDE, seed=2))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first.sort(1).values, torch.arange(SIDE * SIDE, dtype=torch.int32).expand(3, -1))


def test_a_coarse_map_is_upsampled_bilinearly_before_it_is_ranked():
    coarse = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    fine = removal.upsampled(coarse, 4, 4)
    assert fine[0, 1].tolist() == pytest.approx([0.5, 0.8125, 1.4375, 1.75])  # a quarter of the way down and right
    assert removal.pixel_ranks(coarse, 4, 4)[0, -1] == 0


# ---- what replaces pixels


def test_the_blur_is_rises_kernel_and_leaves_a_plain_image_alone():
    point = torch.zeros(1, 3, 31, 31, dtype=torch.float64)
    point[..., 15, 15] = 1
    seen = blurred(point)[0, 0]
    folded = np.zeros((11, 11))  # a Gaussian of sigma 5 cut at 4 sigma, its tails reflected back in at the rim
    tail = np.exp(-0.5 * (np.arange(-20, 21) / BLUR_SIGMA) ** 2)
    axis, line = tail / tail.sum(), np.zeros(11)
    for offset, weight in zip(range(-20, 21), axis, strict=True):
        place = (5 + offset) % 22
        line[place if place < 11 else 21 - place] += weight
    folded = np.outer(line, line)
    assert seen[10:21, 10:21].numpy() == pytest.approx(folded, abs=1e-12)
    assert seen.sum().item() == pytest.approx(1)
    plain = torch.full((1, 3, 20, 20), 0.3, dtype=torch.float64)
    assert torch.allclose(blurred(plain), plain)


def test_each_stand_in_is_what_its_name_says(small_images):
    assert torch.equal(stand_in(small_images, "black"), torch.zeros_like(small_images))
    assert torch.allclose(stand_in(small_images, "mean")[2, 1], small_images[2, 1].mean())
    assert torch.equal(
        stand_in(small_images, torch.tensor([0.1, 0.2, 0.3]).double())[:, 2].unique(), torch.tensor([0.3]).double()
    )
    with pytest.raises(OptionError, match="Did you mean 'black'"):
        stand_in(small_images, "blak")
    with pytest.raises(OptionError, match=r"\(4,\)"):
        stand_in(small_images, torch.zeros(4))


def slow_imputation(image, removed):
    """The linear system as a dense one, pixel by pixel."""
    channels, height, width = image.shape
    places = [(y, x) for y in range(height) for x in range(width) if removed[y, x]]
    matrix, known = np.zeros((len(places), len(places))), np.zeros((len(places), channels))
    for row, (y, x) in enumerate(places):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside = 0 <= y + dy < height and 0 <= x + dx < width
                if (dy, dx) == (0, 0) or not inside:
                    continue
                weight = 1 / 6 if 0 in (dy, dx) else 1 / 12
                matrix[row, row] += weight
                if removed[y + dy, x + dx]:
                    matrix[row, places.index((y + dy, x + dx))] -= weight
                else:
                    known[row] += weight * image[:, y + dy, x + dx].numpy()
    filled = image.clone()
    filled[:, removed] = torch.from_numpy(np.linalg.solve(matrix, known)).T
    return filled


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.98])
def test_imputation_solves_the_published_linear_system(small_images, generator, share):
    removed = torch.rand(SIDE, SIDE, generator=generator) < share
    removed[0, 0], removed[3, 3] = True, False
    found = imputed(small_images[0], removed, 0.0, generator)
    assert found == pytest.approx(slow_imputation(small_images[0], removed), abs=1e-10)
    assert torch.equal(found[:, ~removed], small_images[0][:, ~removed])


def test_one_pixel_becomes_the_weighted_mean_of_its_neighbours(generator):
    image = torch.arange(9.0).view(1, 3, 3).expand(3, -1, -1) / 10
    removed = torch.zeros(3, 3, dtype=torch.bool)
    removed[0, 1] = True  # at the border: five neighbours, 0 and 2 and 4 straight, 3 and 5 diagonal
    expected = ((0 + 2 + 4) / 6 + (3 + 5) / 12) / (3 / 6 + 2 / 12) / 10
    assert imputed(image, removed, 0.0, generator)[:, 0, 1].tolist() == pytest.approx([expected] * 3)


def test_the_noise_has_its_size_and_stays_in_range(generator):
    image = torch.full((3, 64, 64), 0.5)
    removed = torch.rand(64, 64, generator=generator) < 0.9
    spread = (imputed(image, removed, 0.01, generator) - 0.5)[:, removed].std().item()
    assert spread == pytest.approx(0.01, rel=0.05)
    assert imputed(image, removed, 5.0, generator).aminmax() == (0, 1)
    assert torch.equal(imputed(image, torch.zeros(64, 64, dtype=torch.bool), 0.01, generator), image)
    with pytest.raises(OptionError, match="All pixels"):
        imputed(image, torch.ones(64, 64, dtype=torch.bool), 0.0, generator)


def test_road_removes_the_hottest_or_the_coldest_share(model, small_images, targets, maps):
    """At noise 0 both orders are checked pixel by pixel; the probability is that of the imputed image."""
    shares = (0.25, 0.5)
    for order, sign in (("most", -1), ("least", 1)):
        found = removal.road(model, MappedImages(small_images, targets, maps), order=order, shares=shares, noise=0.0)
        for row, image in enumerate(small_images):
            for place, share in enumerate(shares):
                removed = torch.zeros(SIDE * SIDE, dtype=torch.bool)
                removed[(sign * maps[row].flatten()).argsort()[: int(share * SIDE**2)]] = True
                filled = slow_imputation(image, removed.view(SIDE, SIDE))
                assert found.probabilities[row, place].item() == pytest.approx(probability(model, filled, 1), abs=1e-9)
        assert torch.allclose(found.area, found.probabilities.mean(1))


def test_average_drop_and_increase_are_grad_cam_plus_pluss(weight, small_images, maps, targets):
    model = Linear(weight - 0.1)  # some places count against the class, so that some images rise
    drop, increase = removal.confidence_change(model, MappedImages(small_images, targets, maps))
    drops, rises = [], []
    for image, values in zip(small_images, maps.double(), strict=True):
        shown = image * (values - values.min()) / (values.max() - values.min())
        whole, part = probability(model, image, 1), probability(model, shown, 1)
        drops.append(max(0, whole - part) / whole)
        rises.append(part > whole)
    assert drop.tolist() == pytest.approx(drops, abs=1e-6)
    assert increase.tolist() == rises


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_map_shows_the_whole_image_and_drops_nothing(model, small_images, targets, value):
    drop, increase = removal.confidence_change(model, MappedImages(small_images, targets, torch.full((6, 4, 4), value)))
    assert drop.tolist() == [0.0] * 6
    assert not increase.any()


# ---- the table


def perfect_map(model, images, targets):
    return model.weight.detach() * images.mean(1)


def test_the_table_sets_perfect_random_and_centre_beside_each_other(model, weight, small_images):
    images = small_images.repeat(4, 1, 1, 1)
    report = evaluate_faithfulness(
        model, images, {"perfect": perfect_map, "inverted": lambda *given: -perfect_map(*given)}, torch.ones(24).long(),
        FaithfulnessOptions(step=4, deletion_baseline="black", insertion_baseline="black"),
    )  # fmt: skip
    rows = {row.name: row for row in report.rows}
    assert list(rows) == ["perfect", "inverted", "centre", "random 8x8"]
    assert rows["perfect"].sentence == "perfect: better than chance in deletion, insertion, road"
    assert rows["inverted"].sentence == "inverted: worse than chance in deletion, insertion, road"
    assert rows["random 8x8"].better == {}
    assert set(rows["perfect"].scores) == {
        "deletion", "insertion", "road_most", "road_least", "road", "average_drop", "increase"
    }  # fmt: skip
    mapped = MappedImages(images, torch.ones(24).long(), perfect_map(model, images, None))
    first = removal.deletion(model, mapped, step=4, baseline="black")
    assert rows["perfect"].scores["deletion"] == score(first.area)
    assert report.count == 24
    assert report.as_dict()["rows"][0]["sentence"] == rows["perfect"].sentence


def test_no_verdict_is_given_from_a_handful_of_images(model, small_images):
    few = evaluate_faithfulness(
        model, small_images[:3], {"perfect": perfect_map}, options=FaithfulnessOptions(measures=("deletion",))
    ).rows
    assert few[0].sentence == "perfect: too few images to tell (n = 3; 20 are needed)"
    assert few[2].sentence == "random 8x8: not compared with chance"
    enough = evaluate_faithfulness(
        model,
        small_images.repeat(4, 1, 1, 1)[:20],
        {"perfect": perfect_map},
        options=FaithfulnessOptions(measures=("deletion",)),
    )
    assert "chance in deletion" in enough.rows[0].sentence


def test_each_grid_has_a_random_map_of_its_own(model, small_images):
    methods = {"fine": perfect_map, "coarse": lambda *given: perfect_map(*given)[:, ::2, ::2]}
    report = evaluate_faithfulness(model, small_images, methods, options=FaithfulnessOptions(measures=("deletion",)))
    assert [row.chance for row in report.rows] == ["random 8x8", "random 4x4", "random 8x8", None, None]
    assert report.settings["targets"] == "predicted"
    assert report.settings["step"] == SIDE


def test_a_model_is_as_before_afterwards_and_gets_the_predicted_class(weight, small_images):
    explained_classes = []

    class Watched(Linear):
        def forward(self, images):
            assert not self.training
            assert not torch.is_autocast_enabled("cpu")
            return Output(super().forward(images), {})

    def watching(model, images, targets):
        explained_classes.append(targets.tolist())
        return images[:, 0]

    model = Watched(-weight).train()
    with torch.inference_mode(), torch.autocast("cpu"):
        evaluate_faithfulness(
            model,
            small_images.float(),
            {"mine": watching},
            options=FaithfulnessOptions(measures=("deletion",), batch_size=4),
        )
    assert model.training
    assert model.weight.grad is None
    assert explained_classes == [[0, 0, 0, 0], [0, 0]]


def test_the_flags_of_every_module_come_back_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval()).train()
    model[1].eval()
    with pytest.raises(RuntimeError, match="on purpose"), evaluation_mode(model):
        raise RuntimeError("on purpose")
    assert [module.training for module in model.modules()] == [True, True, False]


def test_half_precision_weights_run_in_float32_and_stay_as_they_are(weight, small_images):
    model = Linear(weight).to(torch.bfloat16)
    with evaluation_mode(model, gradients=True, full_precision=True) as network:
        assert network.weight.dtype == torch.float32
    assert model.weight.dtype == torch.bfloat16
    report = evaluate_faithfulness(
        model, small_images.float(), {"perfect": perfect_map}, options=FaithfulnessOptions(measures=("insertion",))
    )
    assert report.count == 6


def test_learned_attention_is_a_map_like_any_other(images):
    class Attending(nn.Module):
        def forward(self, images):
            fine = images.mean(1, keepdim=True)
            return Output(images.mean((2, 3)), {"fine": fine, "coarse": fine[..., ::2, ::2]})

    targets = torch.zeros(4).long()
    assert torch.equal(learned_map_at("fine")(Attending(), images, targets), images.mean(1))
    assert learned_map(Attending(), images, targets).shape == (4, 32, 32)
    with pytest.raises(ModelError, match="Did you mean 'coarse'"):
        learned_map_at("coarser")(Attending(), images, targets)
    with pytest.raises(ModelError, match="Flatten"):
        learned_map(nn.Flatten(), images, targets)


def test_a_method_of_the_map_engine_is_a_map_function(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    targets = torch.tensor([2, 0, 1, 1])
    found = explained("grad-cam", layer="1")(model, images, targets)
    features = model[:2](images)
    by_hand = (features * model[4].weight[targets][:, :, None, None]).sum(1).relu()  # up to the size of the layer
    assert found.shape == (4, 30, 30)
    assert torch.allclose(found / found.amax(), by_hand / by_hand.amax(), atol=1e-5)


def test_the_middle_is_the_centre_maps_hottest_place_and_edges_are_the_edge_maps(images):
    middle = centre_map(nn.Identity(), images, torch.zeros(4).long())
    assert middle.shape == (4, 32, 32)
    assert middle[0, 15:17, 15:17].unique().numel() == 1
    assert middle[0].max() == middle[0, 15, 15]
    step = torch.zeros(1, 3, 6, 6)
    step[..., 3:] = 1
    edges = edge_map(nn.Identity(), step, torch.zeros(1).long())[0]
    assert torch.allclose(edges[:, 2:4], torch.tensor(4.0))
    assert edges[:, [0, 1, 4, 5]].eq(0).all()


def test_a_score_is_a_mean_with_its_normal_interval():
    found = score(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    half = 1.959964 * math.sqrt(5 / 3) / 2
    assert (found.mean, found.low, found.high) == pytest.approx((1.5, 1.5 - half, 1.5 + half))
    assert math.isnan(score(torch.tensor([2.0])).low)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"measures": ("deletoin",)}, OptionError, "Did you mean 'deletion'"),
        ({"methods": {}}, OptionError, "no map"),
        ({"methods": {"centre": perfect_map}}, OptionError, "baseline"),
        ({"methods": {"bad": lambda *_: torch.full((6, 2, 2), float("nan"))}}, ModelError, "'bad'"),
        ({"methods": {"bad": lambda *_: torch.zeros(6, 2)}}, ModelError, r"'bad' has shape \(6, 2\)"),
        ({"methods": {"bad": lambda *_: None}}, ModelError, "NoneType"),
        ({"step": 0}, OptionError, "step = 0"),
        ({"shares": (0.5, 1.0)}, OptionError, "between 0 and 1"),
        ({"images": torch.full((6, 3, SIDE, SIDE), 2.0)}, DataError, r"\[0, 1\]"),
        ({"images": torch.full((6, 3, SIDE, SIDE), math.nan)}, DataError, r"\[0, 1\]"),
        ({"images": torch.zeros(0, 3, SIDE, SIDE)}, DataError, "Images are"),
        ({"targets": torch.zeros(5).long()}, DataError, "targets"),
        ({"model": nn.Identity()}, ModelError, "logits"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(model, small_images, change, error, word):
    given = {"model": model, "images": small_images, "methods": {"perfect": perfect_map}} | change
    chosen = {name: given.pop(name) for name in ("measures", "step", "shares") if name in given}
    with pytest.raises(error, match=word):
        evaluate_faithfulness(**given, options=FaithfulnessOptions(**chosen))


def test_unknown_orders_and_misfitting_maps_are_refused(model, small_images, targets, maps):
    with pytest.raises(OptionError, match="Did you mean 'least'"):
        removal.road(model, MappedImages(small_images, targets, maps), order="last")
    with pytest.raises(DataError, match="Maps"):
        removal.deletion(model, MappedImages(small_images, targets, maps[:5]))
    with pytest.raises(DataError, match="not finite"):
        removal.insertion(model, MappedImages(small_images, targets, maps / 0))
