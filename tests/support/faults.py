"""A proxy between one operator and the API server that speaks HTTP, and so can go wrong in all the ways that it can.

It answers 429, 409, 410 and 500 by itself, is slow, cuts connections before or after the request was carried out, and
lets them hang in silence: no byte comes any more, and no end. What hangs never goes on, not even after `heal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import aiohttp
import yaml
from aiohttp import web
from kubernetes.aio import client as k8s
from kubernetes.aio import config
from kubernetes.aio.client.rest import RESTClientObject

JSON = dict[str, Any]
LINE = 2**21
HOP = {"host", "content-length", "transfer-encoding", "connection", "content-encoding", "accept-encoding"}
FAULTS = {  # how often each happens, relatively
    "429": 6,
    "409": 4,
    "500": 6,
    "slow": 6,
    "cut before": 4,
    "cut after": 6,
    "stall before": 1,
    "stall after": 1,
}
WATCH_FAULTS = {"410": 4, "gone at once": 2, "cut": 4, "stall": 2}
REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


def failure(code: int) -> JSON:
    """A Status as the API server sends it."""
    message = f"{REASONS[code]}, says the proxy"
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code} | {
        "reason": REASONS[code],
        "message": message,
    }


class _Watch:
    """An open watch of the operator's."""

    def __init__(self, path: str, request: web.Request, response: web.StreamResponse) -> None:
        self.path, self._request, self._response = path, request, response

    async def say(self, line: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the operator is dead
            await self._response.write(line)

    def cut(self) -> None:
        if transport := self._request.transport:
            transport.abort()


class FaultyProxy:
    """Passes everything on, for as long as the context lasts, until it is told otherwise.

    Args:
        kubeconfig: How to reach the API server.
        folder: For the kubeconfig that goes through the proxy.
        seed: Of what goes wrong.
    """

    def __init__(self, kubeconfig: Path, folder: Path, seed: object = 0) -> None:
        self._upstream, self.kubeconfig = kubeconfig, folder / "faulty.kubeconfig"
        self._drawn = random.Random(f"faults {seed}")
        self._watches: set[_Watch] = set()
        self.share = 0.0  # of requests that go wrong, at random
        self.dark = False  # everything hangs
        self.deaf = False  # no watch is served
        self.mangle: Callable[[str, JSON], JSON | None] = lambda _, event: event  # of a watch; None: never sent
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> FaultyProxy:
        there = k8s.Configuration()
        await config.load_kube_config(str(self._upstream), client_configuration=there)
        self._host, self._token = there.host.rstrip("/"), there
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=RESTClientObject(there).ssl_context),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=LINE,
        )
        app = web.Application(client_max_size=2**23)
        app.router.add_route("*", "/{path:.*}", self._serve)
        # A request whose client is dead must not be carried out later.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        document = yaml.safe_load(self._upstream.read_text())
        cluster = document["clusters"][0]["cluster"]
        for key in ("certificate-authority", "certificate-authority-data"):
            cluster.pop(key, None)
        cluster["server"] = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.kubeconfig.write_text(yaml.safe_dump(document))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        with suppress(TimeoutError):  # a paused client never takes note that its connection is closed
            async with asyncio.timeout(10):
                await self._runner.cleanup()
        await self._session.close()

    def heal(self) -> None:
        """From now on all is well; what hangs goes on hanging."""
        self.share, self.dark, self.deaf = 0.0, False, False

    def deafen(self) -> None:
        """Watches break, and new ones are refused."""
        self.deaf = True
        for watch in self._watches:
            watch.cut()

    async def expire(self) -> None:
        """All watches are told that their resourceVersion is too old."""
        for watch in list(self._watches):
            await watch.say(_line({"type": "ERROR", "object": failure(410)}))

    # --- one request

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.dark:
            await _hang()
        self.counts["requests"] += 1
        if request.query.get("watch") == "true":
            return await self._watch(request)
        fault = self._fault(FAULTS)
        if fault == "409" and request.method in ("GET", "DELETE"):
            fault = "500"
        match fault:
            case "429":
                return web.json_response(failure(429), status=429, headers={"Retry-After": "1"})
            case "409" | "500":
                return web.json_response(failure(int(fault)), status=int(fault))
            case "slow":
                await asyncio.sleep(self._drawn.uniform(0.05, 2.0))
            case "cut before":
                self._cut(request)
            case "stall before":
                await _hang()
        async with self._session.request(
            request.method, self._host + request.raw_path, data=body or None, headers=_forwarded(request)
        ) as answer:
            content = await answer.read()
        if self.dark or fault == "stall after":
            await _hang()
        if fault == "cut after":
            self._cut(request)
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
        return web.Response(status=answer.status, body=content, headers=headers)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        fault, left = self._fault(WATCH_FAULTS, often=5.0), self._drawn.randrange(30)
        if self.deaf:
            return web.json_response(failure(503), status=503)
        if fault == "gone at once":
            return web.json_response(failure(410), status=410)
        url = self._host + request.raw_path
        async with self._session.get(url, headers=_forwarded(request)) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
            await response.prepare(request)
            watch = _Watch(request.path, request, response)
            self._watches.add(watch)
            try:
                async for line in answer.content:
                    if self.dark:
                        await _hang()
                    if fault and left <= 0:
                        match fault:
                            case "410":
                                await watch.say(_line({"type": "ERROR", "object": failure(410)}))
                                break
                            case "cut":
                                self._cut(request)
                            case "stall":
                                await _hang()
                    left -= 1
                    event = json.loads(line)
                    if (changed := self.mangle(request.path, event)) is not None:
                        await watch.say(line if changed is event else _line(changed))
            finally:
                self._watches.discard(watch)
            return response

    def _fault(self, faults: dict[str, int], often: float = 1.0) -> str:
        if self._drawn.random() >= self.share * often:
            return ""
        [fault] = self._drawn.choices(list(faults), list(faults.values()))
        self.counts[fault] += 1
        return fault

    @staticmethod
    def _cut(request: web.Request) -> NoReturn:
        if request.transport:
            request.transport.abort()
        raise asyncio.CancelledError


async def _hang() -> None:
    """Until the client has had enough."""
    await asyncio.Event().wait()


def _forwarded(request: web.Request) -> dict[str, str]:
    return {k: v for k, v in request.headers.items() if k.lower() not in HOP}


def _line(event: JSON) -> bytes:
    return json.dumps(event).encode() + b"\n"
