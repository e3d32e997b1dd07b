"""The explorer in a real browser: what a person does, and what the page then shows.

Driven by Playwright in the system's chromium; no browser is downloaded.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the explorer's extra is not installed: pip install 'heedmap[explore]'")
pytest.importorskip("playwright", reason="the browser tests need playwright: pip install 'heedmap[dev]'")

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from conftest import cue_image
from explorer_runs import serving, trained_dot
from heedmap.visualization.heatmap import overlay

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser, so the explorer's page is not tried: apt-get install chromium"
)

expect.set_options(timeout=30_000)
MAP = ".lane:nth-child({lane}) .tile[data-map='{name}']"


@pytest.fixture(scope="module")
def address(_finished_run: Path, _cue_folder: Path) -> Iterator[str]:
    with serving([trained_dot(_cue_folder), _finished_run], [_cue_folder / "test" / "red"]) as where:
        yield where


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Browser]:  # after the server, so that it is closed before it
    sandbox = ["--disable-gpu"] + (
        [] if os.geteuid() else ["--no-sandbox"]
    )  # chromium's sandbox refuses to work for root
    with sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.set_default_timeout(60_000)  # a loaded machine takes its time
    opened(made, address)
    yield made
    context.close()
    assert errors == []


def opened(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("html[data-ready]")


def tile(page: Page, name: str = "stage2", lane: int = 1) -> Locator:
    return page.locator(MAP.format(lane=lane, name=name))


def pixels(page: Page, name: str = "stage3", lane: int = 1) -> np.ndarray:
    """The heatmap as the page has drawn it, without the marks over it: uint8 (S, S, 3)."""
    address = tile(page, name, lane).locator("canvas").first.evaluate("canvas => canvas.toDataURL()")
    content = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def dropped(page: Page, content: bytes, name: str, kind: str = "image/png") -> None:
    """Let a file fall on the page, as a person does with the mouse."""
    data = page.evaluate_handle(
        """([bytes, name, type]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type }));
            return data;
        }""",
        [list(content), name, kind],
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": data})
    page.dispatch_event("main", "drop", {"dataTransfer": data})


def png(colour: str = "blue", seed: int = 5) -> bytes:
    content = io.BytesIO()
    cue_image(colour, seed, 60)[0].save(content, "PNG")
    return content.getvalue()


def settled(page: Page) -> None:
    expect(page.locator(".busy")).to_have_count(0)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_page_shows_prediction_and_maps_at_once(page):
    assert page.locator(".lane").count() == 2
    assert page.locator(".lane:nth-child(1) figcaption b").all_inner_texts() == ["stage2", "stage3", "combined"]
    assert re.match(r"(red|green|blue) \d+", page.inner_text(".lane:nth-child(1) .verdict"))
    shares = [float(text.split()[0]) for text in page.locator(".lane:nth-child(1) .number").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=1.6)
    assert pixels(page).std() > 5


def test_a_heatmap_is_drawn_as_render_draws_it(page, cue_folder):
    values = page.evaluate(
        """async () => {
            const api = await import("/page/api.js");
            const request = {image: "s0-0", run: 0, method: "attention", target: null, query: null};
            const prediction = await api.predict(request);
            const map = prediction.maps[1];
            return {values: [...map.values], shape: [map.height, map.width], high: map.high};
        }"""
    )
    grid = np.array(values["values"], np.float32).reshape(values["shape"])
    image = Image.open(cue_folder / "test" / "red" / "000.png").resize((384, 384), Image.Resampling.BILINEAR)
    expected = np.asarray(overlay(image, grid, 0.0, values["high"], 0.8)).astype(int)
    assert np.abs(pixels(page) - expected).mean() < 3  # two ways of enlarging an image, one way of drawing heat


def test_a_dropped_image_is_predicted(page):
    before = pixels(page)
    dropped(page, png(), "mine.png")
    expect(page.locator("#name")).to_have_text("mine.png")
    settled(page)
    assert np.abs(pixels(page) - before).max() > 30
    assert page.is_hidden("#error")


def test_a_bad_upload_gets_a_sentence_and_the_page_goes_on(page):
    dropped(page, b"not an image at all", "note.txt", "text/plain")
    page.wait_for_selector("#error:not([hidden])")
    assert "note.txt" in page.inner_text("#error")
    assert "Traceback" not in page.content()
    page.click("#error button")
    assert page.is_hidden("#error")
    dropped(page, png(), "mine.png")
    expect(page.locator("#name")).to_have_text("mine.png")


def test_the_threshold_cuts_a_mask_and_shows_its_share(page):
    def share() -> float:
        settled(page)
        return float(tile(page).get_attribute("data-share"))

    before = pixels(page)
    page.fill("#threshold", "30")
    low = share()
    assert "of the area" in tile(page).locator(".share").inner_text()
    assert np.abs(pixels(page) - before).max() > 30
    page.fill("#threshold", "80")
    assert 0 < share() < low < 1
    page.fill("#opacity", "0")
    settled(page)
    grey = pixels(page)
    page.fill("#opacity", "100")
    settled(page)
    assert np.abs(pixels(page) - grey).max() > 30


@pytest.mark.slow
def test_the_saved_mask_covers_the_share_that_is_shown(page):
    page.fill("#threshold", "30")
    settled(page)
    with page.expect_download() as coming:
        tile(page).get_by_role("button", name="Save the mask").click()
    mask = np.asarray(Image.open(coming.value.path()).convert("L"))
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).mean() == pytest.approx(float(tile(page).get_attribute("data-share")), abs=1e-4)
    with page.expect_download() as coming:
        page.locator(".lane:nth-child(1)").get_by_role("button", name="raw maps").click()
    with np.load(coming.value.path(), allow_pickle=False) as arrays:
        assert arrays["map_stage2"].sum() == pytest.approx(1, abs=1e-5)


def test_keys_read_the_values_that_the_network_used(page):
    pane = tile(page).locator("canvas").nth(1)
    pane.focus()
    page.keyboard.press("Home")
    settled(page)
    hottest = float(tile(page).get_attribute("data-value"))
    assert hottest == pytest.approx(float(tile(page).locator(".legend span").last.inner_text()), rel=5e-3)
    page.keyboard.press("ArrowRight")
    settled(page)
    assert float(tile(page).get_attribute("data-value")) <= hottest
    assert "stage2: " in page.inner_text("#reading")


def test_a_click_in_the_image_moves_the_attention_that_can_follow_and_no_other(page):
    page.wait_for_selector("#subject canvas")
    moving, fixed = pixels(page, lane=1), pixels(page, lane=2)
    box = page.locator("#subject canvas").last.bounding_box()
    page.locator("#subject canvas").last.click(position={"x": 0.1 * box["width"], "y": 0.9 * box["height"]})
    page.wait_for_selector(".lane:nth-child(1)[data-follows='true']")
    page.mouse.move(5, 5)
    settled(page)
    assert np.abs(pixels(page, lane=1) - moving).max() > 25
    assert np.array_equal(pixels(page, lane=2), fixed)
    notes = page.locator(".note").all_inner_texts()
    assert "The query is the local feature of stage3" in notes[0]
    assert "lies elsewhere: stage2" in notes[0]
    assert "The query cannot change this map" in notes[1]
    page.keyboard.press("Escape")
    page.wait_for_selector(".lane:nth-child(1)[data-follows='false']")
    settled(page)
    assert np.array_equal(pixels(page, lane=1), moving)


def test_another_image_can_be_the_query(page):
    page.set_input_files("#query-open", {"name": "other.png", "mimeType": "image/png", "buffer": png("green", 8)})
    page.wait_for_selector(".lane:nth-child(1)[data-follows='true']")
    assert page.locator(".note").first.inner_text().startswith("The query is the global feature of other.png.")
    assert page.is_visible("#query-thumb")


def test_a_row_can_switch_its_run_its_method_and_its_class(page):
    before = pixels(page)
    page.select_option(".lane:nth-child(1) select[aria-label='Run']", "1")
    expect(page.locator(".lane .about").first).to_contain_text("parametrised")
    settled(page)
    assert np.abs(pixels(page) - before).max() > 8
    page.select_option(".lane:nth-child(2) select[aria-label='Map method']", "grad-cam")
    page.wait_for_selector(MAP.format(lane=2, name="grad-cam"))
    page.select_option(".lane:nth-child(2) select[aria-label='Target class']", label="green")
    expect(page.locator(".note").nth(1)).to_contain_text("grad-cam for green")
    page.click("#add")
    assert page.locator(".lane").count() == 3


def test_the_test_set_is_browsed_by_loss(page):
    page.select_option("#source", "1")
    page.select_option("#sort", "loss")
    expect(page.locator(".small-image span").first).to_contain_text("loss")
    losses = [float(text.split()[1]) for text in page.locator(".small-image span").all_inner_texts()]
    assert len(losses) == 36
    assert losses == sorted(losses, reverse=True)
    page.keyboard.press("n")
    expect(page.locator(".small-image").first).to_have_attribute("aria-current", "true")


def test_two_pages_at_once_each_show_their_own_image(browser, address):
    def one(page: Page, name: str, content: bytes) -> None:
        opened(page, address)
        dropped(page, content, name)

    contexts = [browser.new_context(), browser.new_context()]
    pages = [context.new_page() for context in contexts]
    for page, name in zip(pages, ("blue", "green"), strict=True):
        one(page, f"{name}.png", png(name))
    for page, name in zip(pages, ("blue", "green"), strict=True):
        expect(page.locator("#name")).to_have_text(f"{name}.png")
        expect(page.locator(".verdict b").first).to_have_text(name)
    for context in contexts:
        context.close()


def test_the_page_fits_a_phone_and_the_theme_can_be_switched(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    page = context.new_page()
    opened(page, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark))) < 200 < 600 < sum(map(int, re.findall(r"\d+", light)))
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
    context.close()


def test_everything_that_can_be_pressed_has_a_name(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, canvas[tabindex]")].filter((each) =>
            !(each.ariaLabel || each.textContent.trim() || each.labels?.length)).map((each) => each.outerHTML)"""
    )
    assert nameless == []
