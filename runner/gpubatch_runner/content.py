"""What a file of results is made of while it still grows: records out of the journal in an order, then a tail."""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator, Callable, Iterator

from gpubatch_runner.journal import Destination, Journal

CHUNK = 256 * 1024
POLL_SECONDS = 0.5


class AbandonedError(Exception):
    """Nobody wants the file any more."""


class Content:
    """The bytes of one file.

    Args:
        journal: Where its records are.
        destinations: Which of them.
        in_input_order: In the order of the input's lines, else as they were finished.
    """

    def __init__(self, journal: Journal, destinations: frozenset[Destination], in_input_order: bool = False) -> None:
        self._journal = journal
        self._destinations = destinations
        self._in_input_order = in_input_order
        self._tail: Callable[[], Iterator[bytes]] = lambda: iter(())
        self._settled = asyncio.Event()
        self._abandoned = False

    def complete(self, tail: Callable[[], Iterator[bytes]] | None = None) -> None:
        """The journal has all that it will have; after its records come those of `tail`."""
        self._tail = tail or self._tail
        self._settled.set()

    def abandon(self) -> None:
        """Ends all that read: they get an `AbandonedError`."""
        self._abandoned = True
        self._settled.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """All bytes from the start, as soon as they are known; ends once the content is complete."""
        parts: list[bytes] = []
        size = 0
        async for record in self._records():
            parts += (record, b"\n")
            size += len(record) + 1
            if size >= CHUNK:
                yield b"".join(parts)
                parts, size = [], 0
                await asyncio.sleep(0)  # the engine's answers go on meanwhile
        if parts:
            yield b"".join(parts)

    async def _records(self) -> AsyncIterator[bytes]:
        reader = _InOrder(self._journal) if self._in_input_order else _AsTheyCame(self._journal)
        while True:
            settled = self._settled.is_set()
            if self._abandoned:
                raise AbandonedError
            for record in reader.new(self._destinations, settled):
                yield record
                if self._abandoned:
                    raise AbandonedError
            if settled:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), POLL_SECONDS)
        for record in self._tail():
            yield record


class _AsTheyCame:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._read = 0

    def new(self, destinations: frozenset[Destination], everything: bool) -> Iterator[bytes]:
        """The records that came since."""
        for end, entry in self._journal.entries(self._read):
            self._read = end
            if entry.destination in destinations:
                yield entry.record


class _InOrder:
    """Remembers where the records are that came before their turn: 8 bytes for each line of the input."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._read = 0
        self._next = 1
        self._at = array("q")  # by line: offset in the journal, -1: none yet

    def new(self, destinations: frozenset[Destination], everything: bool) -> Iterator[bytes]:
        """The records whose turn it is now; with `everything` all that are left, in their order."""
        begin = self._read
        for end, entry in self._journal.entries(begin):
            if entry.line >= len(self._at):
                self._at.extend([-1] * (entry.line + 4096 - len(self._at)))
            if entry.destination is not Destination.HEADER:
                self._at[entry.line] = begin
            begin = self._read = end
        while self._next < len(self._at):
            at = self._at[self._next]
            if at >= 0:
                entry = self._journal.entry(at)
                if entry.destination in destinations:
                    yield entry.record
            elif not everything:
                return
            self._next += 1
