"""The read-only endpoints. What each costs doesn't depend on how many jobs there are, but on how many it shows."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import orjson
from aiohttp import web
from pydantic.alias_generators import to_camel

from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import Job
from gpubatch_operator.core.phases import ACTIVE, WAITING, Phase
from gpubatch_operator.settings import Settings
from gpubatch_operator.version import VERSION
from gpubatch_operator.web import documents, nodes, openapi, page, parameters
from gpubatch_operator.web.board import Board
from gpubatch_operator.web.lists import Key, take
from gpubatch_operator.web.problems import JSON_TYPE, RequestError, bad_parameter

JSON = dict[str, Any]
Scope = frozenset[str] | None
FindScope = Callable[[web.Request, tuple[str, ...]], Awaitable[Scope]]
"""What the caller sees of the namespaces that they ask for."""

LOOKED_AT = 5000  # jobs that a search looks at for one page
LIST = frozenset({"namespace", "q", "limit", "continue"})
JOB_KEYS = ((0.0, "", "", ""),)
QUEUE_KEYS = ((False, (0.0, "")), (True, (0, 0.0, 0, "")))
NODE_KEYS = (("",),)
TIMEOUTS = (
    *("image_pull_seconds", "start_seconds", "unschedulable_seconds", "scale_up_seconds", "stop_seconds"),
    *("unresponsive_seconds", "webhook_timeout_seconds", "upload_connect_seconds", "upload_read_seconds"),
    *("upload_write_seconds", "upload_pool_seconds", "upload_total_seconds"),
)


class Routes:
    """The handlers.

    Args:
        board: What there is.
        settings: For the limits.
        scope: Who may see what.
        leads: Whether this replica plans, and whether any does.
        ready: Why not, or nothing.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        board: Board,
        settings: Settings,
        scope: FindScope,
        leads: Callable[[], tuple[bool, bool]],
        why_not_ready: Callable[[], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._board, self._settings, self._scope, self._leads = board, settings, scope, leads
        self._why_not_ready, self._clock = why_not_ready, clock

    def add_to(self, app: web.Application) -> None:
        """Put them into an application."""
        get = app.router.add_get
        get("/", self.page)
        get("/v1/queue/status", self.queue_status)
        get("/v1/queue", self.queue)
        get("/v1/jobs", self.jobs)
        get("/v1/jobs/{namespace}/{name}", self.job)
        get("/v1/nodes", self.nodes)
        get("/health", self.health)
        get("/healthz", self.healthz)
        get("/readyz", self.readyz)
        get("/openapi.json", self.openapi)

    async def queue_status(self, request: web.Request) -> web.Response:
        """How many jobs wait and run, and did ever."""
        scope = await self._scope(request, parameters.namespaces(request.query))
        board, tally = self._board, self._board.tally
        phases = {phase.value: board.count(scope, [phase]) for phase in Phase}
        waiting, active = (sum(phases[p] for p in of) for of in (WAITING, ACTIVE))
        return _json(
            {
                "queue_size": waiting,
                "processing_count": active,
                "max_concurrent": board.slots(),
                "max_queue_size": self._settings.max_queue_depth,
                "total_processed": tally.total(Phase.SUCCEEDED.value, scope),
                "total_failed": tally.total(Phase.FAILED.value, scope),
                "total_queued": tally.total("Queued", scope),
                "active_requests": waiting + active,
                "is_running": self._leads()[1],
                "total_cancelled": tally.total(Phase.CANCELLED.value, scope),
                "held": phases[Phase.HELD],
                "suspended": phases[Phase.SUSPENDED],
                "phases": phases,
                "nodes": sum(1 for _ in board.gpu_nodes("")),
                "namespaces": sorted(scope) if scope is not None else None,
                "server_time": iso(self._clock()),
            }
        )

    async def queue(self, request: web.Request) -> web.Response:
        """Who runs, then who waits, in the order in which they will be admitted."""
        asked = parameters.wanted(request.query, LIST, QUEUE_KEYS)
        scope = await self._scope(request, asked.namespaces)
        keys = self._board.in_order(scope, asked.after)
        return self._list(asked, keys, self._board.in_queue(scope))

    async def jobs(self, request: web.Request) -> web.Response:
        """All jobs, the newest first."""
        asked = parameters.wanted(request.query, LIST | {"phase"}, JOB_KEYS)
        scope = await self._scope(request, asked.namespaces)
        phases: tuple[Phase | None, ...] = asked.phases or (*Phase, None)
        keys = self._board.newest_first(scope, phases, asked.after)
        return self._list(asked, keys, self._board.count(scope, phases))

    async def job(self, request: web.Request) -> web.Response:
        """One job with its whole status."""
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        if not parameters.LABEL.fullmatch(namespace):
            raise bad_parameter("the path's namespace", namespace, "the name of a namespace")
        await self._scope(request, (namespace,))
        if (job := self._board.find(namespace, name)) is None:
            what = f"there is no gpubatchjob {namespace}/{name[:253]}"
            raise RequestError(404, "NotFound", what, f"see which there are: /v1/jobs?namespace={namespace}")
        return _bytes(documents.detail(job, self._board.position(job), self._clock()))

    async def nodes(self, request: web.Request) -> web.Response:
        """The nodes that take jobs, with what ran there lately."""
        asked = parameters.wanted(request.query, LIST - {"q"}, NODE_KEYS)
        scope = await self._scope(request, asked.namespaces)
        items, more = nodes.page(self._board, scope, asked.after[0] if asked.after else "", asked.limit)
        after = (more,) if more else None
        return _json({"items": items, "continue": parameters.token(after), "serverTime": iso(self._clock())})

    async def health(self, _: web.Request) -> web.Response:
        """How the operator is, and what limits it keeps."""
        why, settings = self._why_not_ready(), self._settings
        leads, led = self._leads()
        return _json(
            {
                "status": "starting" if why else "ok",
                "version": VERSION,
                "leader": leads,
                "isRunning": led,
                "jobs": len(self._board),
                "concurrency": {
                    "slots": self._board.slots(),
                    "slotsInUse": self._board.count(None, ACTIVE),
                    "maxQueueDepth": settings.max_queue_depth,
                    "maxInspections": settings.max_inspections,
                    "maxTotalQueuedRequests": settings.max_total_queued_requests,
                },
                "timeouts": {to_camel(name): getattr(settings, name) for name in TIMEOUTS},
                "serverTime": iso(self._clock()),
            },
            503 if why else 200,
        )

    async def healthz(self, _: web.Request) -> web.Response:
        """Whether the event loop turns."""
        return web.Response(text="ok")

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether everything was listed."""
        why = self._why_not_ready()
        return web.Response(text=why or "ok", status=503 if why else 200)

    async def openapi(self, _: web.Request) -> web.Response:
        """What there is, for programs."""
        return _bytes(openapi.DOCUMENT)

    async def page(self, _: web.Request) -> web.Response:
        """For people."""
        return web.Response(body=page.BODY, content_type="text/html", charset="utf-8", headers=page.HEADERS)

    def _list(self, asked: parameters.Wanted, keys: Iterator[Key], total: int) -> web.Response:
        board, now = self._board, self._clock()

        def matches(key: Key) -> bool:
            job = board.job(key)
            return asked.text in f"{job.namespace}/{job.name} {job.model}".lower()

        board.age(now)
        found, after = take(keys, asked.limit, matches if asked.text else _any, LOOKED_AT)
        jobs: list[Job] = [board.job(key) for key in found]
        items = b",".join([documents.moment(j, board.position(j), now) + board.text(j) for j in jobs])
        tail = {"continue": parameters.token(after), "serverTime": iso(now), "total": None if asked.text else total}
        return _bytes(b'{"items":[' + items + b"]," + orjson.dumps(tail)[1:])


def _any(_: Key) -> bool:
    return True


def _json(document: Mapping[str, Any], status: int = 200) -> web.Response:
    return _bytes(orjson.dumps(document), status)


def _bytes(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type=JSON_TYPE)
