"""The queue as a user sees it: the jobs' status in a table, and what was seen of it over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

JSON = dict[str, Any]
HEAD = ("NAME", "PHASE", "PRIORITY", "POSITION", "PROGRESS", "START", "FINISH", "NODE")
FINISHED = ("Succeeded", "Failed")
ACTIVE = ("Starting", "Running")
SLACK_SECONDS = 6.0


@dataclass(frozen=True)
class Job:
    """What a user reads of one job."""

    name: str
    raw: JSON

    @property
    def status(self) -> JSON:
        """The status; {} before the operator saw the job."""
        found: JSON = self.raw.get("status") or {}
        return found

    @property
    def phase(self) -> str:
        """The phase; '' before the operator saw the job."""
        return str(self.status.get("phase", ""))

    @property
    def priority(self) -> int:
        """spec.priority."""
        return int(self.raw["spec"].get("priority", 0))

    @property
    def position(self) -> int | None:
        """status.queuePosition."""
        return self.status.get("queuePosition")

    @property
    def rank(self) -> tuple[int, str, int]:
        """The promised order: priority, creation, then the order in which the API server stored them."""
        ticket = int(self.status.get("queueTicket") or 0)
        return -self.priority, self.raw["metadata"]["creationTimestamp"], ticket

    @property
    def node(self) -> str:
        """Where it runs or ran."""
        return str(self.status.get("nodeName", ""))

    def time(self, name: str) -> datetime | None:
        """A time of the status."""
        value = self.status.get(name)
        return datetime.fromisoformat(value) if value else None

    def condition(self, kind: str) -> JSON:
        """A condition that is true, or {}."""
        conditions = self.status.get("conditions") or []
        return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), {})

    def row(self) -> tuple[str, ...]:
        """The row of the table; `~` marks estimates."""
        started = self.time("startTime") if self.phase in (*ACTIVE, *FINISHED) else None
        progress = self.status.get("progress") or {}
        stage = progress.get("stage", "") if self.phase in ACTIVE else ""
        counted = progress.get("summary") if stage in ("", "Processing") else None
        return (
            self.name,
            self.phase,
            str(self.priority),
            "" if self.position is None else str(self.position),
            counted or stage,
            _clock(started) or _estimate(self.time("estimatedStartTime")),
            _clock(self.time("completionTime")) or _estimate(self.time("estimatedCompletionTime")),
            self.node,
        )

    def change(self) -> tuple[object, ...]:
        """What is worth a new table."""
        return self.phase, self.position, self.node, (self.status.get("progress") or {}).get("stage")


def _clock(time: datetime | None) -> str:
    return time.astimezone().strftime("%H:%M:%S") if time else ""


def _estimate(time: datetime | None) -> str:
    return f"~{_clock(time)}" if time else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns, as kubectl prints them."""
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in (head, *rows)]


@dataclass
class Watcher:
    """What was seen of the queue, one look after the other."""

    jobs: dict[str, Job] = field(default_factory=dict)
    crowded: set[str] = field(default_factory=set)
    side_by_side: set[tuple[str, ...]] = field(default_factory=set)
    waited_together: set[tuple[str, str]] = field(default_factory=set)
    waited: set[str] = field(default_factory=set)
    estimated: set[str] = field(default_factory=set)
    outdated: set[str] = field(default_factory=set)
    out_of_line: set[str] = field(default_factory=set)

    def look(self, jobs: Sequence[Job]) -> bool:
        """Record a look; whether something is worth a new table."""
        now = datetime.now(UTC)
        changed = {j.name: j.change() for j in jobs} != {n: j.change() for n, j in self.jobs.items()}
        before, self.jobs = self.jobs, {job.name: job for job in jobs}
        active = [job for job in jobs if job.phase in ACTIVE]
        nodes = [job.node for job in active]
        self.crowded |= {node for node in nodes if nodes.count(node) > 1}
        if len(set(nodes)) > 1:
            self.side_by_side.add(tuple(sorted(job.name for job in active)))
        queued = sorted((job for job in jobs if job.phase == "Queued"), key=lambda job: job.rank)
        for i, first in enumerate(queued):
            self.waited_together |= {(first.name, later.name) for later in queued[i + 1 :]}
        for job in queued:
            if job.name in before and before[job.name].phase == "Queued":  # not just this moment
                self._judge_estimate(job, now)
        positions = [job.position for job in queued if job.name in before and before[job.name].change() == job.change()]
        if None not in positions and positions != sorted(positions, key=lambda p: p or 0):
            self.out_of_line |= {job.name for job in queued}
        return changed

    def _judge_estimate(self, job: Job, now: datetime) -> None:
        self.waited.add(job.name)
        start, end = job.time("estimatedStartTime"), job.time("estimatedCompletionTime")
        if start and end:
            self.estimated.add(job.name)
            if (now - start).total_seconds() > SLACK_SECONDS or end < start:
                self.outdated.add(job.name)

    def lines(self, elapsed: float) -> list[str]:
        """The table, in the queue's order: what runs, what waits, what has ended."""

        def order(job: Job) -> tuple[Any, ...]:
            if job.phase in FINISHED:
                return 2, job.status.get("completionTime", "")
            return int(job.phase not in ACTIVE), *job.rank

        jobs = sorted(self.jobs.values(), key=order)
        return [f"after {elapsed:.0f} s:", *(f"  {line}" for line in table(HEAD, [job.row() for job in jobs]))]

    @property
    def finished(self) -> bool:
        """Whether there are jobs, and all have ended."""
        return bool(self.jobs) and all(job.phase in FINISHED for job in self.jobs.values())

    def overtakings(self) -> list[str]:
        """Pairs of jobs that waited at the same time and started in the wrong order."""
        wrong = []
        for first, later in sorted(self.waited_together):
            a, b = (self.jobs[name].status["attempts"][0]["startTime"] for name in (first, later))
            if datetime.fromisoformat(a) > datetime.fromisoformat(b):
                wrong.append(f"{later} before {first}")
        return wrong
