"""Uploads that go on beside the run, so that little is left to do when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from gpubatch_runner.contract import Upload
from gpubatch_runner.failures import RunnerError
from gpubatch_runner.locations import Location
from gpubatch_runner.patience import patiently
from gpubatch_runner.puts import Chunks
from gpubatch_runner.stores import Store

log = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 300.0
DROP_SECONDS = 5.0


class Uploads:
    """The uploads of one attempt.

    Args:
        limits: Patience.
    """

    def __init__(self, limits: Upload) -> None:
        self._limits = limits
        self._running: dict[Location, asyncio.Task[None]] = {}
        self._ending = asyncio.Event()
        self.disturbed = False
        """Whether one of them failed, and may have left parts behind."""

    def begin(self, store: Store, location: Location, chunks: Chunks) -> None:
        """Uploads a file while it grows. Should that fail, it begins anew after a while: nobody waits for it yet."""
        self._running[location] = asyncio.create_task(self._along(store, location, chunks))

    async def finish(self, store: Store, location: Location, chunks: Chunks) -> None:
        """Returns once a file, which is complete now, is there.

        Raises:
            AccessDenied, OutputNotWritable: It cannot be written.
        """
        self._ending.set()
        task = self._running.pop(location, None)
        if task is not None:
            try:
                async with asyncio.timeout(self._limits.total_seconds):
                    await task
                return
            except (RunnerError, TimeoutError) as error:
                self.disturbed = True
                problem = str(error) or f"not done within {self._limits.total_seconds:g} s"
                log.warning("upload failed; trying again", extra={"url": location.shown, "problem": problem})
        await patiently(lambda: self.write(store, location, chunks), self._limits)

    async def write(self, store: Store, location: Location, chunks: Chunks) -> None:
        """One attempt at writing a complete file.

        Raises:
            AccessDenied, OutputNotWritable: See there.
        """
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                await store.write(location, chunks())
        except RunnerError:
            self.disturbed = True
            raise
        except TimeoutError as error:
            self.disturbed = True
            raise location.problem(
                f"the upload was not done within {self._limits.total_seconds:g} s (spec.inference.upload.totalSeconds)"
            ) from error

    async def drop(self) -> None:
        """Ends all that still run; their files are not made. Whose content was abandoned removes what it has sent."""
        tasks, self._running = list(self._running.values()), {}
        if tasks:
            await asyncio.wait(tasks, timeout=DROP_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _along(self, store: Store, location: Location, chunks: Chunks) -> None:
        pause = self._limits.backoff_seconds
        while True:
            try:
                return await store.write(location, chunks())
            except RunnerError as error:
                self.disturbed = True
                if self._ending.is_set():
                    raise
                log.warning(
                    "upload failed while the run goes on; it begins anew",
                    extra={"url": location.shown, "problem": str(error), "seconds": pause},
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)
