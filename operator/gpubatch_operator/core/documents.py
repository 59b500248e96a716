"""What a runner left behind as its container's termination message."""

from __future__ import annotations

import json

from gpubatch_operator.core.model import JSON, Pod


def verdict_of(pod: Pod) -> JSON | None:
    """The runner's JSON document (the contract's `Outcome`, or `Inspection`), if its container has ended in peace."""
    if not pod.terminated_message:
        return None
    try:
        document = json.loads(pod.terminated_message)
    except ValueError:
        return None  # not ours: an OCI error, or the tail of a log
    key = "valid" if pod.kind == "inspect" else "succeeded"
    return document if isinstance(document, dict) and key in document else None
