"""The explorer and the server: what runs in a browser or replies over HTTP, on one base.

base       the FastAPI application: pages, documentation, what every route has
guard      Host and Origin; the security headers
errors     every error as JSON of one shape
limits     what requests may take, and the error beyond it; uploads reads bodies within that
address    where to listen, and the names under which it may be reached
running    connections and their limits; start and stop, with uvicorn
explorer/  a page on which a person sees where a run's network looks
server/    an image in; class, probabilities, boxes and the map out
"""

import importlib.util

from heedmap.errors import OptionError


def require_packages(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed.

    Raises:
        OptionError: one is missing; the message says how to install it.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise OptionError(f"heedmap {extra} needs {name}, which is not installed: pip install 'heedmap[{extra}]'.")
