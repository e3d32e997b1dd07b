"""The explorer's routes: one page, and the few things that it asks for.

Each reply that is no success is ``{"message": sentence}``; the page shows the sentence.
"""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from heedmap.apps.explorer.asking import MapRequest, Network, Point, Reply
from heedmap.apps.explorer.gallery import THUMBNAIL, Gallery, Seen
from heedmap.apps.explorer.guard import Guard
from heedmap.apps.explorer.methods import LEARNED, method_facts
from heedmap.apps.explorer.payload import network_facts, npz, reply_facts
from heedmap.apps.explorer.walking import Walk
from heedmap.data.decoding import MAX_PIXELS
from heedmap.errors import HeedmapError
from heedmap.files import printable
from heedmap.visualization.heatmap import COLOURS

MAX_UPLOAD = 20_000_000
"""Bytes of an image that is sent; what is larger is refused while it arrives."""

UPLOAD_SECONDS = 60.0

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html; charset=utf-8", ".svg": "image/svg+xml"}
_log = logging.getLogger("heedmap.apps.explorer")

Reference = Annotated[str, Field(max_length=64)]


class PlaceQuery(BaseModel):
    """A place in the image, as shares of its width and height."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)


class MapQuery(BaseModel):
    """What the page asks about an image."""

    model_config = ConfigDict(extra="forbid")
    image: Reference
    run: int = Field(0, ge=0)
    method: str = Field(LEARNED, max_length=64)
    target: int | None = Field(None, ge=0)
    query: PlaceQuery | Reference | None = None


class _Explorer:
    """What the routes share."""

    def __init__(self, networks: list[Network], gallery: Gallery) -> None:
        self.networks, self.gallery = networks, gallery
        self.walks: dict[tuple[int, int], Walk] = {}
        self.lock = threading.Lock()

    def see(self, reference: str) -> Seen:
        try:
            return self.gallery.see(reference)
        except KeyError:
            way = (
                "it is not held any more; drop it again" if reference.startswith("u-") else "there is none of that name"
            )
            raise HTTPException(404, f"Image {reference!r}: {way}.") from None

    def network(self, run: int) -> Network:
        if run >= len(self.networks):
            raise HTTPException(404, f"There is no run {run}; the explorer has {len(self.networks)}.")
        return self.networks[run]

    def reply(self, asked: MapQuery) -> tuple[Network, Seen, Reply]:
        network, seen = self.network(asked.run), self.see(asked.image)
        if asked.target is not None and asked.target >= len(network.classifier.classes):
            raise HTTPException(422, f"{network.name} has {len(network.classifier.classes)} classes only.")
        query: Point | Seen | None = None
        if isinstance(asked.query, PlaceQuery):
            query = Point(asked.query.x, asked.query.y)
        elif asked.query is not None:
            query = self.see(asked.query)
        return network, seen, network.ask(seen, MapRequest(asked.method, asked.target, query))

    def walk(self, run: int, source: int) -> Walk:
        network = self.network(run)
        if source >= len(self.gallery.sources):
            raise HTTPException(404, f"There is no source {source}; the explorer has {len(self.gallery.sources)}.")
        with self.lock:
            if (run, source) not in self.walks:
                self.walks[run, source] = Walk(network, self.gallery.sources[source])
            return self.walks[run, source]

    def about(self) -> dict[str, Any]:
        sources = [
            {
                "title": printable(one.title),
                "names": list(map(printable, one.names)),
                "labels": [printable(label) for label in one.labels],
                "notes": list(map(printable, one.notes)),
            }
            for one in self.gallery.sources
        ]
        return {
            "runs": [network_facts(network) for network in self.networks],
            "sources": sources,
            "methods": method_facts(),
            "colours": COLOURS.tobytes().hex(),
            "limits": {"bytes": MAX_UPLOAD, "pixels": MAX_PIXELS},
        }


def explorer_app(networks: list[Network], gallery: Gallery, host: str = "127.0.0.1") -> Guard:
    """Return the application, guarded; see :class:`heedmap.apps.explorer.guard.Guard`.

    Args:
        networks: the runs, in the order in which the page names them; closed with the application.
        gallery: the images.
        host: what it will listen on.
    """
    explorer = _Explorer(networks, gallery)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for walk in explorer.walks.values():
            walk.stop()
        for network in networks:
            network.close()

    # No OpenAPI page: it would load its scripts from the network, and this is the page's own business.
    app = FastAPI(title="heedmap explorer", lifespan=lifespan, openapi_url=None)
    _add_errors(app)
    _add_page(app)
    _add_images(app, explorer)
    _add_answers(app, explorer)
    return Guard(app, host)


def _add_errors(app: FastAPI) -> None:
    def told(status: int, message: str) -> JSONResponse:
        return JSONResponse({"message": message}, status)

    @app.exception_handler(HeedmapError)
    async def refused(_: Request, error: HeedmapError) -> JSONResponse:
        return told(400, str(error))

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> JSONResponse:
        return told(error.status_code, str(error.detail))

    @app.exception_handler(404)
    async def missing(_: Request, error: HTTPException) -> JSONResponse:
        return told(404, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return told(422, f"The question cannot be read: {where or 'body'}: {first['msg']}.")

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        _log.error("The explorer failed.", exc_info=error)
        return told(500, "The explorer failed at this; its terminal says how.")


def _add_page(app: FastAPI) -> None:
    files = {
        entry.name: entry.read_bytes()
        for entry in resources.files("heedmap.apps.explorer").joinpath("page").iterdir()
        if PurePosixPath(entry.name).suffix in _TYPES
    }

    def sent(name: str) -> Response:
        return Response(files[name], media_type=_TYPES[PurePosixPath(name).suffix])

    @app.get("/")
    def page() -> Response:
        return sent("page.html")

    @app.get("/page/{name}")
    def part_of_page(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "The page has no such part.")
        return sent(name)


def _add_images(app: FastAPI, explorer: _Explorer) -> None:
    def jpeg(image: Image.Image, quality: int) -> Response:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality, subsampling=0)
        # A reference stands for one image as long as the explorer runs; the page need not ask twice.
        return Response(content.getvalue(), media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    @app.get("/api/images/{reference}/view")
    def view(reference: str) -> Response:
        return jpeg(explorer.see(reference).view, 94)

    @app.get("/api/images/{reference}/thumbnail")
    def thumbnail(reference: str) -> Response:
        small = explorer.see(reference).view.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2)
        return jpeg(small, 85)

    @app.get("/api/images/{reference}")
    def facts(reference: str) -> dict[str, Any]:
        seen = explorer.see(reference)
        return {
            "reference": reference,
            "name": printable(seen.name),
            "label": printable(seen.label),
            "box": seen.box,
        }

    @app.post("/api/uploads")
    async def upload(request: Request, name: Annotated[str, Query(max_length=1000)] = "image") -> dict[str, Any]:
        content = await _body(request)
        reference = await run_in_threadpool(explorer.gallery.upload, content, name)
        return facts(reference)


async def _body(request: Request) -> bytes:
    """The body of a request, refused as soon as it is too large or too slow."""
    too_large = HTTPException(413, f"The file is larger than {MAX_UPLOAD // 10**6} MB; shrink it.")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_UPLOAD:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_UPLOAD:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"The image did not arrive within {UPLOAD_SECONDS:.0f} s.") from None
    return bytes(content)


def _add_answers(app: FastAPI, explorer: _Explorer) -> None:
    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return explorer.about()

    @app.post("/api/ask")
    def ask(asked: MapQuery) -> dict[str, Any]:
        network, _, reply = explorer.reply(asked)
        return reply_facts(network, reply)

    @app.post("/api/npz")
    def arrays(asked: MapQuery) -> Response:
        network, seen, reply = explorer.reply(asked)
        return Response(npz(network, seen, reply), media_type="application/octet-stream")

    @app.get("/api/walks/{run}/{source}")
    def walk(run: int, source: int) -> dict[str, Any]:
        if run < 0 or source < 0:
            raise HTTPException(404, "Runs and sources are counted from 0.")
        return explorer.walk(run, source).state()


__all__ = ["MAX_UPLOAD", "UPLOAD_SECONDS", "explorer_app"]
