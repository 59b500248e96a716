"""A web server that takes files by PUT, as presigned URLs do, and misbehaves on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web

Fault = Callable[[web.Request, int], Awaitable[web.StreamResponse | None]]
"""Gets a request and how many came before; None lets the server go on as usual."""

EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message><Signature>s3cr3t</Signature></Error>"


async def served(app: web.Application, host: str = "127.0.0.1") -> tuple[web.AppRunner, int]:
    """Serve at a free port; what to clean up, and the port."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    return runner, int(runner.addresses[0][1])


class PutServer:
    """Keeps what is PUT, by path. The query is the signature: only `good` is taken."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.good = "X-Amz-Signature=good"
        self.files: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    def url(self, path: str, query: str = "X-Amz-Signature=good") -> str:
        return f"http://127.0.0.1:{self.port}/{path}?{query}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1024**3)
        app.router.add_put("/{path:.*}", self._put)
        self._runner, self.port = await served(app)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner
        await self._runner.cleanup()

    async def _put(self, request: web.Request) -> web.StreamResponse:
        before = len(self.puts)
        self.puts.append(request.match_info["path"])
        if self.fault and (response := await self.fault(request, before)) is not None:
            return response
        if request.query_string != self.good:
            return web.Response(status=403, text=EXPIRED)
        if request.content_length is None:
            return web.Response(status=411)
        body = await request.read()
        self.files[request.match_info["path"]] = body
        return web.Response(status=200)


def cut(request: web.Request) -> None:
    """Breaks the connection under a request."""
    assert request.transport
    request.transport.abort()


async def forever() -> None:
    """Until the client has had enough."""
    await asyncio.Event().wait()
