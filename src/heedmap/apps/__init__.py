"""The explorer and the server: what runs in a browser or replies over HTTP, on one base.

base       the FastAPI application: pages, documentation, errors, the guard of Host and Origin
limits     what requests may take, and the error beyond it; uploads reads bodies and images within that
address    where to listen, and the names under which it may be reached
running    connections and their limits; start and stop, with uvicorn
explorer/  a page on which a person sees where a run's network looks
server/    an image in; class, probabilities, boxes and the map out
"""

import importlib.util

from heedmap.errors import OptionError


def require_packages(extra: str, *packages: str) -> None:
    """Raise an :class:`OptionError`, which tells how to install it, where a package of an extra is missing."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise OptionError(f"heedmap {extra} needs {name}, which is not installed: pip install 'heedmap[{extra}]'.")
