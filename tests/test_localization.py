"""Maps against annotations: every measure against a slow definition, laws, and what cannot be evaluated."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from heedmap.data.annotations.annotations import Annotations, annotations_of
from heedmap.data.digit_scenes import digit_scenes
from heedmap.data.masks import TensorMask
from heedmap.errors import DataError, OptionError
from heedmap.metrics.classification import wilson_interval
from heedmap.metrics.localization.components import components
from heedmap.metrics.localization.evaluation import LocalizationOptions, evaluate_localization
from heedmap.metrics.localization.measures import Truth, masks_of, measure, near, otsu_levels, prepared, scaled
from heedmap.metrics.localization.pointing_game import pointing_table
from heedmap.metrics.localization.report import METRICS, YES_NO, Bootstrap
from heedmap.metrics.maps import edges, fixed_baselines

SIDE = 16


def localize(maps, annotations, *, images=None, chosen_on=None, **options):
    """Evaluate with options by name."""
    options = LocalizationOptions(**options)
    return evaluate_localization(maps, annotations, options, images=images, chosen_on=chosen_on)


def annotated(masks, boxes=None):
    """Annotations of masks (N, H, W), with tight boxes unless others are given."""
    if boxes is None:
        boxes = [tight(mask) for mask in masks]
    count = len(masks)
    return Annotations(
        tuple(f"{row}.png" for row in range(count)),
        tuple(torch.tensor(box, dtype=torch.float64).reshape(-1, 4) for box in boxes),
        tuple(TensorMask(mask) for mask in masks),
        torch.ones(count, dtype=torch.bool),
        torch.tensor([len(box) for box in boxes]),
    )


def tight(mask):
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(rows):
        return []
    height, width = mask.shape
    return [[columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]]


def squares(count, generator, low=4, high=10):
    """Masks (count, 16, 16), each a rectangle somewhere."""
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for mask in masks:
        height, width = torch.randint(low, high, (2,), generator=generator).tolist()
        top = int(torch.randint(0, SIDE - height + 1, (1,), generator=generator))
        left = int(torch.randint(0, SIDE - width + 1, (1,), generator=generator))
        mask[top : top + height, left : left + width] = True
    return masks


def slow_levels(values):
    low, high = values.min(), values.max()
    return [[int((v - low) / (high - low) * 255) if high > low else 0 for v in row] for row in values]


def slow_components(levels, level):
    """Boxes in pixels and sizes of the parts that reach a level, corners touching, by flooding one pixel at a time."""
    height, width = len(levels), len(levels[0])
    todo = {(y, x) for y in range(height) for x in range(width) if levels[y][x] >= level}
    parts = []
    for y in range(height):
        for x in range(width):
            if (y, x) not in todo:
                continue
            todo.discard((y, x))
            queue, seen = [(y, x)], []
            while queue:
                r, c = queue.pop()
                seen.append((r, c))
                for one in [(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                    if one in todo:
                        todo.discard(one)
                        queue.append(one)
            rows, columns = [r for r, _ in seen], [c for _, c in seen]
            parts.append(((min(columns), min(rows), max(columns) + 1, max(rows) + 1), len(seen)))
    return parts


def slow_iou(one, other):
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across * down / (area - across * down)


def slow_otsu(levels):
    """Lowest level of the bright part, from the definition: the within-class variance is smallest."""
    values = [v for row in levels for v in row]
    best, chosen = math.inf, 0
    for level in range(1, 256):
        dark, bright = [v for v in values if v < level], [v for v in values if v >= level]
        if not dark or not bright:
            continue
        within = sum(len(part) * float(np.var(np.array(part, dtype=np.float64))) for part in (dark, bright))
        if within < best * (1 - 1e-12):
            best, chosen = within, level
    return chosen


def slow_scores(maps, masks, boxes):
    """Every metric but the intervals, pixel by pixel in Python."""
    singles, hits, inside, outside = [], [], [], []
    for one, mask, truth in zip(maps.double().numpy(), masks.numpy(), boxes, strict=True):
        values, levels = one[0], slow_levels(one[0].astype(np.float32))
        pixels = [(y, x) for y in range(SIDE) for x in range(SIDE)]
        hottest = [(y, x) for y, x in pixels if values[y, x] == values.max()]
        positive = values.clip(0)
        cut = slow_otsu(levels)
        marked = {(y, x) for y, x in pixels if levels[y][x] >= cut}
        real = {(y, x) for y, x in pixels if mask[y, x]}
        at_cut = max(slow_components(levels, cut), key=lambda part: part[1])[0]
        truth = [[side * SIDE for side in box] for box in truth]
        singles.append(
            {
                "pointing": sum(mask[y, x] for y, x in hottest) / len(hottest),
                "energy": positive[mask].sum() / positive.sum(),
                "otsu_iou": len(marked & real) / len(marked | real),
                "corloc": float(max(slow_iou(at_cut, box) for box in truth) >= 0.5),
            }
        )
        row = []
        values_present = sorted({v for line in levels for v in line})
        parts_from = {value: slow_components(levels, value) for value in values_present}
        for level in range(256):
            parts = parts_from.get(min((value for value in values_present if value >= level), default=-1), [])
            overlap = [max(slow_iou(part, box) for box in truth) for part, _ in parts]
            top = overlap[max(range(len(parts)), key=lambda i: parts[i][1])] if parts else 0
            row.append([top >= 0.5, *(any(o >= delta for o in overlap) for delta in (0.3, 0.5, 0.7))])
        hits.append(row)
        inside += [levels[y][x] for y, x in pixels if mask[y, x]]
        outside += [levels[y][x] for y, x in pixels if not mask[y, x]]
    found = {name: float(np.mean([single[name] for single in singles])) for name in singles[0]}
    best = np.array(hits).mean(0).max(0)
    found["max_box_acc"], found["max_box_acc_v2"] = best[0], best[1:].mean()
    area, recall = 0.0, 0.0
    for level in range(255, -1, -1):
        right, wrong = sum(v >= level for v in inside), sum(v >= level for v in outside)
        if right + wrong:
            area += right / (right + wrong) * (right / len(inside) - recall)
            recall = right / len(inside)
    found["pxap"] = area
    return found


@pytest.fixture(scope="module")
def scenes():
    return digit_scenes("test", 24)


def kinds(generator):
    noise = torch.rand(3, 1, SIDE, SIDE, generator=generator)
    return {"noise": noise, "steps": (noise * 4).floor(), "negative": noise - 0.5, "few": (noise - 0.8).clamp_min(0)}


@pytest.mark.parametrize("kind", ["noise", "steps", "negative", "few"])
def test_every_measure_equals_its_slow_definition(kind, generator):
    maps, masks = kinds(generator)[kind], squares(3, generator)
    boxes = [[*tight(mask), [0.0, 0.0, 0.25, 0.25]] for mask in masks]
    report = localize({"map": maps}, annotated(masks, boxes), size=SIDE, draws=0)
    for name, value in slow_scores(maps, masks, boxes).items():
        assert report.scores["map"][name].value == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("name", ["centre", "centre box"])
def test_the_centre_baselines_equal_the_slow_definition_on_digit_scenes(name, scenes):
    """The reference here walks the same scenes at 16 pixels, map and boxes alike, one pixel at a time."""
    annotations = annotations_of(scenes.subset(range(6)))
    masks = torch.stack([annotations.region(row, SIDE) == 1 for row in range(6)])
    report = localize({"any": torch.rand(6, 1, 4, 4)}, annotations, size=SIDE, draws=0)
    maps = scaled(fixed_baselines(SIDE, 0)[name], SIDE)[None].expand(6, -1, -1, -1)
    slow = slow_scores(maps, masks, [box.tolist() for box in annotations.boxes])
    for metric in ("max_box_acc", "max_box_acc_v2", "pxap", "otsu_iou", "corloc"):
        assert report.scores[name][metric].value == pytest.approx(slow[metric], abs=1e-6), metric


def test_components_equal_a_slow_flood_at_every_level(generator):
    for kind, maps in kinds(generator).items():
        values = scaled(maps[:2], SIDE)
        found = components(values)
        for row, one in enumerate(values.numpy()):
            for level in range(0, 256, 5):
                parts = slow_components(slow_levels(one), level)
                alive = (found.maps == row) & (found.born >= level) & (found.died < level)
                boxes = sorted(map(tuple, (found.boxes[alive] * SIDE).round().astype(int).tolist()))
                assert boxes == sorted(box for box, _ in parts), (kind, level)
                if parts:
                    largest = max(parts, key=lambda part: part[1])[0]
                    assert tuple((found.boxes[found.largest[row, level]] * SIDE).round()) == largest, (kind, level)


def test_components_of_larger_maps_equal_scipys_labels_at_every_level(generator, monkeypatch):
    """Rough maps and smooth ones, more than are flooded together; each pixel's neighbours are all eight."""
    size = 48
    rough = torch.rand(3, 1, size, size, generator=generator)
    maps = torch.cat([rough, (rough * 4).floor(), scaled(torch.rand(2, 1, 6, 6, generator=generator), size)[:, None]])
    values = scaled(maps, size)
    monkeypatch.setattr("heedmap.metrics.localization.components._AT_ONCE", 2500)
    found = components(values)
    assert np.array_equal(found.maps, np.sort(found.maps))
    for row, levels in enumerate((values * 255).byte().numpy()):
        for level in range(256):
            label, count = ndimage.label(levels >= level, np.ones((3, 3)))
            alive = (found.maps == row) & (found.born >= level) & (found.died < level)
            boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(label)]
            assert sorted(map(tuple, (found.boxes[alive] * size).round().astype(int).tolist())) == sorted(boxes)
            if count:
                largest = boxes[np.bincount(label.ravel())[1:].argmax()]
                assert tuple((found.boxes[found.largest[row, level]] * size).round()) == largest, (row, level)
            else:
                assert found.largest[row, level] == -1


