"""An engine that does to its client whatever a server can do, as a server on the loopback that writes bytes, not HTTP.

A request's prompt says what happens to it: `FAULT` each time, or `FAULT once`, after which it is answered.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Self

Writer = asyncio.StreamWriter


def answer(prompt: str) -> bytes:
    """A sound body."""
    choice = {"index": 0, "message": {"role": "assistant", "content": f"echo {prompt}"}}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()


def head(status: str, length: int | None, *more: str) -> bytes:
    """The head of an answer; no length is given for None."""
    given = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Type: application/json", *given, *more, "", ""]).encode()


async def sound(writer: Writer, prompt: str) -> None:
    body = answer(prompt)
    writer.write(head("200 OK", len(body)) + body)


async def slow(writer: Writer, prompt: str) -> None:
    body = answer(prompt)
    for part in (head("200 OK", len(body)), body[:20], body[20:]):
        await asyncio.sleep(0.1)
        writer.write(part)


async def silent(writer: Writer, prompt: str) -> None:
    await asyncio.sleep(60)


async def cut(writer: Writer, prompt: str) -> None:
    body = answer(prompt)
    writer.write(head("200 OK", len(body)) + body[: len(body) // 2])
    await writer.drain()
    writer.close()


async def closed(writer: Writer, prompt: str) -> None:
    writer.close()


async def error_500(writer: Writer, prompt: str) -> None:
    writer.write(head("500 Internal Server Error", 4) + b"oops")


async def busy_429(writer: Writer, prompt: str) -> None:
    writer.write(head("429 Too Many Requests", 2, "Retry-After: 0.05") + b"{}")


async def full_503(writer: Writer, prompt: str) -> None:
    writer.write(head("503 Service Unavailable", 2) + b"{}")


async def refused_400(writer: Writer, prompt: str) -> None:
    writer.write(head("400 Bad Request", 2) + b"{}")


async def too_long(writer: Writer, prompt: str) -> None:
    """Promises more than it sends."""
    body = answer(prompt)
    writer.write(head("200 OK", len(body) + 100) + body)
    await writer.drain()
    writer.close()


async def too_short(writer: Writer, prompt: str) -> None:
    """Sends more than it promises."""
    body = answer(prompt)
    writer.write(head("200 OK", len(body) - 10) + body)


async def unending(writer: Writer, prompt: str) -> None:
    writer.write(head("200 OK", None, "Transfer-Encoding: chunked"))
    while True:
        writer.write(b"1\r\n \r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def unending_head(writer: Writer, prompt: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: " + b"x" * 1000 + b"\r\n")
        await writer.drain()


async def huge(writer: Writer, prompt: str) -> None:
    writer.write(head("200 OK", 10**12) + b"{")
    await asyncio.sleep(60)


async def no_http(writer: Writer, prompt: str) -> None:
    writer.write(b"220 smtp.example.com ESMTP\r\n\r\n")


async def bad_chunk(writer: Writer, prompt: str) -> None:
    writer.write(head("200 OK", None, "Transfer-Encoding: chunked") + b"xyz\r\nhello\r\n")


async def no_json(writer: Writer, prompt: str) -> None:
    writer.write(head("200 OK", 14) + b"<html> </html>")


async def chunked(writer: Writer, prompt: str) -> None:
    """Unusual, but sound: chunked, after a 100 Continue, in small pieces."""
    body = answer(prompt)
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + head("200 OK", None, "Transfer-Encoding: chunked")
    data += b"".join(b"%x;x=y\r\n%s\r\n" % (len(body[n : n + 7]), body[n : n + 7]) for n in range(0, len(body), 7))
    data += b"0\r\nX-Trailer: 1\r\n\r\n"
    for n in range(0, len(data), 11):
        writer.write(data[n : n + 11])
        await asyncio.sleep(0)


async def until_the_end(writer: Writer, prompt: str) -> None:
    """Sound too: without a length, as HTTP/1.0 had it."""
    writer.write(head("200 OK", None, "Connection: close") + answer(prompt))
    await writer.drain()
    writer.close()


FAULTS: dict[str, Callable[[Writer, str], Awaitable[None]]] = {
    function.__name__: function
    for function in (
        *(sound, slow, chunked, until_the_end),
        *(silent, cut, closed, error_500, busy_429, full_503, refused_400, too_long, too_short, unending),
        *(unending_head, huge, no_http, bad_chunk, no_json),
    )
}
SOUND = ("sound", "slow", "chunked", "until_the_end")


class HostileEngine:
    """The server; `seen` counts the posts of each prompt."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            while not writer.is_closing():
                asked = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", asked.lower())
                body = await reader.readexactly(int(length[1]) if length else 0)
                await self._answer(asked, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, asked: bytes, body: bytes, writer: Writer) -> None:
        if not asked.startswith(b"POST"):
            writer.write(head("200 OK" if b"/health" in asked else "404 Not Found", 0))
            return
        prompt = json.loads(body)["messages"][0]["content"]
        fault, _, once = prompt.partition(" ")
        self.seen[prompt] += 1
        await FAULTS["sound" if once.startswith("once") and self.seen[prompt] > 1 else fault](writer, prompt)
