"""The plan: who is admitted to which slot now, and in which order the others wait.

Placement goes through the queue in order and gives each job the tightest free slot that it fits. A job that fits
none of the free slots doesn't hold up a later job that does; that can't starve it, since any slot that it could use
goes, once free, to the first in order that fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gpubatch_operator.core.model import Job, Node, Policy, Shape, Snapshot
from gpubatch_operator.core.order import in_order
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.placement import Rooms, misfit

ANY_NODE = ""
"""As the node of an admission: the one that an autoscaler makes for the pod."""


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


def plan(snapshot: Snapshot, policy: Policy = Policy()) -> Plan:  # noqa: B008 (it is immutable)
    """Decide. Costs O(n log n) in waiting jobs for the order and O(slots log nodes) for the placement."""
    order = in_order(snapshot.waiting, policy.aging, snapshot.now)
    rooms = Rooms(snapshot.nodes, snapshot.occupied)
    for shape in snapshot.floating:  # such a pod goes to the next node that it fits, whatever we plan
        rooms.take(shape)
    share = _Share(policy, snapshot)
    admissions = list(_placed(order, rooms, share, snapshot.now))
    admitted = {a.job.uid for a in admissions}
    if (pods := policy.scale_up - len(snapshot.floating)) > 0:
        others = [j for j in order if j.uid not in admitted] if admitted else order
        admissions += _scaled_up(others, snapshot.nodes, share, pods, snapshot.now)
        admitted = {a.job.uid for a in admissions}
    queue = tuple(j for j in order if j.uid not in admitted) if admitted else tuple(order)
    return Plan(tuple(admissions), queue)


class _Share:
    """What is left of the slots that each namespace may have at a time."""

    def __init__(self, policy: Policy, snapshot: Snapshot) -> None:
        self._max, self._used = policy.max_slots, Counter(snapshot.active_in)

    def left(self, namespace: str) -> bool:
        if not self._max:
            return True
        most = self._max.get(namespace, self._max.get("*"))
        return most is None or self._used[namespace] < most

    def take(self, namespace: str) -> None:
        self._used[namespace] += 1


def _may_run(job: Job, now: float) -> bool:
    """A job whose input is still being validated, or that is in back-off, keeps its place and blocks nobody.

    One that is back in the queue since its attempt was lost may have been suspended or cancelled meanwhile.
    """
    unwanted = job.wishes.suspend or job.wishes.cancel
    return job.phase is Phase.QUEUED and job.not_before <= now and not unwanted


def _placed(order: Iterable[Job], rooms: Rooms, share: _Share, now: float) -> Iterable[Admission]:
    full: set[Shape] = set()  # shapes that fit none of the slots that are still free
    for job in order:
        if not rooms.free:
            return
        if not _may_run(job, now) or job.shape in full or not share.left(job.namespace):
            continue
        avoid = {node for node, until in job.avoid if until > now} if job.avoid else ()
        if place := rooms.take(job.shape, avoid):
            share.take(job.namespace)
            yield Admission(job, *place)
        else:
            full.add(job.shape)


def _scaled_up(
    order: Sequence[Job], nodes: Sequence[Node], share: _Share, pods: int, now: float
) -> Iterable[Admission]:
    """The first that fit no node there is: autoscalers add nodes only for pods that can't be scheduled."""
    unfit = {s for s in {job.shape for job in order} if all(misfit(s, n) is not None for n in nodes)}
    for job in order if unfit else ():
        if not _may_run(job, now) or not share.left(job.namespace):
            continue
        if any(node == ANY_NODE and until > now for node, until in job.avoid):
            continue  # no node came for it lately: others get the chance
        if job.shape in unfit:
            share.take(job.namespace)
            yield Admission(job, ANY_NODE, 0)
            pods -= 1
            if not pods:
                return
