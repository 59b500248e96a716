"""The exact limit of the queue's depth, whichever replica is asked: reservations in one object of the API server.

Who is allowed in is entered into the book by compare-and-swap, so that two replicas can't give the last place twice.
Requests that come while one is under way are decided together: one read and one write for all of them.

An entry stays for `RETAIN` seconds, seen or not. Each replica reads the book at least every `READ` seconds and looks up
what it doesn't know yet; so whoever has read it without a gap knows every job that was ever allowed in, whatever its
watch has missed. After a gap (a pause, an outage) it lists all jobs before it decides. A place whose job doesn't come,
since a later admission step refused it, is given back after `GRACE` seconds. Nobody is refused by hearsay either: those
who are about to leave the queue are looked up first. Ages are counted from when a replica
first saw an entry, by its monotonic clock: no two clocks are compared.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
from collections.abc import Sequence
from typing import Any

from gpubatch_operator.api.crd import GROUP, PLURAL, VERSION
from gpubatch_operator.core.limits import QueueLimits
from gpubatch_operator.core.model import Job
from gpubatch_operator.core.order import RANK
from gpubatch_operator.core.phases import WAITING
from gpubatch_operator.core.room import Ask, Book, Place, decide
from gpubatch_operator.kube import watch
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.configmap import ConfigMap
from gpubatch_operator.kube.lease import monotonic
from gpubatch_operator.kube.store import Store

JSON = dict[str, Any]
GRACE = 3.0  # between the permission and the job: other admission webhooks and etcd, normally milliseconds
READ = 10.0
RETAIN = 60.0
GAP = 30.0  # well below RETAIN
TICK = 1.0
TRIES = 10
PATIENCE = 0.6  # before a refusal, for the watch to tell of jobs that are being created
LOOKS = 32  # at most, before a refusal
LOOK_EVERY = 0.25
MAX_ENTRIES = 5000  # of some 100 bytes: an object of the API server holds a megabyte

log = logging.getLogger(__name__)


class Ledger:
    """One replica's view of the book.

    Args:
        client: For the book and for jobs that are looked up.
        store: What is known of the jobs.
        namespace: Where the book, a ConfigMap, is.
        name: What it is called; made if absent.
        limits: How many jobs may wait.
    """

    def __init__(self, client: Client, store: Store, namespace: str, name: str, limits: QueueLimits) -> None:
        self._client, self._store, self._limits = client, store, limits
        self._configmap = ConfigMap(client, namespace, name)
        self._asked: list[tuple[Ask, asyncio.Future[str]]] = []
        self._wake = asyncio.Event()
        self.prepared = asyncio.Event()  # set once what was in the book at the start is known
        self._first_seen: dict[str, float] = {}
        self._read_at = monotonic()  # what came before is in the store
        self._looked_at = -LOOK_EVERY

    async def reserve(self, ask: Ask) -> str:
        """Get a place for a job; empty if it has one, else why not.

        Raises:
            ApiError: The book can't be read or written.
        """
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked.append((ask, answer))
        self._wake.set()
        return await answer

    async def run(self) -> None:
        """Answer, and keep the book short, for ever."""
        while True:
            asked, self._asked = self._asked, []
            self._wake.clear()
            try:
                if asked or self._is_due() or not self.prepared.is_set():
                    refused = await self._turn([ask for ask, _ in asked])
                    for ask, answer in asked:
                        if not answer.done():  # who asked may be gone
                            answer.set_result(refused.get(ask.uid, ""))
                    if all(map(self._store.knows_job, self._first_seen)):
                        self.prepared.set()
            except Exception as e:
                if not isinstance(e, (ApiError, OSError)):
                    log.exception("the book of reservations can't be kept")
                log.warning("the book of reservations can't be read or written: %s", e)
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(e)
            if not self._asked:
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(TICK):
                await self._wake.wait()
        except TimeoutError:
            return

    def _is_due(self) -> bool:
        now = monotonic()
        if now - self._read_at >= READ:
            return True
        return any(not self._store.knows_job(uid) and now - at >= GRACE for uid, at in self._first_seen.items())

    async def _turn(self, asks: Sequence[Ask]) -> dict[str, str]:
        if monotonic() - self._read_at >= GAP:
            await watch.resync(self._client, self._store)
        confirmed = not asks
        for _ in range(TRIES):
            began = monotonic()
            book = await self._read()
            self._note(book, began)
            lost = await self._look_up(book, began)
            kept = book.without({*lost, *self._old(book, began)})
            seen = [uid for uid in kept.reserved if self._store.knows_job(uid)]
            after, refused = decide(asks, kept, _places(self._waiting()), seen, self._limits)
            if refused and not confirmed:
                confirmed = True
                await self._confirm(kept)
                continue
            if after.reserved == book.reserved or await self._write(after):
                self._note(after, monotonic())
                self._read_at = began
                return refused
        raise ApiError(409, "Conflict", f"ConfigMap {self._configmap} was changed by others {TRIES} times in a row")

    async def _confirm(self, book: Book) -> None:
        """Before anybody is refused: hear of who has just come, and ask whether those who wait still do."""
        now, due = monotonic(), monotonic() + PATIENCE
        while monotonic() < due and not all(map(self._store.knows_job, book.reserved)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        first = heapq.nsmallest(LOOKS, self._waiting(), key=RANK)
        there = await asyncio.gather(*(self._exists(Ask(j.uid, j.namespace, j.name)) for j in first))
        for job, exists in zip(first, there, strict=True):
            if not exists:
                self._store.drop_job(job.uid)

    def _note(self, book: Book, now: float) -> None:
        self._first_seen = {uid: self._first_seen.get(uid, now) for uid in book.reserved}

    def _waiting(self) -> list[Job]:
        """The jobs that wait, or will as soon as they are looked at."""
        store = self._store
        new = (job for uid in store.fresh if not (job := store.jobs[uid]).wishes.suspend)
        return [*(j for j in store.waiting.values() if j.phase in WAITING), *new]

    def _old(self, book: Book, now: float) -> list[str]:
        """What may go: every replica has read it."""
        seen = [uid for uid in book.reserved if self._store.knows_job(uid)]
        old = [uid for uid in seen if now - self._first_seen[uid] >= RETAIN]
        return old if len(book.reserved) - len(old) <= MAX_ENTRIES else seen

    async def _look_up(self, book: Book, now: float) -> list[str]:
        """Read the jobs that should have come by now; those that don't exist."""
        late = [
            ask
            for uid, ask in book.reserved.items()
            if not self._store.knows_job(uid) and now - self._first_seen.get(uid, now) >= GRACE
        ]
        found = await asyncio.gather(*(self._exists(ask) for ask in late))
        # One that can't be read never waits: it is left alone.
        return [a.uid for a, there in zip(late, found, strict=True) if not (there and self._store.knows_job(a.uid))]

    async def _exists(self, ask: Ask) -> bool:
        try:
            raw = await self._client.get(f"/apis/{GROUP}/{VERSION}/namespaces/{ask.namespace}/{PLURAL}/{ask.name}")
        except ApiError as e:
            if e.status != 404:
                raise
            return False
        self._store.put_job(raw)
        return bool(raw["metadata"]["uid"] == ask.uid)  # else it is another job of that name

    # --- the object

    async def _read(self) -> Book:
        data, version = await self._configmap.read()
        entries = json.loads(data.get("reservations") or "{}")
        return Book({uid: Ask(uid, *where) for uid, where in entries.items()}, version)

    async def _write(self, book: Book) -> bool:
        """Whether nobody else has written since it was read."""
        entries = {ask.uid: [ask.namespace, ask.name] for ask in book.reserved.values()}
        data = {"reservations": json.dumps(entries, separators=(",", ":"))}
        try:
            await self._configmap.write(data, book.version)
        except ApiError as e:
            if e.status == 409:
                return False
            raise
        return True


def _places(jobs: Sequence[Job]) -> list[Place]:
    return [(job.namespace, job.name) for job in jobs]
