"""The service: the same predictions as visualize, and a response within limits to whatever is sent."""

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Refusal, cue_image
from heedmap import AttentionMap, Run, visualize
from heedmap.apps.server import Address, Limits, build_app, open_predictor
from heedmap.apps.server.responses import choose_format
from heedmap.apps.uploads import MAX_SCANS
from heedmap.errors import OptionError
from heedmap.inference.predictor import Prediction, Predictor

httpx = pytest.importorskip("httpx")

GRID = torch.tensor([[0.0, 0.1, 0.0, 0.0], [0.1, 0.4, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]])


class Still:
    """A predictor that always predicts the same; ``wait`` holds it until set."""

    name, classes, image_size, maps = "still", ("cat", "dög", "hen"), 8, ("stage3", "combined")

    def __init__(self) -> None:
        self.wait = threading.Event()
        self.wait.set()
        self.sizes: list[int] = []
        self.error: Exception | None = None

    def __call__(self, views: np.ndarray) -> list[Prediction]:
        assert views.dtype == np.uint8
        assert views.shape[1:] == (3, 8, 8)
        assert self.wait.wait(10)
        if self.error is not None:
            raise self.error
        self.sizes.append(len(views))
        maps = {
            "stage3": AttentionMap(torch.full((2, 2), 0.25), "stage3", "dot, softmax", 0.0, 0.25),
            "combined": AttentionMap(GRID, "combined", "dot, softmax", 0.0, 0.4),
        }
        return [Prediction(np.array([0.2, 0.7, 0.1], np.float32), maps, {})] * len(views)


def image(width: int = 40, height: int = 40, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that claims ``side`` x ``side`` pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


@contextlib.asynccontextmanager
async def client(predictor: Predictor, **limits: Any) -> AsyncIterator[Any]:
    app = build_app(predictor, Limits(**limits), Address())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as made,
    ):
        yield made


def talked(talk: Callable[[Any], Awaitable[Any]], predictor: Predictor | None = None, **limits: Any) -> Any:
    """Run ``talk(client)`` against the application."""

    async def whole() -> Any:
        async with client(predictor or Still(), **limits) as made:
            return await talk(made)

    return asyncio.run(whole())


def post(
    content: bytes | AsyncIterator[bytes], kind: str = "image/png", **more: Any
) -> Callable[[Any], Awaitable[Any]]:
    headers = {"Content-Type": kind, **more.pop("headers", {})}
    return lambda made: made.post("/predict", content=content, headers=headers, **more)


