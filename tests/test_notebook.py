"""In a notebook things show themselves: images inside, nothing loaded, nothing of IPython needed."""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heedmap import AttentionMap, Output, Run
from heedmap.visualization.heatmap import heatmap

GRID = torch.tensor([[0.0, 0.2], [0.3, 0.5]])


def images(html: str) -> list[Image.Image]:
    found = re.findall(r"src='data:image/png;base64,([^']+)'", html)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_a_map_shows_its_heatmap_on_its_own_scale_and_says_what_it_is() -> None:
    html = AttentionMap(GRID, "stage<3>", "dot, softmax", 0.0, 1.0)._repr_html_()
    (shown,) = images(html)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(heatmap(GRID, 0.0, 1.0, 160)))
    for words in ("stage&lt;3&gt;", "2 x 2", "dot, softmax", "from 0 to 1"):
        assert words in html


def test_an_output_shows_the_maps_of_each_image_and_not_of_too_many() -> None:
    attention = {"a": GRID.expand(12, 1, 2, 2), "b": GRID.expand(12, 1, 2, 2)}
    html = Output(torch.tensor([[0.0, 2.0]]).expand(12, 2), attention)._repr_html_()
    assert len(images(html)) == 8 * 2
    assert "class 1 (88.1%)" in html  # 1 / (1 + exp(-2))
    assert "and 4 more" in html


def test_an_output_that_carries_gradients_can_be_shown() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    assert images(Output(logits, {"a": GRID[None, None].requires_grad_()})._repr_html_())


def test_a_run_shows_what_it_came_to(finished_run: Path) -> None:
    html = Run.open(finished_run)._repr_html_()
    for words in ("compact", "parametrised", "36 images", "report.html"):
        assert words in html


def test_a_run_that_is_not_finished_can_be_shown(tmp_path: Path) -> None:
    assert "not yet" in Run.create(tmp_path / "run")._repr_html_()


def test_showing_loads_nothing_from_elsewhere_and_needs_no_ipython(finished_run: Path) -> None:
    script = f"import sys; from heedmap import Run; html = Run.open({str(finished_run)!r})._repr_html_(); "
    script += "assert 'http' not in html and 'IPython' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bad", [torch.full((2, 2), torch.nan)])
def test_a_map_that_is_not_finite_is_refused_rather_than_painted(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="NaN"):
        AttentionMap(bad, "a", "dot", 0.0, 1.0)._repr_html_()
