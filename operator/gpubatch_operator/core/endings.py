"""How attempts and jobs end, as status tells it. Each function changes `status` in place and returns it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from gpubatch_operator.core import conditions
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import ESTIMATES, JSON, Attempt, AttemptState, Job
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.reasons import NEXT_STEP, Reason

MAX_ATTEMPTS = 10  # that status lists
MAX_LOST = 10
MAX_MESSAGE = 4096  # characters, as the CRD bounds them: a longer one would have the whole status refused

FINAL = frozenset(
    {
        "InvalidRequests",
        "TooManyRequests",
        "AllRequestsFailed",
        Reason.POD_REJECTED,
        Reason.POD_NOT_ALLOWED,
        Reason.DEADLINE_EXCEEDED,
        Reason.COMPLETION_WINDOW_EXCEEDED,
        Reason.TOO_MANY_LOST_ATTEMPTS,
    }
)
"""Failures that another attempt can't mend, whatever `backoffLimit` allows."""

UNCOUNTED = frozenset({Reason.UNSCHEDULABLE, Reason.SCALING_UP, Reason.QUOTA})
"""Why an attempt may be lost any number of times: nothing of it ever ran."""


# --- an attempt


def record(status: JSON, attempt: Attempt, ended: float | None = None) -> None:
    """Put the newest attempt into `status` as it is now."""
    status["attempts"] = [*status.get("attempts", [])[:-1], attempt_json(attempt, ended)]


def begin(status: JSON, attempt: Attempt) -> None:
    """Add an attempt to `status`; the oldest makes room."""
    status["attempts"] = [*status.get("attempts", []), attempt_json(attempt)][-MAX_ATTEMPTS:]


def attempt_json(a: Attempt, ended: float | None = None) -> JSON:
    """An attempt as status lists it."""
    out = {
        "number": a.number,
        "node": a.node,
        "slot": a.slot,
        "podName": a.pod_name,
        "podUid": a.pod_uid,
        "startTime": iso(a.started),
        "stopTime": iso(a.stopping_since) if a.stopping_since is not None else None,
        "endTime": iso(ended) if ended is not None else None,
        "state": a.state.value,
        "reason": a.reason,
        "message": a.message[:MAX_MESSAGE] if a.message is not None else None,
        "engineRestartsSurvived": a.engine_restarts_survived or None,
    }
    return {k: v for k, v in out.items() if v is not None}


def finish(
    job: Job, status: JSON, attempt: Attempt, state: AttemptState, reason: str | None, message: str | None, now: float
) -> None:
    """Record the end of an attempt."""
    record(status, replace(attempt, state=state, reason=reason, message=message), now)
    if attempt.node and reason not in UNCOUNTED:
        status["activeSeconds"] = round(job.active_seconds + max(0.0, now - attempt.started), 1)


def lost(job: Job, status: JSON, attempt: Attempt, what: str, now: float) -> JSON:
    """It was nobody's fault: the job goes back to its place in the queue, unless that has happened too often."""
    reason = attempt.reason or Reason.LOST
    where = f" on {attempt.node}" if attempt.node else ""
    message = f"attempt {attempt.number}{where} was lost: {attempt.message or what}"
    finish(job, status, attempt, AttemptState.LOST, reason, message, now)
    if reason not in UNCOUNTED:
        status["lostAttempts"] = status.get("lostAttempts", 0) + 1
        if status["lostAttempts"] >= MAX_LOST:
            message = f"{MAX_LOST} attempts were lost; the last: {message}"
            return fail(job, status, Reason.TOO_MANY_LOST_ATTEMPTS, message, now)
    return _back_to_the_queue(job, status, reason, message, now)


