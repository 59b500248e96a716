"""A stand-in for the engine, for what a real one cannot be made to do on demand. e2e tests use vLLM itself.

In a test's own process: `async with FakeEngine() as engine`. As a process that can be killed:
`python fake_engine.py PORT LOG DELAY`, which appends the prompt of each request that it answers to LOG.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from aiohttp import web

Behaviour = Callable[[str, int], Awaitable[web.StreamResponse | None]]
"""Gets the prompt and how often it was seen before; None lets the engine answer as usual."""


def answer(body: dict[str, Any]) -> web.Response:
    """A chat completion that echoes its prompt."""
    prompt = prompt_of(body)
    document = {
        "id": f"chatcmpl-{prompt}",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": f"echo {prompt}"}}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }
    return web.json_response(document, headers={"x-request-id": f"req-{prompt}"})


def prompt_of(body: dict[str, Any]) -> str:
    """The text of the only message."""
    return str(body["messages"][0]["content"])


class FakeEngine:
    """An OpenAI-compatible server on a free port of the loopback."""

    def __init__(self, behave: Behaviour | None = None, delay: float = 0.0) -> None:
        self.behave = behave
        self.delay = delay
        self.healthy = True
        self.seen: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens, after a stop on the same port as before."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/{endpoint:.*}", self._post)
        # As vLLM does, it stops working for those who have gone.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def has_seen(self, requests: int) -> None:
        """Returns once so many requests came."""
        while sum(self.seen.values()) < requests:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        """Drops all connections and refuses new ones."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = prompt_of(body)
        before = self.seen[prompt]
        self.seen[prompt] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.behave and (response := await self.behave(prompt, before)) is not None:
                return response
            return answer(body)
        finally:
            self.in_flight -= 1


async def _serve(port: int, log: Path, delay: float) -> None:
    engine = FakeEngine(delay=delay)
    engine.port = port
    with log.open("a", buffering=1) as file:

        async def note(prompt: str, _: int) -> None:
            file.write(prompt + "\n")

        engine.behave = note
        await engine.start()
        print(json.dumps({"port": engine.port}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
