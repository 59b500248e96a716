"""Sending: a bounded number of requests in flight, and what becomes of each.

- An answer is final, unless it is 429 or 5xx: those and broken connections are retried with exponential backoff and
  jitter, or when `Retry-After` says, as often as the job allows.
- No answer in time is final too (408), unless the engine turns out to be dead.
- When the engine dies, all that were in flight wait for it and are sent again, at no cost to their own retries.
  A request that was there at two deaths is suspect: from then on it is sent alone, so that a third death convicts
  exactly the one that causes it. That one fails; the run goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from gpubatch_runner.engine import Answer, ConnectionLostError, EngineClient
from gpubatch_runner.requests import Request
from gpubatch_runner.supervisor import Supervisor

DEFAULT_CONCURRENCY = 256
"""Requests in flight where the job does not say: vLLM's own default bound of a batch (`--max-num-seqs`)."""

DEATHS_TO_FAIL = 3
BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The engine did not answer in time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The request failed without an answer."""

    code: str
    message: str


Result = Answer | TimedOut | Unanswered


class Gate:
    """Lets many in together, or one alone; who waits to be alone goes first."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._together = 0
        self._alone = False
        self._waiting_alone = 0

    @contextlib.asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Enters with others."""
        if self._alone or self._waiting_alone:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._alone and not self._waiting_alone)
        self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            if self._waiting_alone:
                await self._notify()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Enters when nobody else is in, and keeps everybody else out."""
        self._waiting_alone += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._alone and not self._together)
                self._alone = True
        finally:
            self._waiting_alone -= 1
        try:
            yield
        finally:
            self._alone = False
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class Dispatcher:
    """Sends requests and hands each result over once.

    Args:
        client: The engine.
        supervisor: Whether it is up.
        concurrency: Requests in flight at most.
        timeout: Seconds for one answer.
        max_retries: Retries of one request.
        on_result: Called with each request and its result.
        on_retry: Called at each retry.
    """

    def __init__(
        self,
        client: EngineClient,
        supervisor: Supervisor,
        *,
        concurrency: int | None,
        timeout: float,
        max_retries: int,
        on_result: Callable[[Request, Result], None],
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        self.in_flight = 0
        self._client = client
        self._supervisor = supervisor
        self._concurrency = concurrency or DEFAULT_CONCURRENCY
        self._timeout = timeout
        self._max_retries = max_retries
        self._on_result = on_result
        self._on_retry = on_retry
        self._gate = Gate()
        self._stopping = False

    async def run(self, requests: Iterator[Request]) -> None:
        """Sends all requests; returns when each has its result, or early after `stop`.

        Raises:
            EngineNotReady, EngineFailed: The engine is gone for good.
        """
        workers = [asyncio.create_task(self._work(requests)) for _ in range(self._concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def stop(self) -> None:
        """Sends nothing new; what is in flight may end."""
        self._stopping = True

    async def _work(self, requests: Iterator[Request]) -> None:
        while not self._stopping and (request := next(requests, None)) is not None:
            self.in_flight += 1
            try:
                result = await self._answer(request)
            finally:
                self.in_flight -= 1
            if result is not None:
                self._on_result(request, result)

    async def _answer(self, request: Request) -> Result | None:
        """The result of one request; None if the dispatcher was stopped before there was one."""
        payload = request.payload()
        deaths = retries = 0
        while True:
            enter = self._gate.alone if deaths >= DEATHS_TO_FAIL - 1 else self._gate.together
            async with enter():
                generation = await self._supervisor.up()
                if self._stopping:
                    return None
                result, died = await self._try(request, payload, generation)
            if died:
                deaths += 1
                if deaths >= DEATHS_TO_FAIL:
                    return Unanswered("engine_died", f"The engine died {deaths} times while it worked on this request.")
            elif not _worth_retrying(result) or retries >= self._max_retries:
                return result
            else:
                retries += 1
                self._on_retry()
                await asyncio.sleep(_backoff(retries, result))

    async def _try(self, request: Request, payload: bytes, generation: int) -> tuple[Result, bool]:
        """One post: its result, and whether the engine died meanwhile."""
        result: Result
        try:
            result = await self._client.post(request.url, payload, self._timeout)
        except ConnectionLostError as error:
            result = Unanswered("connection_error", f"The connection to the engine broke: {error}.")
        except TimeoutError:
            result = TimedOut(self._timeout)
        if isinstance(result, Answer) and result.status < 500:
            return result, False
        said_dead = isinstance(result, Answer) and result.engine_is_dead
        return result, await self._supervisor.died(generation, said_dead)


def _worth_retrying(result: Result) -> bool:
    if isinstance(result, Answer):
        return result.worth_retrying
    return isinstance(result, Unanswered)


def _backoff(retries: int, result: Result) -> float:
    """Seconds until the next try: `Retry-After`, else exponential backoff with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    if isinstance(result, Answer) and result.retry_after is not None:
        return min(result.retry_after, MAX_RETRY_AFTER_SECONDS) + random.uniform(0, 0.25)
    bound: float = min(BACKOFF_SECONDS * 2 ** (retries - 1), MAX_BACKOFF_SECONDS)
    return random.uniform(0.1, 1) * bound
