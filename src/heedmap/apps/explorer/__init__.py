"""The explorer: a local page on which a person drops an image and sees where a run's network looks.

Why not Gradio, which would have been shorter: everything that makes maps worth exploring happens inside the image.
Reading the value under the pointer, moving a threshold and seeing the mask at once, clicking a place to make it the
query, stepping through the grid by arrow keys, several maps under one cursor: a ready-made image widget has none of
it, and a round to the server for each movement would be slow. So the server (FastAPI, the extra ``explore``) sends the
maps as the float32 numbers that the network used, and one hand-made page draws them on canvases, with the colour table
of :mod:`heedmap.visualization.heatmap`. The page is plain JavaScript modules and loads nothing from elsewhere.

    gallery   which images may be shown       asking    one network, one thread, one question at a time
    walking   ranks a test part                 payload   what the page is told
    guard     Host and Origin                   app       the routes                serving   puts it together
"""

from __future__ import annotations

import importlib.util
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heedmap.errors import OptionError

if TYPE_CHECKING:
    import torch

    from heedmap.runs import Run

__all__ = ["explore"]

NEEDED = ("fastapi", "uvicorn")


def explore(
    runs: Sequence[Run],
    images: Iterable[str | Path] = (),
    *,
    device: str | torch.device = "cpu",
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    on_ready: Callable[[str], None] = lambda address: None,
    on_note: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Serve the explorer until interrupted.

    Args:
        runs: one finished run, or several to compare on the same image.
        images: folders, files or patterns that may be looked at, beside the first run's test part and what is
            dropped on the page.
        device: where the networks run.
        host: address to listen on; other machines can reach all but a loopback address.
        port: None takes a free one.
        browser: open the page in the user's browser.
        on_ready: called with the page's address once it answers.
        on_note: called with each sentence the user should know before.

    Raises:
        OptionError: the extra is not installed, or the address cannot be listened on.
        DataError, RunError: images or runs that cannot be used.
    """
    check_extra()
    from heedmap.apps.explorer.serving import assemble, is_loopback, listen, run_explorer

    app, notes = assemble(runs, images, device=device, host=host)
    for note in notes:
        on_note(note)
    if not is_loopback(host):
        on_note(f"Warning: anyone who can reach {host} on this network can use the page and see these images.")

    def ready(address: str) -> None:
        on_ready(address)
        if browser:
            webbrowser.open(address)

    run_explorer(app, listen(host, port), ready)


def check_extra() -> None:
    """Check that what the explorer needs is installed.

    Raises:
        OptionError: it is not; the message says how to install it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"The explorer needs {' and '.join(missing)}: pip install 'heedmap[explore]'")