def fail_attempt(job: Job, status: JSON, attempt: Attempt, reason: str, message: str, now: float) -> JSON:
    """The attempt failed: another one follows as often as the job allows; then the job fails for the same reason."""
    finish(job, status, attempt, AttemptState.FAILED, reason, message, now)
    failures = status["failedAttempts"] = status.get("failedAttempts", 0) + 1
    if reason in FINAL or failures > job.wishes.backoff_limit:
        told = f"{failures} attempts failed; the last: {message}" if failures > 1 else message
        return fail(job, status, reason, told, now)
    message = f"attempt {attempt.number} failed and is tried again: {message}"
    return _back_to_the_queue(job, status, reason, message, now)


def stopped(job: Job, status: JSON, attempt: Attempt, reason: str, now: float) -> JSON:
    """The attempt ended because its job was cancelled, suspended or out of time."""
    match reason:
        case Reason.CANCELLED:
            finish(job, status, attempt, AttemptState.STOPPED, reason, attempt.message, now)
            return cancel(job, status, "cancelled while it ran; what was answered until then is kept", now)
        case Reason.SUSPENDED:
            finish(job, status, attempt, AttemptState.STOPPED, reason, attempt.message, now)
            _back_to_the_queue(job, status, reason, "suspended while it ran", now)
            # Its user may have changed their mind meanwhile: then it waits.
            return suspend(job, status, now) if job.wishes.suspend else status
        case _:
            return fail_attempt(job, status, attempt, reason, attempt.message or reason, now)


def _back_to_the_queue(job: Job, status: JSON, reason: str, message: str, now: float) -> JSON:
    status["phase"] = Phase.QUEUED.value
    for key in ("nodeName", "podName", "startTime", "progress", "queuePosition", "pending", *ESTIMATES):
        status.pop(key, None)
    conditions.put(status, "Admitted", False, reason, message, now, job.generation)
    return status


# --- a job


def suspend(job: Job, status: JSON, now: float) -> JSON:
    """The job leaves the queue until its user lets it go on."""
    status["phase"] = Phase.SUSPENDED.value
    for key in ("queuePosition", *ESTIMATES, "waitingSince"):
        status.pop(key, None)
    message = "suspended by spec.suspend"
    status["pending"] = {
        "reason": Reason.SUSPENDED.value,
        "message": message,
        "nextStep": NEXT_STEP[Reason.SUSPENDED],
    }
    conditions.put(status, "Suspended", True, Reason.SUSPENDED, message, now, job.generation)
    conditions.put_health(status, finished=True, failed=None, now=now, generation=job.generation)
    return status


def succeed(job: Job, status: JSON, attempt: Attempt, message: str, now: float) -> JSON:
    """The work is done."""
    finish(job, status, attempt, AttemptState.SUCCEEDED, None, None, now)
    conditions.put(status, "Complete", True, Reason.SUCCEEDED, message, now, job.generation)
    return _close(job, status, Phase.SUCCEEDED, now)


def fail(job: Job, status: JSON, reason: str, message: str, now: float) -> JSON:
    """The job has failed for good."""
    conditions.put(status, "Failed", True, reason, message or reason, now, job.generation)
    return _close(job, status, Phase.FAILED, now, (reason, message or reason))


def cancel(job: Job, status: JSON, message: str, now: float) -> JSON:
    """Its user gave the job up. Machines that wait for an end know the condition Failed."""
    conditions.put(status, "Failed", True, Reason.CANCELLED, message, now, job.generation)
    return _close(job, status, Phase.CANCELLED, now)


def _close(job: Job, status: JSON, phase: Phase, now: float, failed: tuple[str, str] | None = None) -> JSON:
    conditions.put_health(status, True, failed, now, job.generation)
    status |= {"phase": phase.value, "completionTime": iso(now)}
    for key in ("queuePosition", *ESTIMATES, "pending", "waitingSince"):
        status.pop(key, None)
    return status


def run_name(uid: str, run_id: str | None) -> str:
    """What tells a job's run from its others, and from those of all other jobs."""
    return uid if run_id is None else f"{uid}-{hashlib.sha256(run_id.encode()).hexdigest()[:8]}"
