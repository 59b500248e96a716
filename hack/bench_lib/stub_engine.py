"""A stand-in for the engine that answers each request after a fixed latency, with as little CPU as Python can.

    python hack/bench_lib/stub_engine.py PORT LATENCY_SECONDS [EMBEDDING_DIMENSIONS]

It is what the runner's own cost is measured against. It batches nothing, so its `/metrics` shows no waiting requests.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
ABSENT = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def chat_answer() -> bytes:
    """A chat completion of the size that vLLM's have."""
    message = {"role": "assistant", "content": "Paris is the capital. " * 8, "refusal": None, "tool_calls": []}
    return json.dumps(
        {
            "id": "chatcmpl-00000000000000000000000000000000",
            "object": "chat.completion",
            "created": 1790000000,
            "model": "tiny",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 27, "total_tokens": 67, "completion_tokens": 40, "prompt_tokens_details": None},
        }
    ).encode()


def embedding_answer(dimensions: int) -> bytes:
    """An answer of /v1/embeddings."""
    vector = [random.uniform(-1, 1) for _ in range(dimensions)]
    return json.dumps(
        {
            "id": "embd-0",
            "object": "list",
            "model": "tiny",
            "data": [{"index": 0, "object": "embedding", "embedding": vector}],
            "usage": {"prompt_tokens": 27, "total_tokens": 27, "completion_tokens": 0, "prompt_tokens_details": None},
        }
    ).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection; no pipelining."""

    def __init__(self, latency: float, answer: bytes) -> None:
        self._latency = latency
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
        self._answer = head.encode() + answer
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        self._buffer = b""
        if head.startswith(b"get "):
            self._write(HEALTHY if head.startswith(b"get /health ") else ABSENT)
        else:
            asyncio.get_running_loop().call_later(self._latency, self._write, self._answer)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


async def serve(port: int, latency: float, answer: bytes) -> None:
    """Serves until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(latency, answer), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    dimensions = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    asyncio.run(
        serve(int(sys.argv[1]), float(sys.argv[2]), embedding_answer(dimensions) if dimensions else chat_answer())
    )
