"""The explorer's server: what travels is what the network used, and only what was opened can be seen."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import re
import socket
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the explorer's extra is not installed: pip install 'heedmap[explore]'")
pytest.importorskip("httpx", reason="FastAPI's test client needs httpx: pip install 'heedmap[dev]'")

from starlette.testclient import TestClient

from conftest import Refusal, cue_image
from explorer_runs import trained_dot
from heedmap import Architecture, Run, build_classifier, combined_map, open_data
from heedmap.apps import explorer, running
from heedmap.apps.address import Address
from heedmap.apps.explorer import app as app_module
from heedmap.apps.explorer import explore, gallery
from heedmap.apps.explorer.app import build_explorer
from heedmap.apps.explorer.gallery import VIEW, Gallery, ImageSource, confined, decode_gallery_image
from heedmap.apps.explorer.network import CROP, Network, QueryPoint, crop_query, local_query
from heedmap.apps.explorer.ranking import Ranking
from heedmap.apps.limits import Limits, RequestError
from heedmap.apps.uploads import MAX_SCANS, Bodies
from heedmap.attribution import METHODS, explain
from heedmap.data import TensorDataset
from heedmap.data.decoding import plain
from heedmap.errors import DataError, ImageError, OptionError
from heedmap.metrics.localization.pointing_game import hottest_points
from heedmap.visualization.heatmap import COLOURS

PLAIN, DOT = 0, 1  # places of the runs


@pytest.fixture(scope="module")
def runs(_finished_run: Path, _cue_folder: Path) -> list[Path]:
    return [_finished_run, trained_dot(_cue_folder)]


@pytest.fixture(scope="module")
def client(runs: list[Path]) -> Iterator[TestClient]:
    app, _ = build_explorer([Run.open(path) for path in runs])
    with TestClient(app, base_url="http://127.0.0.1:8470", raise_server_exceptions=False) as made:
        yield made


def predicted(client: TestClient, **request: object) -> dict:
    reply = client.post("/api/predict", json={"image": "s0-0", **request})
    assert reply.status_code == 200, reply.text
    return reply.json()


def values(reply: dict, name: str) -> np.ndarray:
    (drawn,) = [entry for entry in reply["maps"] if entry["name"] == name]
    return np.frombuffer(base64.b64decode(drawn["values"]), "<f4").reshape(drawn["height"], drawn["width"])


def by_hand(runs: list[Path], place: int, index: int = 0) -> tuple:
    """The classifier of a run and its input for an image of the test set, without the explorer."""
    run = Run.open(runs[place])
    part = open_data(run.options.data, seed=run.options.seed, test_share=run.options.test).test
    return run.classifier(), plain(part.load(index, 32)[None])


# ---- predictions


@pytest.mark.parametrize("place", [PLAIN, DOT])
def test_the_maps_that_travel_are_bit_for_bit_those_of_the_network(client, runs, place):
    classifier, images = by_hand(runs, place)
    with torch.no_grad():
        output = classifier(images)
    reply = predicted(client, run=place)
    for tap, weights in output.attention.items():
        assert np.array_equal(values(reply, tap), weights[0, 0].numpy())
    assert np.array_equal(values(reply, "combined"), combined_map(output.attention)[0, 0].numpy())
    assert reply["probabilities"] == [float(share) for share in output.probabilities[0]]
    assert reply["note"] == ""


def test_a_place_as_the_query_is_the_last_stage_s_feature_there(client, runs):
    classifier, images = by_hand(runs, DOT)
    reply = predicted(client, run=DOT, query={"x": 0.3, "y": 0.9})
    normalised = (images - classifier.mean) / classifier.std
    with torch.no_grad():
        features = classifier.backbone.stage3(
            classifier.backbone.stage2(classifier.backbone.stage1(classifier.backbone.stem(normalised)))
        )
        output = classifier(images, query=features[:, :, 7, 2])  # 8 x 8 cells: 0.9 * 8 = 7.2, 0.3 * 8 = 2.4
    for tap, weights in output.attention.items():
        np.testing.assert_allclose(values(reply, tap), weights[0, 0].numpy(), atol=1e-7)
    assert reply["follows_query"]
    assert reply["query_box"] == [2 / 8, 7 / 8, 3 / 8, 8 / 8]
    assert "row 8, column 3 of 8 x 8" in reply["note"]
    assert np.abs(values(reply, "stage3") - values(predicted(client, run=DOT), "stage3")).sum() / 2 > 0.2


def test_another_image_as_the_query_is_its_global_feature(client, runs):
    classifier, images = by_hand(runs, DOT)
    _, other = by_hand(runs, DOT, 20)
    with torch.no_grad():
        output = classifier(images, query=classifier.query(other))
    reply = predicted(client, run=DOT, query="s0-20")
    assert np.array_equal(values(reply, "stage3"), output.attention["stage3"][0, 0].numpy())
    assert reply["note"].startswith("The query is the global feature of test/green/")


@pytest.mark.parametrize("query", [{"x": 0.1, "y": 0.1}, "s0-20"])
def test_where_no_query_can_change_the_map_the_note_gives_the_reason(client, query):
    reply = predicted(client, run=PLAIN, query=query)
    assert not reply["follows_query"]
    assert "the softmax over positions cancels it" in reply["note"]
    assert np.array_equal(values(reply, "stage3"), values(predicted(client, run=PLAIN), "stage3"))


def test_where_a_local_feature_does_not_fit_the_crop_round_the_place_is_the_query(generator):
    classes = ("a", "b")
    made = build_classifier(Architecture("paper-resnet", "dot", None, "concat", None, 32, classes)).eval()
    network = types.SimpleNamespace(classifier=made, image_size=32, device=torch.device("cpu"))
    pixels = torch.randint(0, 256, (VIEW, VIEW, 3), generator=generator, dtype=torch.uint8)
    seen = types.SimpleNamespace(view=Image.fromarray(pixels.numpy()))
    with torch.no_grad():
        assert local_query(network, torch.rand(1, 3, 32, 32, generator=generator), QueryPoint(x=0.5, y=0.5)) is None
        vector, note, box = crop_query(network, seen, QueryPoint(x=0.05, y=0.5))
    assert vector.shape == (1, made.backbone.query_channels)
    assert box == pytest.approx((0.0, 0.5 - CROP / 2, CROP, 0.5 + CROP / 2))  # shifted inwards at the border
    assert "crop in the frame" in note


def test_a_method_and_a_class_give_the_map_that_explain_gives(client, runs):
    classifier, images = by_hand(runs, PLAIN)
    reply = predicted(client, method="grad-cam", target=2)
    found = explain(classifier, images, "grad-cam", 2)
    np.testing.assert_allclose(values(reply, "grad-cam"), found.values[0, 0].numpy(), atol=1e-6)
    assert reply["maps"][0]["target"] == 2
    assert reply["note"].startswith("grad-cam for red (layer ")
    with_query = predicted(client, run=DOT, method="grad-cam", query={"x": 0.5, "y": 0.5})
    assert "this method takes no other" in with_query["note"]


def test_every_registered_method_is_offered_and_gives_a_map_or_a_reason(client):
    keys = [method["key"] for method in client.get("/api/about").json()["methods"]]
    assert keys[0] == "attention"
    assert sorted(keys) == sorted(METHODS)
    for key in [key for key in keys if METHODS[key].cost.startswith("1 F")]:
        reply = client.post("/api/predict", json={"image": "s0-0", "method": key})
        assert reply.status_code in (200, 400), key
        assert reply.status_code == 200 or reply.json()["error"]


def test_the_colours_of_the_page_are_those_of_render(client):
    assert client.get("/api/about").json()["colours"] == COLOURS.tobytes().hex()


def test_the_saved_arrays_are_the_maps_with_their_classes(client):
    reply = predicted(client, run=DOT, query={"x": 0.3, "y": 0.9})
    content = client.post("/api/npz", json={"image": "s0-0", "run": DOT, "query": {"x": 0.3, "y": 0.9}}).content
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["map_stage2"], values(reply, "stage2"))
        assert arrays["classes"].tolist() == ["blue", "green", "red"]
        assert str(arrays["query"]) == reply["note"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"run": 7}, 404, "run 7"),
        ({"image": "s0-999"}, 404, "s0-999"),
        ({"image": "s5-0"}, 404, "s5-0"),
        ({"image": "u-nothing"}, 404, "u-nothing"),
        ({"image": "../../etc/passwd"}, 404, "../../etc/passwd"),
        ({"method": "grad-can"}, 400, "'grad-cam'"),
        ({"target": 3}, 422, "class 3"),
        ({"query": {"x": 1.5, "y": 0}}, 422, "1.5"),
        ({"query": {"x": 0.5}}, 422, "query.QueryPoint.y"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
def test_a_request_that_makes_no_sense_gets_a_sentence(client, body, status, words):
    reply = client.post("/api/predict", json={"image": "s0-0", **body})
    assert reply.status_code == status
    assert words in reply.json()["error"]


def test_ten_clients_at_once_get_what_each_gets_alone(client):
    requests = [
        {
            "image": f"s0-{number % 7}",
            "run": number % 2,
            "query": {"x": number / 60, "y": 0.5} if number % 3 else None,
        }
        for number in range(60)
    ]
    requests[::10] = [{"image": "s0-1", "run": 0, "method": "grad-cam"}] * 6
    alone = [client.post("/api/predict", json=request).json() for request in requests]
    with ThreadPoolExecutor(10) as clients:
        together = list(clients.map(lambda request: client.post("/api/predict", json=request).json(), requests))
    for one, other in zip(alone, together, strict=True):
        assert one["maps"] == other["maps"]
        assert one["probabilities"] == other["probabilities"]


# ---- images


def upload(client: TestClient, content: bytes, name: str = "cat.png"):
    return client.post("/api/uploads", params={"name": name}, content=content)


def png(side: int = 48) -> bytes:
    content = io.BytesIO()
    cue_image("red", 3, side)[0].save(content, "PNG")
    return content.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG whose header promises more pixels than may be decoded."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_an_upload_is_decoded_for_the_network_as_a_file_is(client, runs):
    facts = upload(client, png(), "my cat.png").json()
    assert facts["name"] == "my cat.png"
    image = decode_gallery_image(gallery._NamedBytes(png(), "x"), "x", None, (32,))
    with torch.no_grad():
        output = Run.open(runs[0]).classifier()(plain(image.images[32][None]))
    assert np.array_equal(
        values(predicted(client, image=facts["reference"]), "stage3"), output.attention["stage3"][0, 0]
    )
    view = Image.open(io.BytesIO(client.get(f"/api/images/{facts['reference']}/view").content))
    assert view.size == (VIEW, VIEW)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, I am a text", "cat.png"),
        (b"", "empty"),
        (png()[:200], "damaged"),
        (bomb(), "100 million"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\xff\xd8" + b"\xff\xda" * (MAX_SCANS + 1), "scans"),
    ],
)
def test_a_bad_upload_gets_a_sentence(client, content, words):
    reply = upload(client, content)
    assert reply.status_code == 400
    assert words in reply.json()["error"]


def test_a_large_upload_is_refused_by_its_length_and_while_it_arrives(runs):
    app, _ = build_explorer([Run.open(runs[0])], limits=Limits(max_bytes=1000))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for body in (b"x" * 1001, (b"x" * 500 for _ in range(100))):
            reply = client.post("/api/uploads", content=body)
            assert reply.status_code == 413
            assert "1,000 bytes" in reply.json()["error"]


def test_a_slow_upload_is_given_up():
    class Slow:
        headers: dict[str, str] = {}  # noqa: RUF012

        async def stream(self):
            yield b"x"
            await asyncio.sleep(30)
            yield b"y"

    async def read():
        async with Bodies(Limits(timeout=0.1)).read(Slow()):
            pass

    with pytest.raises(RequestError, match=r"0\.1 s") as refused:
        asyncio.run(read())
    assert refused.value.status == 408


def test_more_requests_than_may_wait_get_503_and_the_others_their_maps(runs):
    app, _ = build_explorer([Run.open(runs[0])], limits=Limits(waiting=1))
    with TestClient(app, base_url="http://127.0.0.1") as client, ThreadPoolExecutor(8) as threads:
        request = {"image": "s0-0", "method": "occlusion"}
        replies = list(threads.map(lambda _: client.post("/api/predict", json=request), range(8)))
    assert {reply.status_code for reply in replies} == {200, 503}
    assert all(reply.headers["retry-after"] for reply in replies if reply.status_code == 503)


def test_control_characters_and_length_of_a_name_are_cut(client):
    name = upload(client, png(), "a\x00b\n" + "c" * 300).json()["name"]
    assert len(name) <= 120
    assert name.isprintable()


def test_the_oldest_uploads_are_dropped_and_the_rest_stays(monkeypatch):
    monkeypatch.setattr(gallery, "MAX_UPLOADS", 2)
    uploads = Gallery([], [32])
    first, second = uploads.upload(png(), "1"), uploads.upload(png(), "2")
    uploads.image(first)
    third = uploads.upload(png(), "3")
    assert [uploads.image(reference).name for reference in (first, third)] == ["1", "3"]
    with pytest.raises(KeyError):
        uploads.image(second)


# ---- which files can be reached


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside" / "red"
    inside.mkdir(parents=True)
    for number in range(2):
        cue_image("red", number)[0].save(inside / f"{number}.png")
    cue_image("blue", 0)[0].save(tmp_path / "secret.png")
    return tmp_path / "inside"


def test_a_link_out_of_the_folder_is_left_out_and_counted(folder):
    (folder / "red" / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "red" / "own.png").symlink_to(folder / "red" / "0.png")
    listed = ImageSource.of_folder(folder, ("red", "blue"))
    assert [note.partition(" links ")[0] for note in listed.notes] == [f"{folder}: 1"]
    assert set(listed.names) == {"red/0.png", "red/1.png"}
    assert set(listed.labels) == {"red"}


def test_a_folder_of_links_only_is_refused(folder):
    alone = folder.parent / "links"
    alone.mkdir()
    (alone / "a.png").symlink_to(folder.parent / "secret.png")
    with pytest.raises(DataError, match="links"):
        ImageSource.of_folder(alone, ())


def test_a_name_that_is_no_utf8_does_not_stop_the_page(folder, runs):
    try:
        (folder / "red" / "0.png").rename(folder / "red" / "a\udcff.png")
    except OSError:
        pytest.skip("this file system knows no such names")
    app, _ = build_explorer([Run.open(runs[0])], [folder])
    with TestClient(app, base_url="http://127.0.0.1") as client:
        (source,) = (entry for entry in client.get("/api/about").json()["sources"] if entry["title"] == folder.name)
        index = source["names"].index(r"red/a\udcff.png")
        facts = client.get(f"/api/images/s0-{index}").json()
        assert client.get(f"/api/images/s0-{index}/view").status_code == 200
    assert facts["name"] == r"red/a\udcff.png"


def test_a_file_swapped_for_a_link_after_the_start_is_refused(folder, runs):
    app, _ = build_explorer([Run.open(runs[0])], [folder])
    with TestClient(app, base_url="http://127.0.0.1") as client:
        image = folder / "red" / "1.png"
        image.unlink()
        image.symlink_to(folder.parent / "secret.png")
        reply = client.get("/api/images/s0-1/view")
    assert reply.status_code == 400
    assert "red/1.png" in reply.json()["error"]


@pytest.mark.parametrize("name", ["../secret.png", "red/../../secret.png", "/etc/passwd"])
def test_a_name_that_climbs_out_is_refused(folder, name):
    with pytest.raises(ImageError, match=re.escape(name)):
        confined(folder, name)


@pytest.mark.parametrize(
    "path",
    [
        "/page/..%2f..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page/app.py",
        "/page/../../../../etc/passwd",
        "/api/images/..%2f..%2fetc%2fpasswd/view",
        "/api/images/s0--1/view",
        "/api/images/s0-1.5/view",
        "/page/docs.html.jinja",
    ],
)
def test_no_path_leads_to_a_file(client, path):
    assert client.get(path).status_code == 404


def test_an_unreadable_image_of_a_folder_gets_a_sentence_without_its_place(folder, runs):
    (folder / "red" / "0.png").write_bytes(b"no image")
    app, _ = build_explorer([Run.open(runs[0])], [folder])
    with TestClient(app, base_url="http://127.0.0.1") as client:
        message = client.get("/api/images/s0-0/view").json()["error"]
    assert message.startswith("red/0.png: ")
    assert str(folder.parent) not in message


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("127.0.0.1:8470", True),
        ("localhost:8470", True),
        ("LOCALHOST", True),
        ("[::1]:8470", True),
        ("192.168.1.7:8470", True),  # reached by --host; an address cannot be rebound
        ("mine.example:8470", True),  # what --host said
        ("proxy.example", True),  # what --allow-host said
        (f"{socket.gethostname()}:8470", True),
        ("evil.example:8470", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("user@127.0.0.1", False),
        ("127.0.0.1/evil", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_only_addresses_and_own_names_are_accepted(host, accepted):
    address = Address(host="mine.example", names=("proxy.example",))
    assert address.accepts(host) is accepted


def test_a_foreign_host_or_origin_gets_nothing(client):
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        reply = client.get("/api/about", headers=headers)
        assert reply.status_code == 403
        assert set(reply.json()) == {"error"}
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert client.get("/api/about", headers={"origin": "http://127.0.0.1:8470"}).status_code == 200


def test_the_page_loads_nothing_from_elsewhere_and_may_not(client):
    page = client.get("/").text
    parts = re.findall(r'(?:src|href)="(/page/[^"]+)"', page)
    assert {"/page/main.js", "/page/explorer.css", "/page/theme.js"} <= set(parts)
    modules = [client.get(f"/page/{path.name}") for path in Path(app_module.__file__).parent.joinpath("page").iterdir()]
    assert all(reply.status_code == 200 for reply in modules)
    for text in (page, *(reply.text for reply in modules)):
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_documentation_lists_every_route_and_shape_and_is_guarded(client):
    page, schema = client.get("/docs"), client.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        assert all(f"{method.upper()} {path}" in page.text for method in methods)
    assert all(f'id="{name}"' in page.text for name in schema["components"]["schemas"])
    assert not re.findall(r"https?://|<script", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get("/docs", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/openapi.json", headers={"host": "evil.example"}).status_code == 403


def test_a_defect_is_reported_without_a_traceback_and_reaches_the_log_of_the_server(client, monkeypatch):
    monkeypatch.setattr(app_module, "prediction_facts", lambda *_: 1 / 0)
    reply = client.post("/api/predict", json={"image": "s0-0"})
    assert reply.status_code == 500
    assert set(reply.json()) == {"error"}
    assert "ZeroDivisionError" not in reply.text
    assert reply.headers["x-content-type-options"] == "nosniff"
    with pytest.raises(ZeroDivisionError):  # uvicorn logs what is raised
        TestClient(client.app, base_url="http://127.0.0.1").post("/api/predict", json={"image": "s0-0"})


# ---- ranking


def ranked(client: TestClient, run: int, source: int = 0) -> dict:
    for _ in range(200):
        state = client.get(f"/api/rankings/{run}/{source}").json()
        if len(state["rows"]) == state["total"]:
            return state
        time.sleep(0.02)
    raise AssertionError(state)


def test_the_ranking_is_what_each_image_gives_alone(client, runs):
    state = ranked(client, DOT)
    assert state["columns"] == ["predicted", "confidence", "loss", "peak", "pointing"]
    for place in (0, 13, 35):
        classifier, images = by_hand(runs, DOT, place)
        with torch.no_grad():
            output = classifier(images)
        label = place // 12  # twelve test images of each class
        combined = combined_map(output.attention)
        predicted, confidence, loss, peak, pointing = state["rows"][place]
        assert predicted == int(output.logits.argmax())
        assert confidence == pytest.approx(float(output.probabilities.max()), rel=1e-5)
        assert loss == pytest.approx(-math.log(float(output.probabilities[0, label])), rel=1e-4, abs=1e-6)
        assert peak == pytest.approx(float(combined.max() / combined.mean()), rel=1e-5)
        assert pointing is None  # a folder knows no boxes


def test_pointing_is_ranked_where_boxes_are_known(runs):
    network = Network(Run.open(runs[0]))
    images = torch.stack([torch.from_numpy(np.array(cue_image("red", seed)[0])).permute(2, 0, 1) for seed in (1, 2)])
    shrunk = TensorDataset(images, torch.tensor([2, 2]), ("blue", "green", "red"), ("a", "b")).load(0, 32)
    reply = network.classifier(plain(shrunk[None]))
    x, y = (float(share) for share in hottest_points(combined_map(reply.attention))[0])
    around = torch.tensor([[x - 0.01, y - 0.01, x + 0.01, y + 0.01], [0.0, 0.0, 1.0, 1.0]]).clamp(0, 1)
    part = TensorDataset(images, torch.tensor([2, 2]), ("blue", "green", "red"), ("a", "b"), around)
    ranking = Ranking(network, ImageSource.of_dataset("made", part))
    for _ in range(200):
        if len(ranking.state()["rows"]) == 2:
            break
        time.sleep(0.02)
    network.close()
    assert [row[4] for row in ranking.state()["rows"]] == [True, True]


def test_a_source_with_classes_that_the_run_does_not_know_cannot_be_ranked(runs):
    network = Network(Run.open(runs[0]))
    part = TensorDataset(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), ("cat",), ("a",))
    with pytest.raises(DataError, match="'cat'"):
        Ranking(network, ImageSource.of_dataset("made", part))
    network.close()


def test_a_ranking_of_an_unknown_run_or_source_is_not_found(client):
    assert [client.get(f"/api/rankings/{path}").status_code for path in ("0/9", "9/0", "-1/0")] == [404, 404, 404]


# ---- starting


def test_a_test_set_that_is_missing_is_reported_and_the_rest_works(copied_run, folder):
    run = Run.open(copied_run)
    run.config["options"]["data"] = str(folder / "gone")
    _, notes = build_explorer([run], [folder])
    assert any("test set" in note and "gone" in note for note in notes)


def test_other_hosts_than_loopback_are_warned_of(runs, monkeypatch):
    monkeypatch.setattr(running.AppServer, "run", lambda self, sockets: None)
    notes: list[str] = []
    explore([Run.open(runs[0])], address=Address(host="0.0.0.0", port=0), browser=False, on_note=notes.append)
    assert any("0.0.0.0" in note for note in notes)
    notes.clear()
    explore([Run.open(runs[0])], address=Address(port=0), browser=False, on_note=notes.append)
    assert notes == []
    assert all(Address(host=host).is_loopback for host in ("127.0.0.1", "::1", "localhost"))
    assert not any(Address(host=host).is_loopback for host in ("10.0.0.1", "0.0.0.0", "example.org"))


def test_a_taken_port_is_named_and_without_one_the_next_is_taken():
    with Address(port=0).listen() as first:
        port = first.getsockname()[1]
        with pytest.raises(OptionError, match=str(port)):
            Address(port=port).listen()
    with Address().listen() as first, Address().listen() as second:
        assert first.getsockname()[1] != second.getsockname()[1]


def test_the_socket_is_one_that_asyncio_sends_from_without_delay():
    with Address(port=0).listen() as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_without_the_extra_the_error_names_it(refusal: Refusal, runs, monkeypatch):
    monkeypatch.setattr(explorer, "PACKAGES", ("no_such_library",))
    message = refusal("explore", runs[0])
    assert "no_such_library" in message
    assert "heedmap[explore]" in message


def test_a_run_or_folder_that_is_not_there_is_refused(refusal: Refusal, runs):
    assert "nowhere" in refusal("explore", "nowhere")
    assert "nowhere" in refusal("explore", runs[0], "--with", "nowhere")
    assert "no-folder" in refusal("explore", runs[0], "no-folder", "--no-browser")
    assert "70000" in refusal("explore", runs[0], "--port", "70000")


def test_replies_are_json_without_nan(client):
    json.loads(client.get("/api/about").text, parse_constant=lambda word: pytest.fail(word))
