"""Who is told about a job: `spec.webhooks`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from gpubatch_operator.api.base import ApiModel, Name, Seconds

Tries = Annotated[int, Field(ge=1, le=50)]
Event = Literal["queued", "started", "progress", "succeeded", "failed", "cancelled", "retrying"]
PROGRESS_AT = (25, 50, 75)


class Delivery(ApiModel):
    """Patience with a receiver. What is left out comes from the operator's settings."""

    connect_seconds: Annotated[int, Field(ge=1, le=300)] | None = Field(
        default=None, description="For a connection, TLS and all."
    )
    read_seconds: Annotated[int, Field(ge=1, le=300)] | None = Field(
        default=None, description="Without a byte of the answer."
    )
    total_seconds: Annotated[int, Field(ge=1, le=300)] | None = Field(
        default=None, description="For one attempt in all."
    )
    attempts: Tries | None = Field(default=None, description="At each delivery, until it is given up.")
    backoff_seconds: Seconds | None = Field(
        default=None, description="Before the second attempt; doubled each time, with jitter."
    )
    max_backoff_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = Field(
        default=None, description="Between two attempts at most: with enough attempts they go on for days."
    )


class Webhook(ApiModel):
    """Somebody who is told about the job."""

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] | None = Field(
        default=None,
        description="What status calls it. With a name its URL can be changed at any time, and what hasn't arrived yet "
        "goes to the new one; without, another URL is another webhook. Default: a hash of the URL.",
    )
    url: Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^https?://[^/]+(/.*)?$")] = Field(
        description="Receives a POST in the form of Standard Webhooks."
    )
    events: Annotated[list[Event], Field(min_length=1, max_length=7)] = Field(
        default=["succeeded", "failed", "cancelled"], description="Which events to send."
    )
    progress_at: Annotated[list[Annotated[int, Field(ge=1, le=99)]], Field(min_length=1, max_length=20)] | None = Field(
        default=None,
        description="With the event progress: the percentages at which it is sent, once in a run. Default: 25, 50, 75.",
    )
    secret_name: Name | None = Field(
        default=None,
        description="A Secret in the job's namespace, labelled gpubatch.dev/webhook-secret=true, whose key 'secret' "
        "signs the deliveries (whsec_...), and beside it 'previousSecret' while a new one is introduced. Default: "
        "unsigned.",
    )
    delivery: Delivery = Field(default=Delivery(), description="Time limits and attempts.")


def receivers(webhooks: Sequence[Webhook]) -> dict[str, Webhook]:
    """The webhooks by what tells each from the job's others: its name, else its URL (the same one twice: its place)."""
    out: dict[str, Webhook] = {}
    for i, webhook in enumerate(webhooks):
        key = webhook.name or hashlib.sha256(webhook.url.encode()).hexdigest()[:8]
        out[f"{key}-{i}" if key in out else key] = webhook
    return out