def test_components_of_chosen_maps_are_those_of_these_maps(generator):
    values = scaled(torch.rand(4, 1, 8, 8, generator=generator), 8)
    which = np.array([2, 2, 0])
    chosen, again = components(values).of(which), components(values[which])
    for name in ("maps", "born", "died", "boxes", "largest"):
        assert np.array_equal(getattr(chosen, name), getattr(again, name)), name


def test_a_map_that_is_the_mask_is_perfect_in_every_metric(generator):
    masks = squares(12, generator)
    report = localize({"mask": masks[:, None].float()}, annotated(masks), size=SIDE, draws=50)
    for name in METRICS:
        low = wilson_interval(1.0, 12)[0] if name in YES_NO else 1.0  # of max_box_acc too: no draw differs
        assert report.scores["mask"][name] == pytest.approx((1.0, low, 1.0), abs=1e-6), name


def test_no_hit_in_six_images_does_not_mean_that_there_will_never_be_one():
    masks = torch.zeros(6, SIDE, SIDE, dtype=torch.bool)
    masks[:, :4, :4] = True
    maps = torch.zeros(6, 1, SIDE, SIDE)
    maps[..., -1, -1] = 1
    scores = localize({"corner": maps}, annotated(masks), size=SIDE, draws=20).scores["corner"]
    for name in ("pointing", "pointing_near", "corloc"):
        assert scores[name] == pytest.approx((0.0, 0.0, 0.3903), abs=5e-5), name  # z^2 / (n + z^2)
    assert (scores["energy"].low, scores["energy"].high) == (0.0, 0.0)  # no yes or no: the bootstrap's
    flat = localize({"flat": torch.zeros(6, 1, 4, 4)}, annotated(masks), size=SIDE, draws=20).scores["flat"]
    assert flat["pointing"].low == pytest.approx(flat["pointing"].high)  # each image says the same share


