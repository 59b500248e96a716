"""The life of a job that doesn't run: it comes into the queue, is inspected, waits, is suspended, held or given up."""

from __future__ import annotations

from collections.abc import Sequence

from gpubatch_operator.core import conditions, endings
from gpubatch_operator.core.actions import Inspect, Remove, Step
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.documents import verdict_of
from gpubatch_operator.core.limits import Gate, Hold
from gpubatch_operator.core.model import ESTIMATES, JSON, Job, Pod
from gpubatch_operator.core.phases import PARKED, Phase
from gpubatch_operator.core.reasons import NEXT_STEP, Reason
from gpubatch_operator.core.trouble import Limits, trouble_of

BEING_CHECKED = {"reason": Reason.VALIDATING.value, "message": "The input is being read and checked."}
FORGOTTEN = (
    *("conditions", "inspection", "results", "progress", "live", "pending", "nodeName", "podName", "completionTime"),
    *("startTime", "firstStartTime", "activeSeconds", "failedAttempts", "lostAttempts"),
    *("queuePosition", "announcedPercent", *ESTIMATES),
)


def first_sight(job: Job, status: JSON, now: float, gate: Gate) -> Step:
    """A job that was never seen before gets its place in the order."""
    status |= {"queuedAt": iso(job.created), "queueTicket": str(job.resource_version)}
    return _first(job, status, now, gate)


def refuse(job: Job, status: JSON, why: str, now: float) -> Step:
    """A job whose pod would have privileges that aren't allowed here."""
    if job.phase is None:
        status |= {"queuedAt": iso(job.created), "queueTicket": str(job.resource_version)}
    return Step(endings.fail(job, status, Reason.POD_NOT_ALLOWED, why, now))


def run_again(job: Job, status: JSON, now: float, gate: Gate) -> Step:
    """A finished job with a new `runId` begins anew, at the end of the queue; its attempts go on being counted."""
    status.pop("retry", None)
    _forget(job, status, now)
    return _first(job, status, now, gate)


def retry(job: Job, status: JSON, now: float, gate: Gate) -> Step:
    """A failed run goes on, at the end of the queue: its next attempt begins with what an earlier one has saved."""
    kept = status.get("inspection") if job.began else None
    _forget(job, status, now)
    status["retry"] = job.wishes.retry
    if kept is not None:
        status["inspection"] = kept
    return Step(_enter(job, status, now, gate.hold(job, job.requests), validated=kept is not None))


def _forget(job: Job, status: JSON, now: float) -> None:
    for key in FORGOTTEN:
        status.pop(key, None)
    status |= {"queuedAt": iso(now), "queueTicket": str(job.resource_version)}


def _first(job: Job, status: JSON, now: float, gate: Gate) -> Step:
    if job.wishes.run_id is not None:
        status["runId"] = job.wishes.run_id
    if job.wishes.cancel:
        return Step(endings.cancel(job, status, "cancelled before it ran", now))
    if job.wishes.suspend:
        return Step(endings.suspend(job, status, now))
    return Step(_enter(job, status, now, gate.hold(job, None), validated=False))


def advance(job: Job, status: JSON, pods: Sequence[Pod], now: float, limits: Limits, gate: Gate) -> Step:
    """The next step of a job that waits, is held or is suspended; `gate` knows whether the queue has room."""
    wishes = job.wishes
    if wishes.run_id is not None:
        status["runId"] = wishes.run_id  # it hasn't run yet, or not to its end: that is the run that it will be
    if wishes.cancel:
        return Step(endings.cancel(job, status, "cancelled while it waited", now))
    due: list[float] = []
    if wishes.completion_window is not None:
        due.append(job.queued_at + wishes.completion_window)
        if now >= due[-1]:
            message = f"not finished {wishes.completion_window:.0f} s after it was queued (completionWindowSeconds)"
            return Step(endings.fail(job, status, Reason.COMPLETION_WINDOW_EXCEEDED, message, now))
    if wishes.suspend:
        step = Step(status if job.phase is Phase.SUSPENDED else endings.suspend(job, status, now))
        return Step(step.status, retry_at=min(due, default=None))
    if wishes.queue_deadline is not None and not job.began and job.phase is not Phase.SUSPENDED:
        due.append(job.waiting_since + wishes.queue_deadline)
        if now >= due[-1]:
            message = f"not started within {wishes.queue_deadline:.0f} s (queueDeadlineSeconds)"
            return Step(endings.fail(job, status, Reason.QUEUE_DEADLINE_EXCEEDED, message, now))
    if job.phase in PARKED:
        step = Step(_enter(job, status, now, gate.hold(job, job.requests), job.validated))
    elif job.phase is Phase.VALIDATING:
        step = _validating(job, status, pods, now, limits, gate)
    else:
        step = Step(status)
    if step.retry_at is not None:
        due.append(step.retry_at)
    return Step(step.status, step.actions, min(due, default=None))


