"""The bounds of the service."""

from __future__ import annotations

from dataclasses import dataclass

from heedmap.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may ask for.

    Attributes:
        max_bytes: of a body; counted while it is read.
        max_pixels: of an image, by its header, before anything is decoded. A decoded image takes up to 16 bytes a
            pixel for a moment, and two are decoded at a time.
        timeout: seconds that a request's head, its body, its answer, and reading the answer may take, each.
        waiting: requests that wait for the classifier or are in it; one more gets 503 with Retry-After.
        reading_bytes: of all bodies being held, together; beyond it 503.
        connections: open at a time.
        batch_size: images that the classifier answers together at most.
        batch_wait: seconds that the first image of a batch waits for others.

    Raises:
        OptionError: a bound below its least sensible value.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    timeout: float = 20.0
    waiting: int = 256
    reading_bytes: int = 256_000_000
    connections: int = 512
    batch_size: int = 16
    batch_wait: float = 0.003

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "batch_wait" else 0.1 if name == "timeout" else 1
            if not least <= value < float("inf"):
                raise OptionError(f"{name} {value} is out of range; it must be finite and at least {least}.")


class Refusal(Exception):  # noqa: N818  an answer, not an accident
    """A request that gets an error of one sentence.

    Args:
        status: HTTP status.
        sentence: for the client.
        headers: to send along.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}
