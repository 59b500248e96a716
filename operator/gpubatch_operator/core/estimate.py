"""When will it start, when will it be done: simple and honest.

A job's duration is learned from finished jobs of its model (start-up and teardown, plus seconds a request), a running
job is extrapolated from its own progress, and the queue's order is replayed over the slots. Nothing that is shown
lies in the past: a job that runs longer than expected is stretched.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.model import Job, Node, Shape
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.placement import misfit

PRIOR_SECONDS = 600.0
"""Duration of a job of which nothing at all is known."""

STRETCH = 0.1
"""A job that has outlived its expectation is expected to run for this share of its age more."""


@dataclass(slots=True)
class _Sum:
    """Running totals of what was seen of one model (or of all of them)."""

    jobs: int = 0
    overhead: float = 0.0
    processing: float = 0.0
    requests: int = 0

    def add(self, overhead: float, processing: float, requests: int) -> None:
        self.jobs += 1
        self.overhead += overhead
        self.processing += processing
        self.requests += requests

    def duration(self, requests: int | None) -> float:
        """Mean overhead plus the work at the mean speed; for uncounted work the mean duration."""
        if requests is None or not self.requests:
            return (self.overhead + self.processing) / self.jobs
        return self.overhead / self.jobs + requests * self.processing / self.requests


@dataclass(slots=True)
class Durations:
    """What was learned from finished jobs. Rebuilt from their status after a restart."""

    by_model: dict[tuple[str, str], _Sum] = field(default_factory=dict)
    overall: dict[bool, _Sum] = field(default_factory=dict)

    def learn(self, job: Job) -> None:
        """Take a succeeded job into account; others say nothing about how long the work takes."""
        if job.phase is not Phase.SUCCEEDED or "startTime" not in job.status or "completionTime" not in job.status:
            return
        duration = max(0.0, seconds(job.status["completionTime"]) - seconds(job.status["startTime"]))
        results = job.status.get("results") or {}
        processing = min(duration, float((results.get("timings") or {}).get("processing", 0.0)))
        requests = int(results.get("total") or 0)
        key = (job.shape.resource, job.model)
        for total in (self.by_model.setdefault(key, _Sum()), self.overall.setdefault(job.inference, _Sum())):
            total.add(duration - processing, processing, requests)

    def duration(self, job: Job) -> float:
        """Expected seconds from admission to the end: model, else the user's hint, else all jobs, else a prior."""
        if known := self.by_model.get((job.shape.resource, job.model)):
            return known.duration(job.requests)
        if job.hint is not None:
            return job.hint
        if known := self.overall.get(job.inference):
            return known.duration(job.requests)
        return PRIOR_SECONDS

    def remaining(self, job: Job, now: float) -> float:
        """Expected seconds that an active job still runs."""
        elapsed = max(0.0, now - job.attempt.started) if job.attempt else 0.0
        progress = job.status.get("progress") or {}
        done, total = progress.get("completed", 0) + progress.get("failed", 0), progress.get("total")
        left: float
        if progress.get("stage") == "Processing" and total and done and progress.get("processingSeconds"):
            since = max(0.0, now - seconds(progress["lastHeartbeatTime"]))
            left = float(progress["processingSeconds"]) * (total - done) / done - since
        else:
            left = self.duration(job) - elapsed
        return max(left, STRETCH * elapsed, 1.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Medians, seconds since the epoch."""

    start: float
    completion: float


@dataclass(slots=True)
class _Lanes:
    """When a node's slots, and its GPUs of one resource, will be free; both sorted, the earliest first."""

    slots: list[float]
    gpus: dict[str, list[float]]

    def start(self, shape: Shape) -> float:
        """When a job of this shape could start here."""
        if len(self.slots) == 1:
            return self.slots[0]
        return max(self.slots[0], self.gpus[shape.resource][shape.gpus - 1])

    def take(self, shape: Shape, until: float) -> None:
        """Give it the slot and the GPUs that are free first."""
        self.slots[0] = max(self.slots[0], until)
        if len(self.slots) > 1:  # the GPUs of a single slot are as free as the slot
            self.slots.sort()
            gpus = self.gpus.get(shape.resource, [])
            for i in range(min(shape.gpus, len(gpus))):
                gpus[i] = max(gpus[i], until)
            gpus.sort()


def replay(
    queue: Sequence[Job], active: Iterable[Job], nodes: Sequence[Node], durations: Durations, now: float
) -> Mapping[str, Estimate]:
    """Estimates by uid for all active jobs and for each waiting one that fits some node.

    List scheduling over the nodes' slots and GPUs in the queue's order: O(n log nodes) for each shape in use. Free
    times only grow, so a stale entry of a heap is found when it comes up, and put back with its true time.
    """
    lanes = {
        n.name: _Lanes([now] * n.slots, {r: [now] * c for r, c in n.capacity.items()} if n.slots > 1 else {})
        for n in nodes
    }
    out: dict[str, Estimate] = {}
    for job in active:
        if job.attempt:
            end = now + durations.remaining(job, now)
            out[job.uid] = Estimate(job.attempt.started, end)
            if lane := lanes.get(job.attempt.node):
                lane.take(job.shape, end)
    heaps: dict[Shape, list[tuple[float, str]]] = {}
    for job in queue:
        shape = job.shape
        heap = heaps.get(shape)
        if heap is None:
            heap = heaps[shape] = [(lanes[n.name].start(shape), n.name) for n in nodes if misfit(shape, n) is None]
            heapq.heapify(heap)
        while heap and heap[0][0] != (true := lanes[heap[0][1]].start(shape)):
            heapq.heapreplace(heap, (true, heap[0][1]))
        if not heap:
            continue
        start, name = heap[0]
        end = start + durations.duration(job)
        lanes[name].take(shape, end)
        heapq.heapreplace(heap, (lanes[name].start(shape), name))
        out[job.uid] = Estimate(start, end)
    return out
