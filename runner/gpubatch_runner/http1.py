"""HTTP/1.1 towards the engine: one post on one kept-alive connection at a time, and little else.

A general client costs several times the processor time for each request, and the runner shares its node with the
engine. An answer's length may be given, chunked or ended by the end of the connection (RFC 9112, 6.3); what an answer
sends beyond its own length costs the connection, never the answer. It is waited for (`Connections.request`), or passed
on as it comes (`Connections.stream`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_HEAD = 64 * 1024
MAX_BODY = 128 * 1024 * 1024
"""Bytes of the longest answer: an engine that never ends one must not fill the memory."""

_JOIN_BELOW = 64 * 1024
_FILE_CHUNK = 256 * 1024
_STREAM_AHEAD = 256 * 1024
"""Bytes of a stream that wait for their reader; the engine is not read any further then."""


class ConnectionLostError(Exception):
    """The engine refused, closed or broke the connection before its answer was complete, or didn't speak HTTP."""


class NotConnectedError(ConnectionLostError):
    """There was no connection: nothing of the request has reached the engine."""


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
    """One answer out of the bytes of a connection.

    Args:
        stream: Gets the head and each part of the body, which isn't kept then.
    """

    def __init__(self, stream: Stream | None = None) -> None:
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


class Stream:
    """An answer whose body is passed on as it comes, part by part.

    Args:
        connection: Where it comes from.
        answer: Done when the answer is complete, or broken.
    """

    def __init__(self, connection: Connection, answer: asyncio.Future[RawAnswer]) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._connection = connection
        self._answer = answer
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        answer.add_done_callback(self._end)

    @property
    def length(self) -> int | None:
        """Bytes of the body, if the head tells them."""
        text = self.headers.get(b"content-length", b"")
        return int(text) if text.isdigit() else None

    async def begun(self) -> None:
        """Returns once status and headers are there.

        Raises:
            ConnectionLostError: See there.
        """
        while not self.status:
            await self._more()

    async def next(self) -> bytes | None:
        """The next part of the body, as it came; None after the last.

        Raises:
            ConnectionLostError: The answer broke off.
        """
        while not self._parts:
            if self._answer.done():
                self._answer.result()
                return None
            await self._more()
        data = self._parts.popleft()
        self._size -= len(data)
        if self._size <= _STREAM_AHEAD and not self._answer.done():
            self._connection.read_on(True)
        return data

    async def read(self) -> bytes:
        """The rest of the body.

        Raises:
            ConnectionLostError: The answer broke off, or is too long.
        """
        parts, size = [], 0
        while (part := await self.next()) is not None:
            parts.append(part)
            size += len(part)
            if size > MAX_BODY:
                raise ConnectionLostError(f"its answer is longer than {MAX_BODY} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Nobody reads on: unless all has come, the connection is dropped, by which the engine sees that."""
        if not self._answer.done():
            self._connection.close()

    def begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The head has come."""
        self.status, self.headers = status, headers
        self._wake()

    def part(self, data: bytes) -> None:
        """A part of the body has come."""
        if not data:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > _STREAM_AHEAD:
            self._connection.read_on(False)
        self._wake()

    def _end(self, answer: asyncio.Future[RawAnswer]) -> None:
        if not answer.cancelled():
            answer.exception()  # whoever reads gets it; nobody may
        self._wake()

    async def _more(self) -> None:
        if self._answer.done():
            self._answer.result()
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


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
        answer: asyncio.Future[RawAnswer] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._parser = _Parser()
        try:
            await self._send(head, body, answer)
            return await answer
        except BaseException:
            self.close()
            raise

    async def stream(self, head: bytes, body: bytes | FileBody) -> Stream:
        """Sends one request; returns when its answer begins.

        Raises:
            ConnectionLostError: See there.
        """
        answer: asyncio.Future[RawAnswer] = asyncio.get_running_loop().create_future()
        self._answer = answer
        stream = Stream(self, answer)
        self._parser = _Parser(stream)
        try:
            await self._send(head, body, answer)
            await stream.begun()
        except BaseException:
            self.close()
            raise
        return stream

    def close(self) -> None:
        """Drops the connection."""
        if self._transport is not None:
            self._transport.abort()

    def read_on(self, wanted: bool) -> None:
        """Whether more of the answer is read now."""
        if self._transport is None or self._transport.is_closing():
            return
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    async def _send(self, head: bytes, body: bytes | FileBody, answer: asyncio.Future[RawAnswer]) -> None:
        transport = self._transport
        assert transport is not None
        if isinstance(body, FileBody):
            await self._send_file(transport, head, body, answer)
        elif len(body) < _JOIN_BELOW:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

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
            self.read_on(True)
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
        head = self._head(method, path, body, content_type)
        connection = self._take() or await self._open()
        return await connection.exchange(head, body)

    async def stream(self, path: str, body: bytes | FileBody, content_type: str, more: str = "") -> Stream:
        """One post, and its answer from its beginning on.

        Args:
            path: Of the server.
            body: What is posted.
            content_type: Of the body.
            more: Lines of headers, each with its end.

        Raises:
            NotConnectedError, ConnectionLostError: See there.
        """
        head = self._head("POST", path, body, content_type, more)
        connection = self._take() or await self._open()
        return await connection.stream(head, body)

    def _head(self, method: str, path: str, body: bytes | FileBody, content_type: str, more: str = "") -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self._name}\r\nContent-Type: {content_type}\r\n"
            f"Accept: */*\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        ).encode()

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
            raise NotConnectedError(str(error) or type(error).__name__) from error
        return connection

    def _free(self, connection: Connection) -> None:
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)
