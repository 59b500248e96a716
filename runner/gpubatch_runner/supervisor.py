"""Whether the engine is up. Everyone who needs it waits here while it is not, until its start deadline.

The deadline runs from when the engine was first waited for; that moment is kept in the work folder, so a restart of the
runner's container does not give the engine a new deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from gpubatch_runner.engine import EngineClient
from gpubatch_runner.failures import EngineFailed, EngineNotReady, RunnerError
from gpubatch_runner.workdir import Workdir

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SETTLE_SECONDS = 5.0
"""How long an engine that said it is dead may still answer `/health` with 200 before it is believed alive."""


class Supervisor:
    """Watches one engine over its lives.

    Args:
        client: The engine.
        workdir: Keeps since when the engine is waited for.
        start_timeout: Seconds in which the engine must answer after its (re)start.
        on_change: Called with True when the engine is up, and False when it is not, with a message for people.
    """

    def __init__(
        self, client: EngineClient, workdir: Workdir, start_timeout: float, on_change: Callable[[bool, str], None]
    ) -> None:
        self.generation = 0
        """Grows with each death."""
        self._client = client
        self._workdir = workdir
        self._start_timeout = start_timeout
        self._on_change = on_change
        self._settled = asyncio.Event()
        self._failure: RunnerError | None = None
        self._probing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to wait for the engine."""
        state = self._workdir.state
        if state.loading_since is None:
            state.loading_since = time.time()
            self._workdir.save()
        self._on_change(False, "Waiting for the engine to load the model.")
        self._watch = asyncio.create_task(self._await_health(said_dead=False))

    async def stop(self) -> None:
        """Ends watching."""
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def up(self) -> int:
        """Waits until the engine is up; returns its generation.

        Raises:
            EngineNotReady, EngineFailed: It is not, and its deadline has passed.
        """
        await self._settled.wait()
        if self._failure:
            raise self._failure
        return self.generation

    async def died(self, generation: int, said_dead: bool = False) -> bool:
        """Whether the engine of `generation` has died; asks it unless it `said_dead`.

        Raises:
            EngineNotReady, EngineFailed: See `up`.
        """
        async with self._probing:
            if self.generation == generation:
                problem = "its server said so" if said_dead else await self._client.health_problem()
                if problem is None:
                    return False
                self._declare_dead(problem, said_dead)
        return True

    def _declare_dead(self, problem: str, said_dead: bool) -> None:
        self.generation += 1
        self._settled.clear()
        self._workdir.state.loading_since = time.time()
        self._workdir.save()
        log.warning("engine died", extra={"deaths": self.generation, "problem": problem})
        self._on_change(False, f"The engine died ({problem}); waiting for its restart. Nothing is lost.")
        self._watch = asyncio.create_task(self._await_health(said_dead))

    async def _await_health(self, said_dead: bool) -> None:
        state = self._workdir.state
        waited_before = max(0.0, time.time() - (state.loading_since or time.time()))
        begin = time.monotonic()
        deadline = begin + self._start_timeout - waited_before
        trust_from = begin + (SETTLE_SECONDS if said_dead else 0.0)
        while True:
            problem = await self._client.health_problem()
            now = time.monotonic()
            if problem is None and now >= trust_from:
                break
            if problem is not None:
                trust_from = now
                if now >= deadline:
                    self._failure = self._lost(problem)
                    self._settled.set()
                    return
            await asyncio.sleep(min(POLL_SECONDS, max(0.01, deadline - now)))
        state.loading_since, state.engine_answered = None, True
        self._workdir.save()
        log.info("engine up", extra={"seconds": round(time.monotonic() - begin, 1), "deaths": self.generation})
        self._on_change(True, "")
        self._settled.set()

    def _lost(self, problem: str) -> RunnerError:
        look = "read the engine's log (kubectl logs POD -c engine, with --previous if it was restarted)"
        if self._workdir.state.engine_answered:
            return EngineFailed(
                f"The engine died and did not answer {self._client.url}/health again within {self._start_timeout:g} s "
                f"({problem}); {look}. What was done before is in the output."
            )
        return EngineNotReady(
            f"The engine did not answer {self._client.url}/health within {self._start_timeout:g} s ({problem}); {look}"
            ", or raise spec.inference.engine.startTimeoutSeconds if the model is large."
        )
