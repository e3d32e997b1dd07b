"""The FastAPI application that the explorer and the server are built on: guard, errors, page files, documentation.

FastAPI's own page at ``/docs`` loads Swagger UI from a CDN and starts it by an inline script. Pages here load nothing
from elsewhere and run no inline script, and a copy of Swagger UI would be 1.5 MB for a handful of routes; so ``/docs``
is a plain page rendered from the schema that FastAPI serves at ``/openapi.json``.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import resources
from pathlib import PurePosixPath

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment

from heedmap._version import __version__
from heedmap.apps.address import Address
from heedmap.apps.errors import ErrorResponse, add_error_handlers, error_response
from heedmap.apps.guard import SECURITY_HEADERS, Guard
from heedmap.apps.limits import RequestError

_PAGES = "heedmap.apps"
_ERRORS = {
    403: "The Host or Origin header is not this app's.",
    422: "A parameter is unknown or out of range.",
    500: "A defect; the terminal or log shows more.",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html; charset=utf-8", ".svg": "image/svg+xml"}


def new_app(
    package: str,
    title: str,
    description: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    address: Address | None,
) -> FastAPI:
    """Return an application with its pages and no other routes yet.

    Args:
        package: whose folder ``page`` holds ``page.html`` and the files that it loads.
        title, description: for the documentation.
        lifespan: what starts and stops with the application.
        address: see :class:`heedmap.apps.guard.Guard`.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        description=description,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={status: {"model": ErrorResponse, "description": text} for status, text in _ERRORS.items()},
    )
    app.add_middleware(Guard, address=address)
    add_error_handlers(app)

    @app.exception_handler(Exception)  # outside of the guard; the server logs the traceback
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return error_response(
            500, "This request failed; the terminal or log of the server shows why.", SECURITY_HEADERS
        )

    _add_pages(app, package)
    return app


def _add_pages(app: FastAPI, package: str) -> None:
    files = {
        entry.name: entry.read_bytes()
        for folder in (_PAGES, package)
        for entry in resources.files(folder).joinpath("page").iterdir()
    }
    documentation = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files["docs.html.jinja"].decode()
    )

    def page_file(name: str) -> Response:
        suffix = PurePosixPath(name).suffix
        if name not in files or suffix not in _TYPES:
            raise RequestError(404, f"The page has no file {name!r}.")
        return Response(files[name], media_type=_TYPES[suffix])

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return page_file("page.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part_of_page(name: str) -> Response:
        return page_file(name)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(documentation.render(app.openapi()))
