"""A request's body, counted and timed while it is read, and the image in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from heedmap.apps.server.limits import Limits, Refusal

FIELD = "image"
RAW = ("image/", "application/octet-stream")


class Held:
    """How many bytes of bodies are held now, over all requests."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.bytes = limits, 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read a body and hold it while the block lasts.

        Raises:
            Refusal: 413 too many bytes, 408 too slow, 503 too many bytes in all bodies together.
        """
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limits.max_bytes:
            raise self._too_large()
        held = bytearray()
        try:
            await self._read(request, held)
            yield bytes(held)
        finally:
            self.bytes -= len(held)

    async def _read(self, request: Request, held: bytearray) -> None:
        try:
            async with asyncio.timeout(self._limits.timeout):
                async for chunk in request.stream():
                    self.bytes, held[len(held) :] = self.bytes + len(chunk), chunk
                    if len(held) > self._limits.max_bytes:
                        raise self._too_large()
                    if self.bytes > self._limits.reading_bytes:
                        raise Refusal(503, "Too many large requests at once; ask again in 1 s.", {"Retry-After": "1"})
        except TimeoutError:
            sentence = f"The body did not arrive within {self._limits.timeout:g} s."
            raise Refusal(408, sentence, {"Connection": "close"}) from None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body is larger than {self._limits.max_bytes:,} bytes; shrink the image.")


def check_kind(request: Request) -> None:
    """Check what the body says that it is, before it is read.

    Raises:
        Refusal: 415 for anything but a form with a file, an image, or bytes.
    """
    kind = _kind(request)
    if kind != "multipart/form-data" and not kind.startswith(RAW):
        raise Refusal(
            415,
            f"Content-Type {kind or '(none)'} is not taken; send the image's bytes as image/jpeg or another image "
            f"type, or a form (multipart/form-data) with the file in the field '{FIELD}'.",
        )


async def image_in(request: Request, body: bytes) -> bytes:
    """Return the image file's bytes: the body itself, or the file in the form.

    Raises:
        Refusal: 422 for a form that cannot be read or has not exactly one file, in the field ``image``.
    """
    if _kind(request) != "multipart/form-data":
        return body

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    needed = f"the form needs exactly one file, in the field '{FIELD}'"
    try:
        form = await MultiPartParser(request.headers, once(), max_files=1, max_fields=0).parse()
    except (MultiPartException, KeyError, ValueError) as error:  # KeyError: no boundary
        reason = error.message if isinstance(error, MultiPartException) else "its boundary or text is damaged"
        raise Refusal(422, f"The form cannot be read ({reason.rstrip('.')}); {needed}.") from None
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise Refusal(422, f"The form has no file in the field '{FIELD}'; {needed}.")
        return await file.read()
    finally:
        await form.close()


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
