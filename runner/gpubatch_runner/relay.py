"""One live request: from a client through the queue to the engine, and its answer back, byte by byte as it comes.

- A client that finds the queue full gets 503, one that has no answer (or no part of a stream) in time 408. One that
  goes away gives its place back at once, and the connection to the engine is dropped: that tells it to stop.
- While the engine loads, or comes back after its death, requests wait for it. One that was at the engine when it died
  gets 502; nothing of it is sent again, since its client may have seen a part of the answer.
- A stream that breaks off after it began ends with an event that says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable

from aiohttp import web

from gpubatch_runner.answers import tokens_of, tokens_of_stream
from gpubatch_runner.bodies import Bodies, BodyTooLargeError
from gpubatch_runner.complaints import complaint, ending, event
from gpubatch_runner.concurrency import Concurrency
from gpubatch_runner.contract import TRANSCRIPTIONS, RunSpec
from gpubatch_runner.engine import EngineClient, says_dead
from gpubatch_runner.http1 import NotConnectedError, Stream
from gpubatch_runner.http1_answer import ConnectionLostError
from gpubatch_runner.lines import MAX_LINE
from gpubatch_runner.places import ClosedError, Places
from gpubatch_runner.progress import RunProgress
from gpubatch_runner.request_queue import Item, QueueFullError, RequestQueue, State
from gpubatch_runner.supervisor import Supervisor

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
"""The header of an answer that tells the request's id."""

FORM_BYTES = 1024 * 1024
"""What a transcription's form may have beside its file."""

WHOLE_BYTES = 16 * 1024 * 1024
"""A longer answer is passed on part by part, whatever it is."""

PASSED_ON = (b"content-type", b"cache-control", b"retry-after")
"""Headers of the engine's answers that are the client's business."""

FAREWELL_SECONDS = 5.0
"""How long a client may take to read why its stream ends."""

_TAIL = 3


