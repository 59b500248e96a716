"""Sending: a bounded number of requests in flight, and what becomes of each.

- An answer is final, unless it is 429 or 5xx, or no JSON though it says so: those and broken connections are retried
  with exponential backoff and jitter, or when `Retry-After` says, as often as the job allows. Meanwhile the next
  request has the place.
- No answer in time is final too (408), unless the engine turns out to be dead.
- When the engine dies, all that were in flight wait for it and are sent again, at no cost to their own retries.
  A request that was there at two deaths is suspect: from then on it is sent alone, so that a third death convicts
  exactly the one that causes it. That one fails; the run goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpubatch_runner.concurrency import Concurrency
from gpubatch_runner.engine import Answer, EngineClient
from gpubatch_runner.files import Files, FileUnavailableError
from gpubatch_runner.http1 import FileBody
from gpubatch_runner.http1_answer import ConnectionLostError
from gpubatch_runner.request_queue import Item, RequestQueue, State
from gpubatch_runner.requests import Request
from gpubatch_runner.supervisor import Supervisor

log = logging.getLogger(__name__)

DEATHS_TO_FAIL = 3
BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 300.0
LOOK_SECONDS = 0.5
FLIGHT_BYTES = 64 * 1024 * 1024
"""Bytes of requests at the engine at most; one alone may have more."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The engine did not answer in time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The request failed without an answer."""

    code: str
    message: str
    worth_retrying: bool = True


Result = Answer | TimedOut | Unanswered


