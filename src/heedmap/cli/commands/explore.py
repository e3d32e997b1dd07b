"""``heedmap explore``."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.markup import escape

from heedmap.cli.commands.arguments import Device, HostNames, RunFolder, pick_device
from heedmap.cli.console import bold, console, say


@dataclass(frozen=True, kw_only=True)
class Explore:
    """Open a page in the browser: drop an image, see the maps, move the query, compare runs.

    Attributes:
        images: Folders or files that the page may show, beside the run's own test part.
        with_: More run folders to see beside the first, on the same image.
        host: Address to listen on. Another than the default lets other machines in.
        port: Port to listen on; 0 takes any free one. Default: the first free one from 8470 on.
        browser: Open the page in the browser.
    """

    run: RunFolder
    images: tyro.conf.Positional[tuple[str, ...]] = ()
    with_: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    host: str = "127.0.0.1"
    port: int | None = None
    allow_host: HostNames = ()
    browser: bool = True
    device: Device = None

    def work(self) -> None:
        """Serve the page until Ctrl-C."""
        from heedmap.apps.explorer import Address, explore
        from heedmap.runs import Run

        explore(
            [Run.open(path) for path in (self.run, *self.with_)],
            self.images,
            address=Address(host=self.host, port=self.port, names=self.allow_host),
            device=pick_device(self.device),
            browser=self.browser,
            on_ready=lambda url: say(f"Open {bold(url)}  (Ctrl-C stops it)"),
            on_note=lambda note: say(escape(note)),
        )
        console.print("Stopped.")
