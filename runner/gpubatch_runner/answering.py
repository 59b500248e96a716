"""The middle of a run: from the lines of the input to a journaled result for each.

`judge` reads the input once and leaves two files beside it: the order in which the valid lines are sent, and what is
wrong with the others. So a restart judges nothing anew, and neither reading nor sending needs memory that grows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator

from gpubatch_runner import answers, lines, records
from gpubatch_runner.concurrency import Adaptive, Fixed
from gpubatch_runner.contract import EngineInfo, LineError, RunSpec, Stage, Usage
from gpubatch_runner.dispatch import Dispatcher, Result, TimedOut, Unanswered
from gpubatch_runner.engine import EngineClient
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import InternalError
from gpubatch_runner.files import Files
from gpubatch_runner.journal import Destination, Journal
from gpubatch_runner.order import Order, OrderWriter
from gpubatch_runner.preflight import Tally
from gpubatch_runner.progress import RunProgress
from gpubatch_runner.prompts import prefix_key
from gpubatch_runner.request_queue import RequestQueue
from gpubatch_runner.requests import Request, Validator
from gpubatch_runner.stopping import Stop, unless
from gpubatch_runner.supervisor import Supervisor
from gpubatch_runner.workdir import Workdir

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long requests in flight may still end when the attempt is to stop."""

_BREATH = 256
"""Records between two pauses, so that the pod's port answers meanwhile."""

_NO_USAGE = Usage()


def judge(spec: RunSpec, workdir: Workdir) -> int:
    """Judges all lines of the input and decides the order; returns how many requests there are, invalid ones included.

    Raises:
        InvalidRequests, TooManyRequests: As the inspection would, had the input been as it is now.
    """
    tally, validator = Tally(spec), Validator(spec.served_model_name)
    partial = workdir.order.with_suffix(".tmp"), workdir.invalid.with_suffix(".tmp")
    with workdir.input.open("rb") as file, partial[0].open("wb") as order, partial[1].open("wb") as invalid:
        writer = OrderWriter(order, by_prefix=spec.request_order == "Auto")
        for number, offset, line in lines.located(file):
            judged = validator.check(number, line)
            if judged is None:
                continue
            size = tally.add(judged)
            if isinstance(judged, LineError):
                invalid.write(judged.to_json().encode() + b"\n")
            else:
                writer.add(number, offset, len(line), prefix_key(judged), size)
        writer.finish()
        for written in (order, invalid):  # or a power cut could shorten them, and requests would go unsent
            written.flush()
            os.fsync(written.fileno())
    tally.check()
    partial[0].replace(workdir.order)
    partial[1].replace(workdir.invalid)
    if writer.moved:
        log.info("requests that begin alike go together", extra={"requests": writer.moved})
    return tally.requests + tally.invalid


def without_result(workdir: Workdir, journal: Journal) -> Iterator[Request | LineError]:
    """The lines without a result: first the invalid ones, then the others in their order."""
    yield from _invalid(workdir, journal)
    yield from Order(workdir.order, workdir.input).requests(without=journal.done)


