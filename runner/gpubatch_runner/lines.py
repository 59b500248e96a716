"""Lines out of chunks, with a bound on the length of a line: memory stays flat whatever the input holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

MAX_LINE = 8 * 1024 * 1024
"""Bytes of the longest line; a request above it is refused as too long."""


class LineSplitter:
    """Cuts a stream of chunks into lines, without their line feeds.

    Of a line above `limit` bytes only the first `limit + 1` are kept, so that its reader can see that it is too long.
    """

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that `chunk` completes."""
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            self._keep(part)
            yield self._take()
        self._keep(rest)

    def finish(self) -> Iterator[bytes]:
        """The last line, if it has no line feed."""
        if self._size:
            yield self._take()

    def _keep(self, part: bytes) -> None:
        part = part[: self._limit + 1 - self._size]
        if part:
            self._parts.append(part)
            self._size += len(part)

    def _take(self) -> bytes:
        line = b"".join(self._parts)
        self._parts, self._size = [], 0
        return line


def located(file: BinaryIO, limit: int = MAX_LINE) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), offset and content of each line of an open file; long lines are cut as by `LineSplitter`."""
    number = offset = 0
    while raw := file.readline(limit + 2):
        number, begin, line = number + 1, offset, raw.removesuffix(b"\n")
        offset += len(raw)
        while not raw.endswith(b"\n") and (raw := file.readline(limit + 2)):
            offset += len(raw)
        yield number, begin, line[: limit + 1]
