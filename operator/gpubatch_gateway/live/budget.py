"""Bytes that may be held in memory at a time, shared by all who hold some."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """Gives bytes to those who ask, in the order in which they came; who finds enough free doesn't wait at all.

    Args:
        size: In all.
    """

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def held(self, size: int) -> AsyncIterator[None]:
        """Hold bytes while the context lasts, or all that there are if that is less."""
        size = min(size, self._size)
        await self._take(size)
        try:
            yield
        finally:
            self._give(size)

    async def _take(self, size: int) -> None:
        if not self._waiting and size <= self._free:
            self._free -= size
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.append((size, given))
        try:
            await given
        except asyncio.CancelledError:
            if not given.cancelled():
                self._give(size)
            elif (size, given) in self._waiting:
                self._waiting.remove((size, given))
                self._give(0)  # those behind it may have enough
            raise

    def _give(self, size: int) -> None:
        self._free += size
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, given = self._waiting.popleft()
            if given.cancelled():  # it is just about to leave
                continue
            self._free -= wanted
            given.set_result(None)
