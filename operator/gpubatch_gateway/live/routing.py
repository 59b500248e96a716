"""Which live job answers a request: of those of the namespace that serve its model the one with the fewest requests; if
there is none, one is started, and the request waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp

from gpubatch_gateway import metrics
from gpubatch_gateway.live.lives import LiveJob, Lives
from gpubatch_gateway.live.runners import Ask, BrokenError, NotTakenError, Runners
from gpubatch_gateway.live.starting import Starting
from gpubatch_gateway.problems import RequestError, unavailable

REST_SECONDS = 0.5
"""A job that didn't take a request is left alone for so long, or until something is heard of it."""


@dataclass(frozen=True, slots=True)
class _Rest:
    version: int
    until: float
    why: str


class Router:
    """Sends requests to live jobs.

    Args:
        lives: Those that there are.
        runners: Asks them.
        starting: Starts one where there is none.
        max_waiting: Requests that wait for a job at most.
    """

    def __init__(self, lives: Lives, runners: Runners, starting: Starting, max_waiting: int) -> None:
        self._lives, self._runners, self._starting = lives, runners, starting
        self._max_waiting, self._waiting = max_waiting, 0
        self._in_flight: Counter[str] = Counter()
        self._rests: dict[str, _Rest] = {}

    @asynccontextmanager
    async def send(
        self,
        namespace: str,
        model: str,
        ask: Ask,
        deadline: float,
        may_start: Callable[[], Awaitable[object]],
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of a live job that serves a model; its body is read from it within the context.

        Whatever the job has answered is given, errors too. What no job has taken is sent to another one; so is, once,
        what was sent over a connection that broke before the answer began, as those of a job that ends do. Leaving the
        context, by a cancellation too, tells the job to stop working on it.

        Args:
            namespace: Of the caller, who may send requests there.
            model: What the request names.
            ask: What is sent.
            deadline: By the loop's clock: until then the head of the answer must have come.
            may_start: Returns if the caller may create jobs, and raises RequestError 403 if not; only called if there
                is no job.

        Raises (on entering):
            RequestError: 404 `model_not_found`, 403 `permission_denied`, 408 `request_timeout`, 429 `queue_full`, 502
                `connection_error`, 503 `queue_full`, `model_failed`, `unavailable`.
        """
        broken = False
        while True:
            job = self._pick(namespace, model) or await self._wait(namespace, model, deadline, may_start)
            with self._counted(job):
                try:
                    answer = await self._runners.post(job, ask, deadline)
                except (NotTakenError, BrokenError) as e:
                    if broken and isinstance(e, BrokenError):
                        raise _broken(job) from e
                    broken = broken or isinstance(e, BrokenError)
                    self._rest(job, str(e))
                    continue
                except TimeoutError:
                    raise self._late(namespace, model) from None
                try:
                    yield answer
                finally:
                    answer.close()
                return

    def _pick(self, namespace: str, model: str) -> LiveJob | None:
        found = None
        for job in self._lives.of(namespace, model):
            if not job.url or not job.wanted or self._rests_now(job):
                continue
            if found is None or self._in_flight[job.uid] < self._in_flight[found.uid]:
                found = job
        return found

    @contextmanager
    def _counted(self, job: LiveJob) -> Iterator[None]:
        self._in_flight[job.uid] += 1
        metrics.LIVE_IN_FLIGHT.inc()
        try:
            yield
        finally:
            metrics.LIVE_IN_FLIGHT.dec()
            self._in_flight[job.uid] -= 1
            if not self._in_flight[job.uid]:
                del self._in_flight[job.uid]

    # --- jobs that don't take requests

    def _rest(self, job: LiveJob, why: str) -> None:
        metrics.LIVE_REROUTED.inc()
        now = asyncio.get_running_loop().time()
        self._rests = {uid: rest for uid, rest in self._rests.items() if rest.until > now}
        self._rests[job.uid] = _Rest(job.version, now + REST_SECONDS, why)

    def _rests_now(self, job: LiveJob) -> bool:
        if not self._rests or (rest := self._rests.get(job.uid)) is None:
            return False
        return rest.version == job.version and rest.until > asyncio.get_running_loop().time()

    # --- jobs that can't be asked yet

    async def _wait(
        self, namespace: str, model: str, deadline: float, may_start: Callable[[], Awaitable[object]]
    ) -> LiveJob:
        """Wait for a job that can be asked, started if need be."""
        if self._waiting >= self._max_waiting:
            message = f"{self._waiting} requests wait for jobs that aren't up yet, as many as may. Try later."
            raise unavailable(message, "queue_full", retry_after=10)
        self._waiting += 1
        metrics.LIVE_WAITING.set(self._waiting)
        try:
            async with asyncio.timeout_at(deadline):
                while (job := self._pick(namespace, model)) is None:
                    changed = self._lives.changed(namespace, model)
                    there = [each for each in self._lives.of(namespace, model) if each.wanted]
                    if not there:
                        await self._starting.start(namespace, model, may_start)
                    rests = any(self._rests_now(each) for each in there)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(REST_SECONDS if rests else None):
                            await changed.wait()
                return job
        except TimeoutError:
            raise self._late(namespace, model) from None
        finally:
            self._waiting -= 1
            metrics.LIVE_WAITING.set(self._waiting)

    def _late(self, namespace: str, model: str) -> RequestError:
        there = [each for each in self._lives.of(namespace, model) if each.wanted]
        said = "No job serves it now."
        if there:
            job = min(there, key=lambda each: (not each.url, each.created))
            rest = self._rests.get(job.uid)
            why = f"; {rest.why}" if rest and rest.version == job.version else ""
            said = f"The job {job.name!r}, which serves it, is {job.doing}{why}."
        message = f"There was no answer of the model {model!r} in time. {said} Try again."
        return RequestError(408, "request_timeout", message)


def _broken(job: LiveJob) -> RequestError:
    message = f"The connection to the job {job.name!r} broke before its answer began. Send the request once more."
    return RequestError(502, "connection_error", message)
