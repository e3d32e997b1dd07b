"""Tables for any number of images: right, each image once whoever is killed when, and memory that stays flat."""

import json
import math
import multiprocessing
import os
import random
import shutil
import tarfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from conftest import Refusal
from heedmap.cli.main import main
from heedmap.data.decoding import read_image, square, to_tensor
from heedmap.data.loader import Share
from heedmap.errors import DataError, OptionError
from heedmap.inference.boxes import boxes_of, upsampled_views
from heedmap.inference.reading import DecodedImage, Item, read_item
from heedmap.inference.torch_predictor import predictions_of
from heedmap.models.classifier import AttentionClassifier, attention_maps
from heedmap.runs import Run
from heedmap.types import Output
from heedmap.visualization.heatmap import hottest
from heedmap.workflows.predict import PredictOptions, TableOptions, find_sources, predict
from heedmap.workflows.predict.table import map_columns, rows_of

SIDE = 24


def draw_digits(folder: Path, count: int) -> list[Path]:
    """Write ``count`` different images of handwritten digits."""
    digits = load_digits().images
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        pixels = np.kron(digits[number % len(digits)] * 15, np.ones((3, 3))).astype(np.uint8)
        pixels[0, 0] = number % 256
        files.append(folder / f"{number:05d}.png")
        Image.fromarray(pixels).save(files[-1], compress_level=1)
    return files


def pack(path: Path, files: list[Path]) -> Path:
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, f"digits/{file.name}")
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    draw_digits(folder, 150)
    return folder


@pytest.fixture
def classifier(finished_run: Path) -> AttentionClassifier:
    return Run.open(finished_run).classifier()


def table(out: Path, name: str = "predictions") -> list[dict[str, Any]]:
    rows = [row for part in sorted((out / name).glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    assert not list((out / name).glob(".*"))
    return rows


def names(out: Path) -> list[str]:
    return [row["member"] or row["path"] for row in table(out)]


# ---- what is told


def test_a_row_says_what_the_network_says(classifier: AttentionClassifier, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 200, 3), dtype=np.uint8))
    image.save(tmp_path / "wide.png")
    request = TableOptions(threshold=0.6, probabilities=True, maps="float32")
    predict(
        classifier, tmp_path / "wide.png", tmp_path / "out", table=request, options=PredictOptions(precision="float32")
    )
    (row,) = table(tmp_path / "out")
    view = to_tensor(square(read_image(tmp_path / "wide.png"), classifier.image_size)).float()[None] / 255
    with torch.inference_mode():
        output = classifier(view)
    maps = attention_maps(classifier, output, 0)
    assert (row["path"], row["key"], row["member"]) == (str(tmp_path / "wide.png"), None, None)
    assert (row["width"], row["height"]) == (200, 90)
    probabilities = output.probabilities[0]
    assert row["predicted"] == classifier.classes[int(probabilities.argmax())]
    assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-6)
    np.testing.assert_allclose(row["probabilities"], probabilities, atol=1e-6)
    assert len(maps) >= 2
    for name, drawn in maps.items():
        values = drawn.values.double().numpy()
        share = values / values.sum()
        entropy = -sum(p * math.log(p) for p in share.flatten() if p > 0) / math.log(values.size)
        assert row[f"{name}_peak"] == pytest.approx(values.max(), rel=1e-5)
        assert row[f"{name}_entropy"] == pytest.approx(entropy, abs=1e-5)
        assert row[f"{name}_above"] == pytest.approx((values >= 0.6 * values.max()).mean(), abs=1e-6)
        np.testing.assert_allclose(np.reshape(row[f"{name}_map"], values.shape), values, atol=1e-6)
        x, y = hottest(drawn.values)
        if row[f"{name}_x"] is not None:
            assert (row[f"{name}_x"], row[f"{name}_y"]) == pytest.approx((55 + 90 * x, 90 * y), abs=1e-3)


def test_the_columns_of_a_map_by_hand() -> None:
    values = torch.tensor([[4.0, 0, 0, 0], [1, 1, 1, 1], [2, 1, 1, 0]]).reshape(3, 1, 2, 2)
    squares = np.array([[10.0, 0, 30, 20]] * 3)
    found = map_columns(values, squares, 0.5)
    assert found["peak"] == [4, 1, 2]
    assert found["entropy"] == pytest.approx([0, 1, 0.75])  # 1/2, 1/4, 1/4: 1.5 bits of 2
    assert found["above"] == [0.25, 1, 0.75]
    assert found["x"] == [15, None, 15]
    assert found["y"] == [5, None, 5]


