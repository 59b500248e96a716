"""One answer of HTTP/1.1 out of a connection's bytes.

Its length may be given, chunked or ended by the end of the connection (RFC 9112, 6.3); what an answer sends beyond its
own length costs the connection, never the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MAX_HEAD = 64 * 1024
MAX_BODY = 128 * 1024 * 1024
"""Bytes of the longest answer: an engine that never ends one must not fill the memory."""


class ConnectionLostError(Exception):
    """The engine refused, closed or broke the connection before its answer was complete, or didn't speak HTTP."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """A complete answer; the names of headers are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Sink(Protocol):
    """Gets an answer as it comes."""

    def begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The head has come."""

    def part(self, data: bytes) -> None:
        """A part of the body has come."""


class Parser:
    """One answer out of the bytes of a connection.

    Args:
        stream: Gets the head and each part of the body, which isn't kept then.
    """

    def __init__(self, stream: Sink | None = None) -> None:
        self._stream = stream
        self.keep = False
        """Whether the connection may be used again."""
        self.rest = b""
        """What came after the answer."""
        self._buffer = bytearray()
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._missing: int | None = None
        self._size = 0
        self._feed = self._feed_head

    def feed(self, data: bytes) -> RawAnswer | None:
        """The answer, once it is complete.

        Raises:
            ConnectionLostError: This is no answer.
        """
        return self._feed(data)

    def end(self) -> RawAnswer | None:
        """The answer that the end of the connection completes."""
        if self._feed == self._feed_until_the_end:
            return self._complete(b"")
        return None

    def _feed_head(self, data: bytes) -> RawAnswer | None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ConnectionLostError(f"the head of its answer is longer than {MAX_HEAD} bytes")
            return None
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        rest = bytes(self._buffer[end + 4 :])
        self._buffer.clear()
        version, _, words = first.partition(b" ")
        try:
            self._status = int(words[:3])
        except ValueError:
            self._status = 0
        if not version.startswith(b"HTTP/1.") or not 100 <= self._status <= 599:
            raise ConnectionLostError("what it sent is not an HTTP answer")
        self._headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            self._headers[name.lower()] = value.strip()
        if self._status < 200:  # 100 Continue and its like come before the answer
            return self._feed_head(rest)
        if self._stream is not None:
            self._stream.begin(self._status, self._headers)
        self.keep = version == b"HTTP/1.1" and b"close" not in self._headers.get(b"connection", b"").lower()
        if self._headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
            self._feed = self._feed_chunks
        elif self._status in (204, 304):
            return self._complete(rest)
        elif (length := self._headers.get(b"content-length")) is not None:
            if not length.isdigit():
                raise ConnectionLostError(f"its answer has the Content-Length {length[:40]!r}")
            if int(length) > MAX_BODY:
                raise ConnectionLostError(f"its answer is longer than {MAX_BODY} bytes")
            self._missing = int(length)
            self._feed = self._feed_length
        else:
            self.keep = False
            self._feed = self._feed_until_the_end
        return self._feed(rest)

    def _feed_length(self, data: bytes) -> RawAnswer | None:
        assert self._missing is not None
        if len(data) < self._missing:
            self._missing -= len(data)
            self._keep_part(data)
            return None
        self._keep_part(data[: self._missing])
        return self._complete(data[self._missing :])

    def _feed_until_the_end(self, data: bytes) -> RawAnswer | None:
        self._keep_part(data)
        return None

    def _feed_chunks(self, data: bytes) -> RawAnswer | None:
        buffer = self._buffer
        buffer += data
        while True:
            end = buffer.find(b"\r\n")
            if end < 0:
                if len(buffer) > MAX_HEAD:
                    raise ConnectionLostError("its answer has a chunk without a size")
                return None
            try:
                size = int(bytes(buffer[:end]).partition(b";")[0], 16)
            except ValueError:
                raise ConnectionLostError("its answer has a chunk without a size") from None
            if size < 0 or size > MAX_BODY:
                raise ConnectionLostError(f"its answer is longer than {MAX_BODY} bytes")
            if size == 0:
                return self._feed_trailers(end)
            if len(buffer) < end + 2 + size + 2:
                return None
            self._keep_part(bytes(buffer[end + 2 : end + 2 + size]))
            del buffer[: end + 2 + size + 2]

    def _feed_trailers(self, end: int) -> RawAnswer | None:
        buffer = self._buffer
        if buffer[end + 2 : end + 4] == b"\r\n":
            return self._complete(bytes(buffer[end + 4 :]))
        stop = buffer.find(b"\r\n\r\n", end)
        if stop < 0:
            if len(buffer) > MAX_HEAD:
                raise ConnectionLostError(f"the end of its answer is longer than {MAX_HEAD} bytes")
            return None
        return self._complete(bytes(buffer[stop + 4 :]))

    def _keep_part(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.part(data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_BODY:
            raise ConnectionLostError(f"its answer is longer than {MAX_BODY} bytes")

    def _complete(self, rest: bytes) -> RawAnswer:
        self.rest = rest
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return RawAnswer(self._status, self._headers, body)
