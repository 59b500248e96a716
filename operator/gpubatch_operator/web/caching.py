"""Answers that are asked for again and again: kept for a while, in bounded number, and asked for once at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Life:
    """Seconds for which an answer is good, and after which it is asked for anew while the old one still is."""

    good: float
    fresh: float


@dataclass(frozen=True, slots=True)
class _Answer(Generic[V]):
    value: V
    at: float
    life: Life


class Cache(Generic[K, V]):
    """Keeps answers; whoever asks for one that is on its way waits for it.

    What is asked for all the time is renewed in time, so that nobody waits for it. Errors aren't kept.

    Args:
        size: Answers kept; the one that was used longest ago goes first.
        clock: Seconds, monotonic.
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._size, self._clock = size, clock
        self._answers: OrderedDict[K, _Answer[V]] = OrderedDict()
        self._asked: dict[K, asyncio.Task[V]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def holds(self, key: K) -> bool:
        """Whether there is a good answer."""
        answer = self._answers.get(key)
        return answer is not None and self._clock() - answer.at < answer.life.good

    async def get(self, key: K, load: Callable[[], Awaitable[tuple[V, Life]]]) -> V:
        """The answer; `load` is asked for it if there is none, and how long it is good.

        Raises:
            Exception: What `load` raises.
        """
        if self.holds(key):
            self._answers.move_to_end(key)
            answer = self._answers[key]
            if self._clock() - answer.at >= answer.life.fresh:
                self._ask(key, load)
            return answer.value
        # Shielded: who goes away doesn't take the answer from the others.
        return await asyncio.shield(self._ask(key, load))

    def _ask(self, key: K, load: Callable[[], Awaitable[tuple[V, Life]]]) -> asyncio.Task[V]:
        if (task := self._asked.get(key)) is None:
            task = self._asked[key] = asyncio.create_task(self._loaded(key, load))
            task.add_done_callback(lambda t: t.cancelled() or t.exception())  # a renewal's error is nobody's
        return task

    async def _loaded(self, key: K, load: Callable[[], Awaitable[tuple[V, Life]]]) -> V:
        try:
            asked = self._clock()  # what happens while it is on its way may not be in it
            value, life = await load()
        finally:
            del self._asked[key]
        self._answers[key] = _Answer(value, asked, life)
        self._answers.move_to_end(key)
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)
        return value
