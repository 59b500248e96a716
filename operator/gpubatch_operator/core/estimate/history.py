"""What past jobs say about how long a job takes: several views of the past, each a law of the duration.

The views of a job are those of the groups that it belongs to (all that was seen, and what was seen lately), from the
coarsest to the finest, each shrunk towards the one before it, and those of its neighbours: jobs of its finest group
that were submitted just before or after it, since people submit in series. A job that still runs is evidence too: it
counts as what its group's law says of jobs that last longer than it has lasted (Efron's redistribution to the right).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from gpubatch_operator.core.estimate.grid import BINS, STEP, Array, bell, lognormal
from gpubatch_operator.core.estimate.task import Task

PRIOR_SECONDS = 600.0
"""Duration of a job of which nothing at all is known."""

PRIOR: Array = lognormal(math.log(PRIOR_SECONDS), 2.5)
SHRINK = 2.0  # jobs: so much does a coarser group's law weigh in a finer one's
LATELY_SHRINK = 16.0  # the same for what was seen lately
LATELY = 1 - 1 / 64  # each new job leaves so much of the weight of the older ones
SMOOTH = 0.2  # log-seconds: how far one past job speaks for durations like its own
TWIN = 0.05  # the same for a neighbour that is a repetition
SIBLING = 0.5  # the same for one that is a variation
FAINT = 1e-6
NEIGHBOURS = 4
GAPS = (10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0)
"""Seconds between two submissions: how near a neighbour is, in classes."""

STALE = (2, 10, 30)
"""Jobs submitted since the latest that has started: how far what is known lies back, in classes."""

KEEP = 512  # neighbours kept for each group, the newest
GROUPS = 4096  # groups kept, the latest used


@dataclass(slots=True)
class _Group:
    """Durations seen in one group: masses that aren't normalized."""

    ever: Array = field(default_factory=lambda: np.zeros(BINS))
    lately: Array = field(default_factory=lambda: np.zeros(BINS))
    running: dict[str, float] = field(default_factory=dict)  # uid -> started
    submitted: list[float] = field(default_factory=list)  # of those that have started, sorted, in step with `members`
    members: list[str] = field(default_factory=list)


