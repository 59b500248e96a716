"""The engine over HTTP: is it healthy, how busy, what does it answer. One try each."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from gpubatch_runner.answers import tokens_of
from gpubatch_runner.concurrency import Load
from gpubatch_runner.contract import EngineInfo
from gpubatch_runner.http1 import Connections, FileBody, Stream
from gpubatch_runner.http1_answer import ConnectionLostError

_DEAD = (b"EngineCore encountered an issue", b"EngineDeadError")
"""What vLLM's HTTP server answers, with 500, once its engine process has died."""

_RUNNING = b"vllm:num_requests_running"
_WAITING = b"vllm:num_requests_waiting"

HEALTH_TIMEOUT = 10.0
KEEP_SECONDS = 3.0
"""Idle connections are dropped before the engine's server (uvicorn: after 5 s) drops them under a post."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer."""

    status: int
    request_id: str | None
    body: bytes
    retry_after: float | None = None
    is_json: bool = True
    """What its Content-Type says."""
    tokens: tuple[int, int] | None = None
    """Tokens read and written, as it reports them; None if it isn't JSON."""

    @property
    def ok(self) -> bool:
        """2xx."""
        return 200 <= self.status < 300

    @property
    def worth_retrying(self) -> bool:
        """The engine is overloaded or erred; any other answer is the answer."""
        return self.status == 429 or self.status >= 500

    @property
    def start(self) -> str:
        """The beginning of the body, for people."""
        return self.body[:200].decode("utf-8", "replace")

    @property
    def engine_is_dead(self) -> bool:
        """The HTTP server lives and says that the engine behind it does not."""
        return says_dead(self.status, self.body)


class EngineClient:
    """Keeps the connections to one engine.

    Args:
        url: Base URL, e.g. `http://127.0.0.1:8000`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        self._prefix = parts.path
        self._connections = Connections(parts.hostname or "127.0.0.1", parts.port or 80, KEEP_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connections.close()

    async def health_problem(self) -> str | None:
        """None if the engine answers `/health` with 200, else what is wrong."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                answer = await self._connections.request("GET", self._prefix + "/health")
        except TimeoutError:
            return f"no answer within {HEALTH_TIMEOUT:g} s"
        except ConnectionLostError as error:
            return str(error)
        return None if answer.status == 200 else f"HTTP {answer.status}"

    async def describe(self) -> EngineInfo:
        """What the engine says about itself, as far as it does."""
        version, model = await self._get("/version"), await self._get("/v1/models")
        try:
            [first, *_] = model["data"]
            return EngineInfo(version=version.get("version"), model=first.get("root") or first.get("id"))
        except (KeyError, ValueError, TypeError, AttributeError):
            return EngineInfo(version=version.get("version"))

    async def _get(self, path: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                answer = await self._connections.request("GET", self._prefix + path)
            document = json.loads(answer.body) if answer.status == 200 else {}
        except (TimeoutError, ConnectionLostError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    async def load(self) -> Load | None:
        """How busy the engine says that it is in its `/metrics`; None if it doesn't say."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                answer = await self._connections.request("GET", self._prefix + "/metrics")
        except (TimeoutError, ConnectionLostError):
            return None
        return load_of(answer.body) if answer.status == 200 else None

    async def post(
        self, path: str, payload: bytes | FileBody, seconds: float, content_type: str = "application/json"
    ) -> Answer:
        """Posts one request.

        Raises:
            ConnectionLostError: See there.
            TimeoutError: No complete answer within `seconds`.
        """
        async with asyncio.timeout(seconds):
            answer = await self._connections.request("POST", self._prefix + path, payload, content_type)
        headers = answer.headers
        request_id = headers.get(b"x-request-id")
        return Answer(
            answer.status,
            request_id.decode("latin-1") if request_id is not None else None,
            answer.body,
            seconds_of_retry_after(headers.get(b"retry-after")),
            b"json" in headers.get(b"content-type", b"json"),
            tokens_of(answer.body),
        )

    async def stream(self, path: str, payload: bytes | FileBody, content_type: str, request_id: str) -> Stream:
        """Posts one request; returns when its answer begins.

        Args:
            path: The endpoint.
            payload: The body.
            content_type: Of the body.
            request_id: What the engine is told to call it in its logs.

        Raises:
            NotConnectedError, ConnectionLostError: See there.
        """
        return await self._connections.stream(
            self._prefix + path, payload, content_type, f"X-Request-Id: {request_id}\r\n"
        )


def says_dead(status: int, body: bytes) -> bool:
    """Whether an answer means: the HTTP server lives, and the engine behind it does not."""
    return status >= 500 and any(text in body for text in _DEAD)


def load_of(metrics: bytes) -> Load | None:
    """The load in a text of Prometheus metrics, summed over the engines that it tells of."""
    found: dict[bytes, float] = {}
    for name in (_RUNNING, _WAITING):
        at = metrics.find(b"\n" + name)
        while at >= 0:
            line = metrics[at + 1 : metrics.find(b"\n", at + 1)]
            if line[len(name) : len(name) + 1] in (b"{", b" "):  # and not another metric whose name goes on
                try:
                    found[name] = found.get(name, 0.0) + float(line.rpartition(b" ")[2])
                except ValueError:
                    return None
            at = metrics.find(b"\n" + name, at + 1)
    return Load(found[_RUNNING], found[_WAITING]) if len(found) == 2 else None


def seconds_of_retry_after(value: bytes | None) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    text = value.decode("latin-1")
    try:
        seconds = float(text)
        return max(0.0, seconds) if seconds == seconds else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
