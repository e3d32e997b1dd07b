"""The parts of the benchmark work, at the smallest settings; what they measure here means nothing."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import drawing, end_to_end, gpu, learned_maps, measuring, scale, startup, training_step  # noqa: E402

from heedmap.models.architecture import Architecture  # noqa: E402
from heedmap.models.factory import build_classifier  # noqa: E402

MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save nothing among the real figures, and measure the machine's ceiling in no time."""
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measuring, "SIDES", {"cpu": 64})
    monkeypatch.setattr(measuring, "COPIED", 2**10)
    monkeypatch.setattr(measuring, "TRIES", 1)
    return tmp_path / "results"


def saved(results: Path, part: str) -> dict[str, Any]:
    return json.loads((results / f"{part}.json").read_text())


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name: str) -> None:
    if name == "curves":
        pytest.importorskip("matplotlib")
    importlib.import_module(f"benchmarks.{name}")


# ---- what all parts share


def test_contenders_take_turns_and_each_round_begins_with_another() -> None:
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = measuring.alternate(works, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_what_does_not_fit_into_a_gpu_is_noted_and_the_rest_is_measured() -> None:
    def too_large() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    fit, notes = measuring.those_that_fit({"large": too_large, "small": lambda: None})
    assert list(fit) == ["small"]
    assert notes == {"large": "out of memory"}


def test_ratios_are_taken_round_by_round() -> None:
    assert measuring.spread(measuring.ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])) == {
        "median": 2.0,
        "low": 1.0,
        "high": 3.0,
    }


# ---- the reference


