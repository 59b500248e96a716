"""The requests between the input and the engine: which wait, which are at the engine, how each ended.

What `GET /v1/queue/status` and `GET /v1/queue/request/{id}` show. Of a batch it is filled from the input as it empties,
so it refuses nobody; that it is short keeps memory flat and lets files be fetched ahead. Of a live run clients fill it,
and are refused when it is full.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum

from gpubatch_runner.http1 import FileBody
from gpubatch_runner.requests import Request

QUEUE_BYTES = 16 * 1024 * 1024
"""Bytes of requests that wait at most, however few they are."""

REMEMBERED = 1000
"""Ended requests that can still be asked for."""

TYPES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text",
    "/v1/responses": "response",
    "/v1/embeddings": "embedding",
    "/v1/audio/transcriptions": "transcription",
    "/v1/score": "score",
    "/v1/rerank": "rerank",
}


class QueueFullError(Exception):
    """As many requests wait as may."""


class State(StrEnum):
    """Where a request is."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"


class Item:
    """A request on its way."""

    __slots__ = ("deaths", "error", "file", "queued_at", "request", "retries", "state")

    def __init__(self, request: Request, queued_at: float) -> None:
        self.request = request
        self.queued_at = queued_at
        self.state = State.QUEUED
        self.error: str | None = None
        self.retries = 0
        self.deaths = 0
        """Deaths of the engine that it was there at."""
        self.file: asyncio.Task[FileBody] | None = None
        """What is posted in place of the payload, once it is fetched."""


class RequestQueue:
    """The queue of one run.

    Args:
        max_size: Requests that wait at most.
        clock: Gives the Unix time.
    """

    def __init__(self, max_size: int, clock: Callable[[], float]) -> None:
        self.max_size = max_size
        self.max_concurrent = 0
        self.is_running = False
        self._clock = clock
        self._source: Iterator[Request] = iter(())
        self._prepare: Callable[[Item], None] = lambda _: None
        self._waiting: deque[Item] = deque()
        self._bytes = 0
        self._active: dict[str, Item] = {}
        self._ended: OrderedDict[str, Item] = OrderedDict()
        self._processing = 0
        self._queued = 0
        self._completed = 0
        self._failed = 0

    def open(self, source: Iterator[Request], prepare: Callable[[Item], None]) -> None:
        """Begins to fill itself; `prepare` is called with each new item."""
        self._source, self._prepare, self.is_running = source, prepare, True
        self._fill()

    def close(self) -> None:
        """The run is over, or is being stopped."""
        self.is_running = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests that wait or are at the engine."""
        return len(self._active)

    @property
    def in_flight(self) -> int:
        """Requests at the engine."""
        return self._processing

    def offer(self, custom_id: str, url: str, free: int) -> Item:
        """A client's request comes; `free` of those that wait could go to the engine at once.

        Raises:
            QueueFullError: It has no place.
        """
        if len(self._active) - self._processing >= self.max_size + free:
            raise QueueFullError
        self._queued += 1
        item = self._active[custom_id] = Item(Request(self._queued, custom_id, url, b""), self._clock())
        return item

    def take(self, room: float) -> Item | None:
        """The next request, if it has at most `room` bytes."""
        if not self._waiting or len(self._waiting[0].request.payload) > room:
            return None
        item = self._waiting.popleft()
        self._bytes -= len(item.request.payload)
        self._fill()
        return item

    def processing(self, item: Item) -> None:
        """A request goes to the engine."""
        item.state = State.PROCESSING
        self._processing += 1

    def back(self, item: Item) -> None:
        """It comes back without a result, to be sent again."""
        item.state = State.QUEUED
        self._processing -= 1

    def ended(self, item: Item, state: State, error: str | None) -> None:
        """It has its result, or nobody waits for one any more."""
        if item.state is State.PROCESSING:
            self._processing -= 1
        if state is State.COMPLETED:
            self._completed += 1
        else:
            self._failed += 1
        item.state, item.error = state, error
        custom_id = item.request.custom_id
        del self._active[custom_id]
        item.request = Request(item.request.line, custom_id, item.request.url, b"")
        item.file = None
        self._ended[custom_id] = item
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def status(self) -> dict[str, int | bool]:
        """The document of `GET /v1/queue/status`."""
        return {
            "queue_size": len(self._active) - self._processing,
            "processing_count": self._processing,
            "max_concurrent": self.max_concurrent,
            "max_queue_size": self.max_size,
            "total_processed": self._completed,
            "total_failed": self._failed,
            "total_queued": self._queued,
            "active_requests": len(self._active),
            "is_running": self.is_running,
        }

    def request(self, custom_id: str) -> dict[str, str | None] | None:
        """The document of `GET /v1/queue/request/{id}`; None for a request that has not come yet, or ended long ago."""
        item = self._active.get(custom_id) or self._ended.get(custom_id)
        if item is None:
            return None
        return {
            "id": custom_id,
            "status": item.state.value,
            "completion_type": TYPES.get(item.request.url, "other"),
            "timestamp": datetime.fromtimestamp(item.queued_at, UTC).isoformat(timespec="milliseconds"),
            "error": item.error,
        }

    def _fill(self) -> None:
        while len(self._waiting) < self.max_size and self._bytes < QUEUE_BYTES:
            request = next(self._source, None)
            if request is None:
                return
            item = Item(request, self._clock())
            self._prepare(item)
            self._waiting.append(item)
            self._bytes += len(request.payload)
            self._active[request.custom_id] = item
            self._queued += 1
