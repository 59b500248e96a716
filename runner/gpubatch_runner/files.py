"""What a transcription names by `file_url`: fetched to disk ahead of its turn, posted as multipart/form-data.

Format: RFC 7578. Like OpenAI's own API, the engine takes the audio in the part `file`, all else as fields.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import msgspec

from gpubatch_runner import sources
from gpubatch_runner.contract import TRANSCRIPTIONS, RunSpec
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import RunnerError
from gpubatch_runner.http1 import FileBody
from gpubatch_runner.locations import Location
from gpubatch_runner.request_queue import Item
from gpubatch_runner.requests import Request

FETCHES = 8
"""Files that are fetched at a time."""

TRIES = 3

FIELD = "spec.inference.input.file_url"
"""How failures name `body.file_url` of a line of the input."""


class FileUnavailableError(Exception):
    """The file can't be had; `code` is the request's error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Files:
    """Fetches the files of requests into a folder.

    Args:
        spec: How to reach storage, and the longest file.
        environment: Where claims are mounted.
        folder: Made if absent; what an earlier container left there is removed.
    """

    def __init__(self, spec: RunSpec, environment: Environment, folder: Path) -> None:
        self._spec, self._environment, self._folder = spec, environment, folder
        self._places = asyncio.Semaphore(FETCHES)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()

    def prepare(self, item: Item) -> None:
        """Begins to fetch the request's file, if it has one."""
        if item.request.url == TRANSCRIPTIONS:
            item.file = asyncio.create_task(self._fetch(item.request))
            item.file.add_done_callback(_look_at)

    def discard(self, item: Item) -> None:
        """Removes the file of a request that has its result."""
        if item.file is not None and item.file.done() and not item.file.cancelled() and not item.file.exception():
            item.file.result().path.unlink(missing_ok=True)

    async def _fetch(self, request: Request) -> FileBody:
        body: dict[str, Any] = msgspec.json.decode(request.payload)
        url = str(body.pop("file_url"))
        async with self._places:
            for attempt in range(1, TRIES + 1):
                try:
                    path = await self._save(_data(url) if url.startswith("data:") else self._read(url))
                    break
                except RunnerError as error:
                    if attempt == TRIES:
                        raise FileUnavailableError("file_unavailable", f"{error}") from error
                    await asyncio.sleep(random.uniform(0.1, 0.5) * 2**attempt)
        return _multipart(body, _name(url), path)

    def _read(self, url: str) -> AsyncIterator[bytes]:
        scheme, _, rest = url.partition("://")
        container, _, path = rest.partition("/")
        location = Location(FIELD, url, scheme, container, path)
        return sources.read_raw(location, self._spec.storage, self._environment)

    async def _save(self, chunks: AsyncIterator[bytes]) -> Path:
        handle, name = tempfile.mkstemp(dir=self._folder)
        size = 0
        try:
            with os.fdopen(handle, "wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._spec.max_file_bytes:
                        raise FileUnavailableError(
                            "file_too_large",
                            f"body.file_url: the file is longer than {self._spec.max_file_bytes} bytes (the operator's "
                            "setting maxFileBytes); send it in parts, or compressed",
                        )
                    await asyncio.to_thread(file.write, chunk)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        return Path(name)


async def _data(url: str) -> AsyncIterator[bytes]:
    """The content of a `data:` URL (RFC 2397)."""
    kind, _, data = url.removeprefix("data:").partition(",")
    try:
        yield base64.b64decode(data, validate=True) if kind.endswith(";base64") else unquote_to_bytes(data)
    except binascii.Error as error:
        raise FileUnavailableError("file_unavailable", f"body.file_url is no sound data URL: {error}") from error


def _name(url: str) -> str:
    """The file's name, whose ending tells engines its format."""
    if url.startswith("data:"):
        kind = url.removeprefix("data:").partition(",")[0].partition(";")[0]
        return f"audio.{kind.rpartition('/')[2] or 'wav'}"
    return unquote(PurePosixPath(urlsplit(url).path).name) or "audio"


def _multipart(fields: dict[str, Any], name: str, path: Path) -> FileBody:
    boundary = binascii.hexlify(os.urandom(16)).decode()
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(field)}"\r\n\r\n{text}\r\n'
        for field, value in fields.items()
        for field, text in _texts(field, value)
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{_quoted(name)}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return FileBody(
        head="".join(parts).encode("utf-8", "replace"),
        path=path,
        tail=f"\r\n--{boundary}--\r\n".encode(),
        content_type=f"multipart/form-data; boundary={boundary}",
    )


def _texts(field: str, value: object) -> list[tuple[str, str]]:
    """A JSON value as form fields: each item of a list is one, under `NAME[]` as OpenAI's clients write it."""
    if isinstance(value, list):
        return [(f"{field}[]", _text(item)) for item in value]
    return [] if value is None else [(field, _text(value))]


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _look_at(task: asyncio.Task[FileBody]) -> None:
    """A fetch whose request never got its turn ends without a complaint."""
    if not task.cancelled():
        task.exception()