class Answering:
    """Has each request answered, and journals what comes.

    Args:
        spec: The limits.
        environment: Where claims are mounted.
        workdir: The judged input.
        journal: The results.
        progress: Their counts.
        queue: Shows which requests are where.
        token: The run's, for the records.
    """

    def __init__(
        self,
        spec: RunSpec,
        environment: Environment,
        workdir: Workdir,
        journal: Journal,
        progress: RunProgress,
        queue: RequestQueue,
        token: str,
    ) -> None:
        self._spec = spec
        self._environment = environment
        self._workdir = workdir
        self._journal = journal
        self._progress = progress
        self._queue = queue
        self._token = token

    async def all(
        self,
        client: EngineClient,
        supervisor: Supervisor,
        stop: Stop,
        on_engine: Callable[[EngineInfo], None] = lambda _: None,
    ) -> None:
        """Returns when every line has its result; `on_engine` is told what the engine is, once it is up.

        Raises:
            Stopped: The attempt was told to stop before.
            EngineNotReady, EngineFailed: The engine is gone for good.
        """
        await self._journal_invalid()
        if self._next_open() is not None:
            await self._answer_open(client, supervisor, stop, on_engine)
        if missing := (self._progress.total or 0) - self._journal.completed - self._journal.failed:
            raise InternalError(
                f"{missing} requests have no result though all were sent: the volume {self._workdir.input.parent} has "
                "lost data. Run the job again."
            )

    async def _answer_open(
        self, client: EngineClient, supervisor: Supervisor, stop: Stop, on_engine: Callable[[EngineInfo], None]
    ) -> None:
        limit = self._spec.max_concurrent_requests
        dispatcher = Dispatcher(
            client,
            supervisor,
            self._queue,
            Fixed(limit) if limit else Adaptive(),
            Files(self._spec, self._environment, self._workdir.files),
            timeout=self._spec.request_timeout_seconds,
            max_retries=self._spec.max_retries,
            on_result=self._keep,
            on_retry=self._progress.metrics.retries.inc,
        )
        self._progress.metrics.in_flight.set_function(lambda: dispatcher.in_flight)
        await unless(stop, supervisor.up())
        on_engine(await client.describe())
        self._progress.enter(Stage.PROCESSING)
        await self._send(dispatcher, stop)
        if (error := stop.error) is not None and self._next_open() is not None:
            raise error

    async def _send(self, dispatcher: Dispatcher, stop: Stop) -> None:
        todo = Order(self._workdir.order, self._workdir.input).requests(without=self._journal.done)
        sending = asyncio.create_task(dispatcher.run(todo))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                log.info("stopping", extra={"in_flight": dispatcher.in_flight})
                dispatcher.stop()
                await asyncio.wait((sending,), timeout=STOP_SECONDS)
        finally:
            for task in (sending, stopping):
                task.cancel()
            await asyncio.gather(sending, stopping, return_exceptions=True)
        if not sending.cancelled() and (failure := sending.exception()):
            raise failure

    def _next_open(self) -> Request | LineError | None:
        return next(without_result(self._workdir, self._journal), None)

    async def _journal_invalid(self) -> None:
        for count, error in enumerate(_invalid(self._workdir, self._journal)):
            self._journal.append(Destination.ERRORS, error.line, records.invalid(self._token, error), _NO_USAGE)
            self._progress.failed += 1
            if count % _BREATH == 0:
                await asyncio.sleep(0)

    def _keep(self, request: Request, result: Result) -> None:
        """Journals and counts a result."""
        destination, usage = Destination.ERRORS, _NO_USAGE
        if isinstance(result, TimedOut):
            record = records.timed_out(self._token, request, result.seconds)
        elif isinstance(result, Unanswered):
            record = records.unanswered(self._token, request, result.code, result.message)
        else:
            self._progress.engine_proven = True
            body = answers.one_line(result.body, result.is_json and result.tokens is not None, result.ok)
            record = records.answered(self._token, request, result.status, result.request_id, body)
            if result.ok:
                tokens = result.tokens or (0, 0)
                destination = Destination.OUTPUT
                usage = Usage.model_construct(input_tokens=tokens[0], output_tokens=tokens[1])
        self._journal.append(destination, request.line, record, usage)
        if destination is Destination.OUTPUT:
            self._progress.completed += 1
        else:
            self._progress.failed += 1
        self._progress.input_tokens += usage.input_tokens
        self._progress.output_tokens += usage.output_tokens


def _invalid(workdir: Workdir, journal: Journal) -> Iterator[LineError]:
    with workdir.invalid.open("rb") as file:
        for raw in file:
            error = LineError.model_validate_json(raw)
            if error.line not in journal.done:
                yield error


def new_queue(spec: RunSpec) -> RequestQueue:
    """The queue of a run that has not begun."""
    queue = RequestQueue(spec.max_queue_size, time.time)
    queue.max_concurrent = spec.max_concurrent_requests or 0
    return queue
