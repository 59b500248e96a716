"""Attempts at a time: a few for each receiver, and those that answer well and soon never wait for the others.

Whoever may create a job may name receivers that hang, as many as they like. So there is room for two classes: receivers
whose last attempt went well and soon, and all others, unknown ones among them. The others can only delay each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

WELL, OTHERS = 8, 2  # attempts at a time at one receiver
ROOM = 256  # in each class
REMEMBERED = 4096  # receivers that have nothing to do

log = logging.getLogger(__name__)

Work = Callable[[bool], Awaitable[bool]]
"""One attempt: told the class of its receiver, it says whether that answered well and soon."""


@dataclass(slots=True)
class _Receiver:
    well: bool = False
    running: int = 0
    waiting: deque[Work] = field(default_factory=deque)
    line: bool | None = None  # the class in whose line it stands

    @property
    def free(self) -> bool:
        return bool(self.waiting) and self.running < (WELL if self.well else OTHERS)


class Lanes:
    """Owns the attempts under way."""

    def __init__(self, room: int = ROOM, remembered: int = REMEMBERED) -> None:
        self._room, self._remembered = room, remembered
        self._receivers: OrderedDict[str, _Receiver] = OrderedDict()
        self._lines: dict[bool, deque[str]] = {True: deque(), False: deque()}
        self._running = {True: 0, False: 0}
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, name: str, work: Work) -> None:
        """Do it as soon as there is room, after what came before it for the same receiver."""
        receiver = self._receivers.setdefault(name, _Receiver())
        receiver.waiting.append(work)
        self._line_up(name, receiver)
        self._start()

    async def join(self) -> None:
        """Wait until nothing is left to do."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """End everything."""
        for line in self._lines.values():
            line.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _line_up(self, name: str, receiver: _Receiver) -> None:
        if receiver.free and receiver.line is not receiver.well:  # what stands in the other line is stale
            receiver.line = receiver.well
            self._lines[receiver.well].append(name)

    def _start(self) -> None:
        for well, line in self._lines.items():
            while line and self._running[well] < self._room:
                name = line.popleft()
                receiver = self._receivers.get(name)
                if receiver is None or receiver.line is not well:
                    continue
                receiver.line = None
                if receiver.free:
                    receiver.running += 1
                    self._running[well] += 1
                    task = asyncio.create_task(self._do(name, receiver, receiver.waiting.popleft(), well))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                self._line_up(name, receiver)  # behind the others: each receiver gets its turn

    async def _do(self, name: str, receiver: _Receiver, work: Work, well: bool) -> None:
        try:
            receiver.well = await work(well)
        except Exception:
            receiver.well = False
            log.exception("an attempt failed in an unexpected way: %s", name)
        finally:
            receiver.running -= 1
            self._running[well] -= 1
        self._line_up(name, receiver)
        self._forget(name, receiver)
        self._start()

    def _forget(self, name: str, receiver: _Receiver) -> None:
        if not receiver.well and not receiver.running and not receiver.waiting:
            del self._receivers[name]
            return
        self._receivers.move_to_end(name)
        oldest = next(iter(self._receivers))
        if len(self._receivers) > self._remembered and not (r := self._receivers[oldest]).running and not r.waiting:
            del self._receivers[oldest]