def test_boxes_stand_round_what_is_attended_to() -> None:
    values = np.zeros((2, 8, 8), np.float32)
    values[0, 1:3, 2:5] = 1.0  # six cells
    values[0, 6, 6] = 0.8
    values[1] = 0.3
    (large, small), none = boxes_of(values, 0.75, 8)
    assert none == []
    assert large == pytest.approx({"left": 2 / 8, "top": 1 / 8, "right": 5 / 8, "bottom": 3 / 8, "share": 6 / 6.8})
    assert small == pytest.approx({"left": 6 / 8, "top": 6 / 8, "right": 7 / 8, "bottom": 7 / 8, "share": 0.8 / 6.8})
    assert len(boxes_of(values, 0.9, 8)[0]) == 1


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 8), (8, 8, 30), (3, 5, 64), (1, 4, 9), (16, 12, 7)])
def test_maps_are_resized_for_boxes_as_torch_does(height: int, width: int, size: int) -> None:
    values = torch.rand(3, height, width, generator=torch.Generator().manual_seed(size))
    expected = torch.nn.functional.interpolate(values[:, None].double(), (size, size), mode="bilinear")[:, 0]
    np.testing.assert_allclose(upsampled_views(values.numpy(), size), expected, atol=1e-6)


def test_boxes_are_in_pixels_of_the_upright_original(classifier: AttentionClassifier, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (1600, 800), "white").save(tmp_path / "turned.jpg", exif=exif)
    image = read_item(Item(str(tmp_path / "turned.jpg")), classifier.image_size)
    assert isinstance(image, DecodedImage)
    assert image.size == (800, 1600)  # although it was decoded at an eighth
    attention = torch.zeros(1, 1, 8, 8)
    attention[0, 0, :4, 6:] = 1 / 8
    predictions = predictions_of(classifier, Output(torch.zeros(1, 3), {"tap": attention}))
    (row,) = rows_of(predictions, [image], classifier.image_size, TableOptions(0.75))
    (box,) = row["boxes"]
    step = 800 / classifier.image_size
    assert (box["left"], box["top"], box["right"], box["bottom"]) == pytest.approx((600, 400, 800, 800), abs=step)
    assert (row["tap_x"], row["tap_y"]) == (650, 450)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_maps_are_arrays_of_their_shape(
    classifier: AttentionClassifier, digits: Path, tmp_path: Path, kind: Any
) -> None:
    predict(classifier, digits / "00001.png", tmp_path / "out", table=TableOptions(maps=kind))
    column = pq.read_table(tmp_path / "out" / "predictions").column("combined_map")
    array = column.combine_chunks().to_numpy_ndarray()
    assert array.dtype == kind
    assert array.shape[0] == 1
    assert array.ndim == 3


def test_what_cannot_be_read_has_a_table_of_its_own(classifier: AttentionClassifier, tmp_path: Path) -> None:
    files = draw_digits(tmp_path / "d", 5)
    (tmp_path / "d" / "broken.png").write_bytes(b"")
    shard = pack(tmp_path / "s.tar", [*files, tmp_path / "d" / "broken.png"])
    short = tmp_path / "short.tar"
    short.write_bytes(shard.read_bytes()[:6000])
    (tmp_path / "no.tar").write_bytes(b"no tar file at all" * 100)
    result = predict(
        classifier,
        [tmp_path / "d", shard, short, tmp_path / "no.tar"],
        tmp_path / "out",
        options=PredictOptions(part_size=4),
    )
    assert 10 < result.count == len(names(tmp_path / "out")) < 15
    assert (result.unreadable, result.finished) == (4, True)
    told = {(Path(row["path"]).name, row["member"]): row["reason"] for row in table(tmp_path / "out", "unreadable")}
    assert told[("broken.png", None)] == "the file is empty (0 bytes)"
    assert "empty" in told[("s.tar", "digits/broken.png")]
    assert "damaged after byte" in told[("short.tar", None)]
    assert "not a plain tar file" in told[("no.tar", None)]
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert counts["images"] == len(table(tmp_path / "out"))
    assert counts["unreadable"] == 4


# ---- which images


