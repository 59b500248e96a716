"""Conditions as Kubernetes means them: one of each type, its time that of its last change of status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import JSON
from gpubatch_operator.core.reasons import Reason

MAX_MESSAGE = 4096


def find(status: Mapping[str, Any], kind: str) -> JSON | None:
    """The condition of this type, be it true or not."""
    return next((c for c in status.get("conditions", []) if c["type"] == kind), None)


def put(status: JSON, kind: str, value: bool, reason: str, message: str, now: float, generation: int) -> None:
    """Set the condition `kind` in `status`, in place."""
    rest = [c for c in status.get("conditions", []) if c["type"] != kind]
    old = find(status, kind)
    text = "True" if value else "False"
    since = old["lastTransitionTime"] if old and old["status"] == text else iso(now)
    new = {
        "type": kind,
        "status": text,
        "reason": str(reason),
        "message": message[:MAX_MESSAGE],
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }
    status["conditions"] = [*rest, new]


def put_health(status: JSON, finished: bool, failed: tuple[str, str] | None, now: float, generation: int) -> None:
    """What GitOps tools read, by the rules of kstatus: neither condition is there on a job that is as it was declared.

    Args:
        finished: Nothing is to happen any more until somebody edits the job: it has ended, or is suspended.
        failed: Reason and message of a job that has failed for good.
    """
    kinds = {c["type"] for c in status.get("conditions", [])}
    stale = {"Reconciling"} if finished else {"Stalled"}
    if stale & kinds:
        status["conditions"] = [c for c in status["conditions"] if c["type"] not in stale]
    if failed:
        reason, message = failed
        put(status, "Stalled", True, reason, message[:512], now, generation)  # all of it is in the condition Failed
    elif not finished and "Reconciling" not in kinds:
        put(status, "Reconciling", True, Reason.UNFINISHED, "The job waits or runs.", now, generation)
