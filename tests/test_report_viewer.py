"""The images inside the report: all there, true to their maps, small, and safe with odd names."""

import base64
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heedmap.report import report_page
from heedmap.report.viewer import MOST_IMAGES, ViewerImage, choose_rows, viewer_json
from heedmap.visualization.heatmap import COLOURS
from test_report import CLASSES, data

GRID = np.array([[0.0, 0.1], [0.2, 0.4]], np.float32)


def image(name: str = "a.png", truth: int = 0, predicted: int = 0, side: int = 144, seed: int = 0) -> ViewerImage:
    rough = np.random.default_rng(seed).integers(0, 256, (side // 3, side // 3, 3), dtype=np.uint8)
    view = np.asarray(Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC))
    return ViewerImage(name, truth, predicted, 0.75, 0.3, view, {"stage3": GRID}, {"stage3": 0.4})


def content(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="heedmap-images">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_an_image_comes_with_its_prediction_its_thumbnail_and_its_map() -> None:
    shown_data = json.loads(viewer_json([image(predicted=1)], CLASSES)[0])
    assert shown_data["classes"] == list(CLASSES)
    assert base64.b64decode(shown_data["colours"]) == COLOURS.tobytes()
    (one,) = shown_data["images"]
    assert (one["n"], one["t"], one["p"], one["q"], one["l"]) == ("a.png", 0, 1, 0.75, 0.3)
    assert Image.open(io.BytesIO(base64.b64decode(one["i"]))).size == (144, 144)
    height, width, high, cells = one["m"][0]
    assert (height, width, high) == (2, 2, 0.4)
    assert list(base64.b64decode(cells)) == [0, 64, 128, 255]  # 0, a quarter, a half and all of 0.4


def test_a_name_cannot_end_the_script() -> None:
    page = report_page(data(viewer=[image("</script><b>.png")]))
    assert content(page)["images"][0]["n"] == "</script><b>.png"


def test_the_page_loads_nothing_with_images_either() -> None:
    page = report_page(data(viewer=[image()]))
    assert "http" not in page
    assert "url(" not in page
    assert not re.search(r"<script[^>]*src", page)
    assert "fetch(" not in page


def test_a_page_without_images_has_no_viewer() -> None:
    assert "heedmap-images" not in report_page(data())


@pytest.mark.parametrize(
    ("right", "wrong", "most", "kept"),
    [(3, 2, 10, (3, 2)), (100, 5, 10, (5, 5)), (100, 50, 10, (5, 5)), (3, 50, 10, (3, 7)), (0, 50, 10, (0, 10))],
)
def test_mistakes_come_before_correct_predictions_where_there_is_no_room_for_all(right, wrong, most, kept) -> None:
    is_right = [True] * right + [False] * wrong
    rows = choose_rows(is_right, most)
    assert rows == sorted(set(rows))
    assert (sum(is_right[row] for row in rows), sum(not is_right[row] for row in rows)) == kept


@pytest.mark.slow
@pytest.mark.parametrize(("side", "least"), [(16, 1000), (56, 300)])
def test_a_thousand_images_stay_below_ten_megabytes_whatever_their_maps(side, least) -> None:
    maps = {name: np.random.default_rng(0).random((side, side), np.float32) for name in ("a", "b", "combined")}
    shown = [
        dataclasses.replace(
            image(f"test/class/{seed:05d}.jpg", side=128, seed=seed), maps=maps, ends=dict.fromkeys(maps, 1.0)
        )
        for seed in range(20)
    ]
    page = report_page(data(viewer=shown * (MOST_IMAGES // 20)))
    assert len(content(page)["images"]) >= least
    assert len(page.encode()) < 10_000_000


def test_the_report_of_a_run_shows_every_image_of_its_test_part(finished_run: Path) -> None:
    shown_data = content((finished_run / "report.html").read_text(encoding="utf-8"))
    evaluation = json.loads((finished_run / "evaluation.json").read_text(encoding="utf-8"))
    assert len(shown_data["images"]) == evaluation["count"]
    assert shown_data["taps"][-1] == "combined"
    confusion = np.zeros((3, 3), int)
    for one in shown_data["images"]:
        confusion[one["t"], one["p"]] += 1
    assert confusion.tolist() == evaluation["confusion"]
