"""What the HTTP endpoints read from: all jobs and nodes, in the orders in which they are asked for.

It is kept up to date change by change, so that no request ever goes through all jobs. It has its own copy of nothing:
jobs are the store's values, which nobody modifies.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.model import Aging, Job, Node
from gpubatch_operator.core.order import NO_AGING, raise_of, rank
from gpubatch_operator.core.phases import ACTIVE, WAITING, Phase
from gpubatch_operator.core.totals import Tally
from gpubatch_operator.web.documents import fragment
from gpubatch_operator.web.lists import Key, Lists

ALL = ""
"""In the place of a namespace: all of them."""

RUNNING, LINE = False, True  # first parts of a key of the queue: who holds a slot stands before who waits
BARS_LOOKED_AT = 100  # of a node, to find those that a caller may see
GPU = "nvidia.com/gpu"

Namespaces = Collection[str] | None
"""Which namespaces a caller sees; None: all, also those that will come."""

Phases = Collection[Phase | None]
"""None: jobs that the operator has only just seen."""


@dataclass(slots=True)
class Entry:
    """A job and where it is listed."""

    job: Job
    listed: Key
    queued: Key | None
    bars: list[tuple[str, Key]] = field(default_factory=list)
    text: bytes | None = None


class Board:
    """Not thread-safe: it belongs to one event loop.

    Args:
        aging: Whether waiting raises priorities, as the planner does it.
        tally: Counts what came and ended.
    """

    def __init__(self, aging: Aging = NO_AGING, tally: Tally | None = None) -> None:
        self._aging = aging
        self.tally = tally or Tally()
        self._entries: dict[str, Entry] = {}
        self._uids: dict[tuple[str, str], str] = {}
        self._listed: Lists[tuple[str, Phase | None]] = Lists()  # by namespace and phase, the newest job first
        self._queue: Lists[str] = Lists()  # by namespace, in order
        self._bars: Lists[str] = Lists()  # by node, attempts by their start
        self._raises: list[tuple[float, str]] = []  # when waiting raises whose priority next
        self._per_namespace: Counter[str] = Counter()
        self._resources: set[str] = {GPU}  # that jobs ask for
        self.nodes: Mapping[str, Node] = {}
        self._node_names: list[str] = []
        self._namespaces: tuple[str, ...] | None = ()  # None: to be made anew

    # --- what happened

    def put(self, job: Job, now: float) -> None:
        """A job as it is now."""
        if (old := self._entries.get(job.uid)) is not None:
            self._take_out(old)
        elif (other := self._uids.get((job.namespace, job.name))) is not None:
            self.drop(other)  # a namesake that is gone, whose end wasn't told yet
        self._resources.add(job.shape.resource)
        self._uids[job.namespace, job.name] = job.uid
        self.tally.see(job)
        entry = Entry(job, (-job.created, job.namespace, job.name, job.uid), self._place_of(job, now))
        self._entries[job.uid] = entry
        for namespace in (ALL, job.namespace):
            self._listed.add((namespace, job.phase), entry.listed)
            if entry.queued:
                self._queue.add(namespace, entry.queued)
        for attempt in job.status.get("attempts") or []:
            if node := attempt["node"]:
                bar = (seconds(attempt["startTime"]), job.uid, attempt["number"])
                entry.bars.append((node, bar))
                self._bars.add(node, bar)
        self._count(job.namespace, 1)

    def drop(self, uid: str) -> None:
        """A job that is gone, if it was known."""
        if (entry := self._entries.pop(uid, None)) is not None:
            self._take_out(entry)
            self._uids.pop((entry.job.namespace, entry.job.name), None)

    def put_nodes(self, nodes: Iterable[Node]) -> None:
        """All nodes as they are now."""
        self.nodes = {n.name: n for n in nodes}
        self._node_names = sorted(self.nodes)

    def age(self, now: float) -> None:
        """Raise the priorities that are due."""
        while self._raises and self._raises[0][0] <= now:
            _, uid = heapq.heappop(self._raises)
            if (entry := self._entries.get(uid)) and entry.queued and entry.queued[0] == LINE:
                old, entry.queued = entry.queued, self._place_of(entry.job, now)
                for namespace in (ALL, entry.job.namespace):
                    self._queue.remove(namespace, old)
                    if entry.queued:
                        self._queue.add(namespace, entry.queued)

    # --- what is asked

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those that have jobs, in order."""
        if self._namespaces is None:
            self._namespaces = tuple(sorted(self._per_namespace))
        return self._namespaces

    def find(self, namespace: str, name: str) -> Job | None:
        """The job of this name."""
        uid = self._uids.get((namespace, name))
        return self._entries[uid].job if uid is not None else None

    def job(self, key: Key) -> Job:
        """The job that a key of one of the lists stands for."""
        return self._entries[_uid(key)].job

    def text(self, job: Job) -> bytes:
        """Its `documents.fragment`."""
        entry = self._entries[job.uid]
        if entry.text is None:
            entry.text = fragment(job)
        return entry.text

    def position(self, job: Job) -> int | None:
        """0 if it holds a slot, 1 if it is next; None if it isn't in the queue."""
        key = self._entries[job.uid].queued
        if key is None:
            return None
        return 0 if key[0] == RUNNING else self._queue.rank(ALL, key) - self._queue.rank(ALL, (LINE,)) + 1

    def newest_first(self, namespaces: Namespaces, phases: Phases, after: Key | None) -> Iterator[Key]:
        """The jobs in these namespaces and phases."""
        return self._listed.after(self._names(namespaces, phases), after)

    def in_order(self, namespaces: Namespaces, after: Key | None) -> Iterator[Key]:
        """The jobs in the queue: who holds a slot, then who waits."""
        return self._queue.after([ALL] if namespaces is None else namespaces, after)

    def in_queue(self, namespaces: Namespaces) -> int:
        """How many those are."""
        return sum(map(self._queue.length, [ALL] if namespaces is None else namespaces))

    def count(self, namespaces: Namespaces, phases: Phases) -> int:
        """How many jobs there are in these namespaces and phases."""
        return sum(map(self._listed.length, self._names(namespaces, phases)))

    def slots(self) -> int:
        """Jobs that could run at a time on the nodes that are ready."""
        return sum(n.slots for n in self.nodes.values() if n.ready and not n.unschedulable and self._has_gpus(n))

    def gpu_nodes(self, after: str) -> Iterable[str]:
        """Nodes that take jobs, or took some, by name, from behind this one."""
        for name in self._node_names:
            if name > after and (self._has_gpus(self.nodes[name]) or name in self._bars):
                yield name

    def bars(self, node: str, namespaces: Namespaces, limit: int) -> list[tuple[Job, int]]:
        """The newest attempts on a node, the newest first, as job and number; not farther back than a bound."""
        seen = ((self._entries[key[1]].job, key[2]) for key in islice(self._bars.newest(node), BARS_LOOKED_AT))
        return list(islice((b for b in seen if namespaces is None or b[0].namespace in namespaces), limit))

    # --- inside

    def _names(self, namespaces: Namespaces, phases: Phases) -> list[tuple[str, Phase | None]]:
        return [(n, p) for n in ([ALL] if namespaces is None else namespaces) for p in phases]

    def _has_gpus(self, node: Node) -> bool:
        return bool(node.slots) and any(node.capacity.get(r) for r in self._resources)

    def _place_of(self, job: Job, now: float) -> Key | None:
        if job.phase in ACTIVE:
            return (RUNNING, (seconds(job.status["startTime"]) if "startTime" in job.status else 0.0, job.uid))
        if job.phase not in WAITING or job.deleting:
            return None
        if not (aging := self._aging).step:
            return (LINE, job.rank)
        raised = raise_of(job, aging, now)
        if raised < aging.cap:
            steps = max(0.0, now - job.queued_at) // aging.interval + 1
            heapq.heappush(self._raises, (job.queued_at + steps * aging.interval, job.uid))
        return (LINE, rank(job.priority + raised, job.queued_at, job.ticket, job.uid))

    def _take_out(self, entry: Entry) -> None:
        for namespace in (ALL, entry.job.namespace):
            self._listed.remove((namespace, entry.job.phase), entry.listed)
            if entry.queued:
                self._queue.remove(namespace, entry.queued)
        for node, bar in entry.bars:
            self._bars.remove(node, bar)
        self._count(entry.job.namespace, -1)

    def _count(self, namespace: str, change: int) -> None:
        before = self._per_namespace[namespace]
        self._per_namespace[namespace] = before + change
        if not before + change:
            del self._per_namespace[namespace]
        if not before or not before + change:
            self._namespaces = None


def _uid(key: Key) -> str:
    uid: str = key[1][-1] if len(key) == 2 else key[-1]
    return uid
