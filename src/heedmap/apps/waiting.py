"""How many requests may wait for a prediction."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from heedmap.apps.errors import RequestError


class Waiting:
    """Count the requests that wait or are being computed; for use in the event loop.

    Args:
        most: ``Limits.waiting``.

    Attributes:
        count: how many there are now.
        seconds: that one of them has taken lately, from which the time to come back is reckoned.
    """

    def __init__(self, most: int) -> None:
        self._most, self.count, self.seconds = most, 0, 0.05

    def refuse_when_full(self) -> None:
        """Check that one more may wait.

        Raises:
            RequestError: 503, with the seconds after which to try again.
        """
        if self.count >= self._most:
            wait = str(max(1, math.ceil(self.count * self.seconds)))
            message = f"{self.count} requests are waiting already; try again in {wait} s."
            raise RequestError(503, message, {"Retry-After": wait})

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Count one more request while the block lasts.

        Raises:
            RequestError: see :meth:`refuse_when_full`.
        """
        self.refuse_when_full()
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def took(self, seconds: float) -> None:
        """Note the seconds that one request has taken."""
        self.seconds = 0.8 * self.seconds + 0.2 * seconds