def copied(ours: Any) -> training_step.Reference:
    """The reference with our weights."""
    reference = training_step.Reference()
    theirs = [m for m in reference.blocks.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
    theirs += [m for m in reference.deep.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
    convs = [*ours.backbone.convs, *ours.backbone.added]
    for mine, other in zip([layer for conv in convs for layer in conv[:2]], theirs, strict=True):
        other.load_state_dict(mine.state_dict())
    reference.dense.load_state_dict(ours.backbone.to_query[1].state_dict())
    lift = ours.attentions[0].projection
    reference.projector.load_state_dict({"weight": lift.weight[:, :, None, None], "bias": lift.bias})
    for score, norm, attention, head in zip(
        reference.scores, reference.norms, ours.attentions, ours.head.norms, strict=True
    ):
        score.load_state_dict({"weight": attention.scorer.weight[:, :, None, None]})
        norm[0].load_state_dict(head[0].state_dict())
    reference.head.load_state_dict(ours.head.linear.state_dict())
    return reference


def test_the_reference_computes_what_paper_vgg_computes(generator: torch.Generator) -> None:
    ours = training_step.our_network()
    for attention in ours.attentions:  # scores start at zero, where every map is uniform
        weight = attention.scorer.weight.data
        weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    for parameter in ours.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.add_(torch.rand(module.num_features, generator=generator), alpha=0.2)
            module.running_var.mul_(0.2 + 0.5 * torch.rand(module.num_features, generator=generator))
    images = torch.rand(2, 3, 4, 4, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    reference = copied(ours).eval()
    with torch.inference_mode():
        output = ours.eval()(images)
        logits, maps = reference((images - ours.mean) / ours.std)
    torch.testing.assert_close(logits, output.logits, rtol=1e-4, atol=1e-4)
    for values, other in zip(maps, output.attention.values(), strict=True):
        uniform = 1 / other[0].numel()
        torch.testing.assert_close(values / uniform, other / uniform, rtol=1e-4, atol=1e-4)
        assert other.amax() > 1.2 * uniform  # the maps are not
    assert list(output.attention) == ["conv7", "conv10", "conv13"]


# ---- the parts


class TinyReference(torch.nn.Module):
    """Returns what the reference returns, in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3 * 32 * 32, 10)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.linear(images.flatten(1)), [images]


def tiny_network(attention: str = "parametrised") -> Any:
    return build_classifier(Architecture("compact", attention, None, "concat", None, 32, tuple("abcdefghij")))


def test_the_training_step_compares_training_and_inference_round_by_round(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "Reference", TinyReference)
    monkeypatch.setattr(training_step, "our_network", tiny_network)
    training_step.main(rounds=2, batch=2)
    record = saved(results, "training-step")
    for table in (record, record["inference with maps"]):
        assert list(table["images per second"]) == ["reference (float32, NCHW)", "heedmap", "heedmap, no attention"]
        for name in ("heedmap / reference", "share of the bf16 product"):
            assert set(table[name]) == {"median", "low", "high"}


def test_a_contender_too_large_for_the_gpu_leaves_the_others_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    works = {training_step.REFERENCE: too_large, training_step.OURS: lambda: None}
    table = training_step._table(works, 2, "cpu", 2, 1.0)
    assert table["images per second"][training_step.REFERENCE] == "out of memory"
    assert "heedmap TFLOP/s" in table
    assert "heedmap / reference" not in table


def test_training_end_to_end_is_reported_with_and_without_what_is_not_a_step(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_to_end, "STEPS", 1)
    user = Path(os.environ["HEEDMAP_CACHE"])
    before = set(user.rglob("*"))
    end_to_end.main(rounds=1, count=48, small=48, batch_size=8, image_size=16)
    trained = saved(results, "end-to-end")["training"]
    assert trained[end_to_end.SMALL]["model"] == "whitened, muon, batch 8"
    for figures in trained.values():
        shares = figures["share of the bare step"]
        assert list(shares) == [end_to_end.ALONE, end_to_end.KEPT, end_to_end.ALL]
        alone, saved_too, evaluated_too = (share["median"] for share in shares.values())
        assert alone > saved_too > evaluated_too
    assert set(user.rglob("*")) == before


def test_learned_maps_are_set_against_a_trunk_that_reads_no_tap(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_maps, "NETWORKS", {"compact, 32 px": ("compact", 32, 2)})
    learned_maps.main(rounds=2)
    figures = saved(results, "learned-maps")["networks"]["compact, 32 px"]
    assert list(figures["over the plain trunk"]) == ["none", "parametrised", "dot", "additive"]
    assert list(figures["over the control"]) == ["parametrised", "dot", "additive"]


def test_the_plain_trunk_is_its_deepest_tap_averaged(images: torch.Tensor) -> None:
    architecture = Architecture("compact", "none", None, "concat", None, 32, ("a", "b"))
    classifier = build_classifier(architecture).eval()
    plain = learned_maps.Plain(classifier).eval()
    deepest = classifier.taps[-1]
    features = classifier.backbone((images - classifier.mean) / classifier.std, classifier.taps, False).features
    torch.testing.assert_close(plain(images), plain.linear(features[deepest].mean((2, 3))))


@pytest.mark.parametrize(("count", "first"), [(5, 0), (6, 0), (10, 1), (41, 13)])
def test_the_interval_of_the_median_is_that_of_the_tables(count: int, first: int) -> None:
    # Ranks 1 and 6 of 6, 2 and 9 of 10, 14 and 28 of 41, as tables of the sign test have them.
    assert learned_maps.median_interval(list(map(float, range(count)))) == f"{first} to {count - 1 - first}"


def test_memory_is_that_of_a_process_of_its_own(results: Path) -> None:
    pytest.importorskip("pytorch_grad_cam")
    drawing.main(rounds=1, count=2, counts=(2,))
    assert 100 < saved(results, "drawing")["peak memory MiB by images"]["2"] < 4000


def test_a_folder_with_too_few_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds 0 images"):
        drawing.main(rounds=1, count=2, folder=str(tmp_path))


def test_what_grows_is_measured_over_whole_epochs(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIZES": (32,), "TAPS": (("stage3",),), "CLASSES": (2,), "IMAGES": (70, 40)}.items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr(scale, "BATCH", 4)
    monkeypatch.setattr(scale, "PREPARED", 80)
    monkeypatch.setattr(measuring, "clock", "processor")  # leaves out training in several processes
    assert [scale._preparing(count)[1] for count in (70, 40)] == [68, 80]
    scale.main(rounds=1)
    assert list(saved(results, "scale")["prepared images per second by images in the set, 32 px"]) == ["70", "40"]


def test_replies_of_the_command_line_are_timed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "PREDICTIONS", {"python -c pass": ["-c", "pass"]})
    startup.main(rounds=1)
    assert saved(results, "startup")["seconds"]["python -c pass"]["median"] > 0


# ---- what is drawn from the figures


@pytest.fixture
def page(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's module, writing into the test's folder."""
    pytest.importorskip("matplotlib")
    module = importlib.import_module("benchmarks.page")
    monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(module, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(module, "PLOT", tmp_path / "performance.png")
    (tmp_path / "performance.md").write_text(f"before\n\n{module.BEGIN}\nold\n{module.END}\n\nafter\n")
    return module


def test_raw_tables_hold_the_saved_figures_and_the_page_the_ratios(page: Any, results: Path, tmp_path: Path) -> None:
    rates = {"heedmap": {"median": 4.0, "low": 3.0, "high": 5.0}, "reference (float32, NCHW)": "out of memory"}
    ratio = {"median": 2.5, "low": 2.0, "high": 3.0}
    measuring.keep("training-step", {"images per second": rates, "heedmap / reference": ratio})
    page.write_page()
    raw = (results / "training-step.md").read_text()
    assert "| images per second: heedmap | 4 | 3 | 5 |" in raw
    assert "| images per second: reference (float32, NCHW) | out of memory | | |" in raw
    text = (tmp_path / "performance.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| VGG-att3 step / reference | 2.50 | 2.00 | 3.00 |" in text
    assert "out of memory" not in text
    assert (tmp_path / "performance.png").stat().st_size > 1000


def bars(page: Any, records: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    return {bar.title: spread for bar in page.BARS if (spread := page._spread(records, bar))}


def test_bars_are_ratios_that_were_taken_round_by_round(page: Any) -> None:
    four = {"median": 4.0, "low": 1.0, "high": 9.0}
    new = {"JPEG folder, 150 x 150": {"share of the bare step": {end_to_end.ALL: {**four, "median": 0.96}}}}
    assert bars(page, {"end-to-end": {"training": new}}) == {
        "train, everything / bare step, JPEG folder": (0.96, 1.0, 9.0)
    }
    costs = {"compact, 144 px": {"over the plain trunk": {"parametrised": {**four, "median": 0.25}}}}
    assert bars(page, {"learned-maps": {"networks": costs}}) == {"with maps / plain, compact, 144 px": (0.8, 0.1, 0.5)}
    assert bars(page, {"training-step": {"heedmap / reference": four}}) == {
        "VGG-att3 step / reference": (4.0, 1.0, 9.0)
    }
    assert bars(page, {"training-step": {"heedmap / reference": "out of memory"}}) == {}


def test_every_bar_of_a_part_is_found_in_what_the_part_keeps(page: Any) -> None:
    assert {page._JPEG, page._SMALL} == {end_to_end.JPEG, end_to_end.SMALL}
    learned = {bar.way[1] for bar in page.BARS if bar.part == "learned-maps"}
    assert learned == set(learned_maps.NETWORKS)


def written_run(folder: Path, epochs: list[dict[str, Any]]) -> Path:
    lines = [{"kind": "step", "step": 1}, *({"kind": "epoch", **epoch} for epoch in epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "evaluation.json").write_text(json.dumps({"top1": 0.9}))
    return folder


def test_curves_take_all_that_training_took_or_else_its_steps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = importlib.import_module("benchmarks.curves")
    epochs = [{"seconds": 60.0, "since_start": 90.0, "validation_accuracy": 0.5}]
    epochs += [{"seconds": 60.0, "since_start": 180.0, "validation_accuracy": 0.8}]
    assert curves.curve(written_run(tmp_path, epochs)) == ([1.5, 3.0], [50.0, 80.0], 90.0, True)
    del epochs[0]["since_start"]
    assert curves.curve(written_run(tmp_path, epochs)) == ([1.0, 2.0], [50.0, 80.0], 90.0, False)


def test_points_of_one_name_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    curves = importlib.import_module("benchmarks.curves")
    image = tmp_path / "curve.png"
    words = ["--point", "ours", "8", "93.1+-0.2", "--point", "ours", "4", "91", "--point", "theirs", "9", "90"]
    curves.main([str(image), *words, "--mark", "yolo", "24", "86"])
    assert capsys.readouterr().out.splitlines() == [
        "ours: test 91.00 % after 4 minutes, 93.10 +- 0.20 % after 8 minutes",
        "theirs: test 90.00 % after 9 minutes",
    ]
    assert image.stat().st_size > 1000
    with pytest.raises(SystemExit):
        curves.main([str(image)])


# ---- the script for a GPU


def test_the_script_for_a_gpu_runs_and_keeps_each_part(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "Reference", TinyReference)
    monkeypatch.setattr(training_step, "our_network", tiny_network)
    end_to_end.draw_folder(tmp_path / "images", 24, 32)
    seen: list[list[str]] = []
    monkeypatch.setattr(gpu, "keep", lambda part, record: seen.append(list(record["training by epochs"])))
    found = gpu.main(1, device="cpu", data=str(tmp_path / "images"), epochs=(1,), batch=8, step_batches=(2,))
    assert seen == [[], ["1"]]
    trained = found["training by epochs"]["1"]
    assert 0 <= trained["accuracy with flips"]["median"] <= 1
    assert "misses 94 % in at most 10 s" in trained["verdict, accuracy"]


@pytest.mark.parametrize(
    ("accuracies", "seconds", "word"),
    [
        ([0.93, 0.95], [9.0, 10.0], "reaches"),
        ([0.93, 0.95], [9.0, 12.0], "misses"),
        ([0.93, 0.94], [1.0, 1.0], "misses"),
    ],
)
def test_the_aim_is_an_accuracy_within_a_time(accuracies: list[float], seconds: list[float], word: str) -> None:
    found = {"accuracy": accuracies, "accuracy with flips": accuracies, "loop seconds": seconds}
    assert f" s of the loop {word} 94 %" in gpu._verdicts(found)["verdict, accuracy"]


def test_cifar10_is_found_by_root_or_by_the_folder_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / gpu.UNPACKED).mkdir()
    trained: list[tuple[str, str]] = []
    monkeypatch.setattr(gpu, "_trained", lambda data, root, *_: trained.append((data, root)))
    for places in ({"data": str(tmp_path)}, {"root": str(tmp_path)}, {"data": "elsewhere"}):
        gpu.main(1, device="cpu", step_batches=(), save=False, **places)
    assert trained == [("cifar10", str(tmp_path)), ("cifar10", str(tmp_path)), ("elsewhere", "data")]


def test_a_training_too_large_for_the_gpu_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "_trained_once", too_large)
    assert gpu._trained("cifar10", "data", None, 2000, 2) == {
        "note": "out of memory at 2000 images per step; --batch takes fewer"
    }
