"""The gateway's HTTP server: each answer, whatever went wrong, has the shape that OpenAI's clients know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

from aiohttp import web

from gpubatch_gateway import metrics
from gpubatch_gateway.audio import transcriptions
from gpubatch_gateway.batch.routes import MAX_BODY, STREAMS, Handler
from gpubatch_gateway.connections import Connection
from gpubatch_gateway.live import live_routes
from gpubatch_gateway.problems import RequestError

MAX_LINE = 8190  # bytes of the request line
MAX_FIELD = 32_768  # bytes of a header: tokens are long
IDLE_SECONDS = 75.0  # for the head of a request, and between two
STOP_SECONDS = 20.0  # for requests under way, when the process is told to end
UNTIMED = STREAMS | live_routes.PATHS.keys() | {transcriptions.ROUTE}
GONE = 499  # how a request is counted whose client went away, as others do
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

log = logging.getLogger(__name__)


class Endpoints(Protocol):
    """Some of what is served."""

    def add_to(self, app: web.Application) -> None:
        """Serve them."""


def application(endpoints: Iterable[Endpoints], request_seconds: float) -> web.Application:
    """What is served.

    Args:
        endpoints: All of it.
        request_seconds: Time limit of each, but for the content of files and for live requests.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        route = str(request.match_info.route.name or "none")
        try:
            async with asyncio.timeout(None if route in UNTIMED else request_seconds):
                response = await handler(request)
        except RequestError as e:
            response = e.response()
        except web.HTTPException as e:
            response = _of(e, request).response()
        except TimeoutError:
            response = RequestError(503, "timeout", "There was no answer in time. Try again.").response()
        except ConnectionError:
            raise
        except asyncio.CancelledError:
            metrics.REQUESTS.labels(route, GONE).inc()
            raise
        except Exception:
            log.exception("a request failed: %s %s", request.method, route)
            response = RequestError(500, "internal_error", "The gateway failed to answer; its log says why.").response()
        finally:
            metrics.SECONDS.labels(route).observe(time.perf_counter() - began)
        metrics.REQUESTS.labels(route, response.status).inc()
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    app = web.Application(middlewares=[guarded], client_max_size=MAX_BODY)
    for each in endpoints:
        each.add_to(app)
    return app


@asynccontextmanager
async def listening(app: web.Application, host: str | None, port: int) -> AsyncIterator[int]:
    """Serve while the context lasts; gives the port, which is chosen if 0 is given."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    loop, server = asyncio.get_running_loop(), runner.server
    assert server is not None

    def handler() -> Connection:
        return Connection(
            server,
            loop=loop,
            keepalive_timeout=IDLE_SECONDS,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            lingering_time=2.0,
        )

    listener = await loop.create_server(handler, host, port, backlog=512, reuse_address=True)
    try:
        yield int(listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        await runner.cleanup()


def _of(error: web.HTTPException, request: web.Request) -> RequestError:
    match error.status:
        case 404:
            return RequestError(404, "unknown_url", f"Unknown request URL: {request.method} {request.path[:200]}.")
        case 405:
            return RequestError(405, "method_not_allowed", f"{request.method} isn't possible at {request.path[:200]}.")
        case 413:
            return RequestError(413, "body_too_large", f"The body is longer than {MAX_BODY} bytes.")
        case _:
            return RequestError(error.status, "bad_request", error.text or error.reason)
