"""Tables and paragraphs about jobs, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpubatch_cli.advice import advice
from gpubatch_cli.jobs import ACTIVE, FINISHED, Row, age, clock, condition, phase, row, span, time, why

if TYPE_CHECKING:
    from rich.table import Table

JSON = dict[str, Any]
STYLES = {
    "Running": "green",
    "Starting": "cyan",
    "Validating": "cyan",
    "Succeeded": "dim",
    "Failed": "bold red",
    "Cancelled": "dim",
    "Held": "yellow",
    "Suspended": "yellow",
}
HEADINGS = "NAME", "PHASE", "PRIORITY", "POSITION", "PROGRESS", "START", "FINISH", "NODE", "AGE", "WHY"


def plain_table(headings: Sequence[str]) -> Table:
    """As kubectl's tables: no lines, so that columns can be cut."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        long = heading in ("WHY", "ERROR", "URL")
        table.add_column(heading, no_wrap=not long, overflow="fold" if long else "ellipsis")
    return table


def queue_table(rows: Iterable[Row], now: datetime, everywhere: bool, wide: bool = False) -> Table:
    """The queue. `wide`: the whole message of why each one waits, and the 90% bounds of the estimates."""
    from rich.text import Text

    table = plain_table((("NAMESPACE",) if everywhere else ()) + HEADINGS)
    for job in rows:
        cells: list[Text | str] = [
            Text(job.name),
            Text(job.phase, STYLES.get(job.phase, "")),
            str(job.priority),
            "" if job.position is None else str(job.position),
            job.progress or "",
            _when(job.start, job.start_p90 if wide else None, now, job.phase in (*ACTIVE, *FINISHED)),
            _when(job.finish, job.finish_p90 if wide else None, now, job.phase in FINISHED),
            job.node or "",
            age(job.created, now),
            Text(_reason(job, wide)),
        ]
        table.add_row(*([Text(job.namespace)] if everywhere else []), *cells)
    return table


def _reason(job: Row, wide: bool) -> str:
    if not job.reason:
        return ""
    return f"{job.reason}: {job.message}" if wide and job.message else job.reason


def _when(median: str | None, bound: str | None, now: datetime, sure: bool) -> str:
    said = clock(median, now, sure)
    return f"{said} ({clock(bound, now)} p90)" if bound and said and not sure else said


