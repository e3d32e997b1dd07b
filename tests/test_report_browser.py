"""The report's viewer as a person uses it: a file in a browser that has no network."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright: pip install 'heedmap[dev]'")

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser, so the report's viewer is not tried: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # chromium's sandbox refuses to work for root
    with sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", *sandbox])
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser, _finished_run: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True)
    made, troubles = context.new_page(), []
    made.on("pageerror", lambda error: troubles.append(str(error)))
    made.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else troubles.append(request.url)
    )
    made.set_default_timeout(15_000)
    made.goto((_finished_run / "report.html").resolve().as_uri())
    expect(made.locator("#count")).to_contain_text("images")
    yield made
    context.close()
    assert troubles == []


def images(page: Page) -> list[dict]:
    return json.loads(page.locator("#heedmap-images").text_content() or "")["images"]


def test_images_are_filtered_by_class_answer_probability_and_name(page: Page) -> None:
    everything = images(page)
    cards = page.locator("#cards li")
    expect(cards).to_have_count(len(everything))
    page.select_option("[name=truth]", "1")
    expect(cards).to_have_count(sum(one["t"] == 1 for one in everything))
    page.select_option("[name=answer]", "1")
    expect(cards).to_have_count(sum(one["t"] == one["p"] == 1 for one in everything))
    page.click("#all")
    expect(cards).to_have_count(len(everything))
    page.fill("[name=least]", "60")
    expect(cards).to_have_count(sum(one["q"] >= 0.6 for one in everything))
    page.click("#all")
    word = everything[0]["n"].split("/")[-1].upper()
    page.fill("[name=name]", word)
    expect(cards).to_have_count(sum(word.lower() in one["n"].lower() for one in everything))


def test_images_are_sorted_by_loss_and_by_probability(page: Page) -> None:
    def sure() -> list[float]:
        told = page.locator("#cards .what").all_inner_texts()
        return [float(re.search(r"([\d.]+) %", text)[1]) for text in told]

    losses = sorted((one["l"] for one in images(page)), reverse=True)
    page.locator("#cards button").first.click()
    assert f"loss {losses[0]:.3f}" in page.inner_text("#said")
    page.click("#shut")
    page.select_option("[name=order]", "-q")
    assert sure() == sorted(sure(), reverse=True)
    page.select_option("[name=order]", "q")
    assert sure() == sorted(sure())


def test_opacity_moves_the_map_and_resting_on_a_image_takes_it_away(page: Page) -> None:
    canvas = page.locator("#cards canvas").first
    canvas.scroll_into_view_if_needed()
    page.mouse.move(1, 1)
    expect(canvas).to_have_css("opacity", "0.8")
    assert canvas.evaluate("one => one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some(Boolean)")
    page.fill("[name=opacity]", "0.3")
    expect(canvas).to_have_css("opacity", "0.3")
    page.locator("#cards button").first.hover()
    expect(canvas).to_have_css("opacity", "0")


def test_another_tap_draws_another_map(page: Page) -> None:
    canvas = page.locator("#cards canvas").first
    canvas.scroll_into_view_if_needed()
    before = canvas.evaluate("one => one.toDataURL()")
    page.select_option("[name=tap]", "0")
    canvas.scroll_into_view_if_needed()
    page.wait_for_function("before => document.querySelector('#cards canvas').toDataURL() !== before", arg=before)


def test_a_cell_of_the_confusions_opens_the_images_behind_it(page: Page) -> None:
    everything = images(page)
    cells = page.locator(".confusion td[tabindex]")
    for number in range(cells.count()):
        cell = cells.nth(number)
        count = int(re.sub(r"\D", "", cell.inner_text()))
        cell.click()
        expect(page.locator("#cards li")).to_have_count(count)
        truth, predicted = (int(page.input_value(f"[name={name}]")) for name in ("truth", "predicted"))
        assert count == sum((one["t"], one["p"]) == (truth, predicted) for one in everything)
        expect(page.locator("#tools")).to_be_in_viewport()
    cells.first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#cards li").first).to_be_visible()


def test_a_image_opens_large_and_the_arrow_keys_walk(page: Page) -> None:
    names = [one["n"] for one in sorted(images(page), key=lambda one: -one["l"])]
    page.locator("#cards button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#view")).to_be_visible()
    expect(page.locator("#named")).to_contain_text(names[0])
    page.keyboard.press("ArrowRight")
    expect(page.locator("#named")).to_contain_text(names[1])
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    expect(page.locator("#view")).to_be_hidden()
    assert page.evaluate("document.activeElement === document.querySelector('#cards button')")


def test_the_viewer_fits_a_phone(browser: Browser, finished_run: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", offline=True)
    made = context.new_page()
    made.goto((finished_run / "report.html").resolve().as_uri())
    assert made.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
