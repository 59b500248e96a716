"""Webhook deliveries as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpubatch_cli.errors import CliError, WrongUse
from gpubatch_cli.jobs import camel, clock
from gpubatch_cli.render import plain_table
from gpubatch_cli.steering import REDELIVER, Change, stamp

if TYPE_CHECKING:
    from rich.table import Table

JSON = dict[str, Any]
DEAD = "DeadLettered"
STYLES = {"Delivered": "green", "Pending": "yellow", DEAD: "bold red"}
LONGEST = 1024  # characters of the annotation that the operator reads


@dataclass(frozen=True)
class Delivery:
    """One message to one receiver."""

    namespace: str
    job: str
    id: str
    event: str
    webhook: str
    state: str
    attempts: int
    last_status_code: int | None
    last_error: str | None
    next_attempt_time: str | None
    time: str

    def as_json(self) -> JSON:
        """With the names that the API has for the same."""
        return {camel(name): value for name, value in asdict(self).items()}


def of(job: JSON) -> list[Delivery]:
    """A job's deliveries, the oldest first."""
    meta, spec = job["metadata"], job.get("spec") or {}
    return [
        Delivery(
            namespace=meta["namespace"],
            job=meta["name"],
            id=found["id"],
            event=found["event"],
            webhook=receiver(found["webhook"], spec.get("webhooks") or []),
            state=found["state"],
            attempts=found.get("attempts", 0),
            last_status_code=found.get("lastStatusCode"),
            last_error=found.get("lastError"),
            next_attempt_time=found.get("nextAttemptTime"),
            time=found["time"],
        )
        for found in (job.get("status") or {}).get("webhookDeliveries") or []
    ]


def receiver(key: str | int, webhooks: Sequence[JSON]) -> str:
    """Who it goes to: its name, else its URL where status tells which one it is."""
    if isinstance(key, int):
        return str(webhooks[key]["url"]) if key < len(webhooks) else str(key)
    if any(hook.get("name") == key for hook in webhooks) or len(webhooks) != 1:
        return key
    return str(webhooks[0]["url"])


def table(listed: Sequence[Delivery], now: datetime, everywhere: bool) -> Table:
    """A line each."""
    from rich.text import Text

    headings = ("JOB", "EVENT", "STATE", "ATTEMPTS", "AT", "NEXT", "WEBHOOK", "ID", "ERROR")
    made = plain_table((("NAMESPACE",) if everywhere else ()) + headings)
    for found in listed:
        error = found.last_error or ""
        cells: list[Text | str] = [
            Text(found.job),
            found.event,
            Text(found.state, STYLES.get(found.state, "")),
            str(found.attempts),
            clock(found.time, now, sure=True),
            clock(found.next_attempt_time, now) if found.state == "Pending" else "",
            Text(found.webhook),
            Text(found.id),
            Text(error if found.state != "Delivered" else ""),
        ]
        made.add_row(*([Text(found.namespace)] if everywhere else []), *cells)
    return made


def redeliver(job: JSON, ids: Sequence[str]) -> Change:
    """Asks for them again.

    Raises:
        CliError: There are none, or not those.
    """
    name, known = job["metadata"]["name"], of(job)
    if unknown := [i for i in ids if i not in {d.id for d in known}]:
        raise CliError(f"{name} has no delivery {unknown[0]!r}", f"`gpubatch deliveries {name}` lists those it has.")
    chosen = [d.id for d in known if d.id in ids] if ids else [d.id for d in known if d.state == DEAD]
    if not chosen:
        return Change(None, "no delivery was given up; name the ids of others to send them again")
    # The operator heeds a new value only; the time makes it one.
    value = " ".join([*(dict.fromkeys(ids) or ["all"]), stamp()])
    if len(value) > LONGEST:
        raise WrongUse(f"{len(ids)} ids are too many for one request", "Name fewer at a time, or none: all given up.")
    return Change({"metadata": {"annotations": {REDELIVER: value}}}, f"sending {len(chosen)} again")
