"""What a job's webhooks are told, and when: the events that a change of its status means, and the picture of each.

The picture is taken when the event happens and kept in status: each attempt at each receiver says the same, however
late it is made and whatever has become of the job meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from gpubatch_operator.core import conditions, endings, progress
from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import JSON, AttemptState, Job
from gpubatch_operator.core.phases import ACTIVE, FINISHED, Phase
from gpubatch_operator.core.reasons import Reason

MAX_MESSAGE = 1024


class Event(StrEnum):
    """What receivers can ask for."""

    QUEUED = "queued"  # it waits for a slot: its input was found valid, or it was resumed
    STARTED = "started"  # an attempt's work has begun
    PROGRESS = "progress"  # it has passed a percentage
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RETRYING = "retrying"  # an attempt failed or was lost, and another one follows


def events(job: Job, status: JSON) -> Sequence[Event]:
    """What has happened between the job as it was read and its new status, in order."""
    before, after = job.phase, Phase(status["phase"])
    if before is after:
        return (Event.PROGRESS,) if after is Phase.RUNNING else ()
    if before is Phase.FAILED and status.get("retry") not in (None, job.retried):
        return (Event.RETRYING,)
    began = (Event.STARTED,) if before is Phase.STARTING and _worked(status, after) else ()
    if after in FINISHED:
        return (*began, Event(after.value.lower()))
    if after is not Phase.QUEUED:
        return began
    if before not in ACTIVE:
        return (Event.QUEUED,)
    last = status["attempts"][-1]
    if last["state"] == AttemptState.STOPPED:
        return (*began, Event.QUEUED)  # suspended, and resumed while it saved
    return () if last.get("reason") in endings.UNCOUNTED else (*began, Event.RETRYING)


def picture(event: Event, job: Job, status: JSON, sequence: int, now: float) -> JSON:
    """An event as status keeps it: the job's state, times and counts as it happened."""
    told, results = status.get("progress", {}), status.get("results")
    counts = results or told
    total = counts.get("total", status.get("inspection", {}).get("requests"))
    attempt = status["attempts"][-1]["number"] if "firstStartTime" in status else None
    out = {
        "sequence": sequence,
        "event": event.value,
        "time": iso(now),
        "phase": status["phase"],
        "runId": status.get("runId"),
        "attempt": attempt,
        "node": status.get("nodeName"),
        "queuedAt": status.get("queuedAt"),
        "startTime": status.get("startTime"),
        "completionTime": status.get("completionTime"),
        "estimatedCompletionTime": status.get("estimatedCompletionTime"),
        "percent": told.get("percent"),
        "counts": _known({"total": total, "completed": counts.get("completed"), "failed": counts.get("failed")}),
        "results": results,
        "error": _error(event, job, status),
    }
    return _known(out)


def _known(document: JSON) -> JSON:
    return {k: v for k, v in document.items() if v not in (None, {})}


def _worked(status: JSON, after: Phase) -> bool:
    """Whether an attempt that was Starting has done anything: short ones are never seen Running."""
    last = status["attempts"][-1]
    if after is Phase.RUNNING or last["state"] == AttemptState.SUCCEEDED or last.get("reason") == Reason.POD_FAILED:
        return True
    stage = status.get("progress", {}).get("stage")
    return after in FINISHED and stage is not None and stage not in progress.STARTING


def _error(event: Event, job: Job, status: JSON) -> JSON | None:
    """Why it ended, or why it is tried again."""
    match event:
        case Event.FAILED | Event.CANCELLED:
            why = conditions.find(status, "Failed")
        case Event.RETRYING:
            again = job.phase is Phase.FAILED
            why = conditions.find(job.status, "Failed") if again else conditions.find(status, "Admitted")
        case _:
            why = None
    return {"reason": why["reason"], "message": why["message"][:MAX_MESSAGE]} if why else None
