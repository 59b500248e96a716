"""The pod of a live job: a real server that takes requests with the job's key, and does with them what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.livekey import key_of
from gpubatch_runner.complaints import ending
from gpubatch_runner.contract import ENDPOINTS
from unit.gateway.fake import ApiServer, Site
from unit.operator.build import EPOCH

JSON = dict[str, Any]
Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def echo(request: web.Request) -> web.StreamResponse:
    """Answers with the body."""
    headers = {"X-Request-Id": "req_1", "X-Engine": "hidden", "Content-Type": request.headers["Content-Type"]}
    return web.Response(body=await request.read(), headers=headers)


@dataclass
class Pod:
    """One pod; `behave` may be changed at any time."""

    key: str
    behave: Behaviour = echo
    port: int = 0
    seen: list[str] = field(default_factory=list)
    dropped: int = 0
    answers: dict[str, JSON] = field(default_factory=dict)
    runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def take(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"code": "invalid_api_key"}}, status=401)
        self.seen.append(request.path)
        try:
            return await self.behave(request)
        except asyncio.CancelledError:
            self.dropped += 1
            raise

    async def show(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({}, status=401)
        found = self.answers.get(request.path)
        return web.json_response(found or {}, status=200 if found else 404)

    async def stop(self) -> None:
        """Nobody listens there any more."""
        assert self.runner is not None
        await self.runner.cleanup()


@asynccontextmanager
async def pod(key: str, behave: Behaviour = echo) -> AsyncIterator[Pod]:
    """A pod that serves."""
    found = Pod(key, behave)
    app = web.Application(client_max_size=2**24)
    for endpoint in ENDPOINTS:
        app.router.add_post(endpoint, found.take)
    app.router.add_get("/v1/queue/{rest:.*}", found.show)
    runner = found.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.port = runner.addresses[0][1]
    try:
        yield found
    finally:
        await runner.cleanup()


async def stopping(request: web.Request) -> web.StreamResponse:
    """As a job that is being stopped."""
    return ending()


def live_job(api: ApiServer, name: str = "live", model: str = "m", **spec: Any) -> JSON:
    """A live job that somebody has made."""
    live = spec.pop("live", {})
    work = {"model": f"org/{model}", "servedModelName": model, "input": {"live": live}}
    meta = {"name": name, "namespace": "search", "uid": f"uid-{name}", "creationTimestamp": iso(EPOCH + len(api.jobs))}
    api.jobs["search", name] = {"metadata": meta, "spec": {"inference": work, **spec}}
    return api.status("search", name)


def up(site: Site, name: str, pod: Pod, **status: Any) -> None:
    """Its pod serves, and the gateway has heard of it."""
    told(site, name, phase="Running", live={"url": pod.url, "model": "m"}, **status)


def told(site: Site, name: str, **status: Any) -> None:
    """The gateway has heard of a job's status."""
    site.lives.put(site.api.status("search", name, **status))


def key(api: ApiServer, name: str) -> str:
    """What the operator has derived for a job."""
    return key_of(api.secret, f"uid-{name}")
