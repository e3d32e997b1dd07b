"""Images in, a folder of panels, maps, predictions and a page out; with a classifier whose answer is known."""

import csv
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from heedmap.data.decoding import crop_box, read_image
from heedmap.errors import DataError, ImageError, OptionError, Stopped
from heedmap.inference.predictor import TILE
from heedmap.models.classifier import combined_map
from heedmap.types import Output
from heedmap.visualization.panel import png
from heedmap.workflows.visualize import VisualizeOptions, expand_images, visualize


class Fake(nn.Module):
    """Looks where the image is red and says red; else says other. Its query is the image's mean colour."""

    classes = ("red", "other")
    image_size = 32

    def __init__(
        self, taps: tuple[str, ...] = ("fine", "coarse"), attention_name: str = "dot", weights: str = "softmax"
    ):
        super().__init__()
        self.taps, self.attention_name, self.attention_weights = taps, attention_name, weights
        self.uses_query = attention_name in ("dot", "additive")
        self.batches: list[int] = []

    def query(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def forward(self, images: Tensor, query: Tensor | None = None) -> Output:
        assert not self.training
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        self.batches.append(len(images))
        like = torch.tensor([1.0, -0.5, -0.5]) if query is None else query[0] - 0.5
        redness = (images * like[:, None, None]).sum(1, keepdim=True)
        maps = {}
        for tap, side in zip(self.taps, (8, 4), strict=False):
            score = 8 * nn.functional.adaptive_avg_pool2d(redness, side)
            maps[tap] = (
                score.sigmoid() if self.attention_weights == "sigmoid" else score.flatten(1).softmax(1).view_as(score)
            )
        logits = torch.stack([redness.amax(dim=(1, 2, 3)) * 4 - 2, torch.zeros(len(images))], 1)
        features = {"before": redness + 1, "after": redness * 3 + 3} if self.attention_name == "feature" else {}
        return Output(logits, maps, features)


def red_spot(path: Path, size: tuple[int, int] = (60, 40), centre: tuple[int, int] = (42, 12)) -> Path:
    image = Image.new("RGB", size, (90, 120, 120))
    x, y = centre
    image.paste((255, 0, 0), (x - 3, y - 3, x + 3, y + 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_image_gets_a_panel_raw_maps_a_thumbnail_and_a_line(tmp_path: Path) -> None:
    images = [red_spot(tmp_path / "in" / f"{number}.png") for number in range(5)]
    result = visualize(Fake(), images, tmp_path / "out", options=VisualizeOptions(batch_size=2))
    assert (result.count, result.unreadable) == (5, ())
    assert result.index == tmp_path / "out" / "index.html"
    for part, suffix in (("panels", "png"), ("maps", "npz"), ("thumbnails", "jpg")):
        assert sorted(file.name for file in (tmp_path / "out" / part).iterdir()) == [f"{n}.{suffix}" for n in range(5)]
    assert [row["path"] for row in table(tmp_path / "out")] == [str(path) for path in images]


def test_the_network_gets_batches_and_keeps_its_train_flag(tmp_path: Path) -> None:
    classifier = Fake().train()
    visualize(
        classifier,
        [red_spot(tmp_path / f"{n}.png") for n in range(5)],
        tmp_path / "out",
        options=VisualizeOptions(batch_size=2),
    )
    assert classifier.batches == [2, 2, 1]
    assert classifier.training


def test_the_raw_maps_are_what_the_network_gave(tmp_path: Path) -> None:
    classifier = Fake()
    path = red_spot(tmp_path / "spot.png")
    visualize(classifier, [path], tmp_path / "out")
    with np.load(tmp_path / "out" / "maps" / "spot.npz") as arrays, torch.inference_mode():
        assert arrays["map_fine"].shape == (8, 8)
        assert arrays["map_coarse"].shape == (4, 4)
        assert arrays["map_fine"].sum() == pytest.approx(1, abs=1e-5)
        maps = {tap: torch.from_numpy(arrays[f"map_{tap}"])[None, None] for tap in classifier.taps}
        assert np.allclose(arrays["map_combined"], combined_map(maps)[0, 0].numpy())
        assert arrays["probabilities"].sum() == pytest.approx(1)
        assert arrays["classes"][arrays["predicted"]] == "red"
        assert tuple(arrays["crop_box"]) == crop_box(60, 40)
        assert tuple(arrays["size"]) == (60, 40)


def test_the_hottest_point_is_in_pixels_of_the_original_image(tmp_path: Path) -> None:
    visualize(Fake(), [red_spot(tmp_path / "spot.png", (60, 40), (42, 12))], tmp_path / "out")
    (row,) = table(tmp_path / "out")
    assert abs(float(row["fine_x"]) - 42) <= 40 / 8
    assert abs(float(row["fine_y"]) - 12) <= 40 / 8


def test_a_flat_map_has_no_hottest_point(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (90, 120, 120)).save(tmp_path / "flat.png")
    visualize(Fake(), [tmp_path / "flat.png"], tmp_path / "out")
    (row,) = table(tmp_path / "out")
    assert {row[f"{tap}_{axis}"] for tap in ("fine", "coarse", "combined") for axis in "xy"} == {""}


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_crop_box_counts_pixels_of_the_whole_jpeg_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (2000, 1200), (200, 30, 30)).save(tmp_path / "large.jpg", exif=exif)
    visualize(Fake(), [tmp_path / "large.jpg"], tmp_path / "out")
    upright = (2000, 1200) if orientation == 1 else (1200, 2000)
    with np.load(tmp_path / "out" / "maps" / "large.npz") as arrays:
        assert tuple(arrays["size"]) == upright
        assert tuple(arrays["crop_box"]) == crop_box(*upright)


def test_an_unreadable_image_is_named_counted_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    result = visualize(Fake(), [tmp_path / "broken.jpg", red_spot(tmp_path / "good.png")], tmp_path / "out")
    assert result.count == 1
    ((path, reason),) = result.unreadable
    assert path == str(tmp_path / "broken.jpg")
    assert "0 bytes" in reason
    assert "1 of 2 images cannot be read" in result.notes[0]
    assert "broken.jpg" in result.index.read_text()


def test_no_readable_image_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"^The only image, .*broken\.jpg, cannot be read: [^:]*0 bytes"):
        visualize(Fake(), [tmp_path / "broken.jpg"], tmp_path / "out")
    with pytest.raises(DataError, match="no images"):
        visualize(Fake(), [], tmp_path / "other")


def test_names_that_collide_are_made_unique(tmp_path: Path) -> None:
    images = [red_spot(tmp_path / part) for part in ("a/x.png", "b/x.png", "c/X.png", "c/x-2.png", "odd # name?.png")]
    visualize(Fake(), images, tmp_path / "out")
    names = sorted(path.stem for path in (tmp_path / "out" / "panels").iterdir())
    assert len({name.casefold() for name in names}) == 5
    assert "odd_name_" in names


def test_a_folder_named_like_a_class_is_the_truth(tmp_path: Path) -> None:
    images = [
        red_spot(tmp_path / "red" / "a.png"),
        red_spot(tmp_path / "other" / "b.png"),
        red_spot(tmp_path / "c.png"),
    ]
    result = visualize(Fake(), images, tmp_path / "out")
    assert [row["label"] for row in table(tmp_path / "out")] == ["red", "other", ""]
    assert "1 right, 1 wrong" in result.index.read_text()


def test_an_output_folder_with_something_in_it_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = red_spot(tmp_path / "spot.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="--overwrite"):
        visualize(Fake(), [path], out)
    visualize(Fake(), [path], out, options=VisualizeOptions(overwrite=True))
    assert (out / "precious.txt").read_text() == "mine"


def test_overwriting_removes_the_earlier_drawing_and_nothing_else(tmp_path: Path) -> None:
    old, new, out = red_spot(tmp_path / "old.png"), red_spot(tmp_path / "new.png"), tmp_path / "out"
    visualize(Fake(), [old], out)
    red_spot(out / "panels" / "mine.png")
    visualize(Fake(), [new], out, options=VisualizeOptions(overwrite=True))
    left = sorted(str(path.relative_to(out)) for path in out.glob("*/*"))
    assert left == ["maps/new.npz", "panels/mine.png", "panels/new.png", "thumbnails/new.jpg"]


def test_what_heedmap_drew_is_no_image_to_draw_unless_its_file_is_named(tmp_path: Path) -> None:
    photo, out = red_spot(tmp_path / "in" / "a.png"), tmp_path / "in" / "drawn"
    visualize(Fake(), tmp_path / "in", out)
    assert expand_images([str(tmp_path / "in")]) == expand_images([str(tmp_path / "in/**/*")]) == [photo]
    assert visualize(Fake(), tmp_path / "in", out, options=VisualizeOptions(overwrite=True)).count == 1
    assert expand_images(out / "panels" / "a.png") == [out / "panels" / "a.png"]
    with pytest.raises(DataError, match="holds no images but those that heedmap drew"):
        expand_images([out])
    own = red_spot(out / "mine.png")  # drawn into a folder of photographs
    assert expand_images([out]) == [own]


def test_one_image_or_a_folder_needs_no_list(tmp_path: Path) -> None:
    path = red_spot(tmp_path / "in" / "a.png")
    red_spot(tmp_path / "in" / "deep" / "b.png")
    assert visualize(Fake(), str(path), tmp_path / "one").count == 1
    assert visualize(Fake(), [tmp_path / "in"], tmp_path / "two").count == 2
    with pytest.raises(OptionError, match="batch_size 0 is too small"):
        visualize(Fake(), path, tmp_path / "three", options=VisualizeOptions(batch_size=0))


def test_an_output_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="Cannot write to"):
        visualize(Fake(), [red_spot(tmp_path / "spot.png")], tmp_path / "out")


def test_another_images_query_changes_the_map_and_is_drawn_as_a_second_row(tmp_path: Path) -> None:
    path = red_spot(tmp_path / "spot.png")
    Image.new("RGB", (50, 50), (0, 255, 255)).save(tmp_path / "cyan.png")
    visualize(Fake(), [path], tmp_path / "plain")
    result = visualize(Fake(), [path], tmp_path / "out", query=tmp_path / "cyan.png")
    assert result.notes == ()
    with np.load(tmp_path / "out" / "maps" / "spot.npz") as arrays:
        assert arrays["map_fine"].argmax() != arrays["query_map_fine"].argmax()
    assert table(tmp_path / "out")[0]["query_predicted"] in Fake.classes
    heights = [read_image(tmp_path / out / "panels" / "spot.png").height for out in ("plain", "out")]
    assert heights[1] > heights[0] + TILE


def test_a_query_that_cannot_change_the_map_is_said_to_with_the_reason(tmp_path: Path) -> None:
    path = red_spot(tmp_path / "spot.png")
    result = visualize(Fake(attention_name="parametrised"), [path], tmp_path / "out", query=path)
    assert "cannot change" in result.notes[0]
    assert "softmax over positions cancels it" in result.notes[0]
    assert "query_predicted" not in table(tmp_path / "out")[0]
    result = visualize(Fake(attention_name="feature", weights="sigmoid"), [path], tmp_path / "gate", query=path)
    assert "uses no query" in result.notes[0]


def test_a_query_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"Query .*none\.png: there is no such file"):
        visualize(Fake(), [red_spot(tmp_path / "spot.png")], tmp_path / "out", query=tmp_path / "none.png")


