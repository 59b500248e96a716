"""The plan: who is admitted to which slot now, and in which order the others wait.

Placement goes through the queue in order and gives each job the tightest free slot that it fits. A job that fits
none of the free slots doesn't hold up a later one that does; that can't starve it, since any slot that it could use
goes, once free, to the first in order that fits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpubatch_operator.core.model import Job, Shape, Snapshot
from gpubatch_operator.core.order import in_order
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.placement import Rooms


@dataclass(frozen=True, slots=True)
class Admission:
    """The right to run `job` in `slot` of `node`, given now."""

    job: Job
    node: str
    slot: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`queue` holds who still waits, in order: the first has position 1."""

    admissions: tuple[Admission, ...]
    queue: tuple[Job, ...] = field(repr=False)


def plan(snapshot: Snapshot) -> Plan:
    """Decide. Costs O(n log n) in waiting jobs for the order and O(slots log nodes) for the placement."""
    order = in_order(snapshot.waiting)
    rooms = Rooms(snapshot.nodes, snapshot.occupied)
    admissions: list[Admission] = []
    full: set[Shape] = set()  # shapes that fit none of the slots that are still free
    for job in order:
        if not rooms.free:
            break
        # A job whose input is still being validated, or that is in back-off, keeps its place and blocks nobody.
        if job.phase is not Phase.QUEUED or job.shape in full or job.not_before > snapshot.now:
            continue
        if place := rooms.take(job.shape):
            admissions.append(Admission(job, *place))
        else:
            full.add(job.shape)
    admitted = {a.job.uid for a in admissions}
    queue = tuple(j for j in order if j.uid not in admitted) if admitted else tuple(order)
    return Plan(tuple(admissions), queue)
