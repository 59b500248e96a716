"""How many writes positions and estimates are worth now: the faster the queue moves, the sooner they are wrong.

Positions up to `publish.EXACT` are written once the queue stands still for a moment, and every few seconds while it
doesn't. Of all others some are written for each move, the fewer the faster they come: a single one causes no storm. A
queue at rest converges to exact.
"""

from __future__ import annotations

from collections import deque

WINDOW = 10.0  # seconds over which the queue's speed is measured
STILL = 0.3  # seconds without a move after which the first positions are written
SETTLED = 10.0  # and after which all are made exact
LATEST = 5.0  # seconds after which they are written although the queue moves
MOST = 100.0  # other writes a second, in a queue at rest
LEAST = 1.0  # and in the fastest
SHARE = 20.0  # and at one move a second
SLOW = 0.15  # moves a second: slower ones count as these


class Budget:
    """Fed with the number of moves (arrivals and admissions) since the start; times in seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._moved_at = float("-inf")
        self._exact_at = float("-inf")
        self._left, self._at = MOST, float("-inf")

    def see(self, moves: int, now: float) -> None:
        """Take note of how many moves there were until now."""
        if not self._seen or moves != self._seen[-1][1]:
            self._moved_at = now
        self._seen.append((now, moves))
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()
        speed = max(SLOW, self.speed())
        rate = MOST if self.settled(now) else max(LEAST, SHARE * min(speed, 1 / speed))
        self._left = min(rate, self._left + rate * (now - self._at))
        self._at = now

    def speed(self) -> float:
        """Moves a second."""
        return (self._seen[-1][1] - self._seen[0][1]) / WINDOW if self._seen else 0.0

    def exact(self, now: float) -> bool:
        """Whether the first positions should be written now; who is told so does it."""
        if now < self._moved_at + STILL and now < self._exact_at + LATEST:
            return False
        self._exact_at = now
        return True

    def settled(self, now: float) -> bool:
        """Whether the queue is at rest."""
        return now >= self._moved_at + SETTLED

    def others(self) -> int:
        """How many other writes may be made now."""
        return int(self._left)

    def spend(self, writes: int) -> None:
        """So many others were made."""
        self._left -= writes
