"""What of a plan is worth a write: position, estimates and the reason for waiting, in the status of each job.

Exact positions for all would cost a write for each waiting job at each admission. So the first `EXACT` positions are
always exact; deeper ones, and all estimates, are written when they have moved by more than a tenth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.estimate import Estimate
from gpubatch_operator.core.model import JSON, Job, Node, Shape
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.placement import matching, misfits
from gpubatch_operator.core.reasons import NEXT_STEP, Reason

EXACT = 20
SHARE = 0.1
SECONDS = 5.0  # moves of an estimate below this are noise
SLIP_SHARE, SLIP_SECONDS = 0.2, 60.0  # an estimated start that moves by more than both is explained


def position_is_stale(published: int | None, position: int, settled: bool = False) -> bool:
    """Whether the published position should be replaced; in a queue that is `settled`, unless it is exact."""
    if published is None or position <= EXACT or settled:
        return published != position
    return abs(published - position) > SHARE * published


def estimate_is_stale(published: float | None, new: float | None, now: float) -> bool:
    """Whether the published estimate should be replaced: it moved by more than a tenth, or has passed."""
    if published is None or new is None:
        return published is not new
    if published <= now:
        return new - published >= 1.0
    return abs(new - published) > max(SECONDS, SHARE * (new - now))


def stale(
    job: Job,
    position: int,
    blocker: tuple[Reason, str],
    estimate: Estimate | None,
    now: float,
    settled: bool = False,
) -> bool:
    """Whether a waiting job's published view should be written anew."""
    return (
        position_is_stale(job.position, position, settled)
        or (job.phase is Phase.QUEUED and (job.status.get("pending") or {}).get("reason") != blocker[0].value)
        or estimate_is_stale(job.estimated_start, estimate.start if estimate else None, now)
        or completion_is_stale(job, estimate, now)
    )


def completion_is_stale(job: Job, estimate: Estimate | None, now: float) -> bool:
    """Whether the published estimate of the completion should be replaced."""
    return estimate_is_stale(job.estimated_completion, completion(job, estimate)[0], now)


def completion(job: Job, estimate: Estimate | None) -> tuple[float | None, float | None]:
    """Median and bound of the completion. A live job has none: it ends when nobody wants it any more.

    The estimator has a law for it all the same, by what such jobs took: those who wait for its slot need one.
    """
    if estimate is None or job.live is not None:
        return None, None
    return estimate.completion, estimate.completion_p90


class Blockers:
    """Why jobs wait, by shape; each shape is looked at once.

    Args:
        nodes: All nodes.
        known: Whether nodes may be read at all.
    """

    def __init__(self, nodes: Sequence[Node], known: bool = True) -> None:
        self._nodes, self._nodes_known = nodes, known
        self._known: dict[Shape, tuple[Reason, str]] = {}

    def of(self, shape: Shape) -> tuple[Reason, str]:
        """The dominant reason and its sentence."""
        if shape not in self._known:
            self._known[shape] = self._look(shape)
        return self._known[shape]

    def _look(self, shape: Shape) -> tuple[Reason, str]:
        if not self._nodes_known:
            return Reason.NODES_BUSY, "kube-scheduler chooses the nodes here, and has jobs that have none yet"
        if not any(n.capacity.get(shape.resource) for n in self._nodes):
            return Reason.NO_GPU_NODES, f"no node advertises {shape.resource}"
        if count := matching(shape, self._nodes):
            nodes = "the only matching node is" if count == 1 else f"all {count} matching nodes are"
            return Reason.NODES_BUSY, f"{nodes} busy"
        return Reason.NO_MATCHING_NODE, misfits(shape, self._nodes)


class Shares:
    """Namespaces that hold all the slots that they may have.

    Args:
        most: By namespace; `*` for all that aren't named.
        used: By namespace.
    """

    def __init__(self, most: Mapping[str, int], used: Mapping[str, int]) -> None:
        self._most, self._used = most, used

    def of(self, namespace: str) -> tuple[Reason, str] | None:
        """Why a job of this namespace would wait whatever is free, or None."""
        most = self._most.get(namespace, self._most.get("*"))
        if most is None or self._used.get(namespace, 0) < most:
            return None
        return Reason.NAMESPACE_SLOTS, f"the jobs of namespace {namespace} hold all {most} slots that it may have"


def backoff(job: Job) -> tuple[Reason, str]:
    """Why a job waits that is in back-off."""
    last = f": {job.attempt.message}" if job.attempt and job.attempt.message else ""
    # That its pod couldn't even be created says more than that it will be tried again.
    quota = job.attempt is not None and job.attempt.reason == Reason.QUOTA
    return Reason.QUOTA if quota else Reason.BACKOFF, f"until {iso(job.not_before)}{last}"


def waiting(
    job: Job, status: JSON, position: int, blocker: tuple[Reason, str], estimate: Estimate | None, now: float = 0.0
) -> None:
    """The status with the view of a waiting job put in, in place."""
    status["queuePosition"] = position
    if job.phase is not Phase.VALIDATING:
        reason, why = blocker
        ahead = f"position {position}: " if reason is Reason.NODES_BUSY else ""
        news = slip(job, position, estimate, now)
        status["pending"] = {"reason": reason.value, "message": ahead + why + (f"; {news}" if news else "")}
        if step := NEXT_STEP.get(reason):
            status["pending"]["nextStep"] = step
    estimated(status, "estimatedStartTime", estimate.start if estimate else None)
    estimated(status, "estimatedStartTimeP90", estimate.start_p90 if estimate else None)
    completing(job, status, estimate)


def completing(job: Job, status: JSON, estimate: Estimate | None) -> None:
    """The status with the estimates of the completion put in, in place."""
    median, bound = completion(job, estimate)
    estimated(status, "estimatedCompletionTime", median)
    estimated(status, "estimatedCompletionTimeP90", bound)


def slip(job: Job, position: int, estimate: Estimate | None, now: float) -> str | None:
    """Why a waiting job's start is now expected later than was published, if it is by a fifth of its wait or more."""
    before = job.estimated_start
    if estimate is None or before is None:
        return None
    later = estimate.start - before
    if later < max(SLIP_SECONDS, SLIP_SHARE * (estimate.start - now)):
        return None
    came = position - job.position if job.position is not None else 0
    if came > 0:
        why = f"{came} more job{'s' if came > 1 else ''} of higher priority came before it"
    else:
        why = "those before it take longer than expected, or there are fewer nodes"
    return f"the estimated start moved from {iso(before)} to {iso(estimate.start + 1)}: {why}"


def estimated(status: JSON, field: str, at: float | None) -> None:
    """The status with one estimate set (rounded up, so that it isn't past at once) or removed, in place."""
    if at is None:
        status.pop(field, None)
    else:
        status[field] = iso(at + 1)
