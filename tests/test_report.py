"""The page of a run: complete in itself, true to its numbers, safe with odd names."""

import io
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from PIL import Image

from heedmap.metrics.classification import classification_report, wilson_interval
from heedmap.report import TEST_ONCE, ReportData, ReportPanel, most_confused, report_page
from heedmap.types import Audit, EpochReport, Finding
from heedmap.visualization.charts import Series, line_chart, matrix, nice_ticks

CLASSES = ("sea", "ice <&> snow")


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def evaluation(classes: tuple[str, ...] = CLASSES, count: int = 40) -> dict[str, Any]:
    labels = torch.arange(count) % len(classes)
    logits = torch.nn.functional.one_hot(labels, len(classes)) * 3.0
    logits[0] = logits[0].roll(1)  # one mistake
    return classification_report(logits, labels, classes).as_dict() | {"split": "test", "images_per_second": 50.0}


def epoch(number: int, best: bool = False, accuracy: float = 0.5) -> EpochReport:
    validation = {"accuracy": accuracy, "loss": 1.5 / number}
    return EpochReport(number, 3, 2.0 / number, 0.1, 100.0, 30.0, validation, {"stage3": 0.1 * number}, (), best)


def data(**changes: Any) -> ReportData:
    finding = Finding("exact-duplicate", ("train", "test"), ("train/a.png", "test/b.png"), "The same bytes twice.")
    parts: dict[str, Any] = {
        "title": "scenes",
        "command": "heedmap train scenes --seed 0",
        "classes": CLASSES,
        "splits": {"train": 100, "validation": 10, "test": 40},
        "options": {"seed": 0, "flip": True, "taps": ("a", "b"), "learning_rate": 0.01, "patience": None},
        "versions": {"torch": "2.0"},
        "epochs": [epoch(1, True), epoch(2, True), epoch(3)],
        "steps": [(1, 2.0), (10, 1.0)],
        "evaluation": evaluation(),
        "audit": Audit({"train": 100, "test": 40}, {"train": {"sea": 50}}, (finding,), 1, 0.5, "cheap"),
        "pointing": {"stage3": 0.9, "centre": 0.3, "random": 0.1},
        "right": [ReportPanel("a.png", "sea", "sea", 0.9, png())],
        "wrong": [ReportPanel("b.png", "sea", "ice <&> snow", 0.6, png())],
        "notes": ["A note."],
        "warnings": ["A warning."],
    }
    return ReportData(**parts | changes)


class Balance(HTMLParser):
    """Counts elements that are opened and not closed, and every address that is loaded."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "circle", "polyline", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation": None},
        {"audit": None, "pointing": None, "epochs": (), "steps": (), "right": (), "wrong": ()},
        {"epochs": [epoch(1, accuracy=math.nan)]},
        {"is_leakage_suspected": True},
    ],
)
def test_the_page_is_well_formed_whatever_is_missing(changes: dict[str, Any]) -> None:
    page = Balance()
    page.feed(report_page(data(**changes)))
    assert page.open == []


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = report_page(data())
    page = Balance()
    page.feed(text)
    assert all(address.startswith(("data:image/", "#")) for address in page.loaded)
    assert "http" not in text
    assert "<script" not in text
    assert "url(" not in text


def test_the_page_shows_result_interval_command_and_that_the_test_set_was_used_once() -> None:
    text = report_page(data())
    low, high = wilson_interval(39 / 40, 40)
    assert "97.5\u202f%" in text
    assert f"{100 * low:.1f}\u202f%" in text
    assert f"{100 * high:.1f}\u202f%" in text
    assert TEST_ONCE in text
    assert "heedmap train scenes --seed 0" in text
    assert "best epoch 2" in text
    for sentence in ("A note.", "A warning.", "The same bytes twice."):
        assert sentence in text


def test_panels_reserve_their_room_before_they_are_loaded() -> None:
    panel = ReportPanel("a.png", "sea", "sea", 0.9, png())
    width, height = Image.open(io.BytesIO(panel.image)).size
    assert report_page(data()).count(f'width="{width}" height="{height}" alt=') == 2


def test_names_are_escaped() -> None:
    text = report_page(data())
    assert "ice &lt;&amp;&gt; snow" in text
    assert "ice <&> snow" not in text


def test_options_are_written_as_they_were() -> None:
    cells = dict(re.findall(r'<th scope="row">(\w+)</th><td>([^<]*)</td>', report_page(data())))
    assert cells["seed"] == "0"
    assert (cells["flip"], cells["taps"], cells["learning_rate"], cells["patience"]) == ("yes", "a, b", "0.01", "-")


def test_the_control_is_described_as_weighing_every_place_the_same() -> None:
    assert "every place weighs the same" in report_page(data(options={"attention": "none"}))
    assert "every place weighs the same" not in report_page(data(options={"attention": "dot"}))


def test_a_suspected_leak_stands_before_the_result() -> None:
    text = report_page(data(is_leakage_suspected=True))
    assert text.index("Leakage suspected") < text.index("test accuracy")
    assert "Leakage suspected" not in report_page(data())


def test_baselines_stand_below_the_taps() -> None:
    text = report_page(data(pointing={"centre": 0.3, "stage3": 0.9, "random": 0.1}))
    order = [
        text.index(f'scope="row">{name}<') for name in ("stage3", "always the image&#39;s centre", "a random point")
    ]
    assert order == sorted(order)


def test_many_classes_become_a_shaded_square_instead_of_a_table() -> None:
    names = tuple(f"class {number}" for number in range(40))
    text = report_page(data(classes=names, evaluation=evaluation(names, 80)))
    assert '<svg class="matrix"' in text
    assert '<table class="confusion"' not in text


def test_the_interval_is_wilsons() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 20)[1] == 1


def test_the_most_frequent_mistakes_come_first_and_correct_predictions_are_none() -> None:
    assert most_confused([[9, 1, 0], [0, 9, 5], [2, 0, 9]], "abc") == [("b", "c", 5), ("c", "a", 2), ("a", "b", 1)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.31, 0.89, [0.2, 0.4, 0.6, 0.8, 1]), (3, 3, [3, 4])],
)
def test_ticks_are_round_and_hold_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_a_larger_value_is_drawn_higher_and_a_later_one_further_right() -> None:
    svg = line_chart("Loss", [Series("training", ((1, 2.0), (2, math.nan), (3, 1.0)))])
    (first, last) = ([float(n) for n in pair.split(",")] for pair in re.findall(r'points="([^"]+)"', svg)[0].split())
    assert first[0] < last[0]
    assert first[1] < last[1]  # SVG counts y downwards
    assert "training, epoch 3: 1" in svg
    assert "nan" not in svg


def test_a_chart_of_nothing_is_nothing() -> None:
    assert line_chart("Loss", [Series("validation", ((1, math.nan),))]) == ""


def test_a_matrix_draws_only_what_was_counted() -> None:
    svg = matrix("Confusion", [[5, 0], [1, 4]], ("a", "b"))
    assert svg.count('class="hit"') == 2
    assert svg.count('class="miss"') == 1
    assert "b called a: 1" in svg