def test_the_interval_of_max_box_acc_chooses_its_threshold_in_each_draw(generator):
    """The definition written again: of each draw, the share of right boxes at the level that is best for that draw."""
    masks = squares(30, generator)
    maps = 2 * masks[:, None].float() + torch.rand(30, 1, SIDE, SIDE, generator=generator)
    maps[::3] = maps[::3].flip(2, 3)  # these point elsewhere, and noise alone decides
    scores = localize({"map": maps}, annotated(masks), size=SIDE, draws=200, seed=3).scores["map"]
    found = scores["max_box_acc"]
    assert 0 < found.value < 1
    boxes = tuple(box.numpy() for box in annotated(masks).boxes)
    regions = masks.to(torch.uint8)
    truth = Truth(regions, masks, boxes, torch.ones(30, dtype=torch.bool))
    right = measure(prepared(maps, SIDE), truth).largest[..., 1].astype(np.float64)  # (images, levels)
    drawn = np.concatenate([times @ right for times in Bootstrap(30, 200, 3).shares()]).max(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-5)
    without = localize({"map": maps}, annotated(masks), size=SIDE, draws=0).scores["map"]["max_box_acc"]
    assert np.isnan(without.low)


def test_a_random_map_is_at_chance_and_so_is_a_uniform_one(generator):
    masks = squares(400, generator)
    share = masks.double().mean().item()
    report = localize({"noise": torch.rand(400, 1, SIDE, SIDE, generator=generator)}, annotated(masks), size=SIDE)
    for metric in ("pointing", "energy", "pxap"):
        score = report.scores["noise"][metric]
        assert score.low - 0.02 < share < score.high + 0.02, metric
    for metric in ("pointing", "energy", "otsu_iou", "best_iou", "pxap"):
        assert report.scores["uniform"][metric].value == pytest.approx(share, abs=0.01), metric


