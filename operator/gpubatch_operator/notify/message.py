"""The body of a webhook and its Standard Webhooks headers (https://www.standardwebhooks.com)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

JSON = dict[str, Any]
TOLD = (
    *("sequence", "runId", "phase", "attempt", "node"),
    *("queuedAt", "startTime", "completionTime", "estimatedCompletionTime"),
    *("percent", "counts", "results", "error"),
)
"""Of an event, beside its name and time; each is there in each body, null where there is nothing to say."""


def payload(job: JSON, event: JSON) -> bytes:
    """The body: the event, as status keeps it, and the reference (metadata) of its job."""
    body = {
        "type": f"gpubatchjob.{event['event']}",
        "timestamp": event["time"],
        "data": {
            "job": {"namespace": job["namespace"], "name": job["name"], "uid": job["uid"]},
            **{key: event.get(key) for key in TOLD},
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


def headers(delivery_id: str, body: bytes, secrets: Sequence[str], at: datetime | None = None) -> dict[str, str]:
    """The headers of one attempt, with a signature by each of the secrets; without one there is none.

    Raises:
        ValueError: A secret isn't base64, with or without the prefix `whsec_`.
    """
    at = at or datetime.now(UTC)
    out = {
        "content-type": "application/json",
        "user-agent": "gpubatch",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(at.timestamp())),
    }
    signatures = []
    for secret in secrets:
        try:
            signatures.append(Webhook(secret).sign(delivery_id, at, body.decode()))
        except Exception as e:
            raise ValueError(f"not a base64 secret (whsec_...): {e}") from None
    if signatures:
        out["webhook-signature"] = " ".join(signatures)
    return out