class Dispatcher:
    """Sends requests and hands each result over once.

    Args:
        client: The engine.
        supervisor: Whether it is up.
        queue: The requests on their way.
        concurrency: How many may be in flight.
        files: Fetches what requests name by URL.
        timeout: Seconds for one answer.
        max_retries: Retries of one request.
        on_result: Called with each request and its result.
        on_retry: Called at each retry.
    """

    def __init__(
        self,
        client: EngineClient,
        supervisor: Supervisor,
        queue: RequestQueue,
        concurrency: Concurrency,
        files: Files,
        *,
        timeout: float,
        max_retries: int,
        on_result: Callable[[Request, Result], None],
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        self.in_flight = 0
        self._client = client
        self._supervisor = supervisor
        self._queue = queue
        self._concurrency = concurrency
        self._files = files
        self._timeout = timeout
        self._max_retries = max_retries
        self._on_result = on_result
        self._on_retry = on_retry
        self._stopping = False
        self._workers: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[None] | None = None
        self._bytes = 0
        self._again: deque[Item] = deque()
        self._suspects: deque[Item] = deque()
        self._alone = False
        self._sleeping = 0
        self._answered = 0
        self._saturated = False
        self._deaths = 0

    async def run(self, requests: Iterator[Request]) -> None:
        """Sends all requests; returns when each has its result, or early after `stop`.

        Raises:
            EngineNotReady, EngineFailed: The engine is gone for good.
        """
        self._over = asyncio.get_running_loop().create_future()
        await self._look()
        self._queue.open(requests, self._files.prepare)
        looking = asyncio.create_task(self._keep_looking())
        try:
            self._hire()
            self._end_if_over()
            await self._over
        finally:
            self._stopping = True
            self._queue.close()
            for task in (looking, *self._workers):
                task.cancel()
            await asyncio.gather(looking, *self._workers, return_exceptions=True)

    def stop(self) -> None:
        """Sends nothing new; what is in flight may end."""
        self._stopping = True
        self._queue.close()
        self._end_if_over()

    # --- who works

    def _hire(self) -> None:
        """Has as many workers as there is work for, at most as many as may be in flight."""
        while not self._stopping and len(self._workers) < self._concurrency.limit and (item := self._take()):
            worker = asyncio.create_task(self._work(item))
            self._workers.add(worker)
            worker.add_done_callback(self._left)

    def _left(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        assert self._over is not None
        if not worker.cancelled() and (error := worker.exception()):
            if not self._over.done():
                self._over.set_exception(error)
            return
        self._hire()
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._over is None or self._over.done() or self._workers:
            return
        if self._stopping or not (self._sleeping or self._again or self._suspects or len(self._queue)):
            self._over.set_result(None)

    async def _work(self, item: Item | None) -> None:
        while item is not None:
            await self._handle(item)
            if self._stopping or len(self._workers) > self._concurrency.limit:
                return
            item = self._take()

    def _take(self) -> Item | None:
        """The next to send; its place in flight is taken with it."""
        if self._alone or (self._suspects and self.in_flight):
            return None
        if self._suspects:
            item, self._alone = self._suspects.popleft(), True
        elif self._again:
            item = self._again.popleft()
        elif self._sleeping >= self._concurrency.limit:
            return None
        elif (found := self._queue.take(FLIGHT_BYTES - self._bytes if self.in_flight else float("inf"))) is not None:
            item = found
        else:
            return None
        self.in_flight += 1
        self._bytes += len(item.request.payload)
        self._queue.processing(item)
        if self.in_flight >= self._concurrency.limit:
            self._saturated = True
        return item

    # --- one request

    async def _handle(self, item: Item) -> None:
        request, result = item.request, None
        try:
            result = await self._attempt(item)
        finally:
            self.in_flight -= 1
            self._bytes -= len(request.payload)
            self._alone = False
            if result is None:
                self._queue.back(item)
        if result is not None:
            self._files.discard(item)
            self._answered += 1
            self._queue.ended(item, *_state(result))
            self._on_result(request, result)
        if len(self._workers) < self._concurrency.limit:
            self._hire()

    async def _attempt(self, item: Item) -> Result | None:
        """The result of one post; None if the request is to be sent again."""
        generation = await self._supervisor.up()
        if self._stopping:
            return None
        result, died = await self._try(item, generation)
        if died:
            return self._after_death(item)
        if isinstance(result, Answer) and result.status in (429, 503):
            self._concurrency.refused(asyncio.get_running_loop().time())
        if isinstance(result, TimedOut) or not result.worth_retrying or item.retries >= self._max_retries:
            return result
        item.retries += 1
        item.error = _state(result)[1]
        self._on_retry()
        self._sleeping += 1
        asyncio.get_running_loop().call_later(_backoff(item.retries, result), self._wake, item)
        return None

    def _wake(self, item: Item) -> None:
        self._sleeping -= 1
        self._again.append(item)
        self._hire()

    def _after_death(self, item: Item) -> Result | None:
        if self._supervisor.generation != self._deaths:
            self._deaths = self._supervisor.generation
            self._concurrency.died()
        item.deaths += 1
        if item.deaths >= DEATHS_TO_FAIL:
            message = f"The engine died {item.deaths} times while it worked on this request."
            return Unanswered("engine_died", message)
        (self._suspects if item.deaths == DEATHS_TO_FAIL - 1 else self._again).append(item)
        return None

    async def _try(self, item: Item, generation: int) -> tuple[Result, bool]:
        """One post: its result, and whether the engine died meanwhile."""
        request = item.request
        result: Result
        try:
            if item.file is None:
                result = await self._client.post(request.url, request.payload, self._timeout)
            else:
                file: FileBody = await item.file
                result = await self._client.post(request.url, file, self._timeout, file.content_type)
        except FileUnavailableError as error:
            return Unanswered(error.code, str(error), worth_retrying=False), False
        except ConnectionLostError as error:
            result = Unanswered("connection_error", f"The connection to the engine broke: {error}.")
        except TimeoutError:
            result = TimedOut(self._timeout)
        if isinstance(result, Answer) and result.status < 500:
            if result.ok and result.is_json and result.tokens is None:
                message = f"The engine's answer ({result.status}) is not the JSON that it says it is: {result.start}"
                return Unanswered("invalid_answer", message), False
            return result, False
        said_dead = isinstance(result, Answer) and result.engine_is_dead
        return result, await self._supervisor.died(generation, said_dead)

    # --- how many

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = self._concurrency.limit
            await self._look()
            if self._concurrency.limit != before:
                log.info("concurrency", extra={"limit": self._concurrency.limit, "before": before})
            self._hire()

    async def _look(self) -> None:
        saturated, self._saturated = self._saturated, False
        load = await self._client.load() if self._concurrency.follows else None
        now = asyncio.get_running_loop().time()
        self._concurrency.observe(load, self._answered, saturated, now)
        self._queue.max_concurrent = self._concurrency.limit


def _state(result: Result) -> tuple[State, str | None]:
    """How a request ended, and its error in words."""
    if isinstance(result, TimedOut):
        return State.TIMEOUT, f"408: no answer within {result.seconds:g} s"
    if isinstance(result, Unanswered):
        return State.FAILED, f"{result.code}: {result.message}"
    if result.ok:
        return State.COMPLETED, None
    return State.FAILED, f"{result.status}: {result.start}"


def _backoff(retries: int, result: Result) -> float:
    """Seconds until the next try: `Retry-After`, else exponential backoff with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    if isinstance(result, Answer) and result.retry_after is not None:
        return min(result.retry_after, MAX_RETRY_AFTER_SECONDS) + random.uniform(0, 0.25)
    bound: float = min(BACKOFF_SECONDS * 2 ** (retries - 1), MAX_BACKOFF_SECONDS)
    return random.uniform(0.1, 1) * bound
