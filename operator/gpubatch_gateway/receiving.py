"""The body of `POST /v1/files`, as it comes: a form whose file is passed on while it is read.

The file's fields may stand before or behind it. The bytes of the file end for the store only when all of the form has
come and is as it should be: what is cut, too long or wrong is never visible.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
from aiohttp import BodyPartReader, MultipartReader, web

from gpubatch_gateway import names
from gpubatch_gateway.problems import RequestError, invalid

CHUNK = 256 * 1024
MAX_FIELD = 1024  # bytes of a field's value
MAX_FIELDS = 16
PURPOSE = "batch"


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


class Form:
    """One upload.

    Args:
        request: Its body hasn't been touched.
        limits: What is tolerated.
    """

    def __init__(self, request: web.Request, limits: Limits) -> None:
        self._request, self._limits = request, limits
        self._fields: dict[str, str] = {}
        self._part: BodyPartReader | None = None
        self._began = time.monotonic()
        self.filename = ""
        self.size = 0
        self.error: BaseException | None = None  # what `chunks` has raised; a store may tell it in words of its own

    async def begin(self) -> None:
        """Read up to the file's first byte.

        Raises:
            RequestError: 400, 408 or 413; there is none, or it can't be taken.
        """
        length = self._request.content_length
        if length is not None and length > self._limits.size + MAX_FIELDS * (MAX_FIELD + 1024):
            raise self._too_long()
        if not self._request.content_type.startswith("multipart/form-data"):
            expected = "multipart/form-data with the fields purpose and file"
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
                self._part = part
                self._check_purpose(whole=False)
                return
            await self._keep(part)
        raise invalid("Missing required parameter: 'file'.", "file", "missing_required_parameter")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes. They end without an error only if the whole form is as it should be.

        Raises (while iterating):
            RequestError: 400, 408 or 413.
        """
        try:
            async for chunk in self._file():
                yield chunk
            while (part := await self._next()) is not None:
                if part.name == "file":
                    raise invalid("There are two files. Send each with a request of its own.", "file")
                await self._keep(part)
            self._check_purpose(whole=True)
            if not self.size:
                raise invalid("The file is empty.", "file", "empty_file")
        except BaseException as e:
            self.error = e
            raise

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
        while chunk := await self._chunk(part):
            value += chunk
            if len(value) > MAX_FIELD:
                raise invalid(f"The field {name[:100]!r} is longer than {MAX_FIELD} bytes.", name[:100])
        if name != "purpose":
            raise invalid(f"Unknown parameter: {name[:100]!r}. Remove it.", name[:100], "unknown_parameter")
        if name in self._fields:
            raise invalid(f"The field {name!r} is there twice.", name)
        self._fields[name] = value.decode("utf-8", "replace")

    def _check_purpose(self, whole: bool) -> None:
        purpose = self._fields.get("purpose")
        if purpose is None and whole:
            raise invalid("Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter")
        if purpose not in (None, PURPOSE):
            raise invalid(f"Invalid 'purpose': {purpose[:100]!r}: expected {PURPOSE!r}.", "purpose")

    def _too_long(self) -> RequestError:
        most = self._limits.size
        return RequestError(
            413, "file_too_large", f"The file is longer than {most} bytes, the limit here. Split it.", "file"
        )

    def _silent(self) -> RequestError:
        return RequestError(408, "upload_timeout", f"Nothing has come for {self._limits.seconds:g} s.")


def _malformed(what: object) -> RequestError:
    return RequestError(400, "invalid_multipart_form", f"The form can't be read: {str(what)[:200]}.")
