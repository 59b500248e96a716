"""A job as people read it: pure functions of the object that the API server returns."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

JSON = dict[str, Any]

FINISHED = ("Succeeded", "Failed", "Cancelled")
ACTIVE = ("Starting", "Running")
WAITING = ("Validating", "Queued")
UNSEEN = "Created"
"""What a job is called that no operator has looked at yet."""

ORDER = ("Running", "Starting", "Queued", "Validating", UNSEEN, "Held", "Suspended", *reversed(FINISHED))


@dataclass(frozen=True)
class Row:
    """One job of a list. Times are RFC 3339, absent values None."""

    namespace: str
    name: str
    phase: str
    priority: int
    position: int | None
    progress: str | None
    percent: int | None
    start: str | None
    start_p90: str | None
    finish: str | None
    finish_p90: str | None
    node: str | None
    created: str
    reason: str | None
    message: str | None

    def as_json(self) -> JSON:
        """With the names that the API has for the same."""
        return {camel(name): value for name, value in asdict(self).items()}


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def phase(job: JSON) -> str:
    """The job's phase."""
    return str((job.get("status") or {}).get("phase") or UNSEEN)


def finished(job: JSON) -> bool:
    """Whether its run has ended, and no newer one was asked for."""
    status = job.get("status") or {}
    return phase(job) in FINISHED and job.get("spec", {}).get("runId") == status.get("runId")


def condition(job: JSON, kind: str) -> JSON:
    """A condition that is True; {} if it isn't."""
    found = (job.get("status") or {}).get("conditions") or []
    return next((c for c in found if c["type"] == kind and c["status"] == "True"), {})


def why(job: JSON) -> tuple[str | None, str | None]:
    """Reason and message: why it waits, or why it failed."""
    told = (job.get("status") or {}).get("pending") or (condition(job, "Failed") if phase(job) == "Failed" else {})
    return told.get("reason"), told.get("message")


def row(job: JSON) -> Row:
    """The job in a list."""
    meta, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    progress = status.get("progress") or {}
    reason, message = why(job)
    over = phase(job) in FINISHED
    return Row(
        namespace=meta["namespace"],
        name=meta["name"],
        phase=phase(job),
        priority=status.get("effectivePriority", spec.get("priority", 0)),
        position=status.get("queuePosition"),
        progress=progress.get("summary") or progress.get("stage"),
        percent=progress.get("percent"),
        start=status.get("startTime") or status.get("estimatedStartTime"),
        start_p90=None if status.get("startTime") else status.get("estimatedStartTimeP90"),
        finish=status.get("completionTime") or status.get("estimatedCompletionTime"),
        finish_p90=None if over else status.get("estimatedCompletionTimeP90"),
        node=status.get("nodeName"),
        created=meta["creationTimestamp"],
        reason=reason,
        message=message,
    )


def order(job: JSON) -> tuple[Any, ...]:
    """Sorts jobs as they run: those that do, then by position, then those outside the queue, then the latest ended."""
    status = job.get("status") or {}
    over, position = phase(job) in FINISHED, status.get("queuePosition")
    ended = -(time(status.get("completionTime")) or datetime.fromtimestamp(0, UTC)).timestamp() if over else 0.0
    since = status.get("startTime") if phase(job) in ACTIVE else status.get("queuedAt")
    return (
        over,
        ended,
        position is None,
        position or 0,
        ORDER.index(phase(job)) if phase(job) in ORDER else len(ORDER),
        -int((job.get("spec") or {}).get("priority", 0)),
        since or "",
        job["metadata"]["namespace"],
        job["metadata"]["name"],
    )


def pod_of_attempt(job: JSON, number: int | None) -> JSON | None:
    """The attempt of this number, or the newest one."""
    attempts = (job.get("status") or {}).get("attempts") or []
    chosen = [a for a in attempts if number in (None, a["number"])]
    return chosen[-1] if chosen else None


# --- times


def time(text: str | None) -> datetime | None:
    """A time of the API's."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def clock(text: str | None, now: datetime, sure: bool = False) -> str:
    """A time for a table, in the local zone: 14:05, ~14:05 if it is an estimate, with the day if it isn't today."""
    if (then := time(text)) is None:
        return ""
    then, today = then.astimezone(now.tzinfo), now.date()
    days = (then.date() - today).days
    shape = "%H:%M" if days == 0 else "%a %H:%M" if 0 < days < 7 else "%Y-%m-%d %H:%M"
    return ("" if sure else "~") + then.strftime(shape)


def span(length: timedelta) -> str:
    """A duration in its two largest units: 45s, 12m, 3h05m, 2d4h."""
    seconds = max(0, int(length.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 2:
        return f"{seconds}s"
    if hours < 1:
        return f"{minutes}m"
    if days < 1:
        return f"{hours}h{minutes % 60:02}m" if minutes % 60 else f"{hours}h"
    return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"


def age(text: str | None, now: datetime) -> str:
    """How long ago."""
    return span(now - then) if (then := time(text)) else ""


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """A duration as users write it: 90, 90s, 10m, 1h30m, 2d.

    Raises:
        ValueError: It is none.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+[smhd])+", text):
        raise ValueError(f"{text!r} is no duration; write 90s, 10m, 1h30m or 2d")
    return float(sum(int(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text)))
