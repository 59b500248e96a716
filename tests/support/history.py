"""All that ever happened to jobs, pods and nodes: a watch from the first resourceVersion on, event by event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, NamedTuple

from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.watch import JOBS, NODES, PODS
from support.api import eventually

JSON = dict[str, Any]
PATHS = {"jobs": JOBS, "pods": PODS, "nodes": NODES}
WATCH_SECONDS = 300


class Event(NamedTuple):
    """One event of a watch. `version` orders the events of all kinds: there is one etcd."""

    version: int
    kind: str  # jobs | pods | nodes
    type: str  # ADDED | MODIFIED | DELETED
    object: JSON
    at: float  # monotonic seconds at which the recorder heard of it


class Recorder:
    """Records for as long as the context lasts.

    Args:
        client: Straight to the API server.
        namespaces: Whose jobs and pods are of interest.
    """

    def __init__(self, client: Client, namespaces: Collection[str]) -> None:
        self._client, self._namespaces = client, namespaces
        self.events: list[Event] = []
        self.listeners: list[Callable[[Event], None]] = []
        self.now: dict[str, dict[str, JSON]] = {kind: {} for kind in PATHS}  # what is there, by kind and uid
        self._tasks: list[asyncio.Task[None]] = []

    def history(self) -> list[Event]:
        """Everything, in the order in which etcd stored it."""
        return sorted(self.events, key=lambda e: e.version)

    async def complete(self) -> None:
        """Wait until all that the API server holds at this moment has been heard of.

        Raises:
            AssertionError: The watch broke, and so the history isn't whole.
        """

        async def same() -> bool:
            for task in self._tasks:
                assert not task.done(), f"the history isn't whole: {task.exception()!r}"
            for kind, path in PATHS.items():
                items, _ = await self._client.list(path)
                there = {i["metadata"]["uid"]: i["metadata"]["resourceVersion"] for i in items if self._concerns(i)}
                if there != {uid: o["metadata"]["resourceVersion"] for uid, o in self.now[kind].items()}:
                    return False
            return True

        await eventually("the history to be complete", same)

    async def __aenter__(self) -> Recorder:
        for kind, path in PATHS.items():
            items, version = await self._client.list(path)
            for item in items:
                self._keep(kind, "ADDED", item)
            self._tasks.append(asyncio.create_task(self._watch(kind, path, version)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _concerns(self, raw: JSON) -> bool:
        namespace = raw["metadata"].get("namespace")
        return namespace is None or namespace in self._namespaces

    def _keep(self, kind: str, what: str, raw: JSON) -> None:
        if self._concerns(raw):
            event = Event(int(raw["metadata"]["resourceVersion"]), kind, what, raw, time.monotonic())
            self.events.append(event)
            if what == "DELETED":
                self.now[kind].pop(raw["metadata"]["uid"], None)
            else:
                self.now[kind][raw["metadata"]["uid"]] = raw
            for listener in self.listeners:
                listener(event)

    async def _watch(self, kind: str, path: str, version: str) -> None:
        while True:
            query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
            with contextlib.suppress(ApiError, TimeoutError):  # it broke: it goes on where it was
                async for line in self._client.stream(path, query, WATCH_SECONDS):
                    event = json.loads(line)
                    assert event["type"] != "ERROR", f"events were missed: {event['object']}"
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._keep(kind, event["type"], event["object"])
            await asyncio.sleep(0.1)
