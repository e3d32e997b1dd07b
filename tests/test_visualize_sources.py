"""Images in tar shards are drawn as the files that were packed, and no drawing takes another one's name."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heedmap.cli.main import main
from heedmap.data import open_data
from heedmap.data.webdataset.dataset import pack
from heedmap.errors import DataError, Stopped
from heedmap.inference.listing import DRAWN
from heedmap.inference.reading import Sources
from heedmap.workflows.visualize import DrawingNames, VisualizeOptions, find_sources, visualize
from test_predict import pack as tar
from test_visualize import Fake, Impatient, red_spot, table


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [red_spot(tmp_path / "in" / f"{n}.png", centre=(20 + 4 * n, 12)) for n in range(3)]


def drawn(out: Path) -> list[str]:
    """Return the names of all drawings, after a look that each has all of its files."""
    found = [sorted(file.stem for file in (out / part).iterdir()) for part in DRAWN]
    assert found[0] == found[1] == found[2]
    return found[0]


@pytest.mark.parametrize("scale", ["image", "set"])
def test_images_in_a_shard_are_drawn_as_the_files_that_were_packed(tmp_path, files, scale) -> None:
    visualize(Fake(), files, tmp_path / "files", options=VisualizeOptions(scale=scale, batch_size=2))
    shard = tar(tmp_path / "s.tar", files)
    result = visualize(Fake(), shard, tmp_path / "shard", options=VisualizeOptions(scale=scale, batch_size=2))
    assert (result.count, result.unreadable) == (3, ())
    assert drawn(tmp_path / "shard") == ["s_digits_0", "s_digits_1", "s_digits_2"]
    for number in range(3):
        one, other = (tmp_path / a / "maps" / f"{b}{number}.npz" for a, b in (("files", ""), ("shard", "s_digits_")))
        with np.load(one) as first, np.load(other) as second:
            assert sorted(first) == sorted(second)
            assert all(np.array_equal(first[name], second[name]) for name in first)
        panels = (
            Image.open(tmp_path / a / "panels" / f"{b}{number}.png") for a, b in (("files", ""), ("shard", "s_digits_"))
        )
        one, other = (np.asarray(panel)[60:] for panel in panels)  # below the headline, which has the name
        assert np.array_equal(one, other)
    rows = table(tmp_path / "shard")
    assert [row["path"] for row in rows] == [f"{shard}/digits/{n}.png" for n in range(3)]
    for one, other in zip(rows, table(tmp_path / "files"), strict=True):
        assert {**one, "path": "", "label": ""} == {**other, "path": "", "label": ""}


def test_equal_names_in_files_and_shards_get_drawings_of_their_own(tmp_path, files) -> None:
    shards = [tar(tmp_path / part / "0.tar", files) for part in ("a", "b") if (tmp_path / part).mkdir() is None]
    duplicate = red_spot(tmp_path / "other" / "0_digits_0.png")
    visualize(Fake(), [duplicate, *files, *shards, *files], tmp_path / "out", options=VisualizeOptions(batch_size=4))
    assert len(drawn(tmp_path / "out")) == len(table(tmp_path / "out")) == 10
    assert {"0_digits_0", "0_digits_0-2", "0_digits_0-3", "0"} < set(drawn(tmp_path / "out"))


def test_names_of_drawings_differ_whatever_was_requested() -> None:
    name = DrawingNames()
    requested = ["a", "a-2", "A", "a", "a-2", "a-3", "a/b", "a_b", "", ".", "x" * 300, "x" * 301, "ä", "Ä"] * 3
    found = [name(wish) for wish in requested]
    assert len({each.casefold() for each in found}) == len(requested)
    assert found[:4] == ["a", "a-2", "A-3", "a-4"]
    assert all(each == Path(each).name and not each.startswith((".", "-")) for each in found)


def test_ten_thousand_equal_names_are_numbered_quickly() -> None:
    name = DrawingNames()
    assert len({name("000000") for _ in range(10_000)}) == 10_000


def test_a_shard_s_labels_are_the_truth_by_name_and_by_number(tmp_path) -> None:
    for label in ("red", "other"):
        for part in ("train", "test"):
            for number in range(2):
                red_spot(tmp_path / "set" / part / label / f"{part}{number}.png", centre=(20 + 9 * number, 12))
    pack(open_data(tmp_path / "set"), tmp_path / "shards")
    result = visualize(Fake(), tmp_path / "shards", tmp_path / "out")
    assert result.count == 8
    assert all(Path(row["path"]).parent.name == row["label"] for row in table(tmp_path / "out"))
    assert "truth: other" in result.index.read_text(encoding="utf-8")  # all have a red spot
    (tmp_path / "shards" / "classes.txt").unlink()  # then a number may mean anything
    visualize(Fake(), tmp_path / "shards" / "test", tmp_path / "numbers")
    assert [row["label"] for row in table(tmp_path / "numbers")] == [""] * 4


def test_what_cannot_be_read_of_a_shard_is_told_by_its_name(tmp_path, files) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    shard = tar(tmp_path / "s.tar", [*files, tmp_path / "broken.png"])
    short, none = tmp_path / "short.tar", tmp_path / "none.tar"
    short.write_bytes(shard.read_bytes()[: shard.read_bytes().index(b"digits/2.png") + 600])
    none.write_bytes(b"no tar file at all" * 100)
    result = visualize(Fake(), [shard, short, none], tmp_path / "out")
    told = {str(Path(path).relative_to(tmp_path)): reason for path, reason in result.unreadable}
    assert sorted(told) == ["none.tar", "s.tar/digits/broken.png", "short.tar"]
    assert told["s.tar/digits/broken.png"] == "the file is empty (0 bytes)"
    assert "damaged after byte" in told["short.tar"]
    assert result.count == 5
    with pytest.raises(DataError, match=r"The only image, \S+none.tar, cannot be read: .*tar"):
        visualize(Fake(), none, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_an_interruption_amid_shards_tells_what_was_drawn(tmp_path, files) -> None:
    with pytest.raises(Stopped, match=r"^Stopped after 2 images; "):
        visualize(
            Impatient(2), tar(tmp_path / "s.tar", files), tmp_path / "out", options=VisualizeOptions(batch_size=2)
        )
    assert drawn(tmp_path / "out") == ["s_digits_0", "s_digits_1"]


def test_the_command_takes_shards_folders_of_them_and_lists(finished_run, tmp_path, files, monkeypatch) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(2):
        tar(tmp_path / "shards" / f"{number}.tar", files)
    (tmp_path / "list.txt").write_text(f"{files[0]}\n{tmp_path}/shards/{{0..1}}.tar\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{files[1]}\n{tmp_path}/shards\n"))
    main(["visualize", str(finished_run), f"@{tmp_path}/list.txt", "-", "--out", str(tmp_path / "out")])
    assert len(table(tmp_path / "out")) == 2 + 2 * 3
    assert len(drawn(tmp_path / "out")) == 8


def test_names_from_python_are_taken_as_they_stand(tmp_path, files) -> None:
    odd = red_spot(tmp_path / "[a]*.png")
    assert visualize(Fake(), odd, tmp_path / "one").count == 1
    assert visualize(Fake(), find_sources([tmp_path / "in"]), tmp_path / "two").count == 3
    assert Sources(["a"]).count == 1
    assert Sources(["a"], [odd]).count is None
