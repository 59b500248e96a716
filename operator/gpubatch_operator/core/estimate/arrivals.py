"""Who will come: jobs of higher priority that aren't submitted yet overtake those that wait.

The future is drawn from the past: anyone of the latest past may come again at any time, at the rate at which jobs of
higher priority were served (a Poisson process whose marks are bootstrapped). So the rate, the durations and the share
of each priority are learned at once.

Only what was served counts: of a running job the time that it has had so far, of a waiting one nothing. Who asks, asks
in a busy time, when more than usual has just come (the inspection paradox), and what was served can't be more than the
nodes have given. For the same reason the times of the past aren't replayed: the burst at hand would come again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gpubatch_operator.core.estimate.task import Task

KEEP = 1024  # starts that the future is drawn from
FEWEST = 5
DRAWS = 2 * KEEP  # jobs to come in one sample, at most: about as many as the past holds


@dataclass(frozen=True, slots=True)
class Served:
    """A job of the past and the seconds that it ran, or has run so far."""

    task: Task
    seconds: float


@dataclass(slots=True)
class _Run:
    task: Task
    started: float
    ended: float | None = None


class Arrivals:
    """The jobs that started last."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._since: float | None = None  # what is kept is all that started from then on

    def started(self, task: Task, at: float) -> None:
        """A job begins to run."""
        self._since = min(task.submitted, at) if self._since is None else self._since
        self._runs.pop(task.uid, None)
        self._runs[task.uid] = _Run(task, at)
        if len(self._runs) > KEEP:
            self._since = self._runs.pop(next(iter(self._runs))).started

    def ended(self, uid: str, at: float) -> None:
        """A job that ran doesn't run any more, for whatever reason."""
        if run := self._runs.get(uid):
            run.ended = at

    def above(self, priority: int, now: float) -> list[Served]:
        """Those of more than this priority, in the order of their starts."""
        return [
            Served(run.task, max((now if run.ended is None else run.ended) - run.started, 1.0))
            for run in self._runs.values()
            if run.task.priority > priority
        ]

    def span(self, now: float) -> float:
        """Seconds that the kept starts cover; 0 while they are too few to foretell anything."""
        return now - self._since if self._since is not None and len(self._runs) >= FEWEST else 0.0


@lru_cache(maxsize=64)
def _draws(sample: int) -> tuple[list[float], list[float]]:
    """When, in mean gaps from now, and who (0 to 1): the same for ever, so that no estimate moves without news."""
    rng = np.random.default_rng([7, sample])
    return np.cumsum(rng.exponential(size=DRAWS)).tolist(), rng.random(DRAWS).tolist()


def future(past: Sequence[Served], now: float, span: float, sample: int) -> Iterator[tuple[float, int]]:
    """(time, index into `past`) of what comes, if those of `past` came in `span` seconds: one sample of it.

    Ends `span` from now: further than the past reaches nothing is known of the future.
    """
    gap = span / len(past)
    for when, who in zip(*_draws(sample), strict=True):
        if when > len(past):
            return
        yield now + when * gap, int(who * len(past))
