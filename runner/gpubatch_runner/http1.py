"""HTTP/1.1 towards the engine: one post on one kept-alive connection at a time, and little else.

A general client costs several times the processor time for each request, and the runner shares its node with the
engine. An answer's length may be given, chunked or ended by the end of the connection (RFC 9112, 6.3); what an answer
sends beyond its own length costs the connection, never the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_HEAD = 64 * 1024
MAX_BODY = 128 * 1024 * 1024
"""Bytes of the longest answer: an engine that never ends one must not fill the memory."""

_JOIN_BELOW = 64 * 1024
_FILE_CHUNK = 256 * 1024


class ConnectionLostError(Exception):
    """The engine refused, closed or broke the connection before its answer was complete, or didn't speak HTTP."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """A complete answer; the names of headers are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


@dataclass(frozen=True, slots=True)
class FileBody:
    """A body that is read from a file while it is sent, between two parts that are at hand."""

    head: bytes
    path: Path
    tail: bytes
    content_type: str

    def __len__(self) -> int:
        return len(self.head) + self.path.stat().st_size + len(self.tail)


class _Parser:
    """One answer out of the bytes of a connection."""

    def __init__(self) -> None:
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
            self._parts.append(data)
            return None
        self._parts.append(data[: self._missing])
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
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_BODY:
            raise ConnectionLostError(f"its answer is longer than {MAX_BODY} bytes")

    def _complete(self, rest: bytes) -> RawAnswer:
        self.rest = rest
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return RawAnswer(self._status, self._headers, body)


class Connection(asyncio.Protocol):
    """One connection; `on_free` is called with it when it can be used again."""

    def __init__(self, on_free: Callable[[Connection], None]) -> None:
        self.idle_since = 0.0
        self._on_free = on_free
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[RawAnswer] | None = None
        self._parser = _Parser()
        self._writable: asyncio.Event | None = None

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known here."""
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, head: bytes, body: bytes | FileBody) -> RawAnswer:
        """Sends one request and waits for its answer.

        Raises:
            ConnectionLostError: See there.
        """
        transport = self._transport
        assert transport is not None
        answer: asyncio.Future[RawAnswer] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._parser = _Parser()
        try:
            if isinstance(body, FileBody):
                await self._send_file(transport, head, body, answer)
            elif len(body) < _JOIN_BELOW:
                transport.write(head + body)
            else:
                transport.writelines((head, body))
            return await answer
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drops the connection."""
        if self._transport is not None:
            self._transport.abort()

    async def _send_file(
        self, transport: asyncio.Transport, head: bytes, body: FileBody, answer: asyncio.Future[RawAnswer]
    ) -> None:
        transport.write(head + body.head)
        with body.path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, _FILE_CHUNK):
                if self._writable is not None:
                    await self._writable.wait()
                if not self.usable or answer.done():
                    return  # refused halfway; the answer says why
                transport.write(chunk)
        transport.write(body.tail)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        try:
            answer = self._parser.feed(data)
        except ConnectionLostError as error:
            self._fail(error)
            self.close()
            return
        if answer is not None:
            self._answer.set_result(answer)  # before anybody else may use the connection
            if self._parser.keep and not self._parser.rest and self._writable is None:
                self._on_free(self)
            else:
                self.close()

    def pause_writing(self) -> None:
        """See asyncio."""
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        """See asyncio."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        if self._writable is not None:
            self._writable.set()
        if self._answer is None or self._answer.done():
            return
        answer = self._parser.end() if error is None else None
        if answer is not None:
            self._answer.set_result(answer)
        else:
            self._fail(ConnectionLostError(str(error or "it closed the connection before its answer was complete")))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class Connections:
    """The connections to one server.

    Args:
        host: Name or address.
        port: TCP port.
        keep_seconds: How long an idle one is used again.
    """

    def __init__(self, host: str, port: int, keep_seconds: float) -> None:
        self._host, self._port, self._keep_seconds = host, port, keep_seconds
        self._name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._idle: list[Connection] = []

    async def request(
        self, method: str, path: str, body: bytes | FileBody = b"", content_type: str = "application/json"
    ) -> RawAnswer:
        """One request and its answer.

        Raises:
            ConnectionLostError: See there.
        """
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._name}\r\nContent-Type: {content_type}\r\n"
            f"Accept: */*\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection = self._take() or await self._open()
        return await connection.exchange(head.encode(), body)

    def close(self) -> None:
        """Drops the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _take(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < self._keep_seconds:
                return connection
            connection.close()
        return None

    async def _open(self) -> Connection:
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: Connection(self._free), self._host, self._port)
        except OSError as error:
            raise ConnectionLostError(str(error) or type(error).__name__) from error
        return connection

    def _free(self, connection: Connection) -> None:
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)