def test_one_scale_for_the_set_draws_a_cooler_image_cooler(tmp_path: Path) -> None:
    hot = red_spot(tmp_path / "hot.png")
    Image.new("RGB", (60, 40), (90, 120, 120)).save(tmp_path / "flat.png")  # a uniform map: at its own scale all hot
    for scale in ("image", "set"):
        visualize(
            Fake(("fine",)),
            [hot, tmp_path / "flat.png"],
            tmp_path / scale,
            options=VisualizeOptions(scale=scale, batch_size=1),
        )
    flat = {
        scale: np.asarray(read_image(tmp_path / scale / "thumbnails" / "flat.jpg")).mean() for scale in ("image", "set")
    }
    assert flat["set"] < flat["image"] - 40
    pixels = [np.asarray(read_image(tmp_path / scale / "thumbnails" / "hot.jpg")) for scale in ("image", "set")]
    assert np.array_equal(*pixels)


def test_features_before_and_after_a_gate_share_one_scale(tmp_path: Path) -> None:
    from heedmap.inference.torch_predictor import prediction_of

    classifier = Fake(("fine",), "feature", "sigmoid").eval()
    answer = prediction_of(classifier, classifier(torch.rand(1, 3, 32, 32)), 0)
    before, after = answer.features["before"], answer.features["after"]
    assert (before.low, before.high) == (after.low, after.high)
    assert before.high == max(before.values.max(), after.values.max())
    visualize(classifier, [red_spot(tmp_path / "spot.png")], tmp_path / "out")
    with np.load(tmp_path / "out" / "maps" / "spot.npz") as arrays:
        assert {"features_before", "features_after", "map_fine"} <= set(arrays)