def refused(answer: Any, status: int) -> str:
    """Check that the response is an error of one sentence, and return the sentence."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    sentence = answer.json()["error"]
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert "heedmap/" not in sentence
    return str(sentence)


# The prediction


def images_in(folder: Path) -> list[Path]:
    """Files of the kinds that tell ways of decoding apart: a large JPEG, one that lies on its side, a PNG."""
    large = cue_image("red", 1, side=400)[0].resize((700, 400))
    turned = Image.Exif()
    turned[0x0112] = 6
    large.save(folder / "large.jpg", quality=90)
    large.save(folder / "turned.jpg", quality=90, exif=turned)
    cue_image("blue", 2)[0].save(folder / "small.png")
    return sorted(folder.iterdir())


def test_class_probabilities_maps_and_points_are_those_of_visualize(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    files = images_in(tmp_path / "images")
    visualize(Run.open(finished_run).classifier(), files, tmp_path / "maps")

    async def talk(made: Any) -> list[Any]:
        parameters = {"values": True}
        return [await post(file.read_bytes(), "image/any", params=parameters)(made) for file in files]

    for file, answer in zip(files, talked(talk, open_predictor(finished_run)), strict=True):
        prediction, drawn = answer.json(), np.load(tmp_path / "maps" / "maps" / f"{file.stem}.npz")
        assert prediction["predicted"]["index"] == drawn["predicted"]
        probabilities = {one["index"]: one["probability"] for one in prediction["top"]}
        for index, probability in enumerate(drawn["probabilities"]):
            assert probabilities[index] == pytest.approx(probability, abs=1e-6)
        for name, found in prediction["maps"].items():
            np.testing.assert_allclose(np.array(found["values"]), drawn[f"map_{name}"], atol=1e-6)
        assert (prediction["size"]["width"], prediction["size"]["height"]) == tuple(drawn["size"])
        assert list(prediction["crop"].values()) == list(drawn["crop_box"])
        assert set(prediction["maps"]) == {key.removeprefix("map_") for key in drawn if key.startswith("map_")}


@pytest.mark.slow
def test_an_exported_file_is_served_with_the_predictions_of_its_run(finished_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from heedmap.exporters import export

    views = [cue_image(name, 3)[0] for name in ("red", "blue", "green")]
    file = export(Run.open(finished_run), tmp_path / "model.onnx", images=views).path
    content = (images_in(tmp_path)[0]).read_bytes()

    async def talk(made: Any) -> list[Any]:
        ways = [post(content, params={"values": True}), post(content, params={"format": "grey"})]
        return [(await made.get("/classes")).json(), *[await way(made) for way in ways]]

    (known, prediction, _), (its, other, grey) = (
        talked(talk, open_predictor(finished_run)),
        talked(talk, open_predictor(file)),
    )
    assert known == its
    one, two = prediction.json(), other.json()
    assert [each["name"] for each in one["top"]] == [each["name"] for each in two["top"]]
    assert one["predicted"]["probability"] == pytest.approx(two["predicted"]["probability"], abs=1e-5)
    for name, found in one["maps"].items():
        assert two["maps"][name]["method"] == found["method"]
        np.testing.assert_allclose(two["maps"][name]["values"], found["values"], atol=1e-5)
    assert grey.status_code == 200


def test_a_batch_changes_no_prediction_beyond_a_millionth(finished_run: Path) -> None:
    contents = [image(40 + number, 50) for number in range(24)]
    predictor = open_predictor(finished_run)

    async def talk(made: Any) -> tuple[list[Any], list[Any], Any]:
        ways = [post(content, params={"values": True}) for content in contents]
        alone = [await way(made) for way in ways]
        together = await asyncio.gather(*(way(made) for way in ways))
        return alone, together, (await made.get("/health")).json()

    alone, together, health = talked(talk, predictor)
    assert health["images"] == 48
    assert health["batches"] < 24 + 12  # those sent together shared batches
    for one, other in zip(alone, together, strict=True):
        first, second = one.json(), other.json()
        assert first["predicted"]["probability"] == pytest.approx(second["predicted"]["probability"], abs=1e-6)
        for name, found in first["maps"].items():
            np.testing.assert_allclose(found["values"], second["maps"][name]["values"], atol=1e-6)


def test_points_and_boxes_are_pixels_of_the_original_derived_by_hand() -> None:
    prediction = talked(
        post(image(80, 40), params={"threshold": 0.6})
    ).json()  # the square seen begins at x = 20; a cell is 10 pixels
    assert prediction["size"] == {"width": 80, "height": 40}
    assert prediction["crop"] == {"left": 20, "top": 0, "right": 60, "bottom": 40}
    assert prediction["predicted"] == {"name": "dög", "index": 1, "probability": pytest.approx(0.7)}
    found = prediction["maps"]["combined"]
    assert found["hottest"] == {"x": 35, "y": 15, "value": pytest.approx(0.4)}
    # On the 8 x 8 view, bilinear: rows 2 and 3 are 0.14 0.26 0.30 0.25 0.17 and 0.13 0.24 0.28 0.24 0.17 in columns 1
    # to 5, rows 1 and 4 at most 0.15; 0.18 are needed. A pixel of the view is 5 of the original.
    (box,) = found["boxes"]
    assert 0 < box.pop("share") < 1
    assert box == {"left": 30, "top": 10, "right": 45, "bottom": 20}
    assert found["values"] is None
    flat = prediction["maps"]["stage3"]
    assert flat["hottest"] is None
    assert flat["boxes"] == []


def test_the_most_probable_classes_come_first_and_no_more_than_requested() -> None:
    top = talked(post(image(), params={"top": 2})).json()["top"]
    assert [one["name"] for one in top] == ["dög", "cat"]


def test_a_form_and_the_bare_bytes_get_the_same_prediction() -> None:
    content = image()

    async def talk(made: Any) -> list[Any]:
        form = await made.post("/predict", files={"image": ("a.png", content, "image/png")})
        return [form.json(), (await post(content)(made)).json()]

    first, second = talked(talk)
    assert first == second


def test_the_map_comes_as_overlay_grey_image_or_array() -> None:
    async def talk(made: Any) -> list[Any]:
        parameters = [{"format": "overlay", "size": 64}, {"format": "grey"}, {"format": "npy", "tap": "stage3"}]
        return [await post(image(80, 40), params=one)(made) for one in parameters]

    overlay, grey, array = talked(talk)
    assert [one.headers["content-type"] for one in (overlay, grey, array)] == [
        "image/png",
        "image/png",
        "application/x-npy",
    ]
    assert Image.open(io.BytesIO(overlay.content)).size == (64, 64)
    shades = np.array(Image.open(io.BytesIO(grey.content)))
    low, high = float(grey.headers["x-heedmap-low"]), float(grey.headers["x-heedmap-high"])
    np.testing.assert_allclose(low + shades / 65535 * (high - low), GRID, atol=1e-5)
    np.testing.assert_array_equal(np.load(io.BytesIO(array.content)), np.full((2, 2), 0.25, np.float32))
    assert grey.headers["x-heedmap-class"] == "d%C3%B6g"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, "json"),
        ("*/*", "json"),
        ("image/png", "overlay"),
        ("image/avif,image/*;q=0.8,*/*;q=0.5", "overlay"),
        ("application/json;q=0.1, application/x-npy", "npy"),
        ("image/png;q=0, application/json", "json"),
    ],
)
def test_the_accept_header_chooses_where_no_format_is_named(accept, form) -> None:
    assert choose_format(None, accept) == form
    assert choose_format("grey", accept) == "grey"


def test_health_classes_and_the_page_show_what_there_is() -> None:
    async def talk(made: Any) -> list[Any]:
        paths = ("/health", "/classes", "/openapi.json", "/", "/docs", "/page/page.js", "/page/plain.css")
        return [await made.get(path) for path in paths]

    health, classes, schema, *pages = talked(talk)
    assert health.json() == {"status": "ok", "model": "still", "waiting": 0, "images": 0, "batches": 0}
    assert classes.json() == {"classes": ["cat", "dög", "hen"], "taps": ["stage3", "combined"], "image_size": 8}
    assert set(schema.json()["paths"]) == {"/predict", "/health", "/classes"}
    for page in pages:
        assert page.status_code == 200
        assert "http://" not in page.text  # nothing from elsewhere
        assert "https://" not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
    _, docs, _, style = pages
    assert all(word in docs.text for word in ("POST /predict", "opacity", "PredictionResponse", "stage3, combined"))
    assert "#result[hidden] { display: none; }" in style.text  # or its grid shows a broken image before the first


def test_a_foreign_host_or_origin_is_refused_unless_the_application_is_mounted_elsewhere() -> None:
    async def mounted() -> int:
        app = build_app(Still())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as made:
            return (await made.get("/classes")).status_code

    async def talk(made: Any) -> list[Any]:
        foreign = ({"Host": "evil.example"}, {"Origin": "http://evil.example"})
        return [await made.get("/classes", headers=headers) for headers in foreign]

    for answer in talked(talk):
        refused(answer, 403)
    assert asyncio.run(mounted()) == 200


# What is refused


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"Dear Sir or Madam", "image/png", 415, "not an image"),
        (b"", "image/png", 422, "empty"),
        (image(200, 200, "JPEG")[:2000], "image/jpeg", 422, "damaged"),
        (image()[:300], "image/png", 422, "damaged"),
        (bomb(6000), "image/png", 413, "25 million"),
        (bomb(20_000), "image/png", 413, "100 million"),
        (b"\xff\xd8" + b"\xff\xda" * (MAX_SCANS + 1), "image/jpeg", 422, "scans"),
        (image(), "text/plain", 415, "text/plain"),
        (image(), "application/x-www-form-urlencoded", 415, "image/jpeg"),
        (image(), "multipart/form-data", 422, "'image'"),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 422, "'image'"),
    ],
)
def test_what_is_no_usable_image_is_refused_in_one_sentence(content, kind, status, words) -> None:
    assert words in refused(talked(post(content, kind)), status)


def test_a_form_needs_one_file_in_its_field() -> None:
    one = ("a.png", image(), "image/png")

    async def talk(made: Any) -> list[Any]:
        forms: list[Any] = [{"file": one}, [("image", one), ("image", one)]]
        wrong = [await made.post("/predict", files=form) for form in forms]
        return [*wrong, await made.post("/predict", files={"image": one}, data={"note": "hello"})]

    for answer in talked(talk):
        assert "'image'" in refused(answer, 422)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"top": 0}, "'top'"),
        ({"threshold": "much"}, "'threshold'"),
        ({"format": "gif"}, "'format'"),
        ({"opcity": 1}, "'opacity'"),
        ({"tap": "stage33"}, "'stage3'"),
    ],
)
def test_a_parameter_that_does_not_exist_or_fit_is_named(parameters, words) -> None:
    assert words in refused(talked(post(image(), params=parameters)), 422)


def test_wrong_routes_methods_and_accept_headers_get_a_sentence() -> None:
    async def talk(made: Any) -> list[Any]:
        impossible = post(image(), headers={"Accept": "video/mp4"})
        return [await made.get("/predikt"), await made.get("/predict"), await impossible(made)]

    lost, method, wish = talked(talk)
    assert "/predict" in refused(lost, 404)
    assert method.headers["allow"] == "POST"
    refused(method, 405)
    assert "image/png" in refused(wish, 406)


def test_a_body_is_counted_while_it_is_read_and_no_further_than_the_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield b"x" * 10_000

    assert "100,000 bytes" in refused(talked(post(endless()), max_bytes=100_000), 413)
    assert sent <= 120_000


def test_a_declared_length_beyond_the_limit_is_refused_before_anything_is_read() -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield b""

    answer = talked(post(never(), headers={"Content-Length": "100001"}), max_bytes=100_000)
    refused(answer, 413)


def test_all_bodies_together_are_limited_and_forgotten_afterwards() -> None:
    async def talk(made: Any) -> list[Any]:
        first = await post(image(200, 200))(made)  # about 120 kB
        return [first, await post(image())(made)]

    large, small = talked(talk, held_bytes=50_000)
    refused(large, 503)
    assert large.headers["retry-after"] == "1"
    assert small.status_code == 200


def test_a_slow_body_is_cut_off() -> None:
    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.02)

    answer = talked(post(slow()), timeout=0.2)
    assert "0.2 s" in refused(answer, 408)
    assert answer.headers["connection"] == "close"


def test_one_request_too_many_gets_the_time_to_try_again() -> None:
    still = Still()
    still.wait.clear()

    async def talk(made: Any) -> tuple[Any, list[Any]]:
        inside = [asyncio.create_task(post(image())(made)) for _ in range(3)]
        while (await made.get("/health")).json()["waiting"] < 3:
            await asyncio.sleep(0.01)
        outside = await post(image())(made)
        still.wait.set()
        return outside, await asyncio.gather(*inside)

    outside, inside = talked(talk, still, waiting=3)
    assert "3 requests" in refused(outside, 503)
    assert int(outside.headers["retry-after"]) >= 1
    assert [one.status_code for one in inside] == [200] * 3


def test_a_prediction_that_takes_too_long_is_given_up_and_the_service_goes_on() -> None:
    still = Still()
    still.wait.clear()

    async def talk(made: Any) -> list[Any]:
        late = await post(image())(made)
        still.wait.set()
        return [late, await post(image())(made), await made.get("/health")]

    late, after, health = talked(talk, still, timeout=0.3)
    assert "0.3 s" in refused(late, 503)
    assert after.status_code == 200
    assert health.json()["waiting"] == 0


def test_a_classifier_that_fails_gives_a_sentence_and_the_service_goes_on() -> None:
    still = Still()
    still.error = RuntimeError("secret detail")

    async def talk(made: Any) -> list[Any]:
        failed = await post(image())(made)
        still.error = None
        return [failed, await post(image())(made)]

    failed, after = talked(talk, still)
    assert "secret" not in refused(failed, 500)
    assert after.status_code == 200


def test_images_that_come_while_the_classifier_works_share_the_next_batches() -> None:
    still = Still()

    async def talk(made: Any) -> list[Any]:
        still.wait.clear()
        waiting = [asyncio.create_task(post(image())(made)) for _ in range(11)]
        while (await made.get("/health")).json()["waiting"] < 11:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # all are decoded
        still.wait.set()
        return await asyncio.gather(*waiting)

    answers = talked(talk, still, batch_size=5, batch_wait=0.0)
    assert [one.status_code for one in answers] == [200] * 11
    assert sum(still.sizes) == 11
    assert still.sizes[1] == max(still.sizes) == 5  # the first took what was there


@pytest.mark.parametrize(
    "limits", [{"max_bytes": 0}, {"timeout": 0.0}, {"timeout": float("inf")}, {"waiting": -1}, {"batch_wait": -1.0}]
)
def test_a_limit_that_limits_nothing_is_refused(limits) -> None:
    with pytest.raises(OptionError, match=next(iter(limits))):
        Limits(**limits)


def test_the_command_refuses_a_missing_run_a_taken_port_and_a_port_that_cannot_be(
    refusal: Refusal, finished_run: Path, tmp_path: Path
) -> None:
    assert "nowhere" in refusal("serve", tmp_path / "nowhere", "--port", 0)
    assert "70000" in refusal("serve", finished_run, "--port", 70000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in refusal("serve", finished_run, "--port", taken.getsockname()[1])


def test_the_socket_is_one_that_asyncio_sends_from_without_delay() -> None:
    with Address(port=0).listen() as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_a_missing_package_is_named_with_its_extra(
    refusal: Refusal, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    assert "heedmap[serve]" in refusal("serve", finished_run)


def test_the_schema_describes_the_responses() -> None:
    async def talk(made: Any) -> tuple[Any, Any]:
        return (await made.get("/openapi.json")).json(), (await post(image())(made)).json()

    schema, prediction = talked(talk)
    shape = schema["components"]["schemas"]["PredictionResponse"]
    assert set(shape["required"]) == set(shape["properties"]) == set(prediction)
    parameters = {one["name"]: one for one in schema["paths"]["/predict"]["post"]["parameters"]}
    assert set(parameters) == {"format", "tap", "top", "threshold", "values", "size", "opacity"}
    assert parameters["tap"]["schema"]["anyOf"][0]["enum"] == ["stage3", "combined"]
