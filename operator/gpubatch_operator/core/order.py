"""The order of the queue: priority, then `queuedAt`, then ticket, then uid. Total and stable."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from gpubatch_operator.core.model import Job

RANK = attrgetter("rank")


def rank(priority: int, queued_at: float, ticket: int, uid: str) -> tuple[int, float, int, str]:
    """The sort key of a job: smaller runs first.

    `ticket` is the resourceVersion under which the API server stored the job, so jobs of one second keep the order in
    which they were stored; a job without one (0, never seen before) would jump ahead, so callers pass its current one.
    """
    return (-priority, queued_at, ticket, uid)


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """The jobs as they will be admitted, if each fits each node."""
    return sorted(jobs, key=RANK)
