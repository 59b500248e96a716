"""The pod's HTTP port: `/progress` for the operator, `/metrics` for Prometheus, `/healthz` for the kubelet, and
`/v1/queue/` for whoever wants to know where a request is."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import generate_latest

from gpubatch_runner.progress import RunProgress
from gpubatch_runner.request_queue import RequestQueue

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serving(progress: RunProgress, queue: RequestQueue, port: int, host: str = "0.0.0.0") -> AsyncIterator[int]:
    """Serves until the block ends; gives the port, which is a free one for `port` 0."""

    async def show_progress(_: web.Request) -> web.Response:
        return web.Response(text=progress.picture().to_json(), content_type="application/json")

    async def show_metrics(_: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=generate_latest(progress.metrics.registry), headers=headers)

    async def show_health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def show_queue(_: web.Request) -> web.Response:
        return web.json_response(queue.status())

    async def show_request(asked: web.Request) -> web.Response:
        custom_id = asked.match_info["id"]
        if (document := queue.request(custom_id)) is not None:
            return web.json_response(document)
        message = f"No request {custom_id!r} waits or runs, nor is it among the last that ended; see the results."
        return web.json_response({"error": {"code": "not_found", "message": message}}, status=404)

    app = web.Application()
    app.router.add_get("/progress", show_progress)
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", show_health)
    app.router.add_get("/v1/queue/status", show_queue)
    app.router.add_get("/v1/queue/request/{id:.+}", show_request)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = int(runner.addresses[0][1])
        log.info("serving progress", extra={"port": bound})
        yield bound
    finally:
        await runner.cleanup()
