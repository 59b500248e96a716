"""Lines out of chunks, with a bound on the length of a line: memory stays flat whatever the input holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def split(chunks: Iterable[bytes], limit: int = MAX_LINE) -> Iterator[tuple[int, bytes]]:
    """Numbered lines (from 1) of a stream of chunks."""
    splitter, number = LineSplitter(limit), 0
    for chunk in chunks:
        for line in splitter.feed(chunk):
            number += 1
            yield number, line
    for line in splitter.finish():
        yield number + 1, line


def of_file(file: BinaryIO, limit: int = MAX_LINE) -> Iterator[tuple[int, bytes]]:
    """Numbered lines (from 1) of an open file."""
    return split(iter(lambda: file.read(256 * 1024), b""), limit)
