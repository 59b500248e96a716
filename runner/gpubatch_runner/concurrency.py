"""How many requests to have in flight: enough that the engine never waits for the next, few enough that none grows old.

Pure: what is known of the engine comes in by `observe`, the number comes out as `limit`.

An engine that tells how many requests run and wait (vLLM) is kept with a short queue of its own that is never empty:
as long as it was empty at a look within the last two seconds, the number grows, and by half; while more wait than half
of those that run, it shrinks to what is needed. A growth that made neither more requests run nor more be answered is
taken back: something else is the bottleneck, or there is none. An engine that runs at once all that it is sent, look
after look, gets twice as many each time: a big GPU must not wait for ten seconds until it has enough.

Of an engine that tells nothing only the answers can be counted: the number doubles while that brings a tenth more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

START = 256
"""Where an engine begins that tells its load: vLLM's usual bound of a batch, or its half."""

START_BLIND = 16
MOST = 4096
LOOKS = 4
"""Looks that a decision is based on."""

ALL = 0.9
"""The share of what is in flight at which an engine runs all of it: some requests are just coming or going."""

SHORT = 16
"""A queue of so many is short, whatever runs."""

HOLD_SECONDS = 30.0
MAX_HOLD_SECONDS = 480.0
BLIND_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in the engine."""

    running: float
    waiting: float


class Concurrency(Protocol):
    """Decides how many requests may be in flight."""

    follows: bool
    """Whether it wants to know how busy the engine is."""

    @property
    def limit(self) -> int:
        """At least 1."""

    def observe(self, load: Load | None, answered: int, saturated: bool, now: float) -> None:
        """Takes a look at the engine into account.

        Args:
            load: What the engine says; None if nothing.
            answered: Answers so far.
            saturated: Whether as many requests were in flight since the last look as allowed.
            now: Seconds of a monotonic clock.
        """

    def refused(self, now: float) -> None:
        """The engine refused a request because it has too many."""

    def died(self) -> None:
        """The engine died under what was in flight."""


class Fixed:
    """A number that the job gives."""

    follows = False

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def observe(self, load: Load | None, answered: int, saturated: bool, now: float) -> None:
        """Changes nothing."""

    def refused(self, now: float) -> None:
        """Changes nothing."""

    def died(self) -> None:
        """Changes nothing."""


@dataclass(slots=True)
class _Trial:
    """A growth that has yet to show what it was good for."""

    limit: int
    running: float
    rate: float


class Adaptive:
    """A number that follows the engine, see above."""

    follows = True

    def __init__(self) -> None:
        self.limit = START_BLIND
        self._most = MOST
        self._told = False
        self._looks: deque[tuple[Load, int, float]] = deque(maxlen=LOOKS)
        self._trial: _Trial | None = None
        self._hold_until = 0.0
        self._hold = HOLD_SECONDS
        self._blind: tuple[int, float] | None = None
        self._best = 0.0
        self._refused_at = float("-inf")

    def observe(self, load: Load | None, answered: int, saturated: bool, now: float) -> None:
        """See `Concurrency`."""
        if load is None and not self._told:
            self._observe_answers(answered, saturated, now)
        elif load is not None:
            if not self._told:
                self._told = True
                self.limit = max(self.limit, START)
            self._observe_load(load, answered, saturated, now)

    def refused(self, now: float) -> None:
        """Halves, at most once a second: the answers to all that is in flight come at once."""
        if now - self._refused_at >= 1.0:
            self._refused_at = now
            self._set(self.limit // 2, now)

    def died(self) -> None:
        """Halves for good: it may have died of too many."""
        self.limit = self._most = max(1, self.limit // 2)
        self._looks.clear()
        self._trial = None

    def _set(self, limit: int, now: float) -> None:
        self.limit = max(1, min(limit, self._most))
        self._looks.clear()
        self._trial = None
        self._hold_until = now + self._hold

    # --- an engine that tells its load

    def _observe_load(self, load: Load, answered: int, saturated: bool, now: float) -> None:
        if not saturated:
            self._looks.clear()  # there is not enough to send: nothing can be learned
            return
        self._looks.append((load, answered, now))
        if self._runs_all() and now >= self._hold_until and self.limit < self._most:
            self._grow(self.limit, load.running, _rate(self._looks[0], self._looks[-1]))
            return
        if len(self._looks) < LOOKS:
            return
        waiting = min(look.waiting for look, _, _ in self._looks)
        running = max(look.running for look, _, _ in self._looks)
        rate = _rate(self._looks[0], self._looks[-1])
        if waiting > max(SHORT, running / 2):
            self._shrink(waiting, running)
        elif self._trial and waiting == 0 and running <= 1.05 * self._trial.running and rate <= 1.05 * self._trial.rate:
            self._set(self._trial.limit, now)
            self._hold = min(2 * self._hold, MAX_HOLD_SECONDS)
        elif waiting == 0 and now >= self._hold_until and self.limit < self._most:
            self._grow(max(self.limit // 2, 8), running, rate)

    def _runs_all(self) -> bool:
        """Whether the last two looks found all that is in flight running, and nothing waiting."""
        last = [load for load, _, _ in self._looks][-2:]
        return len(last) == 2 and all(load.waiting == 0 and load.running >= ALL * self.limit for load in last)

    def _grow(self, by: int, running: float, rate: float) -> None:
        self._trial = _Trial(self.limit, running, rate)
        self.limit = min(self._most, self.limit + by)
        self._looks.clear()

    def _shrink(self, waiting: float, running: float) -> None:
        wanted = max(SHORT / 2, running / 4)
        self.limit = max(1, self.limit - round(waiting - wanted))
        self._looks.clear()
        self._trial = None
        self._hold = HOLD_SECONDS

    # --- an engine that tells nothing

    def _observe_answers(self, answered: int, saturated: bool, now: float) -> None:
        if self._blind is None or not saturated:
            self._blind = (answered, now)
            return
        before, since = self._blind
        if now - since < BLIND_SECONDS or answered - before < self.limit or now < self._hold_until:
            return
        rate = (answered - before) / (now - since)
        self._blind = (answered, now)
        if rate > 1.1 * self._best and self.limit < self._most:
            self._best, self._hold = rate, HOLD_SECONDS
            self.limit = min(self._most, 2 * self.limit)
        elif self._best:
            self.limit, self._best = max(1, self.limit // 2), 0.0
            self._hold_until, self._hold = now + self._hold, min(2 * self._hold, MAX_HOLD_SECONDS)
            self._blind = None


def _rate(first: tuple[Load, int, float], last: tuple[Load, int, float]) -> float:
    return (last[1] - first[1]) / max(1e-9, last[2] - first[2])
