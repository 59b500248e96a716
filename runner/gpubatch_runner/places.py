"""Places at the engine: as many as it is given at a time, to those who wait in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class ClosedError(Exception):
    """No more places are given."""


class Places:
    """Places of one engine; none are given until it is up, and while it is not.

    Args:
        limit: How many may be taken now.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self.taken = 0
        self._limit = limit
        self._up = False
        self._closed = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """Places that could be taken at once."""
        return max(0, self._limit() - self.taken) if self._up and not self._closed else 0

    async def take(self, again: bool = False) -> None:
        """Waits for a place and takes it; `again`: before all others, since its turn had come already.

        Raises:
            ClosedError: There will be none.
        """
        if self._closed:
            raise ClosedError
        if self.free and not self._waiting:
            self.taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # it was given just now
            raise

    def leave(self) -> None:
        """Gives a place back."""
        self.taken -= 1
        self.give()

    def give(self) -> None:
        """Gives the free places to those who wait; to be called too when there may be more of them."""
        while self.free and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self.taken += 1
                turn.set_result(None)

    def set_up(self, up: bool) -> None:
        """The engine is up, or not."""
        self._up = up
        self.give()

    def close(self) -> None:
        """Whoever waits, or comes from now on, gets none."""
        self._closed = True
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(ClosedError())
        self._waiting.clear()
