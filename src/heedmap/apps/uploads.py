"""A request's body, counted and timed while it is read, and the image in it."""

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import Request
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from heedmap.apps.limits import Limits, RequestError
from heedmap.errors import ImageError
from heedmap.inference.reading import DecodedImage, decode

FIELD = "image"  # of a form, which holds the file
BINARY = {"schema": {"type": "string", "format": "binary"}}  # a file, for OpenAPI
MAX_SCANS = 100  # a JPEG may repeat a scan over all of its pixels in a few hundred bytes; real ones have ten or so
_FORM = "multipart/form-data"


class Bodies:
    """Read bodies within ``max_bytes`` and ``timeout`` of each, and ``held_bytes`` of all together."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._bytes = limits, 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read a body and count it while the block lasts; RequestError 413: too large, 408: too slow, 503: too many."""
        too_large = RequestError(413, f"The body is larger than {self._limits.max_bytes:,} bytes; shrink the image.")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limits.max_bytes:
            raise too_large
        body, timed_out = bytearray(), f"The body did not arrive within {self._limits.timeout:g} s."
        try:
            try:
                async with asyncio.timeout(self._limits.timeout):
                    async for chunk in request.stream():
                        self._bytes, body[len(body) :] = self._bytes + len(chunk), chunk
                        if len(body) > self._limits.max_bytes:
                            raise too_large
                        if self._bytes > self._limits.held_bytes:
                            message = "Too many large requests at once; try again in 1 s."
                            raise RequestError(503, message, {"Retry-After": "1"})
            except TimeoutError:
                raise RequestError(408, timed_out, {"Connection": "close"}) from None
            yield bytes(body)
        finally:
            self._bytes -= len(body)


def check_content_type(request: Request) -> None:
    """Raise a RequestError 415, before the body is read, unless it is a form with a file, an image, or bytes."""
    kind = _content_type(request)
    if not kind.startswith(("image/", "application/octet-stream", _FORM)):
        send = f"send the image's bytes as image/jpeg or another image type, or a form ({_FORM}) with the file in the "
        raise RequestError(415, f"Content-Type {kind or '(none)'} is not accepted; {send}field '{FIELD}'.")


async def image_file(request: Request, body: bytes) -> bytes:
    """Return the image's bytes: the body, or the one file in the form; RequestError 422 for any other form."""
    if _content_type(request) != _FORM:
        return body

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    needed = f"the form needs exactly one file, in the field '{FIELD}'"
    try:
        form = await MultiPartParser(request.headers, once(), max_files=1, max_fields=0).parse()
    except (MultiPartException, KeyError, ValueError) as error:  # KeyError: no boundary
        reason = error.message if isinstance(error, MultiPartException) else "its boundary or text is damaged"
        raise RequestError(422, f"The form cannot be read ({reason.rstrip('.')}); {needed}.") from None
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise RequestError(422, f"The form has no file in the field '{FIELD}'; {needed}.")
        return await file.read()
    finally:
        await form.close()


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_scans(content: bytes) -> None:
    """Raise an :class:`ImageError` where a JPEG has more than ``MAX_SCANS``, which would take minutes to decode."""
    if content[:2] == b"\xff\xd8" and content.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(f"image: it has more than {MAX_SCANS} scans, which no camera writes; save it again")


def decode_upload(content: bytes, image_size: int, limits: Limits, draw_at: int | None = None) -> DecodedImage:
    """Decode an image file exactly as ``heedmap visualize`` does.

    ``image_size`` is the side of the classifier's view, ``draw_at`` of the view to draw on, where there is to be one.

    Raises:
        RequestError: 413 for too many pixels, 415 for what is no image, 422 for an empty or damaged one.
    """
    try:
        check_scans(content)
        return decode(io.BytesIO(content), image_size, draw_at, limits.max_pixels)
    except ImageError as error:
        statuses: dict[type, int] = {UnidentifiedImageError: 415, Image.DecompressionBombError: 413}
        status = statuses.get(type(error.__cause__), 422) if content else 422
        raise RequestError(status, f"The image cannot be used: {str(error).removeprefix('image: ')}.") from None
