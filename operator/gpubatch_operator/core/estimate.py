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


def replay(
    queue: Sequence[Job], active: Iterable[Job], nodes: Sequence[Node], durations: Durations, now: float
) -> Mapping[str, Estimate]:
    """Estimates by uid for all active jobs and for each waiting one that fits some node.

    List scheduling over the slots in the queue's order: O(n log slots) for each shape in use. Free times only grow,
    so a stale entry of a heap is found when it comes up, and put back with its true time.
    """
    free: dict[tuple[str, int], float] = {(n.name, i): now for n in nodes for i in range(n.slots)}
    out: dict[str, Estimate] = {}
    for job in active:
        if job.attempt:
            end = now + durations.remaining(job, now)
            out[job.uid] = Estimate(job.attempt.started, end)
            place = (job.attempt.node, job.attempt.slot)
            free[place] = max(free.get(place, now), end)
    by_name = {n.name: n for n in nodes}
    heaps: dict[Shape, list[tuple[float, tuple[str, int]]]] = {}
    for job in queue:
        heap = heaps.get(job.shape)
        if heap is None:
            fits = {name: misfit(job.shape, n) is None for name, n in by_name.items()}
            heap = heaps[job.shape] = [(t, p) for p, t in free.items() if fits.get(p[0])]
            heapq.heapify(heap)
        while heap and heap[0][0] != free[heap[0][1]]:
            heapq.heapreplace(heap, (free[heap[0][1]], heap[0][1]))
        if not heap:
            continue
        start, place = heap[0]
        end = start + durations.duration(job)
        free[place] = end
        heapq.heapreplace(heap, (end, place))
        out[job.uid] = Estimate(start, end)
    return out
