"""Asks live jobs: one connection to the job's pod, its key, and the answer as it comes."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from gpubatch_gateway.live.livekeys import LiveKeys
from gpubatch_gateway.live.lives import LiveJob
from gpubatch_gateway.problems import RequestError, unavailable

JSON = dict[str, Any]
Body = bytes | Callable[[], aiohttp.FormData | aiohttp.Payload]
STOPPING = "stopping"  # the code of a job that takes no more requests
CONNECT_SECONDS = 5.0
KEEP_SECONDS = 15.0  # a connection that nobody uses; the runner keeps it longer
LOOK_SECONDS = 5.0  # for an answer about the queue
MAX_COMPLAINT = 64 * 1024  # bytes of a 503 that is looked into
LARGE = 1024 * 1024  # bytes; of longer ones aiohttp sends a part at a time
SKIPPED = ("User-Agent", "Accept", "Accept-Encoding")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """What is posted to a live job.

    Attributes:
        path: Below the job's base URL: `/chat/completions`.
        body: The bytes, or what makes a new body each time: a job that ends meanwhile has the request sent to another.
        headers: Of the request; `Content-Type` where the body doesn't say it itself. The key isn't among them.
    """

    path: str
    body: Body
    headers: Mapping[str, str] = field(default_factory=dict)


class NotTakenError(Exception):
    """A job has done nothing with a request; why."""


class BrokenError(Exception):
    """The connection broke before the answer began; whether the job had begun with it isn't known."""


@asynccontextmanager
async def connections(part_seconds: float) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections to the jobs' pods, which are kept for the next request.

    Args:
        part_seconds: Between two parts of an answer.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=part_seconds)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=timeout,
        auto_decompress=False,
        skip_auto_headers=SKIPPED,
    ) as http:
        yield http


class Runners:
    """The jobs' pods.

    Args:
        http: Of `connections`.
        keys: What is shown to them.
    """

    def __init__(self, http: aiohttp.ClientSession, keys: LiveKeys) -> None:
        self._http, self._keys = http, keys

    async def post(self, job: LiveJob, ask: Ask, deadline: float) -> aiohttp.ClientResponse:
        """A job's answer, whose body hasn't been read; to be closed.

        Args:
            job: One that can be reached.
            ask: What it is asked.
            deadline: By the loop's clock, for the head of the answer.

        Raises:
            NotTakenError: It can't be reached, or it is being stopped.
            BrokenError: It went away.
            TimeoutError: There was no answer in time.
            RequestError: 503; it doesn't take its key.
        """
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._post(job, ask)
                if answer.status == 401 and self._keys.renew():
                    answer.close()
                    answer = await self._post(job, ask)
                if answer.status == 401:
                    answer.close()
                    log.error("the job %s/%s doesn't take its key", job.namespace, job.name)
                    raise unavailable(
                        f"The job {job.name!r} began with another key than it would get now. Cancel it; the next one "
                        "has the new key.",
                        "live_key_changed",
                        retry_after=10,
                    )
                if answer.status == 503 and await _is_stopping(answer):
                    raise NotTakenError("it is being stopped")
                return answer
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as e:
            raise NotTakenError(f"its pod can't be reached: {e}") from e
        except aiohttp.ServerTimeoutError as e:
            raise TimeoutError from e
        except aiohttp.ClientError as e:
            raise BrokenError(str(e) or type(e).__name__) from e

    async def _post(self, job: LiveJob, ask: Ask) -> aiohttp.ClientResponse:
        headers = {**ask.headers, "Authorization": f"Bearer {await self._keys.key(job.uid)}"}
        body: Any = ask.body() if callable(ask.body) else ask.body
        if isinstance(body, bytes) and len(body) > LARGE:
            body = io.BytesIO(body)
        return await self._http.post(job.url + ask.path, data=body, headers=headers, allow_redirects=False)

    async def look(self, job: LiveJob, path: str) -> JSON | None:
        """A document about a job's queue; None: there is none, or it doesn't answer."""
        try:
            headers = {"Authorization": f"Bearer {await self._keys.key(job.uid)}"}
            async with (
                asyncio.timeout(LOOK_SECONDS),
                self._http.get(job.url + path, headers=headers, allow_redirects=False) as answer,
            ):
                if answer.status == 401:
                    self._keys.renew()
                found = orjson.loads(await answer.read()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError, RequestError):
            return None
        return found if isinstance(found, dict) else None


async def _is_stopping(answer: aiohttp.ClientResponse) -> bool:
    """Whether a 503 says that the job takes no more requests; its body can be read again by `read`."""
    if (answer.content_length or MAX_COMPLAINT) >= MAX_COMPLAINT:
        return False
    try:
        return bool(orjson.loads(await answer.read())["error"]["code"] == STOPPING)
    except (ValueError, TypeError, KeyError):
        return False
