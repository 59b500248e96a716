"""What a job's own progress says of its duration, and how much to trust it.

Work done at an even rate ends at elapsed / fraction. Rates aren't even, and how uneven is learned: the log error of
that extrapolation grows like sqrt((1 - f) / f) (as for a sum of independent steps), with a factor that each job's
reports teach once it is done. Two extrapolations compete by that factor: from the start, and from the second half of
what was reported (better where the beginning is unlike the rest: loading, warming up).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

UNEVEN = 0.15  # the factor a priori
TRIALS = 8.0  # reports: so much does the a-priori factor weigh
FADE = 0.998
SLACK = 2.5  # a job that hasn't reported for so many of its usual intervals is stalling
MAX_REPORTS = 64


@dataclass(slots=True)
class Track:
    """The reports of one running job: seconds since the work began, fraction of it done."""

    lead: float = 0.0  # seconds from the job's start until its work began: pulling images, loading a model
    reports: list[tuple[float, float]] = field(default_factory=list)

    def add(self, elapsed: float, fraction: float) -> None:
        """A report; one that isn't further than the last is kept as the newest time at which nothing had moved."""
        fraction = min(max(fraction, 0.0), 1.0)
        if self.reports and elapsed <= self.reports[-1][0]:
            return
        self.reports.append((elapsed, fraction))
        if len(self.reports) > MAX_REPORTS:  # every other one, the newest among the kept
            self.reports = self.reports[-1::-2][::-1]

    def totals(self, elapsed: float | None = None) -> tuple[float, float, float] | None:
        """(fraction, duration extrapolated from the start, from the second half), or None before any progress."""
        moving = [r for r in self.reports if r[1] > 1e-4]
        if not moving:
            return None
        at, fraction = moving[-1]
        if elapsed is not None:
            usual = max(b[0] - a[0] for a, b in zip([(0.0, 0.0), *self.reports], self.reports, strict=False))
            at = max(at, elapsed - SLACK * usual)  # it should have moved since
        middle = min(moving, key=lambda r: abs(r[1] - fraction / 2))
        since, from_ = middle if middle[1] < fraction else (0.0, 0.0)
        late = at + (1.0 - fraction) * (at - since) / (fraction - from_)
        return fraction, at / fraction, late


@dataclass(slots=True)
class _Error:
    sum: float = 0.0
    trials: float = 0.0


class Unevenness:
    """How far off extrapolations were, for each group of jobs."""

    def __init__(self) -> None:
        self._errors: dict[tuple[Hashable, int], _Error] = {}

    def learn(self, group: Hashable, track: Track, duration: float) -> None:
        """What the reports of a finished job would have foretold."""
        duration -= track.lead
        partial = Track()
        for elapsed, fraction in track.reports:
            partial.add(elapsed, fraction)
            said = partial.totals()
            if said is None or not 0.02 < said[0] < 0.98:
                continue
            for which, total in enumerate(said[1:]):
                z = math.log(max(total, 1.0) / max(duration, 1.0)) ** 2 * said[0] / (1 - said[0])
                for key in ((), group):
                    error = self._errors.setdefault((key, which), _Error())
                    error.sum = error.sum * FADE + min(z, 4.0)
                    error.trials = error.trials * FADE + 1.0

    def law(self, group: Hashable, track: Track, elapsed: float) -> tuple[float, float] | None:
        """(log of the median, sigma in log-seconds) of the duration by the job's progress."""
        said = track.totals(elapsed - track.lead)
        if said is None:
            return None
        fraction = min(max(said[0], 1e-3), 0.995)
        best = min((self._factor(group, which), which) for which in (0, 1))
        sigma = math.sqrt(best[0] * (1 - fraction) / fraction)
        return math.log(max(track.lead + said[1 + best[1]], 1.0)), max(sigma, 0.01)

    def _factor(self, group: Hashable, which: int) -> float:
        variance = UNEVEN**2 * (1.0 if which == 0 else 1.5)
        for key in ((), group):
            if error := self._errors.get((key, which)):
                variance = (error.sum + TRIALS * variance) / (error.trials + TRIALS)
        return variance
