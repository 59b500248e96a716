"""A web proxy before an object store, which makes it slow, or lets it fail, on demand."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

from support.web import served

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Called for each request before it is passed on; None passes it on."""


class StoreProxy:
    """Passes requests on as they are: signatures cover the host that the client named, and that header is kept.

    Args:
        upstream: The store's URL.
        host: The address to listen at.
    """

    def __init__(self, upstream: str, host: str = "127.0.0.1") -> None:
        self._upstream, self._host = upstream, host
        self.fault: Fault | None = None
        self.bytes_per_second: float | None = None
        """How quickly bodies are taken, all connections together."""
        self.requests: list[tuple[str, str]] = []
        """Method and path with query of each, in their order."""
        self._busy = asyncio.Lock()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1024**3)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner, self.port = await served(app, self._host)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path))
        if self.fault and (response := await self.fault(request)) is not None:
            return response
        body = await request.read()
        if self.bytes_per_second and body:
            async with self._busy:
                await asyncio.sleep(len(body) / self.bytes_per_second)
        return await self.answer(request, body)

    async def answer(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """What the store says."""
        url = URL(self._upstream + request.raw_path, encoded=True)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
        skipped = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        async with self._session.request(
            request.method,
            url,
            data=io.BytesIO(body) if body else None,
            headers=headers,
            skip_auto_headers=skipped,
            allow_redirects=False,
        ) as answer:
            dropped = ("connection", "transfer-encoding", "content-encoding")
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in dropped}
            if request.method == "HEAD":
                return web.Response(status=answer.status, headers=kept)
            kept.pop("Content-Length", None)
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
