"""The explorer: a local page on which a person drops an image and sees where a run's network looks.

Why not Gradio, which would have been shorter: what makes maps worth exploring happens inside the image (the value
under the pointer, a threshold and its mask, a click that makes a place the query, several maps under one cursor), which
no ready-made image widget has, and a round to the server for each movement would be slow. So the server (FastAPI, the
extra ``explore``) sends the maps as the float32 numbers that the network used, and one page of plain JavaScript, which
loads nothing from elsewhere, draws them with the colours of :mod:`heedmap.visualization.heatmap`.

    gallery   which images may be shown       network     one network, one thread, one request at a time
    ranking   ranks a test set                app         puts runs and images together; the routes
"""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heedmap.apps import require_packages
from heedmap.apps.address import Address

if TYPE_CHECKING:
    import torch

    from heedmap.runs import Run

__all__ = ["Address", "explore"]

PACKAGES = ("fastapi", "uvicorn")


def explore(
    runs: Sequence[Run],
    images: Iterable[str | Path] = (),
    *,
    address: Address | None = None,
    device: str | torch.device = "cpu",
    browser: bool = True,
    on_ready: Callable[[str], None] = lambda url: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> None:
    """Serve the explorer until SIGINT or SIGTERM.

    Args:
        runs: finished runs, to compare on the same image.
        images: folders, files or patterns to show beside the first run's test set and what is dropped on the page.
        address: None takes 127.0.0.1 and the first free port from 8470 on.
        device: where the networks run.
        browser: open the page in the user's browser.
        on_ready, on_note: called with the page's address once it replies, and before with what the user should know.

    Raises:
        OptionError, DataError, RunError: the extra is missing, or the address, the images or a run cannot be used.
    """
    require_packages("explore", *PACKAGES)
    # Late: FastAPI and uvicorn are an extra, and what is missing is named above.
    from heedmap.apps.explorer.app import LIMITS, build_explorer
    from heedmap.apps.running import AppServer  # late: uvicorn is an extra

    address = address or Address()

    def ready(url: str) -> None:
        on_ready(url)
        if browser:
            webbrowser.open(url)

    with address.listen() as listening:  # before the weights: a port that is taken is reported at once
        app, notes = build_explorer(runs, images, device=device, address=address)
        for note in notes:
            on_note(note)
        if not address.is_loopback:
            on_note(f"Warning: anyone who can reach {address.host} can use the page and see these images.")
        AppServer(app, LIMITS, ready, grace=3.0).run(sockets=[listening])