def test_files_folders_patterns_lists_and_shards_are_found(digits: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(3):
        pack(shards / f"{number:02d}.tar", sorted(digits.iterdir())[:2])
    listed = tmp_path / "list.txt"
    listed.write_text(f"{digits}/00003.png\n\n{digits}/0000[45].png\n{shards}/{{00..01}}.tar\n")
    found = find_sources([f"@{listed}", "-", str(digits / "00003.png")], [f"{digits}/00009.png\n"])
    assert [Path(file).name for file in found.files] == ["00003.png", "00004.png", "00005.png", "00009.png"]
    assert [shard.name for shard in found.shards] == ["00.tar", "01.tar"]
    assert [shard.name for shard in find_sources([shards]).shards] == ["00.tar", "01.tar", "02.tar"]
    parts = tmp_path / "parts"
    for part in ("train", "test"):
        (parts / part).mkdir(parents=True)
        pack(parts / part / "00.tar", sorted(digits.iterdir())[:2])
    (parts / "classes.txt").write_text("0\n1\n")
    assert find_sources([parts]).shards == [parts / "test" / "00.tar", parts / "train" / "00.tar"]
    (parts / "train" / "cats").mkdir()  # then the tar file is what these were unpacked from
    assert find_sources([parts]).shards == [parts / "test" / "00.tar"]
    (shards / "x.png").write_bytes(b"")
    assert find_sources([shards]).files == [str(shards / "x.png")]


@pytest.mark.parametrize("words", [["@absent.txt"], ["absent.png"], ["absent.tar"], ["-"]])
def test_what_is_not_there_is_refused(words: list[str]) -> None:
    with pytest.raises(DataError, match=r"absent|No images"):
        find_sources(words)


def test_images_in_a_shard_get_the_answers_of_the_files_that_were_packed(
    classifier: AttentionClassifier, digits: Path, tmp_path: Path
) -> None:
    files = sorted(digits.iterdir())[:20]
    predict(classifier, files, tmp_path / "files", options=PredictOptions(batch_size=8))
    predict(classifier, pack(tmp_path / "s.tar", files), tmp_path / "shard", options=PredictOptions(batch_size=8))
    one, other = table(tmp_path / "files"), table(tmp_path / "shard")
    assert [row["key"] for row in other] == [f"digits/{file.stem}" for file in files]
    for a, b in zip(one, other, strict=True):
        assert {k: v for k, v in a.items() if k not in ("path", "key", "member")} == {
            k: v for k, v in b.items() if k not in ("path", "key", "member")
        }


# ---- going on


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_shares_of_all_processes_are_the_images_each_once(
    classifier: AttentionClassifier, digits: Path, tmp_path: Path, world: int
) -> None:
    shard = pack(tmp_path / "s.tar", sorted(digits.iterdir())[:50])
    results = [
        predict(
            classifier,
            [digits, shard],
            tmp_path / "out",
            options=PredictOptions(part_size=16, share=Share(rank, world)),
        )
        for rank in range(world)
    ]
    assert [result.finished for result in results] == [False] * (world - 1) + [True]
    found = names(tmp_path / "out")
    assert len(found) == len(set(found)) == 200


def test_a_finished_table_is_not_made_again(classifier: AttentionClassifier, digits: Path, tmp_path: Path) -> None:
    predict(classifier, digits, tmp_path / "out", options=PredictOptions(part_size=64))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "predictions").iterdir()}
    again = predict(classifier, digits, tmp_path / "out", options=PredictOptions(part_size=64))
    assert (again.count, again.parts_kept, again.finished) == (0, 3, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "predictions").iterdir()} == before


def test_another_question_other_images_or_a_strange_folder_are_refused(
    classifier: AttentionClassifier, digits: Path, tmp_path: Path
) -> None:
    predict(classifier, digits / "00001.png", tmp_path / "out")
    with pytest.raises(DataError, match="another images"):
        predict(classifier, digits / "00002.png", tmp_path / "out")
    with pytest.raises(DataError, match="another threshold"):
        predict(classifier, digits / "00001.png", tmp_path / "out", table=TableOptions(threshold=0.2))
    with torch.no_grad():
        next(classifier.parameters()).add_(1)
    with pytest.raises(DataError, match="another model"):
        predict(classifier, digits / "00001.png", tmp_path / "out")
    with pytest.raises(DataError, match="is not empty"):
        predict(classifier, digits / "00001.png", digits)


