"""Delivers webhooks: at least once, in order for each receiver, their state in status so that a restart goes on.

Nobody looks through all jobs: one is looked at when it changes, and when a delivery of its is due again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from gpubatch_operator import logs, metrics
from gpubatch_operator.api.webhooks import Webhook, receivers
from gpubatch_operator.core import deliveries
from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.deliveries import Patience, Tried
from gpubatch_operator.core.model import Job, copied
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.events import Recorder
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.writing import write_status
from gpubatch_operator.notify.lanes import Lanes
from gpubatch_operator.notify.sender import Sender
from gpubatch_operator.settings import Settings
from gpubatch_operator.timers import Timers

JSON = dict[str, Any]
REST = 0.05  # seconds between two looks
TICK = 5.0
AT_ONCE = 100  # jobs that are looked at before others get their turn
WRITERS = 8  # jobs that are written at a time: the queue uses the same connections
SOON = 2.0  # seconds of an attempt
LAST_DELAY = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An attempt that status doesn't know of yet."""

    webhook: str
    delivery_id: str
    attempts: int  # before this one
    tried: Tried
    patience: Patience


class Notifier:
    """Owns what is under way: attempts, and writes of how they went."""

    def __init__(self, client: Client, store: Store, settings: Settings, events: Recorder) -> None:
        self._client, self._store, self._events = client, store, events
        self._sender, self._lanes, self._timers = Sender(client, settings), Lanes(), Timers()
        self._busy: set[tuple[str, str]] = set()  # job and receiver
        self._unrecorded: dict[str, list[Outcome]] = {}  # by job
        self._writers: dict[str, asyncio.Task[None]] = {}  # by job
        self._gate = asyncio.Semaphore(WRITERS)

    async def run(self) -> None:
        """Start what is due, for ever."""
        try:
            await self.look(self._store.deliverable.copy(), time.time())
            while True:
                at = self._timers.next()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK if at is None else max(0.0, min(TICK, at - time.time()))):
                        await self._store.deliveries_changed.wait()
                await self.turn(time.time())
                await asyncio.sleep(REST)
        finally:
            # Whoever leads next sends again what isn't recorded, under the same ids.
            await self.stop()

    async def turn(self, now: float) -> None:
        """Start what is due, of the jobs that have changed and those whose time has come."""
        self._store.deliveries_changed.clear()
        metrics.UNDELIVERED.set(len(self._store.deliverable))
        await self.look(self._store.take_deliverable() | self._timers.take(now), now)

    async def look(self, uids: Iterable[str], now: float) -> None:
        """Start what is due of these jobs."""
        for i, uid in enumerate(uids, 1):
            self._look(uid, now)
            if i % AT_ONCE == 0:
                await asyncio.sleep(0)

    async def join(self) -> None:
        """Wait until nothing is under way."""
        while self._writers or self._busy:
            await self._lanes.join()
            await asyncio.gather(*self._writers.values())

    async def stop(self) -> None:
        """End everything."""
        await self._lanes.stop()
        writers = list(self._writers.values())
        for task in writers:
            task.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        await self._sender.close()

    def _look(self, uid: str, now: float) -> None:
        job = self._store.jobs.get(uid)
        if job is None or job.deleting:
            return
        heads = {k: v for k, v in deliveries.heads(job.status).items() if (uid, k) not in self._busy}
        if later := [at for _, at in heads.values() if at > now]:
            self._timers.put(uid, min(later))
        due = {k: d for k, (d, at) in heads.items() if at <= now}
        hooks = self._hooks(uid) if due else {}
        for key, delivery in due.items():
            if key in hooks:  # else it was just taken out of spec, and will be taken out of status
                self._busy.add((uid, key))
                self._lanes.submit(_origin(hooks[key].url), partial(self._attempt, uid, key, delivery["id"]))

    def _hooks(self, uid: str) -> dict[str, Webhook]:
        return receivers(convert.spec_of(self._store.raw[uid]["spec"]).webhooks)

    async def _attempt(self, uid: str, key: str, delivery_id: str, well: bool) -> bool:
        """One attempt, if it is still to be made; whether the receiver answered well and soon."""
        raw = self._store.raw.get(uid)
        status = (raw or {}).get("status") or {}
        delivery, _ = deliveries.heads(status).get(key, ({}, 0.0))
        hook = self._hooks(uid).get(key) if raw else None
        if raw is None or hook is None or delivery.get("id") != delivery_id:
            self._busy.discard((uid, key))
            self._look(uid, time.time())
            return well
        if job := self._store.jobs.get(uid):
            logs.about(job)
        event = next(e for e in status["webhookEvents"] if e["sequence"] == delivery["sequence"])
        start = time.monotonic()
        tried = await self._sender.attempt(raw["metadata"], hook, delivery, event, well)
        took, result = time.monotonic() - start, "delivered" if tried.ok else "failed"
        metrics.DELIVERIES.labels(result).inc()
        metrics.DELIVERY_SECONDS.labels(result).observe(took)
        outcome = Outcome(key, delivery_id, delivery["attempts"], tried, self._sender.patience(hook))
        self._unrecorded.setdefault(uid, []).append(outcome)
        if uid not in self._writers:
            self._writers[uid] = asyncio.create_task(self._write(uid))
        return tried.ok and took < SOON

    async def _write(self, uid: str) -> None:
        """Record what was tried at a job's receivers; what comes together is one write.

        A write that fails is repeated, and not the delivery.
        """
        if job := self._store.jobs.get(uid):
            logs.about(job)
        for failures in itertools.count():
            try:
                while outcomes := list(self._unrecorded[uid]):
                    async with self._gate:
                        if not await self._write_once(uid, outcomes):
                            continue
                    del self._unrecorded[uid][: len(outcomes)]
                    self._busy.difference_update((uid, o.webhook) for o in outcomes)
                break
            except (ApiError, OSError) as e:
                delay = min(LAST_DELAY, 0.5 * 2 ** min(failures, 10))
                log.warning("how a delivery went will be recorded in %.1f s: %s: %s", delay, uid, e)
                await asyncio.sleep(delay)
        del self._unrecorded[uid], self._writers[uid]
        self._look(uid, time.time())

    async def _write_once(self, uid: str, outcomes: list[Outcome]) -> bool:
        job, now = self._store.jobs.get(uid), time.time()
        if job is None:
            return True
        status, changed = copied(dict(job.status)), list[JSON]()
        before = {d["id"]: d["attempts"] for d in status.get("webhookDeliveries", [])}
        for o in outcomes:
            if before.get(o.delivery_id) == o.attempts:  # else an earlier write of ours did get through
                jitter = random.uniform(0.8, 1.2)
                changed += deliveries.attempted(status, o.delivery_id, o.tried, o.patience, jitter, now)
        deliveries.judge(job, status, now)
        if not await write_status(self._client, self._store, job, status):
            return False
        for delivery in changed:
            self._tell(job, delivery, now)
        return True

    def _tell(self, job: Job, delivery: JSON, now: float) -> None:
        what = f"webhook {delivery['webhook']} ({delivery['event']}), attempt {delivery['attempts']}"
        log.info("%s: %s %s", what, delivery["state"], delivery.get("lastError", ""))
        if delivery["state"] == deliveries.DELIVERED:
            metrics.DELIVERY_DELAY.observe(max(0.0, now - seconds(delivery["time"])))
        if delivery["state"] == deliveries.DEAD:
            metrics.DELIVERIES.labels("dead_lettered").inc()
            self._events.record(job, deliveries.CONDITION, f"{what}: {delivery.get('lastError')}", warning=True)


def _origin(url: str) -> str:
    """What tells one receiver from another: scheme, host and port."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}:{parts.port}"
    except ValueError:  # it can't be dialled either
        return url
