"""The example notebook runs from its first cell to its last, and is committed without its outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

STORY = Path(__file__).parents[1] / "examples" / "story.ipynb"


def test_the_story_is_committed_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(STORY, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) >= 8
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the messaging between notebook and kernel are not ours
def test_the_story_runs_and_shows_images() -> None:
    pytest.importorskip("ipykernel")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    story = nbformat.read(STORY, as_version=4)
    nbclient.NotebookClient(story, timeout=250, kernel_name="python3").execute()
    shown = "".join(
        output.data.get("text/html", "")
        for cell in story.cells
        for output in cell.get("outputs", ())
        if "data" in output
    )
    assert shown.count("data:image/png;base64,") >= 5  # two images' maps, the combined one, the switched ones
    assert "test accuracy" in shown
