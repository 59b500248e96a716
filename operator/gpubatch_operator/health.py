"""/healthz and /readyz, for the kubelet: alive while the event loop turns, ready once everything was listed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web


async def serve(port: int, why_not_ready: Callable[[], str]) -> None:
    """Serve for ever; `why_not_ready` is empty once the replica may be sent requests."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        why = why_not_ready()
        return web.Response(text=why or "ok", status=503 if why else 200)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