class History:
    """All that was learned from jobs that have started."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, _Group] = {}
        self._duration: dict[str, float] = {}  # of finished neighbours
        self._started: dict[str, float] = {}  # of running ones
        self._turn: dict[str, int] = {}  # of jobs that wait: how many were submitted before
        self._turns = self._latest = 0
        self.version = 0
        self._cache: dict[Hashable, list[Array]] = {}
        self._cached_at: tuple[int, float] = (0, 0.0)

    def submitted(self, task: Task) -> None:
        """A job joins the queue."""
        self._turns += 1
        self._turn[task.uid] = self._turns

    def started(self, task: Task, at: float) -> None:
        """A job begins to run."""
        self.version += 1
        self._latest = max(self._latest, self._turn.pop(task.uid, 0))
        self._started[task.uid] = at
        for level in task.levels:
            group = self._groups.pop(level, None) or _Group()
            self._groups[level] = group  # the latest used last
            group.running[task.uid] = at
        while len(self._groups) > GROUPS:
            for uid in self._groups.pop(next(iter(self._groups))).members:
                self._duration.pop(uid, None)
        finest = self._groups[task.levels[-1]]
        i = bisect.bisect_right(finest.submitted, task.submitted)
        finest.submitted.insert(i, task.submitted)
        finest.members.insert(i, task.uid)
        if len(finest.members) > KEEP:
            self._duration.pop(finest.members.pop(0), None)
            finest.submitted.pop(0)

    def ended(self, task: Task, duration: float | None) -> None:
        """A job ends; `duration` is None if its end says nothing about how long its work takes."""
        self.version += 1
        self._started.pop(task.uid, None)
        for level in task.levels:
            if group := self._groups.get(level):
                group.running.pop(task.uid, None)
                if duration is not None:
                    mass = bell(duration, SMOOTH)
                    group.ever += mass
                    group.lately *= LATELY
                    group.lately += mass
        if duration is not None:
            self._duration[task.uid] = duration

    def left(self, uid: str) -> None:
        """A job is gone from the queue without having run."""
        self._turn.pop(uid, None)

    def views(self, task: Task, now: float) -> tuple[list[Array], tuple[bool, Hashable], Hashable]:
        """The laws of the job's duration, each normalized; what kind of neighbours it has; what it shares them by.

        Always the same number of laws; a view that has nothing to say repeats the group's. Tasks with the same third
        value have the same views.
        """
        if self._cached_at != (self.version, now):
            self._cache.clear()
            self._cached_at = (self.version, now)
        ever, lately = self._of_levels(task.levels, now)
        stale = bisect.bisect_left(STALE, self._turn.get(task.uid, 0) - self._latest)
        near = self._near(task)
        # A neighbour that runs is no mark: those that one finds running are the long ones (the inspection paradox).
        if not near or near[0][0] > GAPS[-1] or near[0][1] not in self._duration:
            return [ever, lately, ever, ever, ever], (False, stale), (task.levels, stale)
        gap = bisect.bisect_left(GAPS, near[0][0])
        key = tuple(uid for _, uid in near if uid in self._duration)
        marks = self._cache.get(key)
        if marks is None:
            few = 0.25 * ever
            for i, uid in enumerate(key):
                few = few + bell(self._duration[uid], SMOOTH) / (1 + i)
            nearest = self._duration[key[0]]
            marks = [bell(nearest, TWIN) + FAINT * ever, bell(nearest, SIBLING) + FAINT * ever, few / few.sum()]
            self._cache[key] = marks
        return [ever, lately, *marks], (True, (gap, stale)), (task.levels, key, gap, stale)

    def _of_levels(self, levels: tuple[Hashable, ...], now: float) -> list[Array]:
        out = self._cache.get(levels)
        if out is None:
            coarser = self._of_levels(levels[:-1], now) if levels[:-1] else []
            out = list(self._shrunk(levels[-1], coarser[0] if coarser else PRIOR, now))
            self._cache[levels] = out
        return out

    def _shrunk(self, level: Hashable, parent: Array, now: float) -> tuple[Array, Array]:
        group = self._groups.get(level)
        if group is None:
            return parent, parent
        ever = group.ever + SHRINK * parent
        law = ever / ever.sum()
        lately = group.lately + LATELY_SHRINK * law
        lately = lately / lately.sum()
        if group.running:
            # Those that still run: as jobs that last longer than they have lasted.
            k = np.array([max(now - s, 1.0) for s in group.running.values()])
            bins = np.minimum(BINS - 1, (np.log(k) / STEP).astype(int))
            total = ever.sum()
            ever = ever + _to_the_right(law, bins)
            law = ever / ever.sum()
            share = len(bins) / (total + len(bins))
            lately = (1 - share) * lately + share * _to_the_right(lately, bins) / len(bins)
        return law, lately

    def _near(self, task: Task) -> list[tuple[float, str]]:
        """Neighbours that have started, the nearest first: distance of submission in seconds, uid."""
        group = self._groups.get(task.levels[-1])
        if group is None:
            return []
        times, right = group.submitted, bisect.bisect_right(group.submitted, task.submitted)
        left = right - 1
        out: list[tuple[float, str]] = []
        while len(out) < NEIGHBOURS and (left >= 0 or right < len(times)):
            before = task.submitted - times[left] if left >= 0 else math.inf
            after = times[right] - task.submitted if right < len(times) else math.inf
            if before <= after:
                i, gap, left = left, before, left - 1
            else:
                i, gap, right = right, after, right + 1
            uid = group.members[i]
            if uid != task.uid and (uid in self._duration or uid in self._started):
                out.append((gap, uid))
        return out


def _to_the_right(law: Array, bins: np.ndarray) -> Array:
    """For each of `bins` a mass of 1, spread as `law` is from that bin on."""
    survival = np.cumsum(law[::-1])[::-1]
    per_bin = np.zeros(BINS)
    np.add.at(per_bin, bins, 1.0 / np.maximum(survival[bins], 1e-12))
    return np.asarray(law * np.cumsum(per_bin))
