"""What happens, as metrics: incrementally at each change, or at the moment of a scrape; never a look at all jobs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gpubatch_operator import metrics
from gpubatch_operator.core.model import Attempt, Job, Snapshot
from gpubatch_operator.core.phases import ACTIVE, FINISHED, Phase
from gpubatch_operator.core.placement import misfit
from gpubatch_operator.core.plan import Plan
from gpubatch_operator.core.reasons import Reason
from gpubatch_operator.kube.store import Store
from gpubatch_runner import contract

JSON = dict[str, Any]
MAX_NAMESPACES = 100
LOOKED_AT = 200  # jobs at the head of the queue that idle GPUs are compared with
OTHER = "_other"
REASONS = frozenset({*map(str, Reason), *map(str, contract.Reason)})


class Bounded:
    """A label with a bounded number of values: the first `most` are kept, all others are one."""

    def __init__(self, most: int) -> None:
        self._most, self._known = most, set[str]()

    def __call__(self, value: str) -> str:
        if value not in self._known and len(self._known) < self._most:
            self._known.add(value)
        return value if value in self._known else OTHER


NAMESPACE = Bounded(MAX_NAMESPACES)


def priority_class(priority: int) -> str:
    """2,001 priorities as three."""
    return "low" if priority < 0 else "high" if priority else "normal"


def read_from(store: Store) -> None:
    """Let each scrape count what the store holds: on the replica that plans, or sums would count jobs twice."""

    def waiting() -> Mapping[tuple[str, ...], float]:
        jobs = list(store.waiting.values())  # at once: the scrape has a thread of its own
        return Counter((NAMESPACE(j.namespace), priority_class(j.priority)) for j in jobs)

    def slots() -> Mapping[tuple[str, ...], float]:
        return {(): float(sum(n.slots for n in list(store.nodes.values()) if n.ready and not n.unschedulable))}

    def rate() -> Mapping[tuple[str, ...], float]:
        active = list(store.active.values())
        return {(): float(sum((j.status.get("progress") or {}).get("rate") or 0.0 for j in active if j.inference))}

    metrics.PENDING.read = waiting
    metrics.HELD.read = lambda: {(): float(len(store.held))}
    metrics.ACTIVE.read = lambda: {(): float(len(store.active))}
    metrics.SLOTS.read = slots
    metrics.REQUEST_RATE.read = rate


class Observer:
    """Of one reconciler. Its clock is monotonic; each method costs O(1), `planned` O(slots)."""

    def __init__(self) -> None:
        self._freed: dict[tuple[str, int], float] = {}  # slots that were given up while jobs waited, and when
        self._idle, self._since = 0, time.monotonic()

    def planned(self, snapshot: Snapshot, plan: Plan) -> None:
        """A plan was made."""
        now = time.monotonic()
        if self._idle:
            metrics.IDLE_GPU_SECONDS.inc(self._idle * (now - self._since))
        self._idle, self._since = _idle_gpus(snapshot, plan), now
        if plan.admissions or plan.queue:
            metrics.ADMISSION_ATTEMPTS.labels("success" if plan.admissions else "inadmissible").inc()

    def admitted(self, job: Job, attempt: Attempt, decided: float) -> None:
        """A job has got its slot, and its pod exists; `decided` is when it was planned."""
        now = time.monotonic()
        metrics.ADMISSION_SECONDS.observe(now - decided)
        waited = max(0.0, attempt.started - (job.waiting_since or job.queued_at))
        metrics.WAIT_SECONDS.labels(priority_class(job.priority)).observe(waited)
        if (freed := self._freed.pop((attempt.node, attempt.slot), None)) is not None:
            metrics.HANDOFF_SECONDS.observe(now - freed)

    def changed(self, job: Job, status: JSON, seen: float, others_wait: bool) -> None:
        """A job's status was written; `seen` is when what led to it was looked at."""
        phase = Phase(status["phase"])
        if phase is job.phase:
            return
        if job.phase in ACTIVE and phase not in ACTIVE and job.attempt is not None:
            if others_wait:
                self._freed[job.attempt.node, job.attempt.slot] = seen
            if phase not in FINISHED:
                reason = (status.get("attempts") or [{}])[-1].get("reason") or ""
                metrics.EVICTED.labels(reason if reason in REASONS else OTHER).inc()
        if phase in FINISHED:
            _finished(phase, status)


def _finished(phase: Phase, status: JSON) -> None:
    metrics.FINISHED.labels(phase.value).inc()
    if seconds := status.get("activeSeconds"):
        metrics.RUN_SECONDS.labels(phase.value).observe(seconds)
    results = status.get("results") or {}
    usage = results.get("usage") or {}
    for result in ("completed", "failed"):
        metrics.REQUESTS.labels(result).inc(results.get(result) or 0)
    for kind in ("input", "output"):
        metrics.TOKENS.labels(kind).inc(usage.get(f"{kind}Tokens") or 0)


def _idle_gpus(snapshot: Snapshot, plan: Plan) -> int:
    """GPUs that nobody holds of nodes that one of the next jobs could use, though it may not be its turn."""
    shapes = {job.shape for job in plan.queue[:LOOKED_AT] if job.phase is Phase.QUEUED}
    if not shapes:
        return 0
    held: dict[tuple[str, str], int] = {}
    for o in snapshot.occupied:
        held[o.node, o.resource] = held.get((o.node, o.resource), 0) + o.gpus
    for a in plan.admissions:
        key = a.node, a.job.shape.resource
        held[key] = held.get(key, 0) + a.job.shape.gpus
    idle = 0
    for resource in {s.resource for s in shapes}:
        for node in snapshot.nodes:
            free = node.capacity.get(resource, 0) - held.get((node.name, resource), 0)
            if free > 0 and any(s.resource == resource and misfit(s, node) is None for s in shapes):
                idle += free
    return idle
