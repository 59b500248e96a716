"""What an estimate is made of: a job as the estimator sees it, and what comes out."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Work:
    """What is known of the work before it starts."""

    requests: int
    input_tokens: int
    max_output_tokens: int  # a bound; 0: none


@dataclass(frozen=True, slots=True)
class Task:
    """A job, by what it may have in common with others.

    `levels` are the groups that it belongs to, from the coarsest to the finest; `speeds` the same for the speed of its
    work (model, then model and GPU type). Times in seconds on any one clock.
    """

    uid: str
    submitted: float
    priority: int
    levels: tuple[Hashable, ...]
    speeds: tuple[Hashable, ...] = ()
    work: Work | None = None
    hint: float | None = None  # the user's own estimate of the duration
    shape: Hashable = None  # what it asks of a node

    def at_speed(self, speeds: tuple[Hashable, ...]) -> Task:
        """The same job where its speed is known better."""
        return replace(self, speeds=speeds)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Median and upper bound (90%) of a job's start and completion."""

    start: float
    start_p90: float
    completion: float
    completion_p90: float


def later(estimate: Estimate, now: float) -> Estimate:
    """The same a while after it was made: what has passed is stretched to the present."""
    if estimate.completion > now + 1 and (estimate.start >= now or estimate.start == estimate.start_p90):
        return estimate
    start = estimate.start if estimate.start == estimate.start_p90 else max(estimate.start, now)
    done = max(estimate.completion, now + 1.0)
    return Estimate(start, max(estimate.start_p90, start), done, max(estimate.completion_p90, done))


@dataclass(frozen=True, slots=True)
class Verdict:
    """How good a promise was that was made at submission."""

    of: str  # start | completion
    error: float  # of the median, relative to the time that it really took
    held: bool  # whether the bound held
