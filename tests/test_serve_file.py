"""An exported file is served on a machine that has no torch, with the predictions that the file gives from Python."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Refusal, cue_image
from heedmap import OnnxClassifier, Run, export
from heedmap.inference.boxes import boxes_of

httpx = pytest.importorskip("httpx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from test_visualize_file import WITHOUT_TORCH  # noqa: E402  needs the packages above


@pytest.fixture(scope="module")
def file(_finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    views = [cue_image(name, 3)[0] for name in ("red", "blue", "green")]
    return export(Run.open(_finished_run), tmp_path_factory.mktemp("file") / "model.onnx", images=views).path


@pytest.fixture(scope="module")
def address(file: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TORCH, "serve", str(file), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        assert found, line + process.stderr.read()
        yield found[0]
        process.terminate()
        _, complaints = process.communicate(timeout=30)
        assert (process.returncode, complaints) == (0, "")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def content(file: Path) -> bytes:
    stream = io.BytesIO()
    cue_image("green", 4)[0].resize((OnnxClassifier(file).image_size,) * 2).save(stream, "PNG")
    return stream.getvalue()


def post(address: str, content: bytes, query: str = "") -> "httpx.Response":
    reply = httpx.post(f"{address}/predict{query}", content=content, headers={"Content-Type": "image/png"}, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply


def test_the_prediction_is_the_file_s_own(address, content, file) -> None:
    prediction = post(address, content, "?values=true").json()
    classifier = OnnxClassifier(file)
    own = classifier(np.asarray(Image.open(io.BytesIO(content)))[None])
    assert prediction["predicted"]["name"] == classifier.classes[int(own["probabilities"][0].argmax())]
    assert prediction["predicted"]["probability"] == pytest.approx(float(own["probabilities"].max()), abs=1e-6)
    assert list(prediction["maps"]) == list(classifier.maps)
    for name, served in prediction["maps"].items():
        np.testing.assert_allclose(served["values"], own["maps"][name][0, 0], atol=1e-6)
        boxes = boxes_of(own["maps"][name][0], 0.5, classifier.image_size)[0]
        assert [box["share"] for box in served["boxes"]] == pytest.approx([box["share"] for box in boxes])


def test_the_map_comes_as_an_array_and_as_an_image(address, content) -> None:
    values = np.load(io.BytesIO(post(address, content, "?format=npy&tap=combined").content))
    assert values.dtype == np.float32
    assert values.max() > 0
    drawn = Image.open(io.BytesIO(post(address, content, "?format=overlay&size=96").content))
    assert (drawn.format, drawn.size) == ("PNG", (96, 96))
    assert np.ptp(np.asarray(drawn)) > 50


def test_a_damaged_image_and_the_page_get_a_response_too(address) -> None:
    reply = httpx.post(f"{address}/predict", content=b"\x89PNG and no more", headers={"Content-Type": "image/png"})
    assert reply.status_code in (415, 422)
    assert "<html" in httpx.get(address).text
    assert httpx.get(f"{address}/health").json()["status"] == "ok"


def test_another_device_is_refused(refusal: Refusal, file) -> None:
    assert "CPU" in refusal("serve", str(file), "--device", "cuda")
