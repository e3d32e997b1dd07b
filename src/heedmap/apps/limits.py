"""The limits of the explorer and of the server, and the error beyond them."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from heedmap.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all requests together, may take; an OptionError for less than is sensible.

    Attributes:
        max_bytes: of a body; counted while it is read.
        max_pixels: of an image, by its header, before anything is decoded. A decoded image takes up to 16 bytes a
            pixel for a moment, and two are decoded at a time.
        timeout: seconds that a request's head, its body, and reading the response may take, each; in the server also
            the prediction. In the explorer a prediction may take longer: some map methods need minutes on a CPU.
        waiting: requests that wait for a prediction or are being computed; one more gets 503 with Retry-After.
        held_bytes: of all bodies in memory together; beyond it 503.
        connections: open at a time.
        batch_size: images that the server predicts together at most.
        batch_wait: seconds that the first image of the server's batch waits for others.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    timeout: float = 20.0
    waiting: int = 256
    held_bytes: int = 256_000_000
    connections: int = 512
    batch_size: int = 16
    batch_wait: float = 0.003

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "batch_wait" else 0.1 if name == "timeout" else 1
            if not least <= value < float("inf"):
                raise OptionError(f"{name} {value} is out of range; it must be finite and at least {least}.")


class RequestError(Exception):
    """A request that cannot be served: HTTP status, one sentence for the client, and headers to send along."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Waiting:
    """Count (``count``) the requests that wait or are being computed, at ``most``; for use in the event loop."""

    def __init__(self, most: int) -> None:
        self._most, self.count, self._seconds = most, 0, 0.05

    def refuse_when_full(self) -> None:
        """Raise a :class:`RequestError` 503, with the seconds after which to try again, where no more may wait."""
        if self.count >= self._most:
            wait = str(max(1, math.ceil(self.count * self._seconds)))
            message = f"{self.count} requests are waiting already; try again in {wait} s."
            raise RequestError(503, message, {"Retry-After": wait})

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Count one more request while the block lasts; see :meth:`refuse_when_full`."""
        self.refuse_when_full()
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def took(self, seconds: float) -> None:
        """Note the seconds that one request has taken, from which the time to try again is estimated."""
        self._seconds = 0.8 * self._seconds + 0.2 * seconds