def test_scores_do_not_change_when_a_map_is_scaled_or_shifted_but_energy_may(scenes, generator):
    maps = torch.rand(24, 1, 8, 8, generator=generator)
    table = localize({"map": maps, "other": maps * 64 - 16}, annotations_of(scenes), size=64, draws=0).scores
    for metric in set(METRICS) - {"energy"}:
        assert table["map"][metric].value == pytest.approx(table["other"][metric].value, abs=1e-3), metric


def test_maps_that_cannot_be_measured_count_as_uniform_and_are_counted(generator):
    masks = squares(8, generator)
    maps = torch.rand(8, 1, SIDE, SIDE, generator=generator)
    bad = maps.clone()
    bad[0, 0, 3, 3], bad[1, 0, 2, 2], bad[2:4] = math.nan, math.inf, 0.0
    report = localize({"bad": bad, "nothing": torch.zeros_like(maps)}, annotated(masks), size=SIDE, draws=20)
    assert report.unmeasurable["bad"] == {"not finite": 2, "flat": 2}
    assert report.unmeasurable["nothing"] == {"flat": 8}
    assert all(math.isfinite(value) for row in report.scores.values() for score in row.values() for value in score)
    for metric in METRICS:
        assert report.scores["nothing"][metric].value == pytest.approx(report.scores["uniform"][metric].value), metric


def test_images_without_objects_are_left_out_and_counted(generator):
    masks = squares(6, generator)
    masks[1], masks[2] = False, True
    annotations = annotated(masks)
    annotations.known[4] = False
    report = localize({"map": torch.rand(6, 1, 4, 4, generator=generator)}, annotations, size=SIDE, draws=0)
    assert report.rows.tolist() == [0, 2, 3, 5]
    assert report.left_out == {"not annotated": 1, "annotated without object": 1}
    assert report.covered == 1
    with pytest.raises(DataError, match="No image"):
        localize({"map": torch.rand(1, 1, 4, 4)}, annotations.subset([1]), size=SIDE)


def test_the_threshold_is_chosen_on_other_images_only(generator):
    """The mask at 0.3 in images that choose; at 0.8, among 0.5, in those that are evaluated."""
    masks = squares(4, generator, 6, 8)
    chooses, evaluated = 0.3 * masks[:2].float(), 0.8 * masks[2:].float()
    chooses[:, 0, 0] = evaluated[:, 0, 0] = 1.0
    evaluated[~masks[2:]] = evaluated[~masks[2:]].clamp_min(0.5)
    evaluated[:, 0, 1] = 0.0
    maps = torch.cat([chooses, evaluated])[:, None]
    report = localize({"map": maps}, annotated(masks), size=SIDE, chosen_on=torch.tensor([0, 1]), draws=0)
    assert report.rows.tolist() == [2, 3]
    assert report.left_out == {"chosen on": 2}
    (threshold,) = report.thresholds["map"]
    assert 0 < threshold < 0.31
    both = localize({"map": maps}, annotated(masks), size=SIDE, chosen_on=torch.tensor([2, 3]), draws=0)
    assert both.thresholds["map"][0] > 0.5
    assert both.scores["map"]["best_iou"].value < 0.1
    halves = localize({"map": maps}, annotated(masks), size=SIDE, draws=0)
    assert len(halves.thresholds["map"]) == 2


