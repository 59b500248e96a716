"""The pod's HTTP port: `/progress` for the operator, `/metrics` for Prometheus, `/healthz` for the kubelet, and
`/v1/queue/` for whoever wants to know where a request is. Of a live run it takes the requests too, and then all that is
below `/v1/` is for those only who show a key."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import generate_latest

from gpubatch_runner.complaints import complaint
from gpubatch_runner.contract import ENDPOINTS
from gpubatch_runner.progress import RunProgress
from gpubatch_runner.request_queue import RequestQueue

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 10.0
"""How long clients of a live run may take to read its last answers."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Front:
    """What a live run has for clients."""

    take: Handler
    """Answers the request of one that may send it."""

    allow: Callable[[str | None], bool]
    """Whether a request with this `Authorization` may come in."""

    model: str
    """What is served."""


@contextlib.asynccontextmanager
async def serving(
    progress: RunProgress, queue: RequestQueue, port: int, host: str = "0.0.0.0", front: Front | None = None
) -> AsyncIterator[int]:
    """Serves until the block ends; gives the port, which is a free one for `port` 0."""

    async def show_progress(_: web.Request) -> web.Response:
        return web.Response(text=progress.picture().to_json(), content_type="application/json")

    async def show_metrics(_: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=generate_latest(progress.metrics.registry), headers=headers)

    def guarded(handler: Handler) -> Handler:
        if front is None:
            return handler
        allow = front.allow

        async def ask_first(request: web.Request) -> web.StreamResponse:
            if not allow(request.headers.get("Authorization")):
                headers = {"WWW-Authenticate": "Bearer"}
                return complaint(401, "invalid_api_key", "Show this job's key: Authorization: Bearer KEY.", headers)
            return await handler(request)

        return ask_first

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
    app.router.add_get("/v1/queue/status", guarded(show_queue))
    app.router.add_get("/v1/queue/request/{id:.+}", guarded(show_request))
    if front is not None:
        for endpoint in ENDPOINTS:
            app.router.add_post(endpoint, guarded(front.take))
        model, models = _models(front.model)
        app.router.add_get("/v1/models", guarded(models))
        app.router.add_get("/v1/models/{id:.+}", guarded(model))
        app.router.add_route("*", "/v1/{rest:.*}", guarded(_unknown))
    # A client that goes away cancels what is done for it; at the end the last answers still have to be sent.
    cancels, patience = (False, 1.0) if front is None else (True, FAREWELL_SECONDS)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=patience, handler_cancellation=cancels)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = int(runner.addresses[0][1])
        log.info("serving progress", extra={"port": bound})
        yield bound
    finally:
        await runner.cleanup()


def _models(name: str) -> tuple[Handler, Handler]:
    """`GET /v1/models/{id}` and `GET /v1/models`."""
    document = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "gpubatch"}

    async def show(asked: web.Request) -> web.StreamResponse:
        if asked.match_info["id"] == name:
            return web.json_response(document)
        return complaint(404, "model_not_found", f"This job serves the model {name!r} and no other.")

    async def show_all(_: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [document]})

    return show, show_all


async def _unknown(asked: web.Request) -> web.StreamResponse:
    message = f"Unknown request: {asked.method} {asked.path}; expected POST to one of {', '.join(ENDPOINTS)}."
    return complaint(404, "unknown_url", message)
