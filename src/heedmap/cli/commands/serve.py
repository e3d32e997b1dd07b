"""``heedmap serve``."""

from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from heedmap.cli.commands.arguments import RunFolder
from heedmap.cli.commands.device import cpu_only, pick_device
from heedmap.cli.console import complaints, console
from heedmap.config import check_range


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve predictions over HTTP: class, probabilities, boxes and the map, as JSON, PNG or array.

    Attributes:
        source: The run folder, or a file that export wrote (.onnx).
        host: Address to listen on. There is no password: whoever reaches it can send requests.
        port: Port to listen on; 0 takes a free one.
        allow_host: Host names to accept beside addresses and this machine's own name, such as a proxy's.
        max_bytes: Largest body.
        max_pixels: Largest image, by its header, before it is decoded.
        timeout: Seconds that a body, a prediction, and reading the response may take, each.
        waiting: Requests that may wait; one more gets status 503.
        batch_size: Images predicted together at most.
        batch_wait: Milliseconds that the first image of a batch waits for others.
        device: Where to compute. Default: a GPU where there is one.
    """

    source: RunFolder
    host: str = "127.0.0.1"
    port: int = 8000
    allow_host: tuple[str, ...] = ()
    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    timeout: float = 20.0
    waiting: int = 256
    batch_size: int = 16
    batch_wait: float = 3.0
    device: str | None = None

    def work(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        from heedmap.apps.server import Address, Limits, serve

        check_range("batch_wait", self.batch_wait, 0, 1000)
        address = Address(host=self.host, port=self.port, names=self.allow_host)
        limits = Limits(
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
            timeout=self.timeout,
            waiting=self.waiting,
            batch_size=self.batch_size,
            batch_wait=self.batch_wait / 1000,
        )
        if not address.is_loopback:
            complaints.print(
                f"[yellow]{escape(self.host)} is open to other machines, and there is no password.[/]", soft_wrap=True
            )
        serve(
            self.source,
            address,
            limits=limits,
            device=self._device(),
            on_ready=lambda url: console.print(f"Serving at [bold]{url}[/]; Ctrl-C stops it.", soft_wrap=True),
        )
        console.print("Stopped; every request under way got its response.")

    def _device(self) -> str:
        """Return where to compute; a file computes on the CPU, and needs no torch to find that out."""
        if Path(self.source).suffix.lower() == ".onnx":
            return cpu_only(self.device)
        return pick_device(self.device)
