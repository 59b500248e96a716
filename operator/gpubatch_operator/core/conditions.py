"""Conditions as Kubernetes means them: one of each type, its time that of its last change of status."""

from __future__ import annotations

from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import JSON


def put(status: JSON, kind: str, value: bool, reason: str, message: str, now: float, generation: int) -> None:
    """Set the condition `kind` in `status`, in place."""
    rest = [c for c in status.get("conditions", []) if c["type"] != kind]
    old = next((c for c in status.get("conditions", []) if c["type"] == kind), None)
    text = "True" if value else "False"
    since = old["lastTransitionTime"] if old and old["status"] == text else iso(now)
    new = {
        "type": kind,
        "status": text,
        "reason": str(reason),
        "message": message[:4096],
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }
    status["conditions"] = [*rest, new]
