"""The list of a job's webhook deliveries: what comes in, what is due, how each attempt went, what is let go.

Pure functions on status. In order for each receiver: of its pending deliveries only the oldest is due. A delivery that
was given up (a dead letter) lets the next one pass, and is made again when the job's annotation asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gpubatch_operator.core import announcements, conditions
from gpubatch_operator.core.announcements import Event
from gpubatch_operator.core.clock import iso, seconds
from gpubatch_operator.core.model import JSON, Hook, Job
from gpubatch_operator.core.reasons import Reason

MAX_DELIVERIES = 64
MAX_ERROR = 1024
CONDITION = "WebhookDeadLettered"
PENDING, DELIVERED, DEAD = "Pending", "Delivered", "DeadLettered"
ALL = "all"
GONE = 410  # the receiver wants no more
NEWS = frozenset({Event.QUEUED, Event.STARTED, Event.PROGRESS, Event.RETRYING})  # what an end makes less urgent
PER_ATTEMPT = ("lastStatusCode", "lastError", "nextAttemptTime")


@dataclass(frozen=True, slots=True)
class Patience:
    """When a receiver is tried again; seconds."""

    attempts: int
    backoff: float
    max_backoff: float


@dataclass(frozen=True, slots=True)
class Tried:
    """How one attempt went."""

    ok: bool
    signed: bool = False
    code: int | None = None
    error: str | None = None
    retry_after: float = 0.0


# --- what the operator decides about a job


def follow(job: Job, status: JSON, now: float) -> JSON:
    """Put the deliveries into `status`, in place, that follow from its change and from its user's wishes."""
    if not job.webhooks and "webhookDeliveries" not in status:
        return status
    hooks, listed = {h.key: h for h in job.webhooks}, status.get("webhookDeliveries", [])
    # Of a receiver that was taken out of spec only what it got is remembered.
    kept = [d for d in listed if d["webhook"] in hooks or d["state"] == DELIVERED]
    wanted = job.wishes.redeliver
    if wanted is not None and wanted != status.get("redelivered"):
        status["redelivered"] = wanted
        kept = [_again(d) if _chosen(d, wanted.split(), hooks) else d for d in kept]
    pictures = {e["sequence"]: e for e in status.get("webhookEvents", [])}
    for event in announcements.events(job, status):
        told = _told(event, job, status, kept)
        if told:
            sequence = status["webhookSequence"] = status.get("webhookSequence", 0) + 1
            pictures[sequence] = announcements.picture(event, job, status, sequence, now)
            kept = [*_without_old_news(event, kept, told), *_new(event, job, told, sequence, now)]
    kept = _bounded(kept)
    if kept != listed:
        status["webhookDeliveries"] = kept
        used = {d["sequence"] for d in kept}
        status["webhookEvents"] = [e for s, e in pictures.items() if s in used]
    return judge(job, status, now)


def _told(event: Event, job: Job, status: JSON, listed: list[JSON]) -> list[str]:
    """The keys of the receivers that get this event."""
    hooks = [h for h in job.webhooks if event in h.events]
    if event is Event.PROGRESS:
        percent, said = status.get("progress", {}).get("percent") or 0, status.get("announcedPercent", 0)
        hooks = [h for h in hooks if any(said < p <= percent for p in h.progress_at)]
        if hooks:
            status["announcedPercent"] = percent
    gone = {d["webhook"] for d in listed if d["state"] == DEAD and d.get("lastStatusCode") == GONE}
    return [h.key for h in hooks if h.key not in gone]


def _new(event: Event, job: Job, told: list[str], sequence: int, now: float) -> Iterator[JSON]:
    # Derived and not drawn: status is written by compare-and-swap, so a decision made twice is the same message.
    for key in told:
        yield {
            "id": f"msg_{job.uid}_{sequence}_{key}",
            "webhook": key,
            "event": event.value,
            "sequence": sequence,
            "state": PENDING,
            "attempts": 0,
            "time": iso(now),
        }


def _without_old_news(event: Event, listed: list[JSON], told: list[str]) -> list[JSON]:
    """Progress that a receiver hasn't even been offered yet gives way to newer progress."""
    if event is not Event.PROGRESS:
        return listed
    return [
        d
        for d in listed
        if not (d["event"] == event and d["state"] == PENDING and not d["attempts"] and d["webhook"] in told)
    ]


