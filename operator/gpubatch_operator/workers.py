"""Work on jobs, many at a time, each by one task: a round is carried out while the next one is planned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Workers:
    """One task at a time for each job.

    Args:
        parallel: Tasks at a time; the others wait.
        patient: Tasks at a time of those that can wait, so that thousands of them hold nobody up.
        ended: Called at the end of each task with its job, and its error or None; what is no `Exception` isn't caught.
    """

    def __init__(self, parallel: int, patient: int, ended: Callable[[str, Exception | None], None]) -> None:
        self._gate, self._patient = asyncio.Semaphore(parallel), asyncio.Semaphore(patient)
        self._ended = ended
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def busy(self, uid: str) -> bool:
        """Whether the job is worked on."""
        return uid in self._tasks

    def start(self, uid: str, work: Callable[[], Awaitable[None]], patient: bool = False) -> None:
        """Work on a job that isn't busy."""
        self._tasks[uid] = asyncio.create_task(self._run(uid, work, self._patient if patient else self._gate))

    async def join(self) -> None:
        """Wait until nobody works.

        Raises:
            BaseException: What a task has raised that is no `Exception`.
        """
        while self._tasks:
            for result in await asyncio.gather(*self._tasks.values(), return_exceptions=True):
                if result is not None:
                    raise result

    async def stop(self) -> None:
        """End all work."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, uid: str, work: Callable[[], Awaitable[None]], gate: asyncio.Semaphore) -> None:
        error: Exception | None = None
        try:
            async with gate:
                await work()
        except Exception as e:
            error = e
        finally:
            del self._tasks[uid]
        self._ended(uid, error)