def test_a_function_may_stand_for_the_maps_and_gives_the_same(scenes, generator):
    maps = torch.rand(24, 1, 8, 8, generator=generator)
    requested = []

    def of(rows):
        requested.append(len(rows))
        return maps[rows]

    report = localize({"held": maps, "made": of}, annotations_of(scenes), size=32, draws=30, images=scenes)
    assert sum(requested) == 24
    assert report.scores["held"] == report.scores["made"]
    assert list(report.scores) == ["held", "made", *report.baselines]
    assert report.baselines == ("centre", "centre box", "uniform", "random", "edges")


def test_chunks_keep_their_order_and_a_function_may_fill_the_same_memory_again(generator, monkeypatch):
    masks = squares(100, generator)
    maps = masks[:, None].float()
    maps[::3] = maps[::3].flip(0)  # every third map is another image's
    whole = localize({"m": maps}, annotated(masks), size=SIDE, draws=10)
    monkeypatch.setattr("heedmap.metrics.localization.evaluation.CHUNK", 7)
    held = torch.empty(7, 1, SIDE, SIDE)

    def refilled(rows):
        return torch.index_select(maps, 0, rows, out=held[: len(rows)])

    for source in (maps, refilled):
        found = localize({"m": source}, annotated(masks), size=SIDE, draws=10)
        assert found.scores == whole.scores
        for name, values in found.per_image["m"].items():
            np.testing.assert_array_equal(values, whole.per_image["m"][name])
    assert 0.2 < whole.scores["m"]["otsu_iou"].value < 0.9


def test_boxes_alone_serve_where_there_are_no_masks(scenes):
    annotations = annotations_of(scenes)
    boxes = Annotations(annotations.names, annotations.boxes, (None,) * 24, annotations.known, annotations.objects)
    maps = torch.stack([boxes.region(row, 64) for row in range(24)])[:, None].float()
    report = localize({"boxes": maps}, boxes, size=64, draws=0)
    assert report.outlined == 0
    assert report.scores["boxes"]["otsu_iou"].value == 1.0
    assert report.scores["boxes"]["max_box_acc_v2"].value == 1.0
    points = torch.rand(24, 1, 8, 8)
    expected = pointing_table({"map": points}, scenes.boxes)["map"]
    assert localize({"map": points}, boxes, size=64, draws=0).scores["map"]["pointing"].value == pytest.approx(expected)


def test_a_point_may_miss_by_the_tolerance():
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 10, 10] = True
    wide = near(mask[0].numpy().astype(np.uint8), 3 / 20)
    slow = [[(y - 10) ** 2 + (x - 10) ** 2 <= 9 for x in range(20)] for y in range(20)]
    assert wide.tolist() == slow
    edge = np.zeros((20, 20), np.uint8)
    edge[0, 19] = 1
    assert near(edge, 2 / 20).sum() == 6


def test_ignored_pixels_count_for_nothing(generator):
    class Ignoring:
        def __init__(self, region):
            self.region = region

        def draw(self, size):
            return self.region

    masks = squares(4, generator)
    regions = masks.to(torch.uint8)
    regions[:, :4] = 2
    regions[0, 8:12, 8:12] = 1
    annotations = annotated(masks)
    kept = [row for row in range(4) if (regions[row] == 1).any()]
    annotations = Annotations(
        annotations.names,
        annotations.boxes,
        tuple(Ignoring(region) for region in regions),
        annotations.known,
        annotations.objects,
    ).subset(kept)
    maps = (regions[kept] >= 1).float()[:, None]
    report = localize({"both": maps}, annotations, size=SIDE, draws=0) if len(kept) > 1 else None
    assert report is not None
    for metric in ("energy", "otsu_iou", "best_iou", "pxap"):
        assert report.scores["both"][metric].value == 1.0, metric