def test_the_page_needs_no_network_and_escapes_names(tmp_path: Path) -> None:
    result = visualize(Fake(), [red_spot(tmp_path / "a<b>&'c.png")], tmp_path / "out")
    page = result.index.read_text()
    assert "http" not in page
    assert "<b>&'c.png" not in page
    assert 'loading="lazy"' in page


def test_progress_is_told_after_each_batch(tmp_path: Path) -> None:
    told: list[int] = []
    images = [red_spot(tmp_path / f"{n}.png") for n in range(3)]
    visualize(Fake(), images, tmp_path / "out", options=VisualizeOptions(batch_size=2, on_progress=told.append))
    assert told == [2, 3]


class Impatient(Fake):
    """The user interrupts while the batch with this number is computed."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.last = batch

    def forward(self, images: Tensor, query: Tensor | None = None) -> Output:
        if len(self.batches) + 1 == self.last:
            raise KeyboardInterrupt
        return super().forward(images, query)


@pytest.mark.parametrize("scale", ["image", "set"])
def test_whoever_interrupts_keeps_rows_and_page_of_what_was_drawn(tmp_path: Path, scale: str) -> None:
    images = [red_spot(tmp_path / f"{number}.png") for number in range(6)]
    out = tmp_path / "out"
    with pytest.raises(Stopped, match=r"^Stopped after 4 of 6 images; .* in \S+index.html\.$"):
        visualize(Impatient(3), images, out, options=VisualizeOptions(batch_size=2, scale=scale))
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert [Path(row["path"]).stem for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    assert "Stopped after 4 of 6 images." in (out / "index.html").read_text(encoding="utf-8")
    for part in ("panels", "maps", "thumbnails"):
        assert sorted(path.stem for path in (out / part).iterdir()) == ["0", "1", "2", "3"]


def test_an_interruption_in_the_midst_of_writing_leaves_no_file_without_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["heedmap.workflows.visualize"]
    draw = module._draw

    def impatient(job: Any, entry: dict[str, Any], *rest: Any) -> None:
        if entry["name"] == "2":  # its map is written, its panel is not
            raise KeyboardInterrupt
        draw(job, entry, *rest)

    monkeypatch.setattr(module, "_draw", impatient)
    with pytest.raises(Stopped, match="after 2 of 6"):
        visualize(
            Fake(),
            [red_spot(tmp_path / f"{n}.png") for n in range(6)],
            tmp_path / "out",
            options=VisualizeOptions(batch_size=2),
        )
    assert sorted(path.stem for path in (tmp_path / "out" / "maps").iterdir()) == ["0", "1"]


def test_an_interruption_while_progress_is_told_counts_no_image_twice(tmp_path: Path) -> None:
    def impatient(count: int) -> None:
        if count == 4:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(Stopped, match="after 4 of 8"):
        visualize(
            Fake(),
            [red_spot(tmp_path / f"{n}.png") for n in range(8)],
            out,
            options=VisualizeOptions(batch_size=2, on_progress=impatient),
        )
    assert sorted(path.stem for path in (out / "maps").iterdir()) == ["0", "1", "2", "3"]
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert [Path(row["path"]).stem for row in csv.DictReader(file)] == ["0", "1", "2", "3"]


def test_the_next_batch_is_asked_about_while_one_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, fake, waited = sys.modules["heedmap.workflows.visualize"], Fake(), []
    draw = module._draw

    def patient(job: Any, entry: dict[str, Any], *rest: Any) -> None:
        if entry["name"] == "0":
            waited.append(wait_until(lambda: len(fake.batches) > 1))
        draw(job, entry, *rest)

    monkeypatch.setattr(module, "_draw", patient)
    visualize(
        fake,
        [red_spot(tmp_path / f"{n}.png") for n in range(4)],
        tmp_path / "out",
        options=VisualizeOptions(batch_size=2),
    )
    assert waited == [True]


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    return is_so()


def test_an_interruption_before_the_first_image_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        visualize(Impatient(1), [red_spot(tmp_path / "a.png")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_folders_patterns_and_lists_become_paths_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "deep/er/b.JPG", ".hidden/c.png", "__MACOSX/d.png", "notes.txt", "deep/e.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert expand_images(["."]) == [Path("a.png"), Path("deep/e.gif"), Path("deep/er/b.JPG")]
    assert expand_images(["**/*"]) == [Path("a.png"), Path("deep/e.gif"), Path("deep/er/b.JPG")]
    assert expand_images(["deep", "a.png", "deep/e.gif"]) == [
        Path("deep/e.gif"),
        Path("deep/er/b.JPG"),
        Path("a.png"),
    ]
    assert expand_images(["-"], io.StringIO("a.png\n\ndeep\n")) == expand_images(["a.png", "deep"])
    assert expand_images(["notes.txt"]) == [Path("notes.txt")]


def test_links_are_followed_and_no_folder_is_entered_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all/sea/a.png", "all/z.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for link, goal in (("all/loop", "."), ("all/linked", "../elsewhere")):
        Path(link).symlink_to(goal)
    assert expand_images(["all"]) == [Path("all/z.png"), Path("all/linked/b.png"), Path("all/sea/a.png")]
    Path("all/sea/up").symlink_to("../..")
    assert expand_images(["all"]) == [Path("all/z.png"), Path("all/linked/b.png"), Path("all/sea/a.png")]
    Path("all/sea/up").unlink()
    assert expand_images(["all/linked"]) == [Path("all/linked/b.png")]
    assert expand_images(["all/**/*.png"]) == [
        Path("all/linked/b.png"),
        Path("all/sea/a.png"),
        Path("all/z.png"),
    ]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("https://example.org/a.png", "is an address; heedmap reads files only"),
        ("nowhere.png", "There is no file or folder nowhere.png"),
        ("*.nothing", r"No image matches \*.nothing"),
        ("empty", "Folder empty holds no images"),
        ("-", "No images were named"),
    ],
)
def test_what_is_no_image_is_refused_with_one_line(
    argument: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=line):
        expand_images([argument], io.StringIO(""))


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 5), (37, 23)])
def test_a_panel_s_file_gives_back_every_pixel(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    with Image.open(io.BytesIO(png(Image.fromarray(pixels)))) as again:
        assert (again.format, again.mode, again.size) == ("PNG", "RGB", size)
        again.verify()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(Image.fromarray(pixels))))), pixels)
