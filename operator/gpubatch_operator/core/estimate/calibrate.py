"""Upper bounds that hold for 90% of jobs, whatever the model got wrong.

Online conformal calibration: each job tells afterwards by which factor the spread between its raw median and its raw
upper quantile should have been stretched for the bound to just hold. The bound of the next job uses the 90% quantile of
the latest factors (split conformal prediction, Vovk et al. 2005), at a level that is raised by each miss and lowered by
each hit (adaptive conformal inference, Gibbs and Candes 2021), so that the share of misses comes out at 10% even if the
future isn't like the past. Apart for each class (priority; stage of a running job), shrunk towards all classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

LEVEL = 0.9
RATE = 0.02  # how far a miss moves the level, and nine hits move it back
WINDOW = 150  # latest jobs that count
PRIOR_JOBS = 10  # jobs that the model is trusted like, before anything was seen
MIDDLE_JOBS = 8  # jobs: so much is the model's own median trusted
NARROWEST = 0.75  # the model's own doubt is never cut down further: a quiet time is no proof for a busy one
LOWEST, HIGHEST = 0.7, 1.2  # above 1: beyond anything seen
RIGHT = (0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.3)
"""Factors of a model that is right: half of the jobs below its median, one in ten above its upper quantile."""


@dataclass(slots=True)
class _Class:
    factors: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    level: float = LEVEL
    middle: float | None = None  # worked out when asked for, as long as nothing is learned
    factor: float | None = None


class Calibration:
    """Factors seen, by class."""

    def __init__(self) -> None:
        self._classes: dict[Hashable, _Class] = {}
        self._all = _Class()

    def middle(self, of: Hashable) -> float:
        """Where the median lies: 0 at the raw median, -1 at the raw lower quantile, 1 at the raw upper one."""
        own = self._classes.get(of)
        if own is None or not own.factors:
            return 0.0
        if own.middle is None:
            factors = np.array(own.factors)
            signs = np.sign(factors)
            alike = float(np.clip(np.mean(signs[1:] * signs[:-1]), 0.0, 0.99)) if len(signs) > 1 else 0.0
            n = len(factors) * (1 - alike) / (1 + alike)  # jobs of one busy period share their fate
            own.middle = float(np.median(factors)) * n / (n + MIDDLE_JOBS)
        return own.middle

    def factor(self, of: Hashable) -> float:
        """By what to stretch the spread between the raw median and the raw upper quantile."""
        own = self._classes.setdefault(of, _Class())
        if own.factor is None:
            known = list(own.factors)
            pooled = list(self._all.factors)[-PRIOR_JOBS:] if len(known) < 2 * PRIOR_JOBS else []
            values = np.array([*known, *pooled, *RIGHT])
            trust = max(0.1, 1 - len(known) / (5 * PRIOR_JOBS))
            weights = np.array([1.0] * len(known) + [0.5] * len(pooled) + [trust] * len(RIGHT))
            order = np.argsort(values)
            cumulated = np.cumsum(weights[order])
            at = int(np.searchsorted(cumulated, own.level * (cumulated[-1] + 1.0)))
            right = float(values[order][min(at, len(values) - 1)]) * max(1.0, own.level)
            own.factor = max(right, NARROWEST)
        return own.factor

    def learn(self, of: Hashable, factor: float) -> None:
        """What would have been right."""
        own = self._classes.setdefault(of, _Class())
        for one in (own, self._all):
            one.factors.append(factor)
        own.middle = own.factor = None

    def outcome(self, of: Hashable, missed: bool) -> None:
        """Whether a bound held; a miss is known as soon as the bound has passed."""
        own = self._classes.setdefault(of, _Class())
        own.level = min(max(own.level + RATE * (LEVEL - 1 + missed), LOWEST), HIGHEST)
        own.factor = None
