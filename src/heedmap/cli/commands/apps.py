"""``heedmap serve`` and ``heedmap explore``."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.markup import escape

from heedmap.cli.commands.arguments import Device, HostNames, RunFolder, RunOrFile, pick_device
from heedmap.cli.console import bold, complaints, console, say
from heedmap.config import Options, Range


@dataclass(frozen=True, kw_only=True)
class Serve(Options):
    """Serve predictions over HTTP: class, probabilities, boxes and the map, as JSON, PNG or array.

    Attributes:
        host: Address to listen on. There is no password: whoever reaches it can send requests.
        port: Port to listen on; 0 takes a free one.
        max_bytes: Largest body.
        max_pixels: Largest image, by its header, before it is decoded.
        timeout: Seconds that a body, a prediction, and reading the response may take, each.
        waiting: Requests that may wait; one more gets status 503.
        batch_size: Images predicted together at most.
        batch_wait: Milliseconds that the first image of a batch waits for others.
    """

    source: RunOrFile
    host: str = "127.0.0.1"
    port: int = 8000
    allow_host: HostNames = ()
    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    timeout: float = 20.0
    waiting: int = 256
    batch_size: int = 16
    batch_wait: Annotated[float, Range(0, 1000)] = 3.0
    device: Device = None

    def work(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        from heedmap.apps.server import Address, Limits, serve

        address = Address(host=self.host, port=self.port, names=self.allow_host)
        same = {name: getattr(self, name) for name in ("max_bytes", "max_pixels", "timeout", "waiting", "batch_size")}
        limits = Limits(**same, batch_wait=self.batch_wait / 1000)
        if not address.is_loopback:
            say(f"[yellow]{escape(self.host)} is open to other machines, and there is no password.[/]", complaints)
        serve(
            self.source,
            address,
            limits=limits,
            device=pick_device(self.device, self.source),
            on_ready=lambda url: say(f"Serving at {bold(url)}; Ctrl-C stops it."),
        )
        console.print("Stopped; every request under way got its response.")


@dataclass(frozen=True, kw_only=True)
class Explore(Options):
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