def summary(jobs: Sequence[JSON]) -> str:
    """One line about all of them."""
    counts: dict[str, int] = {}
    for job in jobs:
        counts[phase(job)] = counts.get(phase(job), 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no jobs"


# --- one job


def standing(job: JSON, now: datetime, ahead: Sequence[JSON] = ()) -> list[str]:
    """Where a job stands, why, what can be done, and what has become of it so far; a line each."""
    status, found = job.get("status") or {}, row(job)
    lines = [f"{found.name} (namespace {found.namespace}): {_headline(job, found, now)}"]
    if found.phase not in FINISHED:
        lines += _pending(status, now)
        lines += _ahead(ahead)
        lines += _estimates(found, now)
    if found.phase in ("Failed", "Cancelled"):
        lines += _end(job)
    if live := status.get("live"):
        lines.append(f"  takes requests for {live['model']!r} at {live['url']}")
    lines += _inspection(status)
    lines += [f"  attempt {a['number']}: {_attempt(a, now)}" for a in status.get("attempts") or []]
    lines += _results(status)
    lines += _deliveries(status)
    return lines


def _headline(job: JSON, found: Row, now: datetime) -> str:
    status = job.get("status") or {}
    match found.phase:
        case "Created":
            return f"created {age(found.created, now)} ago; no operator has looked at it yet"
        case "Running" | "Starting":
            told = f"{found.phase} on {found.node}" if found.node else found.phase
            since = f" since {age(status.get('startTime'), now)}" if status.get("startTime") else ""
            return f"{told}{since}" + (f", {found.progress}" if found.progress else "") + _rate(status)
        case "Succeeded" | "Failed" | "Cancelled":
            return f"{found.phase} {age(status.get('completionTime'), now)} ago"
    place = f", position {found.position}" if found.position is not None else ""
    return f"{found.phase}{place}, priority {found.priority}, created {age(found.created, now)} ago"


def _rate(status: JSON) -> str:
    rate = (status.get("progress") or {}).get("rate")
    return f", {rate:.3g} a second" if rate else ""


def _pending(status: JSON, now: datetime) -> list[str]:
    told = status.get("pending") or {}
    if not told:
        return []
    since = f" (for {age(told['since'], now)})" if told.get("since") else ""
    lines = [f"  why: {told['reason']}: {told['message']}{since}"]
    step = told.get("nextStep") or advice(told["reason"])
    return [*lines, f"  what to do: {step}"] if step else lines


def _ahead(ahead: Sequence[JSON]) -> list[str]:
    if not ahead:
        return []
    names = [f"{j['metadata']['name']} ({phase(j)}{_percent(j)})" for j in ahead]
    more = f", and {len(names) - 8} more" if len(names) > 8 else ""
    return [f"  before it: {', '.join(names[:8])}{more}"]


def _percent(job: JSON) -> str:
    percent = ((job.get("status") or {}).get("progress") or {}).get("percent")
    return "" if percent is None else f" {percent}%"


def _estimates(found: Row, now: datetime) -> list[str]:
    def told(word: str, median: str | None, bound: str | None) -> str:
        then, latest = time(median), time(bound)
        if then is None:
            return ""
        late = f", with 90% by {clock(bound, now).lstrip('~')}" if latest else ""
        return f"{word} {clock(median, now)} (in {span(then - now)}{late})"

    start = told("starts", found.start, found.start_p90) if found.phase not in ACTIVE else ""
    parts = [p for p in (start, told("done", found.finish, found.finish_p90)) if p]
    return [f"  estimate: {', '.join(parts)}"] if parts else []


def _end(job: JSON) -> list[str]:
    reason, message = why(job)
    failed = condition(job, "Failed")
    reason, message = reason or failed.get("reason"), message or failed.get("message")
    lines = [f"  why: {reason}: {message}"] if reason else []
    step = advice(reason or "")
    return [*lines, f"  what to do: {step}"] if step else lines


def _inspection(status: JSON) -> list[str]:
    found = status.get("inspection") or {}
    if not found:
        return []
    lines = [f"  input: {found.get('requests', 0)} requests, {found.get('inputTokens', 0)} prompt tokens"]
    if found.get("invalid"):
        lines[0] += f", {found['invalid']} invalid lines"
    return lines + [f"    {error}" for error in found.get("firstErrors") or []]


def _attempt(attempt: JSON, now: datetime) -> str:
    begin, end = time(attempt.get("startTime")), time(attempt.get("endTime"))
    lasted = f" for {span((end or now) - begin)}" if begin else ""
    said = ": ".join(part for part in (attempt.get("reason"), attempt.get("message")) if part)
    where = attempt.get("node") or "a node to come"
    return f"{attempt['state']} on {where}{lasted}" + (f"; {said}" if said else "")


def _results(status: JSON) -> list[str]:
    found = status.get("results") or {}
    lines = []
    if found.get("total") is not None:
        lines = [
            f"  results: {found.get('completed', 0)} of {found['total']} answered, {found.get('failed', 0)} failed"
        ]
    return lines + [f"    {name}: {found[name]}" for name in ("output", "errors") if found.get(name)]


def _deliveries(status: JSON) -> list[str]:
    dead = [d for d in status.get("webhookDeliveries") or [] if d["state"] == "DeadLettered"]
    if not dead:
        return []
    return [f"  webhooks: {len(dead)} given up, the last one: {dead[-1].get('lastError', '')}"]
