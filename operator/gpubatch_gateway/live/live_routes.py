"""The endpoints of live requests: what OpenAI's clients post, and where requests are."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web

from gpubatch_gateway.answering import of_json
from gpubatch_gateway.auth import REQUESTS, Act, Gate
from gpubatch_gateway.connections import ends_with_client
from gpubatch_gateway.live.budget import Budget
from gpubatch_gateway.live.lives import LiveJob, Lives
from gpubatch_gateway.live.relaying import relay
from gpubatch_gateway.live.routing import Router
from gpubatch_gateway.live.runners import Ask, Runners
from gpubatch_gateway.problems import JSON_TYPE, RequestError, invalid
from gpubatch_gateway.reading import late, parsed
from gpubatch_gateway.settings import Settings
from gpubatch_runner.contract import ENDPOINTS, TRANSCRIPTIONS

BASE = "/v1"
PATHS = {path.removeprefix(f"{BASE}/").replace("/", "_"): path for path in ENDPOINTS if path != TRANSCRIPTIONS}
"""By the route's name. None has the time limit of other requests, but one of its own."""

COUNTS = (
    *("queue_size", "processing_count", "max_concurrent", "max_queue_size"),
    *("total_processed", "total_failed", "total_queued", "active_requests"),
)
_SEND, _START = Act("create", REQUESTS), Act("create")


class LiveRoutes:
    """The handlers.

    Args:
        gate: Lets requests in.
        router: Finds who answers.
        runners: Asked where requests are.
        lives: The live jobs.
        settings: Limits.
    """

    def __init__(self, gate: Gate, router: Router, runners: Runners, lives: Lives, settings: Settings) -> None:
        self._gate, self._router, self._runners, self._lives = gate, router, runners, lives
        self._seconds, self._patience = settings.live_request_seconds, settings.body_seconds
        self._longest, self._budget = settings.live_max_body_bytes, Budget(settings.live_held_bytes)

    def add_to(self, app: web.Application) -> None:
        """Serve them."""
        for name, path in PATHS.items():
            app.router.add_post(path, self.take, name=name)
        app.router.add_get(f"{BASE}/queue/status", self.queue, name="queue")
        app.router.add_get(f"{BASE}/queue/request/{{id}}", self.queued, name="queued")

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Have a request answered by the live job that serves its model."""
        namespace = await self._gate.enter(request.headers, _SEND)
        deadline = asyncio.get_running_loop().time() + self._seconds
        with ends_with_client(request):
            async with self._budget.held(self._size(request)):
                body = await self._body(request)
                ask = Ask(
                    request.path.removeprefix(BASE),
                    body,
                    {"Content-Type": request.headers.get("Content-Type", JSON_TYPE)},
                )
                model = _model(body)
                may_start = lambda: self._gate.enter(request.headers, _START)  # noqa: E731
                async with self._router.send(namespace, model, ask, deadline, may_start) as answer:
                    return await relay(request, answer, self._patience)

    def _size(self, request: web.Request) -> int:
        """The bytes that a body may have."""
        length = request.content_length
        if length is None or "Content-Encoding" in request.headers:
            return self._longest
        if length > self._longest:
            raise self._too_long()
        return length

    async def _body(self, request: web.Request) -> bytes:
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self._patience):
                while part := await request.content.readany():
                    size += len(part)
                    if size > self._longest:
                        raise self._too_long()
                    parts.append(part)
        except TimeoutError:
            raise late(self._patience) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_long(self) -> RequestError:
        message = f"The body is longer than {self._longest} bytes, the most that is taken. Send less at a time."
        return RequestError(413, "request_too_large", message)

    async def queue(self, request: web.Request) -> web.Response:
        """The queues of a namespace's live jobs, summed up."""
        namespace = await self._gate.enter(request.headers, Act("get"))
        model, counts, runs = request.query.get("model"), Counter[str](), False
        for found in await self._ask_all(namespace, model, "/queue/status"):
            counts.update({name: int(found[name]) for name in COUNTS if name in found})
            runs = runs or found.get("is_running") is True
        return of_json({**{name: counts[name] for name in COUNTS}, "is_running": runs})

    async def queued(self, request: web.Request) -> web.Response:
        """Where one request is."""
        namespace = await self._gate.enter(request.headers, Act("get", REQUESTS))
        asked = request.match_info["id"]
        if not (asked.isascii() and asked.isidentifier()):
            raise _no_request(asked)
        for found in await self._ask_all(namespace, None, f"/queue/request/{asked}"):
            return of_json(found)
        raise _no_request(asked)

    async def _ask_all(self, namespace: str, model: str | None, path: str) -> list[dict[str, Any]]:
        """What the live jobs of a namespace say, of those that say something."""
        there: list[LiveJob] = [job for job in self._lives.wanted(namespace) if job.url and model in (None, job.model)]
        said = await asyncio.gather(*(self._runners.look(job, path) for job in there))
        return [each for each in said if each is not None]


def _model(body: bytes) -> str:
    """What a request's body names.

    Raises:
        RequestError: 400; nothing.
    """
    document = parsed(body)
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, str) or not model:
        raise invalid("Missing required parameter: 'model'.", "model", "missing_required_parameter")
    return model


def _no_request(asked: str) -> RequestError:
    message = f"No live job of this namespace knows a request {asked[:100]!r}: it ended long ago, or its job did."
    return RequestError(404, "request_not_found", message)
