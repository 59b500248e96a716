"""How many jobs ever came and how each ended, kept through restarts by a record that is written rarely.

The record holds the counts of everything up to a moment; what came or ended later is counted from the jobs themselves.
Whoever counts remembers the later ones even when the jobs are deleted, and each replica counts. So a count is only lost
if every replica dies within the record's lag and a job both ended and was deleted in it. Nothing is counted twice: what
came or ended is known by the job's uid and the second in which it happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.model import Job
from gpubatch_operator.core.phases import FINISHED

JSON = dict[str, Any]
QUEUED = "Queued"
EVENTS = (QUEUED, "Succeeded", "Failed", "Cancelled")
MAX_NAMESPACES = 4000
"""That a record tells apart, so that it fits in one object; the others are counted together, under no name."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of what happened up to `through` (seconds since the epoch), by namespace and event."""

    through: float = 0.0
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def document(self) -> JSON:
        """As plain JSON."""
        namespaces: dict[str, list[int]] = {}
        for (namespace, event), count in sorted(self.counts.items()):
            named = namespace if namespace in namespaces or len(namespaces) < MAX_NAMESPACES else ""
            namespaces.setdefault(named, [0] * len(EVENTS))[EVENTS.index(event)] += count
        return {"through": self.through, "events": list(EVENTS), "namespaces": namespaces}

    @classmethod
    def of(cls, document: JSON) -> Totals:
        """The inverse of `document`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: It isn't one.
        """
        events = document["events"]
        counts = {
            (namespace, event): int(count)
            for namespace, row in document["namespaces"].items()
            for event, count in zip(events, row, strict=True)
            if event in EVENTS and count
        }
        return cls(float(document["through"]), counts)


class Tally:
    """The totals as they are now: a record, and what happened after it."""

    def __init__(self, recorded: Totals = Totals()) -> None:
        self.recorded = recorded
        self._later: dict[tuple[str, str, float], str] = {}  # uid, event, when -> namespace
        self._counts: Counter[tuple[str, str]] = Counter()
        self._all: Counter[str] = Counter()  # by event
        self.rebase(recorded)

    def see(self, job: Job) -> None:
        """A job as it is now; seeing it again counts nothing."""
        self._happened(job, QUEUED, job.queued_at)
        if job.phase in FINISHED and (end := job.status.get("completionTime")):
            self._happened(job, job.phase.value, seconds(end))

    def total(self, event: str, namespaces: Collection[str] | None = None) -> int:
        """How often it happened, in these namespaces; None: in all."""
        if namespaces is None:
            return self._all[event]
        return sum(self._counts[namespace, event] for namespace in namespaces)

    def recorded_through(self, moment: float) -> Totals | None:
        """The record that holds everything up to `moment`; None if nothing has happened since the present one."""
        due = Counter((ns, event) for (_, event, at), ns in self._later.items() if at <= moment)
        if not due:
            return None
        return Totals(moment, Counter(self.recorded.counts) + due)

    def rebase(self, recorded: Totals) -> None:
        """Another record is the one that counts: what it holds already isn't counted again."""
        if recorded.through < self.recorded.through:
            return
        self.recorded = recorded
        self._later = {key: ns for key, ns in self._later.items() if key[2] > recorded.through}
        self._counts, self._all = Counter(), Counter()
        for (namespace, event), count in recorded.counts.items():
            self._count(namespace, event, count)
        for (_, event, _), namespace in self._later.items():
            self._count(namespace, event, 1)

    def _happened(self, job: Job, event: str, at: float) -> None:
        key = (job.uid, event, at)
        if at > self.recorded.through and key not in self._later:
            self._later[key] = job.namespace
            self._count(job.namespace, event, 1)

    def _count(self, namespace: str, event: str, count: int) -> None:
        self._counts[namespace, event] += count
        self._all[event] += count
