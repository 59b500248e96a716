"""The pod's HTTP port: `/progress` for the operator, `/metrics` for Prometheus, `/healthz` for the kubelet."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import generate_latest

from gpubatch_runner.progress import RunProgress

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serving(progress: RunProgress, port: int, host: str = "0.0.0.0") -> AsyncIterator[int]:
    """Serves until the block ends; gives the port, which is a free one for `port` 0."""

    async def show_progress(_: web.Request) -> web.Response:
        return web.Response(text=progress.picture().to_json(), content_type="application/json")

    async def show_metrics(_: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=generate_latest(progress.metrics.registry), headers=headers)

    async def show_health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/progress", show_progress)
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", show_health)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = int(runner.addresses[0][1])
        log.info("serving progress", extra={"port": bound})
        yield bound
    finally:
        await runner.cleanup()