def _enter(job: Job, status: JSON, now: float, hold: Hold | None, validated: bool) -> JSON:
    status.setdefault("waitingSince", iso(now))
    conditions.put_health(status, finished=False, failed=None, now=now, generation=job.generation)
    if job.phase is Phase.SUSPENDED:
        message = "spec.suspend was taken back"
        conditions.put(status, "Suspended", False, Reason.RESUMED, message, now, job.generation)
    if hold is not None:
        return held(status, hold)
    if job.inference and job.live is None and not validated:
        status |= {"phase": Phase.VALIDATING.value, "pending": dict(BEING_CHECKED)}
    else:
        status["phase"] = Phase.QUEUED.value
        status.pop("pending", None)
    return status


def held(status: JSON, hold: Hold) -> JSON:
    """The status of a job that the queue has no room for."""
    status["phase"] = Phase.HELD.value
    for key in ("queuePosition", *ESTIMATES):
        status.pop(key, None)
    reason = Reason.QUEUE_FULL
    status["pending"] = {"reason": reason.value, "message": hold.message, "nextStep": NEXT_STEP[reason]}
    return status


# --- validation


def _validating(job: Job, status: JSON, pods: Sequence[Pod], now: float, limits: Limits, gate: Gate) -> Step:
    pod = next((p for p in pods if p.kind == "inspect" and not p.gone), None)
    verdict = next((v for p in pods if p.kind == "inspect" and (v := verdict_of(p)) is not None), None)
    if verdict is not None:
        return Step(_inspected(job, status, verdict, now, gate))
    if pod is None:
        return Step(status, (Inspect(),))
    if pod.finished and not pod.deleting:  # without a verdict: evicted, most likely; a fresh one will do
        return Step(status, (Remove(pod),))
    if trouble := trouble_of(pod, limits):
        final_at = trouble.show(status, now)
        if trouble.blameless:  # it holds no GPU, so it may wait until the cluster is well again
            return Step(status)
        if final_at <= now:
            return Step(endings.fail(job, status, trouble.reason, trouble.message, now))
        return Step(status, retry_at=final_at)
    status["pending"] = dict(BEING_CHECKED)
    return Step(status)


def _inspected(job: Job, status: JSON, verdict: JSON, now: float, gate: Gate) -> JSON:
    invalid, requests = verdict.get("invalid", 0), verdict.get("requests", 0)
    status["inspection"] = {
        "requests": requests,
        "invalid": invalid,
        "inputTokens": verdict.get("inputTokens", 0),
        "tokensFrom": verdict.get("tokensFrom", "Bytes"),
        "maxOutputTokens": verdict.get("maxOutputTokens", 0),
        "firstErrors": [
            f"line {e['line']}: {e['code']}: {e['message']}"[:1024] for e in verdict.get("firstErrors", [])[:10]
        ],
    }
    if not verdict.get("valid"):
        reason, message = verdict.get("reason", "InvalidRequests"), verdict.get("message", "")
        conditions.put(status, "Validated", False, reason, message, now, job.generation)
        if verdict.get("errors"):
            status["results"] = {"errors": verdict["errors"]}
        return endings.fail(job, status, reason, message, now)
    if invalid:
        reason, message = (
            Reason.INVALID_LINES_SKIPPED,
            f"{requests} valid requests; {invalid} invalid lines are skipped",
        )
    else:
        reason, message = Reason.VALID, f"{requests} valid requests"
    conditions.put(status, "Validated", True, reason, message, now, job.generation)
    if (hold := gate.hold(job, requests)) is not None:
        return held(status, hold)
    status["phase"] = Phase.QUEUED.value
    status.pop("pending", None)
    return status
