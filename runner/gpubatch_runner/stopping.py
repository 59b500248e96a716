"""Told to stop before the work is done: by SIGTERM, by the operator (a file), or by the clock (a deadline)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TypeVar

from gpubatch_runner.failures import (
    Cancelled,
    CompletionWindowExceeded,
    DeadlineExceeded,
    Interrupted,
    Stopped,
    Suspended,
)

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0

T = TypeVar("T")

_SAID: dict[str, tuple[type[Stopped], str]] = {
    "Interrupted": (
        Interrupted,
        "The pod was told to stop before the work was done; a later attempt can go on from here.",
    ),
    "Suspended": (Suspended, "The job was suspended; resumed, it goes on from here."),
    "Cancelled": (Cancelled, "The job was cancelled before the work was done."),
    "DeadlineExceeded": (DeadlineExceeded, "The job's deadline was reached before the work was done."),
    "CompletionWindowExceeded": (
        CompletionWindowExceeded,
        "The job's completion window was over before the work was done.",
    ),
}


class Stop:
    """Whether, and why, an attempt is to stop.

    Args:
        terminated: Set on SIGTERM.
        file: Where the operator says why; empty or absent: go on.
        at: Unix time at which the run stops by itself.
        reason: Its reason then.
    """

    def __init__(
        self,
        terminated: asyncio.Event,
        file: Path | None = None,
        at: float | None = None,
        reason: str = "DeadlineExceeded",
    ) -> None:
        self.terminated = terminated
        self._file = file
        self._at = at
        self._reason = reason
        self._why: str | None = None
        self._asked = asyncio.Event()

    async def watch(self) -> None:
        """Looks every second until there is a reason to stop."""
        while (why := self._reason_now()) is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.terminated.wait(), POLL_SECONDS)
        log.info("told to stop", extra={"reason": why})
        self._why = why
        self._asked.set()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watches until the block ends."""
        task = asyncio.create_task(self.watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait(self) -> None:
        """Returns once the attempt is to stop."""
        await self._asked.wait()

    @property
    def error(self) -> Stopped | None:
        """The failure of an attempt that is to stop."""
        if self._why is None:
            return None
        kind, text = _SAID[self._why]
        return kind(text)

    def _reason_now(self) -> str | None:
        """What the operator says counts most: after its request comes SIGTERM, if the runner takes too long."""
        said = ""
        if self._file is not None:
            with contextlib.suppress(OSError):
                said = self._file.read_text(errors="replace").strip()
        if said in ("Cancelled", "Suspended"):
            return said
        if self._at is not None and time.time() >= self._at:
            return self._reason
        return "Interrupted" if self.terminated.is_set() else None


async def unless(stop: Stop, work: Coroutine[object, object, T], grace: float = 0.0) -> T:
    """The result of `work`, unless the attempt is to stop first; `work` may still go on for `grace` seconds then,
    but not after SIGTERM.

    Raises:
        Stopped: It was.
    """
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    terminated = asyncio.ensure_future(stop.terminated.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and grace:
            await asyncio.wait((working, terminated), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        assert stop.error is not None
        raise stop.error
    finally:
        tasks = working, stopping, terminated
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
