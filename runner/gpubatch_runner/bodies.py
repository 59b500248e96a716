"""The bodies of live requests: small ones stay in memory, others wait for their turn in a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from gpubatch_runner.http1 import FileBody

IN_MEMORY = 1024 * 1024
"""Bytes of a body that stays in memory."""

ALL_IN_MEMORY = 64 * 1024 * 1024
"""Bytes of all that do, together."""


class BodyTooLargeError(Exception):
    """A body is longer than its endpoint takes."""


class Bodies:
    """The bodies of one run's requests.

    Args:
        folder: Of its own, made anew: what an earlier container left there is removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held = 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    async def take(self, name: str, parts: AsyncIterator[bytes], limit: int, content_type: str) -> bytes | FileBody:
        """A body, once it has come; to be given to `discard` when it isn't needed any more.

        Args:
            name: Of its file.
            parts: The bytes as they come.
            limit: How many they may be.
            content_type: Of the body.

        Raises:
            BodyTooLargeError: They are more.
            OSError: The volume is full.
        """
        found: list[bytes] = []
        size = 0
        try:
            async for part in parts:
                found.append(part)
                size += len(part)
                self._held += len(part)
                if size > limit:
                    raise BodyTooLargeError
                if size > IN_MEMORY or self._held > ALL_IN_MEMORY:
                    break
            else:
                return found[0] if len(found) == 1 else b"".join(found)
        except BaseException:
            self._held -= size
            raise
        self._held -= size
        path = self._folder / name
        try:
            await _write(path, found, parts, limit)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return FileBody(b"", path, b"", content_type)

    def discard(self, body: bytes | FileBody) -> None:
        """A body that was taken isn't needed any more."""
        if isinstance(body, FileBody):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(body.path)
        else:
            self._held -= len(body)


async def _write(path: Path, found: list[bytes], rest: AsyncIterator[bytes], limit: int) -> None:
    with path.open("wb") as file:
        size = sum(map(len, found))
        await asyncio.to_thread(file.writelines, found)
        found.clear()
        async for part in rest:
            size += len(part)
            if size > limit:
                raise BodyTooLargeError
            await asyncio.to_thread(file.write, part)
