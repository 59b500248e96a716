"""Who is to be looked at again, and when: a heap, so that asking for the next one doesn't cost more in a long queue."""

from __future__ import annotations

import heapq


class Timers:
    """At most one time for each key, seconds since the epoch."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # entries that `_at` doesn't confirm are stale

    def put(self, key: str, at: float) -> None:
        """Look at `key` then, and not at the time that was set before."""
        if self._at.get(key) != at:
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))

    def get(self, key: str) -> float | None:
        """The time that is set."""
        return self._at.get(key)

    def drop(self, key: str) -> None:
        """No time any more."""
        self._at.pop(key, None)

    def next(self) -> float | None:
        """The earliest of all times."""
        while self._heap:
            at, key = self._heap[0]
            if self._at.get(key) == at:
                return at
            heapq.heappop(self._heap)
        return None

    def take(self, now: float) -> set[str]:
        """The keys whose time has come; their times are gone."""
        due = set[str]()
        while (at := self.next()) is not None and at <= now:
            key = heapq.heappop(self._heap)[1]
            del self._at[key]
            due.add(key)
        return due