def test_the_bootstrap_is_scipys_on_the_same_draws():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    own = Bootstrap(40, draws=150, seed=3)
    means = own.means(values)
    same = {"axis": 0, "n_resamples": 150, "batch": 100, "method": "percentile"}
    theirs = bootstrap((values,), np.mean, **same, random_state=np.random.default_rng(3))
    assert means == pytest.approx(theirs.bootstrap_distribution.T, abs=1e-6)
    for column, ends in enumerate(zip(*theirs.confidence_interval, strict=True)):
        assert own.interval(means[:, column].astype(np.float64)) == pytest.approx(ends, abs=1e-6)


def test_intervals_narrow_with_images_and_agree_with_the_normal_one():
    values = np.random.default_rng(0).random((400, 1)).astype(np.float32)
    bootstrap = Bootstrap(400, draws=2000, seed=3)
    low, high = bootstrap.interval(bootstrap.means(values)[:, 0])
    error = float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.2 * error)
    assert bootstrap.interval(bootstrap.means(values)[:, 0]) == (low, high)


def test_a_report_ranks_images_and_can_be_written_down(scenes, generator):
    import json

    report = localize({"map": torch.rand(24, 1, 8, 8, generator=generator)}, annotations_of(scenes), size=32, draws=10)
    ranked = report.ranked("map", count=5)
    figures = report.per_image["map"]["otsu_iou"]
    assert figures[ranked["best"][0]] == figures.max()
    assert figures[ranked["worst"][-1]] == figures.min()
    assert len(ranked["median"]) == 5
    assert json.loads(json.dumps(report.as_dict()))["scores"]["map"]["pointing"]["value"] == pytest.approx(
        report.scores["map"]["pointing"].value
    )
    assert report.table()[0] == ["map", *METRICS]
    assert {len(line) for line in report.table()} == {1 + len(METRICS)}
    with pytest.raises(OptionError, match="Did you mean 'otsu_iou'"):
        report.ranked("map", "otsu_io")
    with pytest.raises(OptionError, match="Did you mean 'map'"):
        report.ranked("mapp")


def test_otsu_separates_two_heaps_and_takes_all_of_one():
    counts = torch.zeros(3, 256, dtype=torch.int64)
    counts[0, 10], counts[0, 200] = 30, 5
    counts[1, 0] = 9
    counts[2, 0], counts[2, 255] = 1, 1
    assert otsu_levels(counts).tolist() == [11, 0, 1]


def test_masks_come_by_otsu_a_fixed_share_or_a_percentile():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert masks_of(maps, "fixed", 0.5, size=4).sum() == 8
    assert masks_of(maps, "percentile", 75, size=4).sum() == 4
    assert masks_of(maps, size=4).sum() == 8
    assert masks_of(maps * 0, "fixed", 0.5, size=4).all()
    with pytest.raises(OptionError, match="Did you mean 'otsu'"):
        masks_of(maps, "ostu")
    with pytest.raises(OptionError, match="not at 2"):
        masks_of(maps, "fixed", 2)


def test_the_edge_baseline_is_steep_where_the_image_is():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1
    steep = edges(image)
    assert steep.shape == (1, 1, 8, 8)
    assert (steep[0, 0, :, 3:5] == 4.0).all()
    assert steep.sum() == pytest.approx(4.0 * 16)


@pytest.mark.parametrize(
    ("maps", "options", "word"),
    [
        ({}, {}, "no maps"),
        ({"edges": torch.ones(4, 1, 2, 2)}, {}, "edges"),
        ({"map": torch.ones(4, 2, 2)}, {}, r"\(N, 1, h, w\)"),
        ({"map": torch.ones(3, 1, 2, 2)}, {}, "3 maps"),
        ({"map": torch.ones(4, 1, 2, 2)}, {"size": 4}, "size"),
        ({"map": torch.ones(4, 1, 2, 2)}, {"tolerance": 2}, "tolerance"),
        ({"map": torch.ones(4, 1, 2, 2)}, {"chosen_on": torch.tensor([9])}, "outside"),
        ({"map": torch.ones(4, 1, 2, 2)}, {"images": torch.ones(3, 3, 4, 4)}, "3 images"),
        ({"map": lambda rows: torch.ones(1, 1, 2, 2)}, {}, "function"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(maps, options, word, generator):
    with pytest.raises((DataError, OptionError), match=word) as caught:
        localize(maps, annotated(squares(4, generator)), **{"size": SIDE, "draws": 0, **options})
    assert "\n" not in str(caught.value)
