"""The two listeners: one for the cluster, whose callers show a token, and one on the pod's loopback.

They run in a thread with an event loop of its own, so that a plan of thousands of jobs doesn't hold up a request, nor a
thousand requests a plan. What they show is handed over change by change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gpubatch_operator.web.access import Access, Scope
from gpubatch_operator.web.problems import RequestError
from gpubatch_operator.web.routes import FindScope, Routes

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_LINE = 8190  # of a request, bytes
REQUEST_SECONDS = 15.0

log = logging.getLogger(__name__)


def application(routes: Routes, local: bool) -> web.Application:
    """One listener's application; that of the loopback answers only under local names, and has the metrics too."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if local:
                _refuse_foreign(request)
            async with asyncio.timeout(REQUEST_SECONDS):
                response = await handler(request)
        except RequestError as e:
            response = e.response()
        except web.HTTPException as e:
            response = _of(e, request).response()
        except TimeoutError:
            response = RequestError(
                503, "Timeout", "there was no answer in time", "try again", retry_after=2
            ).response()
        except Exception:
            log.exception("a request failed: %s", request.path)
            response = RequestError(
                500, "InternalError", "the operator failed to answer", "look into the operator's log, and report it"
            ).response()
        response.headers.update(HEADERS)
        return response

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application(middlewares=[guarded], client_max_size=1024)
    routes.add_to(app)
    if local:
        app.router.add_get("/metrics", metrics)
    return app


@asynccontextmanager
async def listening(app: web.Application, host: str | None, port: int) -> AsyncIterator[int]:
    """Serve while the context lasts; gives the port, which is chosen if 0 is given."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0, max_line_size=MAX_LINE, keepalive_timeout=75.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=512).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def everything(_: web.Request, asked: tuple[str, ...]) -> Awaitable[Scope]:
    """What a caller over the loopback sees: the cluster has let them in."""

    async def scope() -> Scope:
        return frozenset(asked) if asked else None

    return scope()


def by_token(access: Access) -> FindScope:
    """What a caller sees by their token."""

    def scope(request: web.Request, asked: tuple[str, ...]) -> Awaitable[Scope]:
        return access.scope(request.headers.get("Authorization"), asked)

    return scope


def _refuse_foreign(request: web.Request) -> None:
    """A page of the Internet whose name is made to mean 127.0.0.1 must not read the queue in its visitor's browser."""
    name = request.host.rpartition(":")[0] if not request.host.endswith("]") and ":" in request.host else request.host
    if name.lower() not in LOCAL:
        raise RequestError(
            403,
            "ForeignHost",
            f"the request is for the host {request.host[:100]!r}, and this listener answers as localhost only",
            "open http://localhost:PORT/; to reach it under another name, use the Service, with a token",
        )


def _of(error: web.HTTPException, request: web.Request) -> RequestError:
    if error.status == 404:
        return RequestError(
            404, "NotFound", f"there is nothing at {request.path[:200]!r}", "see /openapi.json for what there is"
        )
    if error.status == 405:
        return RequestError(
            405, "MethodNotAllowed", f"{request.method} isn't possible here", "GET only: this is read-only"
        )
    return RequestError(error.status, error.reason.replace(" ", ""), error.text or error.reason, "see /openapi.json")
