"""Work on jobs, many at a time, each by one task: a round is carried out while the next one is planned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping


class Workers:
    """One task at a time for each job.

    Args:
        parallel: Tasks at a time of each kind; the others wait. One kind never waits for room that another one takes.
        ended: Called at the end of each task with its job, and its error or None; what is no `Exception` isn't caught.
    """

    def __init__(self, parallel: Mapping[str, int], ended: Callable[[str, Exception | None], None]) -> None:
        self._gates = {kind: asyncio.Semaphore(count) for kind, count in parallel.items()}
        self._ended = ended
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def busy(self, uid: str) -> bool:
        """Whether the job is worked on."""
        return uid in self._tasks

    def start(self, uid: str, work: Callable[[], Awaitable[None]], kind: str) -> None:
        """Work on a job that isn't busy."""
        self._tasks[uid] = asyncio.create_task(self._run(uid, work, self._gates[kind]))

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