def test_a_image_that_has_changed_since_is_another_image(
    classifier: AttentionClassifier, digits: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.png"
    shutil.copy(digits / "00001.png", kept)
    predict(classifier, kept, tmp_path / "out")
    shutil.copy(digits / "00002.png", kept)
    with pytest.raises(DataError, match="another images"):
        predict(classifier, kept, tmp_path / "out")


def test_a_damaged_table_is_named_and_its_part_alone_made_again(
    classifier: AttentionClassifier, digits: Path, tmp_path: Path
) -> None:
    predict(classifier, digits, tmp_path / "out", options=PredictOptions(part_size=64))
    damaged = tmp_path / "out" / "predictions" / "part-000001.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"x")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"part-000001\.parquet is damaged .* remove it and start again"):
        predict(classifier, digits, tmp_path / "out", options=PredictOptions(part_size=64))
    damaged.unlink()
    assert predict(classifier, digits, tmp_path / "out", options=PredictOptions(part_size=64)).parts_kept == 2
    assert damaged.read_bytes() == whole


def test_names_that_are_no_utf8_stay_different(classifier: AttentionClassifier, digits: Path, tmp_path: Path) -> None:
    for byte in (b"\xfe", b"\xff"):
        try:
            shutil.copy(digits / "00001.png", os.fsencode(tmp_path) + b"/a" + byte + b".png")
        except OSError:
            pytest.skip("this file system knows no such names")
    predict(classifier, tmp_path, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "predictions")
    assert [Path(path).name for path in table["path"].to_pylist()] == [r"a\udcfe.png", r"a\udcff.png"]


def test_values_out_of_range_are_refused(classifier: AttentionClassifier, digits: Path, tmp_path: Path) -> None:
    for wrong in ({"batch_size": 0}, {"part_size": 0}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            PredictOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"0\.0"):
        TableOptions(threshold=0.0)
    with pytest.raises(OptionError, match="float8"):
        predict(classifier, digits, tmp_path / "out", options=PredictOptions(precision="float8"))
    assert not (tmp_path / "out").exists()


def process(rank: int, world: int, words: list[str]) -> None:
    """One process as torchrun starts it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    main(words)


def started(words: list[str], world: int) -> list[BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["heedmap.workflows.predict", "heedmap.cli.main", "pyarrow.parquet", "scipy.ndimage"]
    )
    made: list[BaseProcess] = [context.Process(target=process, args=(rank, world, words)) for rank in range(world)]
    for each in made:
        each.start()
    return made


@pytest.mark.slow
def test_killed_at_random_and_started_again_each_image_is_there_once(
    finished_run: Path, digits: Path, tmp_path: Path
) -> None:
    shard = pack(tmp_path / "s.tar", sorted(digits.iterdir())[:90])
    out = tmp_path / "out"
    words = ["predict", str(finished_run), str(digits), str(shard), "--out", str(out), "--part-size", "4", "--workers"]
    words += ["1", "--batch-size", "3"]
    chance, kills = random.Random(0), 0
    for world in (2, 1, 2):
        parts = len(list(out.glob("predictions/part-*")))
        goal, until = parts + chance.randrange(2, 9), time.monotonic() + 60
        running = started(words, world)
        while len(list(out.glob("predictions/part-*"))) < goal and any(each.is_alive() for each in running):
            assert time.monotonic() < until
            time.sleep(chance.random() * 0.01)
        for each in running:
            kills += each.is_alive()
            each.kill()
            each.join()
    assert kills >= 4
    assert not (out / "manifest.json").exists()
    last = started(words, 2)
    for each in last:
        each.join(60)
    assert [each.exitcode for each in last] == [0, 0]
    found = names(out)
    assert len(found) == len(set(found)) == 240
    assert json.loads((out / "manifest.json").read_text())["images"] == 240


def test_an_interrupted_part_leaves_nothing_that_could_be_taken_for_it(
    classifier: AttentionClassifier, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = 0

    def interrupt(done: int) -> None:
        nonlocal answers
        answers = done
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(
            classifier,
            digits,
            tmp_path / "out",
            on_progress=interrupt,
            options=PredictOptions(part_size=32, batch_size=8),
        )
    assert len(names(tmp_path / "out")) == 32
    predict(classifier, digits, tmp_path / "out", options=PredictOptions(part_size=32, batch_size=8))
    assert sorted(names(tmp_path / "out")) == sorted(map(str, digits.iterdir()))


# ---- the command


def test_the_command_says_what_it_did(finished_run: Path, digits: Path, tmp_path: Path, capsys: Any) -> None:
    main(["predict", str(finished_run), str(digits), "--out", str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert "150 images predicted" in text
    assert text.splitlines()[-1].startswith("Next: python -c \"import pyarrow.parquet as p; print(p.read_table('")


def test_several_processes_do_not_share_standard_input(
    finished_run: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "@list.txt" in refusal("predict", finished_run, "-", "--out", tmp_path / "out")