def _again(delivery: JSON) -> JSON:
    return {k: v for k, v in delivery.items() if k not in PER_ATTEMPT} | {"state": PENDING, "attempts": 0}


def _chosen(delivery: JSON, words: list[str], hooks: Mapping[str, Hook]) -> bool:
    if delivery["webhook"] not in hooks:
        return False
    return delivery["id"] in words or (ALL in words and delivery["state"] == DEAD)


def _bounded(listed: list[JSON]) -> list[JSON]:
    """The list is too long: what is done goes first, then dead letters, then news, the ends of runs last."""
    excess = len(listed) - MAX_DELIVERIES
    if excess <= 0:
        return listed

    def worth(d: JSON) -> int:
        return 0 if d["state"] == DELIVERED else 1 if d["state"] == DEAD else 2 if d["event"] in NEWS else 3

    dropped = {d["id"] for d in sorted(listed, key=worth)[:excess]}  # sorting is stable: of equals the oldest
    return [d for d in listed if d["id"] not in dropped]


def judge(job: Job, status: JSON, now: float) -> JSON:
    """Put the condition into `status`, in place, that says whether something couldn't be delivered."""
    dead = [d for d in status.get("webhookDeliveries", []) if d["state"] == DEAD]
    old = conditions.find(status, CONDITION)
    if not dead:
        if old and old["status"] == "True":
            message = "nothing is given up any more"
            conditions.put(status, CONDITION, False, Reason.REDELIVERED, message, now, job.generation)
        return status
    last = dead[-1]
    message = (
        f"{len(dead)} given up; the last: {last['event']} to webhook {last['webhook']}: {last.get('lastError')}; "
        'to send all again: kubectl annotate --overwrite gbj NAME gpubatch.dev/redeliver="all $(date +%s)"'
    )
    if old is None or (old["status"], old["message"]) != ("True", message[: conditions.MAX_MESSAGE]):
        conditions.put(status, CONDITION, True, Reason.DELIVERY_GIVEN_UP, message, now, job.generation)
    return status


# --- what the notifier does about it


def heads(status: Mapping[str, object]) -> dict[str, tuple[JSON, float]]:
    """By receiver its oldest pending delivery, and when that is due."""
    out: dict[str, tuple[JSON, float]] = {}
    listed = status.get("webhookDeliveries") or []
    assert isinstance(listed, list)
    for d in listed:
        if d["state"] == PENDING and d["webhook"] not in out:
            out[d["webhook"]] = d, seconds(d["nextAttemptTime"]) if "nextAttemptTime" in d else 0.0
    return out


def attempted(
    status: JSON, delivery_id: str, tried: Tried, patience: Patience, jitter: float, now: float
) -> list[JSON]:
    """Record an attempt in `status`, in place; the deliveries that it has changed, none if it isn't pending any more.

    Args:
        jitter: About 1; the delay is multiplied by it.
    """
    listed = status.get("webhookDeliveries", [])
    delivery = next((d for d in listed if d["id"] == delivery_id and d["state"] == PENDING), None)
    if delivery is None:
        return []
    for key in PER_ATTEMPT:
        delivery.pop(key, None)
    delivery |= {"attempts": delivery["attempts"] + 1, "lastAttemptTime": iso(now), "signed": tried.signed}
    if tried.code is not None:
        delivery["lastStatusCode"] = tried.code
    if tried.error is not None:
        delivery["lastError"] = tried.error[:MAX_ERROR]
    changed = [delivery]
    if tried.ok:
        delivery["state"] = DELIVERED
    elif tried.code == GONE:
        for d in listed:
            if d["webhook"] == delivery["webhook"] and d["state"] == PENDING:
                d["state"] = DEAD
                if d is not delivery:
                    d["lastError"] = "not sent: the receiver answered 410 to an earlier delivery"
                    d.pop("nextAttemptTime", None)
                    changed.append(d)
    elif delivery["attempts"] >= patience.attempts:
        delivery["state"] = DEAD
    else:
        doubled = patience.backoff * 2.0 ** min(delivery["attempts"] - 1, 60)
        delay = max(min(doubled, patience.max_backoff) * jitter, tried.retry_after)
        delivery["nextAttemptTime"] = iso(math.ceil(now + delay))  # whole seconds, never earlier
    return changed
