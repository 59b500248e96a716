"""The body of a webhook and its Standard Webhooks headers (https://www.standardwebhooks.com)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

JSON = dict[str, Any]


def payload(raw: JSON, delivery: JSON) -> bytes:
    """The body: the event, and the job as it ended. The same bytes for each attempt."""
    meta, status = raw["metadata"], raw.get("status") or {}
    failed = next((c for c in status.get("conditions") or [] if c["type"] == "Failed" and c["status"] == "True"), None)
    body = {
        "type": f"gpubatchjob.{delivery['event']}",
        "timestamp": delivery["time"],
        "data": {
            "job": {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
            "phase": status.get("phase"),
            "startTime": status.get("startTime"),
            "completionTime": status.get("completionTime"),
            "results": status.get("results"),
            "error": {"reason": failed["reason"], "message": failed["message"]} if failed else None,
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


def headers(delivery_id: str, body: bytes, secret: str | None, at: datetime | None = None) -> dict[str, str]:
    """The headers of one attempt; without a secret there is no signature.

    Raises:
        ValueError: The secret isn't base64, with or without the prefix `whsec_`.
    """
    at = at or datetime.now(UTC)
    out = {
        "content-type": "application/json",
        "user-agent": "gpubatch",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(at.timestamp())),
    }
    if secret is not None:
        try:
            signer = Webhook(secret)
        except Exception as e:
            raise ValueError(f"not a base64 secret (whsec_...): {e}") from None
        out["webhook-signature"] = signer.sign(delivery_id, at, body.decode())
    return out
