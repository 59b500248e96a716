"""HTTP/1.1 towards the engine: one post on one kept-alive connection at a time, and little else.

A general client costs several times the processor time for each request, and the runner shares its node with the
engine. An answer (`http1_answer`) is waited for (`Connections.request`), or passed on as it comes
(`Connections.stream`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpubatch_runner.http1_answer import MAX_BODY, ConnectionLostError, Parser, RawAnswer

_JOIN_BELOW = 64 * 1024
_FILE_CHUNK = 256 * 1024
_STREAM_AHEAD = 256 * 1024
"""Bytes of a stream that wait for their reader; the engine is not read any further then."""


class NotConnectedError(ConnectionLostError):
    """There was no connection: nothing of the request has reached the engine."""


@dataclass(frozen=True, slots=True)
class FileBody:
    """A body that is read from a file while it is sent, between two parts that are at hand."""

    head: bytes
    path: Path
    tail: bytes
    content_type: str

    def __len__(self) -> int:
        return len(self.head) + self.path.stat().st_size + len(self.tail)


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
        self._parser = Parser()
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
        self._parser = Parser()
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
        self._parser = Parser(stream)
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
