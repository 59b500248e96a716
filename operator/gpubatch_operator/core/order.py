"""The order of the queue: priority (waiting may raise it), then `queuedAt`, ticket and uid. Total, stable."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from gpubatch_operator.core.model import Aging, Job

RANK = attrgetter("rank")
NO_AGING = Aging()


def rank(priority: int, queued_at: float, ticket: int, uid: str) -> tuple[int, float, int, str]:
    """The sort key of a job: smaller runs first.

    `ticket` is the resourceVersion under which the API server stored the job, so jobs of one second keep the order in
    which they were stored; a job without one (0, never seen before) would jump ahead, so callers pass its current one.
    """
    return (-priority, queued_at, ticket, uid)


def in_order(jobs: Iterable[Job], aging: Aging = NO_AGING, now: float = 0.0) -> list[Job]:
    """The jobs as they will be admitted, if each fits each node."""
    if not aging.step:
        return sorted(jobs, key=RANK)

    def aged(job: Job) -> tuple[int, float, int, str]:
        return rank(job.priority + raise_of(job, aging, now), job.queued_at, job.ticket, job.uid)

    return sorted(jobs, key=aged)


def raise_of(job: Job, aging: Aging, now: float) -> int:
    """By how much waiting has raised a job's priority."""
    steps = int(max(0.0, now - job.queued_at) // aging.interval)
    return min(aging.cap, aging.step * steps)
