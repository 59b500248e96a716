"""The thread of the HTTP listeners: put together, started and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop

from gpubatch_operator import parts
from gpubatch_operator.kube.client import Client
from gpubatch_operator.kube.store import Store
from gpubatch_operator.settings import Settings
from gpubatch_operator.web import feed, server, totals
from gpubatch_operator.web.access import Access
from gpubatch_operator.web.board import Board
from gpubatch_operator.web.routes import FindScope, Routes

LOOPBACK = "127.0.0.1"
SWITCH_SECONDS = 0.0005
"""For so long one thread may keep the others waiting while it computes."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """What the listeners know of the process that they are in; called in their thread.

    Args:
        instance: What the operator's own objects are named by.
        namespace: Where they are.
        leads: Whether this replica plans.
        led: Whether any does.
        before_write: Called before each write; it may forbid it by not returning.
        why_not_ready: Empty once the replica may be sent requests.
    """

    instance: str
    namespace: str
    leads: Callable[[], bool]
    led: Callable[[], bool]
    before_write: Callable[[], None]
    why_not_ready: Callable[[], str]


async def serve(store: Store, settings: Settings, place: Place) -> None:
    """Serve for ever, once the store is synced; `settings` has an `http_port` or a `loopback_port`."""
    # A plan of a long queue takes milliseconds, in which a request would wait five for each turn that it needs.
    sys.setswitchinterval(SWITCH_SECONDS)
    thread = _Thread(settings, place)
    running = asyncio.create_task(asyncio.to_thread(uvloop.run, thread.run()))
    await asyncio.to_thread(thread.up.wait)
    following = asyncio.create_task(feed.follow(store, thread.tell))
    try:
        await asyncio.wait({running, following}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        following.cancel()
        thread.stop()
        await asyncio.gather(running, following, return_exceptions=True)
    for ended in (running, following):
        if not ended.cancelled():
            ended.result()


class _Thread:
    """What runs in the listeners' thread, and how the others talk to it."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self._settings, self._place = settings, place
        self._board = Board(settings.policy().aging)
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.up = threading.Event()

    def tell(self, news: feed.News) -> None:
        """To the board; callable from any thread."""
        self._call(feed.take, self._board, news)

    def stop(self) -> None:
        """End it; callable from any thread."""
        self._call(self._stopped.set)

    def _call(self, do: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(do, *arguments)

    async def run(self) -> None:
        """Serve until stopped."""
        self._loop = asyncio.get_running_loop()
        self.up.set()
        place, settings, board = self._place, self._settings, self._board
        async with AsyncExitStack() as stack:
            client = await Client.connect(before_write=place.before_write)
            stack.push_async_callback(client.close)
            record = totals.Record(client, place.namespace, f"{place.instance}-totals")
            if port := settings.http_port:
                reviews = await Client.connect()
                stack.push_async_callback(reviews.close)
                access = Access(reviews.review, lambda: board.namespaces)
                routes = self._routes(server.by_token(access))
                await stack.enter_async_context(server.listening(server.application(routes, local=False), None, port))
            if port := settings.loopback_port:
                routes = self._routes(server.everything)
                app = server.application(routes, local=True)
                await stack.enter_async_context(server.listening(app, LOOPBACK, port))
            log.info("HTTP is served at the ports %d and %d", settings.http_port, settings.loopback_port)
            keeping = totals.keep(board.tally, record, place.leads)
            await parts.run({"stop": self._until_stopped(), "totals": keeping}, may_end=frozenset({"stop"}))

    async def _until_stopped(self) -> None:
        await self._stopped.wait()

    def _routes(self, scope: FindScope) -> Routes:
        place = self._place
        return Routes(self._board, self._settings, scope, lambda: (place.leads(), place.led()), place.why_not_ready)
