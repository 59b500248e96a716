"""Who will come: jobs of higher priority that aren't submitted yet overtake those that wait.

The future is drawn from the past: each sample replays the submissions of the latest past from another moment on, with
the priorities and the durations that they had (a circular block bootstrap, Politis and Romano 1992). So rates, bursts
and the share of each priority are learned at once, and nothing is assumed of their law.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpubatch_operator.core.estimate.task import Task

KEEP = 1024  # submissions that the future is drawn from
FEWEST = 5


@dataclass(frozen=True, slots=True)
class Submission:
    """One job of the past."""

    at: float
    task: Task


class Arrivals:
    """The latest submissions."""

    def __init__(self) -> None:
        self._past: deque[Submission] = deque(maxlen=KEEP)

    def submitted(self, task: Task) -> Task | None:
        """A job was submitted; the one that is forgotten for it, if any."""
        oldest = self._past[0].task if len(self._past) == KEEP else None
        self._past.append(Submission(task.submitted, task))
        return oldest

    def above(self, priority: int) -> list[Submission]:
        """Those of more than this priority, by time."""
        return sorted((p for p in self._past if p.task.priority > priority), key=lambda p: p.at)

    def span(self, now: float) -> float:
        """Seconds that the kept submissions cover; 0 while they are too few to foretell anything."""
        return now - min(p.at for p in self._past) if len(self._past) >= FEWEST else 0.0


def future(past: Sequence[Submission], now: float, span: float, share: float) -> Iterator[tuple[float, int]]:
    """(time, index into `past`) of what comes, if the future is as the past was from `share` (0 to 1) of its span on.

    Ends `span` from now: further than the past reaches nothing is known of the future.
    """
    offset = now - span + share * span
    first = bisect.bisect_left(past, offset, key=lambda p: p.at)
    for i in range(first, len(past)):
        yield past[i].at + now - offset, i
    for i in range(first):
        yield past[i].at + now - offset + span, i
