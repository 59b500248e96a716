"""Jobs as the HTTP endpoints show them. What a list shows of a job is serialized once for each version of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gpubatch_operator.core.clock import iso, seconds
from gpubatch_operator.core.model import ESTIMATES, Job
from gpubatch_operator.core.phases import ACTIVE, FINISHED, WAITING

JSON = dict[str, Any]
SHOWN_PROGRESS = ("stage", "message", "summary", "total", "completed", "failed", "percent", "rate", "remainingSeconds")
LONGEST = 1024  # characters of a message in a list; the job's own document has all of it
# The publisher says it for those who read status; deep in the queue it is exact only now and then.
PUBLISHED_POSITION = re.compile(r"^position \d+: ")


def summary(job: Job) -> JSON:
    """What a list shows, without what changes while the job doesn't: see `moment`."""
    status = job.status
    out: JSON = {
        "namespace": job.namespace,
        "name": job.name,
        "uid": job.uid,
        "phase": job.phase.value if job.phase else None,
        "kind": "inference" if job.inference else "template",
        "model": job.model,
        "priority": job.priority,
        "gpus": job.shape.gpus,
        "gpuResource": job.shape.resource,
        "creationTime": iso(job.created),
        "queuedAt": iso(job.queued_at),
        "attempts": job.attempts,
    }
    for key in ("startTime", "completionTime", "nodeName", *ESTIMATES):
        if (value := status.get(key)) is not None:
            out[key] = value
    if progress := status.get("progress"):
        out["progress"] = {k: progress[k] for k in SHOWN_PROGRESS if progress.get(k) is not None}
    if (pending := _pending(status)) and job.phase not in FINISHED:
        out["pending"] = pending
    if job.phase in FINISHED:
        out |= _end(status)
    if job.deleting:
        out["deleting"] = True
    return out


def fragment(job: Job) -> bytes:
    """The summary as JSON, without its opening brace, so that a moment can be put before it."""
    return orjson.dumps(summary(job))[1:]


def moment(job: Job, position: int | None, now: float) -> bytes:
    """What of a job changes by itself, as the beginning of a JSON object: place in the queue, and time."""
    head = b"{" if position is None else b'{"queuePosition":%d,' % position
    if (since := _since(job)) is not None:
        end = job.status.get("completionTime") if job.phase in FINISHED else None
        head += b'"elapsedSeconds":%d,' % max(0, int((seconds(end) if end else now) - since))
    if job.phase in WAITING:
        head += b'"waitedSeconds":%d,' % max(0, int(now - job.waiting_since))
    return head


def detail(job: Job, position: int | None, now: float) -> bytes:
    """One job with its whole status."""
    text = moment(job, position, now) + fragment(job)
    return text[:-1] + b',"status":' + orjson.dumps(dict(job.status)) + b"}"


def _since(job: Job) -> float | None:
    """When the time began that counts as elapsed: that of the attempt, of a finished job that of the whole run."""
    if job.phase in ACTIVE:
        key = "startTime"
    elif job.phase in FINISHED:
        key = "firstStartTime" if "firstStartTime" in job.status else "startTime"
    else:
        return None
    at = job.status.get(key)
    return seconds(at) if at else None


def _pending(status: Mapping[str, Any]) -> JSON | None:
    if not (pending := status.get("pending")):
        return None
    out = {k: v for k in ("reason", "message", "nextStep", "since") if (v := pending.get(k)) is not None}
    out["message"] = PUBLISHED_POSITION.sub("", out.get("message", ""))[:LONGEST]
    return out


def _end(status: Mapping[str, Any]) -> JSON:
    """Why it ended: the condition that says so."""
    for condition in status.get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return {"reason": condition["reason"], "message": condition["message"][:LONGEST]}
    return {}
