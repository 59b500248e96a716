"""A form as it comes: its file is passed on while it is read.

The file's fields may stand before or behind it. The bytes of the file end for the store only when all of the form has
come and is as it should be: what is cut, too long or wrong is never visible.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from aiohttp import BodyPartReader, MultipartReader, web

from gpubatch_gateway import names
from gpubatch_gateway.problems import RequestError, invalid

CHUNK = 256 * 1024
PURPOSE = "batch"
MAX_PARTS = 64
HEAD = 1024  # bytes that a part may have before its content


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience with who sends.

    Attributes:
        size: Bytes of a file at most.
        seconds: Without a byte.
        rate: Bytes a second, on average, once it has taken longer than `seconds`.
    """

    size: int
    seconds: float
    rate: int


class Fields(Protocol):
    """What a form has beside its file.

    Attributes:
        expected: For people: the fields that there must be.
        max_bytes: Of all values together.
    """

    expected: str
    max_bytes: int

    def take(self, name: str, value: str) -> None:
        """One more.

        Raises:
            RequestError: 400; it can't be taken.
        """

    def check(self, whole: bool) -> None:
        """Judges those that have come; `whole` if they are all.

        Raises:
            RequestError: 400.
        """


class Purpose:
    """The fields of `POST /v1/files`."""

    expected, max_bytes = "purpose and file", 1024

    def __init__(self) -> None:
        self._purpose: str | None = None

    def take(self, name: str, value: str) -> None:
        """See `Fields`."""
        if name != "purpose":
            raise invalid(f"Unknown parameter: {name[:100]!r}. Remove it.", name[:100], "unknown_parameter")
        if self._purpose is not None:
            raise invalid("The field 'purpose' is there twice.", name)
        self._purpose = value

    def check(self, whole: bool) -> None:
        """See `Fields`."""
        if self._purpose is None and whole:
            raise invalid("Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter")
        if self._purpose not in (None, PURPOSE):
            raise invalid(f"Invalid 'purpose': {self._purpose[:100]!r}: expected {PURPOSE!r}.", "purpose")


class Form:
    """One upload.

    Args:
        request: Its body hasn't been touched.
        limits: What is tolerated.
        fields: Are given what there is beside the file.
    """

    def __init__(self, request: web.Request, limits: Limits, fields: Fields) -> None:
        self._request, self._limits, self._fields = request, limits, fields
        self._part: BodyPartReader | None = None
        self._began = time.monotonic()
        self._parts, self._taken = 0, 0  # fields, and bytes of them
        self.filename = ""
        self.content_type = ""
        self.size = 0

    async def begin(self) -> bool:
        """Read up to the file's first byte; False if the form has come to its end without one.

        Raises:
            RequestError: 400, 408 or 413; it can't be taken.
        """
        length = self._request.content_length
        if length is not None and length > self._limits.size + self._fields.max_bytes + MAX_PARTS * HEAD:
            raise self._too_long()
        if not self._request.content_type.startswith("multipart/form-data"):
            expected = f"multipart/form-data with the fields {self._fields.expected}"
            raise RequestError(
                415, "invalid_content_type", f"The body is {self._request.content_type}; expected {expected}."
            )
        try:
            self._reader: MultipartReader = await self._request.multipart()
        except ValueError as e:
            raise _malformed(e) from None
        while (part := await self._next()) is not None:
            if part.name == "file":
                self.filename = names.plain_filename(part.filename or "")
                self.content_type = part.headers.get("Content-Type", "")
                self._part = part
                self._fields.check(whole=False)
                return True
            await self._keep(part)
        self._fields.check(whole=True)
        return False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes. They end without an error only if the whole form is as it should be.

        Raises (while iterating):
            RequestError: 400, 408 or 413.
        """
        async for chunk in self._file():
            yield chunk
        while (part := await self._next()) is not None:
            if part.name == "file":
                raise invalid("There are two files. Send each with a request of its own.", "file")
            await self._keep(part)
        self._fields.check(whole=True)
        if not self.size:
            raise invalid("The file is empty.", "file", "empty_file")

    async def _file(self) -> AsyncIterator[bytes]:
        assert self._part is not None
        while chunk := await self._chunk(self._part):
            self.size += len(chunk)
            if self.size > self._limits.size:
                raise self._too_long()
            yield chunk

    async def _chunk(self, part: BodyPartReader) -> bytes:
        waited = time.monotonic() - self._began
        if waited > self._limits.seconds and self.size < self._limits.rate * waited:
            raise RequestError(
                408, "upload_too_slow", f"{self.size} bytes in {waited:.0f} s are too few. Send it from nearer by."
            )
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await part.read_chunk(CHUNK)
        except TimeoutError:
            raise self._silent() from None
        except ConnectionError:  # nobody reads the answer; it is counted
            raise RequestError(400, "upload_cut", "The connection broke before the end of the form.") from None
        except (ValueError, AssertionError, aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError) as e:
            raise _malformed(e) from None

    async def _next(self) -> BodyPartReader | None:
        try:
            async with asyncio.timeout(self._limits.seconds):
                part = await self._reader.next()
        except TimeoutError:
            raise self._silent() from None
        except (ValueError, AssertionError, aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError) as e:
            raise _malformed(e) from None
        if part is None:
            return None
        if not isinstance(part, BodyPartReader) or part.name is None:
            raise _malformed("a part has no name")
        encoding = part.headers.get("Content-Transfer-Encoding", "binary").lower()
        if encoding not in ("binary", "8bit", "7bit") or "Content-Encoding" in part.headers:
            raise _malformed("a part is encoded; send its bytes as they are")
        return part

    async def _keep(self, part: BodyPartReader) -> None:
        name, value = str(part.name), b""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise invalid(f"The form has more than {MAX_PARTS} fields.")
        while chunk := await self._chunk(part):
            value += chunk
            self._taken += len(chunk)
            if self._taken > self._fields.max_bytes:
                most = self._fields.max_bytes
                raise invalid(f"The field {name[:100]!r} is too long: {most} bytes are allowed for all.", name[:100])
        self._fields.take(name, value.decode("utf-8", "replace"))

    def _too_long(self) -> RequestError:
        most = self._limits.size
        return RequestError(
            413, "file_too_large", f"The file is longer than {most} bytes, the limit here. Split it.", "file"
        )

    def _silent(self) -> RequestError:
        return RequestError(408, "upload_timeout", f"Nothing has come for {self._limits.seconds:g} s.")


def _malformed(what: object) -> RequestError:
    return RequestError(400, "invalid_multipart_form", f"The form can't be read: {str(what)[:200]}.")