class Relay:
    """Takes the requests of one run.

    Args:
        spec: The limits.
        client: The engine.
        supervisor: Whether it is up.
        queue: Shows which requests are where.
        concurrency: How many may be at the engine.
        bodies: Where bodies wait.
        progress: Counts of what was answered.
        on_idle: Called when the last request has ended.
    """

    def __init__(
        self,
        spec: RunSpec,
        client: EngineClient,
        supervisor: Supervisor,
        queue: RequestQueue,
        concurrency: Concurrency,
        bodies: Bodies,
        progress: RunProgress,
        on_idle: Callable[[], None],
    ) -> None:
        self.places = Places(lambda: concurrency.limit)
        self.answered = 0
        self._spec = spec
        self._client = client
        self._supervisor = supervisor
        self._queue = queue
        self._concurrency = concurrency
        self._bodies = bodies
        self._progress = progress
        self._on_idle = on_idle
        self._stopping = False
        self._handlers: set[asyncio.Task[object]] = set()

    def stop(self) -> None:
        """Takes no more requests; those that wait are sent away, those at the engine go on."""
        self._stopping = True
        self.places.close()

    def abort(self) -> None:
        """Drops what is still going on."""
        for handler in self._handlers:
            handler.cancel()

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Handles one request of a client that may send it."""
        if self._stopping:
            return ending()
        name = f"req_{secrets.token_hex(12)}"
        try:
            item = self._queue.offer(name, request.path, self.places.free)
        except QueueFullError:
            self._progress.metrics.refused.inc()
            return complaint(503, "queue_full", f"The queue is full: {self._queue.max_size} requests wait. Try later.")
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        handling = _Handling(request, item)
        try:
            return await self._handle(handling)
        except ConnectionError:
            handling.ends(State.FAILED, "499: the client went away")
            raise
        finally:
            self._handlers.discard(handler)
            self._end(handling)

    async def _handle(self, handling: _Handling) -> web.StreamResponse:
        seconds = self._spec.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds) as patience:
                handling.patience, handling.seconds = patience, seconds
                return await self._answer(handling)
        except TimeoutError:
            where = "the engine" if handling.item.state is State.PROCESSING else "a place at the engine"
            message = f"No answer within {seconds:g} s; the request was waiting for {where}."
            return await handling.complain(State.TIMEOUT, 408, "request_timeout", message)
        except ClosedError:
            handling.ends(State.FAILED, "503: the run was being stopped")
            return ending()
        except BodyTooLargeError:
            message = f"The body is longer than {self._limit(handling.item)} bytes, the most that this job takes."
            return await handling.complain(State.FAILED, 413, "request_too_large", message)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            message = f"The body could not be kept ({error.strerror or error}): the pod needs more ephemeral storage."
            return await handling.complain(State.FAILED, 500, "volume_full", message)

    async def _answer(self, handling: _Handling) -> web.StreamResponse:
        request, item = handling.request, handling.item
        limit = self._limit(item)
        if (request.content_length or 0) > limit:
            raise BodyTooLargeError
        content_type = request.headers.get("Content-Type", "application/json").encode("ascii", "replace").decode()
        name, parts = item.request.custom_id, request.content.iter_any()
        body = await self._bodies.take(name, parts, limit, content_type)
        try:
            tries = 0
            while True:
                await self.places.take(again=tries > 0)
                self._queue.processing(item)
                generation = self._supervisor.generation
                try:
                    answer = await self._client.stream(item.request.url, body, content_type, name)
                    return await self._pass_on(handling, answer, generation)
                except ConnectionLostError as error:
                    died = await self._supervisor.died(generation)
                    tries += 1
                    if handling.response is None and (
                        isinstance(error, NotConnectedError) if died else tries <= self._spec.max_retries
                    ):
                        self._queue.back(item)
                        self._progress.metrics.retries.inc()
                        continue
                    return await self._broken(handling, died, str(error))
                finally:
                    self.places.leave()
        finally:
            self._bodies.discard(body)

    async def _pass_on(self, handling: _Handling, answer: Stream, generation: int) -> web.StreamResponse:
        try:
            kind = answer.headers.get(b"content-type", b"")
            if answer.status >= 500 or (b"json" in kind and (answer.length or 0) <= WHOLE_BYTES):
                body = await answer.read()
                if answer.status >= 500 and await self._supervisor.died(generation, says_dead(answer.status, body)):
                    return await self._broken(handling, True, "its server said so")
                return self._whole(handling, answer, body)
            return await self._in_parts(handling, answer)
        finally:
            answer.close()

    def _whole(self, handling: _Handling, answer: Stream, body: bytes) -> web.Response:
        """An answer that is complete."""
        self._note(handling, answer, body[:200], tokens_of(body) or (0, 0))
        return web.Response(status=answer.status, body=body, headers=handling.headers(answer))

    async def _in_parts(self, handling: _Handling, answer: Stream) -> web.StreamResponse:
        """An answer that is passed on while it comes."""
        response = web.StreamResponse(status=answer.status, headers=handling.headers(answer))
        if answer.length is not None:
            response.content_length = answer.length
        part = await answer.next()  # until there is one, what goes wrong can still be told by a status
        handling.response = response
        await response.prepare(handling.request)
        tail: deque[bytes] = deque(maxlen=_TAIL)
        while part is not None:
            tail.append(part)
            handling.wait_on()
            await response.write(part)
            part = await answer.next()
        await response.write_eof()
        end = b"".join(tail)
        self._note(handling, answer, end[:200], tokens_of_stream(end) if handling.is_events else (0, 0))
        return response

    def _note(self, handling: _Handling, answer: Stream, start: bytes, tokens: tuple[int, int]) -> None:
        self._progress.engine_proven = self._progress.engine_proven or answer.status < 500
        if answer.status in (429, 503):
            self._concurrency.refused(asyncio.get_running_loop().time())
        if 200 <= answer.status < 300:
            self._progress.input_tokens += tokens[0]
            self._progress.output_tokens += tokens[1]
            handling.ends(State.COMPLETED, None)
        else:
            handling.ends(State.FAILED, f"{answer.status}: {start.decode('utf-8', 'replace')}")

    async def _broken(self, handling: _Handling, died: bool, problem: str) -> web.StreamResponse:
        if died:
            message = "The engine died while it worked on this request, and is being started again: send it once more."
            return await handling.complain(State.FAILED, 502, "engine_died", message)
        message = f"The connection to the engine broke: {problem}. Send the request once more."
        return await handling.complain(State.FAILED, 502, "connection_error", message)

    def _end(self, handling: _Handling) -> None:
        """However it ended: its place in the queue is free."""
        state, error = handling.end or (State.FAILED, "499: the client went away")
        self._queue.ended(handling.item, state, error)
        self.answered += 1
        if state is State.COMPLETED:
            self._progress.completed += 1
        else:
            self._progress.failed += 1
        if not self._queue.active:
            self._on_idle()

    def _limit(self, item: Item) -> int:
        return self._spec.max_file_bytes + FORM_BYTES if item.request.url == TRANSCRIPTIONS else MAX_LINE


class _Handling:
    """One request while it is handled."""

    def __init__(self, request: web.Request, item: Item) -> None:
        self.request = request
        self.item = item
        self.end: tuple[State, str | None] | None = None
        self.response: web.StreamResponse | None = None
        """What has been begun to be sent in parts."""
        self.patience: asyncio.Timeout | None = None
        self.seconds = 0.0

    @property
    def is_events(self) -> bool:
        """Whether the client is being sent a stream of events."""
        return self.response is not None and self.response.content_type == "text/event-stream"

    def ends(self, state: State, error: str | None) -> None:
        """How it ended; the first word counts."""
        self.end = self.end or (state, error)

    def wait_on(self) -> None:
        """A part has come: the time for the next one begins."""
        assert self.patience is not None
        self.patience.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def headers(self, answer: Stream) -> dict[str, str]:
        """Those of the answer to the client."""
        found = {REQUEST_ID: self.item.request.custom_id}
        for name in PASSED_ON:
            if (value := answer.headers.get(name)) is not None:
                found[name.decode()] = value.decode("latin-1")
        return found

    async def complain(self, state: State, status: int, code: str, message: str) -> web.StreamResponse:
        """Tells the client what is wrong, at the end of what it has got if it has got something."""
        self.ends(state, f"{status}: {message}")
        if self.response is None:
            return complaint(status, code, message, {REQUEST_ID: self.item.request.custom_id})
        told = False
        if self.is_events:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await self.response.write(event(status, code, message))
                    await self.response.write_eof()
                    told = True
        if not told and (transport := self.request.transport) is not None:
            transport.abort()  # half an answer must not look like a whole one
        return self.response
