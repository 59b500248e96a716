"""The engine over HTTP: is it healthy, what does it answer. One try each; what follows from it is decided elsewhere."""

from __future__ import annotations

import asyncio
import email.utils
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from gpubatch_runner.contract import EngineInfo

_DEAD = (b"EngineCore encountered an issue", b"EngineDeadError")
"""What vLLM's HTTP server answers, with 500, once its engine process has died."""

HEALTH_TIMEOUT = 10.0


class ConnectionLostError(Exception):
    """The engine refused, closed or broke the connection before its answer was complete."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer."""

    status: int
    request_id: str | None
    body: bytes
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        """2xx."""
        return 200 <= self.status < 300

    @property
    def worth_retrying(self) -> bool:
        """The engine is overloaded or erred; any other answer is the answer."""
        return self.status == 429 or self.status >= 500

    @property
    def engine_is_dead(self) -> bool:
        """The HTTP server lives and says that the engine behind it does not."""
        return self.status >= 500 and any(text in self.body for text in _DEAD)


class EngineClient:
    """Keeps the connections to one engine.

    Args:
        url: Base URL, e.g. `http://127.0.0.1:8000`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Idle connections are dropped before the engine's server (uvicorn: after 5 s) drops them under a post.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers={"Content-Type": "application/json"}
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def health_problem(self) -> str | None:
        """None if the engine answers `/health` with 200, else what is wrong."""
        try:
            timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT)
            async with self._session.get(f"{self.url}/health", timeout=timeout) as response:
                return None if response.status == 200 else f"HTTP {response.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return str(error) or type(error).__name__

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
            timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT)
            async with self._session.get(self.url + path, timeout=timeout) as response:
                document = await response.json() if response.status == 200 else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    async def post(self, path: str, payload: bytes, seconds: float) -> Answer:
        """Posts one request.

        Raises:
            ConnectionLostError: See there.
            TimeoutError: No complete answer within `seconds`.
        """
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.post(
                    self.url + path, data=payload, timeout=aiohttp.ClientTimeout(total=None)
                ) as response,
            ):
                body = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise TimeoutError from error
            raise ConnectionLostError(str(error) or type(error).__name__) from error
        headers = response.headers
        return Answer(
            response.status, headers.get("x-request-id"), body, seconds_of_retry_after(headers.get("Retry-After"))
        )


def seconds_of_retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
