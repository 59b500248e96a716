"""A live run: it serves requests that come by HTTP until nobody has wanted anything for a while.

    engine -> serve, for as long as it is used -> finish what is in progress -> the outcome

There are no files, so nothing is published and nothing can be overwritten: what clients were answered they have. What
is counted is kept in the work folder every few seconds, for a container that is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from gpubatch_runner.bodies import Bodies
from gpubatch_runner.concurrency import Adaptive, Concurrency, Fixed
from gpubatch_runner.contract import STOP_FILE, Live, Outcome, RunSpec, Stage
from gpubatch_runner.engine import EngineClient
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import RunnerError
from gpubatch_runner.keys import Keys
from gpubatch_runner.progress import RunProgress
from gpubatch_runner.relay import Relay
from gpubatch_runner.request_queue import RequestQueue
from gpubatch_runner.server import Front, serving
from gpubatch_runner.stopping import Stop
from gpubatch_runner.supervisor import Supervisor
from gpubatch_runner.workdir import Served, Workdir

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
HEALTH_SECONDS = 5.0
"""How often an engine that nobody uses is asked whether it lives."""

SAVE_SECONDS = 5.0


async def run(spec: RunSpec, live: Live, environment: Environment, terminated: asyncio.Event) -> Outcome:
    """Serves one attempt to its outcome.

    Args:
        spec: What to do.
        live: Its part about live requests.
        environment: The container's places.
        terminated: Set on SIGTERM.
    """
    try:
        keys = Keys(live, environment)
        workdir = Workdir(environment.journal_dir, spec.run, spec.attempt)
    except RunnerError as error:
        return Outcome(succeeded=False, reason=error.reason, message=str(error))
    progress = RunProgress()
    progress.adopt(workdir.state.seconds)
    queue = RequestQueue(spec.max_queue_size, time.time)
    stop = Stop(terminated, environment.pod_dir / STOP_FILE, spec.stop_at, spec.stop_reason)
    async with EngineClient(spec.engine_url) as client, stop.watching():
        service = Service(spec, live, client, workdir, progress, queue)
        front = Front(service.relay.take, keys.allow, spec.served_model_name)
        async with serving(progress, queue, environment.progress_port, front=front):
            outcome = await service.run(stop)
        progress.enter(Stage.DONE)
        return outcome


class Service:
    """What is served, and for how long.

    Args:
        spec: The limits.
        live: How long nobody may want anything.
        client: The engine.
        workdir: Keeps the counts.
        progress: Shows them.
        queue: The requests.
    """

    def __init__(
        self,
        spec: RunSpec,
        live: Live,
        client: EngineClient,
        workdir: Workdir,
        progress: RunProgress,
        queue: RequestQueue,
    ) -> None:
        limit = spec.max_concurrent_requests
        self._concurrency: Concurrency = Fixed(limit) if limit else Adaptive()
        self._live = live
        self._client = client
        self._workdir = workdir
        self._progress = progress
        self._queue = queue
        self._supervisor = Supervisor(client, workdir, spec.engine_start_timeout_seconds, self._show_engine)
        self.relay = Relay(
            spec,
            client,
            self._supervisor,
            queue,
            self._concurrency,
            Bodies(workdir.files),
            progress,
            self._rest,
        )
        self._idle_since: float | None = None
        self._stopping = False
        served = workdir.state.served
        progress.completed, progress.failed = served.completed, served.failed
        progress.input_tokens, progress.output_tokens = served.input_tokens, served.output_tokens
        progress.live = self._now
        progress.metrics.in_flight.set_function(lambda: queue.in_flight)

    async def run(self, stop: Stop) -> Outcome:
        """Serves until the end, whatever it is; never raises a `RunnerError`."""
        self._queue.is_running = True
        self._queue.max_concurrent = self._concurrency.limit
        self._supervisor.start()
        work = [self._until_idle(), stop.wait(), self._keep_watch(), self._keep_looking(), self._keep_counts()]
        tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
        idle, _, watching, *_ = tasks
        try:
            await asyncio.wait(tasks[:3], return_when=asyncio.FIRST_COMPLETED)
            problem = stop.error or _failure(idle, watching)
            await self._drain(problem)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._supervisor.stop()
            self._save()
        return self._outcome(problem)

    async def _drain(self, problem: RunnerError | None) -> None:
        self._stopping = True
        self._queue.close()
        self.relay.stop()
        log.info("stopping", extra={"problem": str(problem or ""), "in_flight": self._queue.in_flight})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._live.drain_seconds):
                await self._empty()
        self.relay.abort()
        await self._empty()

    async def _empty(self) -> None:
        while self._queue.active:  # noqa: ASYNC110 - it happens once
            await asyncio.sleep(0.02)

    def _outcome(self, problem: RunnerError | None) -> Outcome:
        progress = self._progress
        message = f"Nobody wanted anything for {self._live.idle_timeout_seconds:g} s." if problem is None else ""
        return Outcome(
            succeeded=problem is None,
            reason=problem.reason if problem else None,
            message=str(problem) if problem else message,
            completed=progress.completed,
            failed=progress.failed,
            usage=progress.usage,
            timings=progress.timings,
        )

    # --- what goes on meanwhile

    def _rest(self) -> None:
        if self._idle_since is not None:
            self._idle_since = time.monotonic()

    async def _until_idle(self) -> None:
        """Returns when nobody has wanted anything for so long; the time before the engine is up doesn't count."""
        await self._supervisor.up()
        self._idle_since = time.monotonic()
        while True:
            left = self._live.idle_timeout_seconds - self._idle_seconds
            if left <= 0:
                return
            await asyncio.sleep(max(left, 0.01))

    @property
    def _idle_seconds(self) -> float:
        if self._idle_since is None or self._queue.active:
            return 0.0
        return time.monotonic() - self._idle_since

    async def _keep_watch(self) -> None:
        """Ends only with the failure of an engine that is gone for good."""
        while True:
            generation = await self._supervisor.up()
            await asyncio.sleep(HEALTH_SECONDS)
            if not self._queue.in_flight:  # else those who use it find out
                await self._supervisor.died(generation)

    async def _keep_looking(self) -> None:
        """Keeps the number of requests at the engine right, and the rate current."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._progress.tick()
            if not self._concurrency.follows or not self._queue.in_flight:
                continue
            load = await self._client.load()
            full = self._queue.in_flight >= self._concurrency.limit
            self._concurrency.observe(load, self.relay.answered, full, time.monotonic())
            self._queue.max_concurrent = self._concurrency.limit
            self.relay.places.give()

    async def _keep_counts(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            self._save()

    def _save(self) -> None:
        progress = self._progress
        self._workdir.state.served = Served(
            completed=progress.completed,
            failed=progress.failed,
            input_tokens=progress.input_tokens,
            output_tokens=progress.output_tokens,
        )
        self._workdir.save()

    def _show_engine(self, up: bool, message: str) -> None:
        self._progress.engine_changed(up, self._workdir.state.engine_answered)
        if self._supervisor.generation and not up:
            self._concurrency.died()
        self._progress.enter(Stage.PROCESSING if up else Stage.LOADING_MODEL, message)
        self.relay.places.set_up(up)

    def _now(self) -> str:
        """What it is doing, for people."""
        if self._stopping:
            return f"Finishing what is in progress ({self._queue.in_flight}); no more requests are taken."
        if active := self._queue.active:
            waiting = active - self._queue.in_flight
            return f"Serving; {self._queue.in_flight} in progress, {waiting} waiting."
        limit = self._live.idle_timeout_seconds
        return f"Serving; idle for {self._idle_seconds:.0f} s, ends after {limit:g} s idle."


def _failure(*tasks: asyncio.Future[None]) -> RunnerError | None:
    """Why one of these has failed, if it has."""
    for task in tasks:
        if task.done() and (error := task.exception()) is not None:
            if isinstance(error, RunnerError):
                return error
            raise error
    return None
