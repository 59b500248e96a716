"""Results are PUT where their clients want them: a few attempts, each with limits on every step of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from gpubatch_gateway.audio.reaching import Reach
from gpubatch_gateway.audio.speech import UPLOAD_URL
from gpubatch_gateway.problems import RequestError
from gpubatch_runner import puts
from gpubatch_runner.contract import Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import OutputExpired, OutputNotWritable
from gpubatch_runner.locations import Location
from gpubatch_runner.patience import patiently

CHUNK = 1024 * 1024
JSON = dict[str, Any]


class Delivery:
    """PUTs.

    Args:
        reach: Where they may go.
        limits: Patience.
    """

    def __init__(self, reach: Reach, limits: Upload) -> None:
        self._reach, self._limits = reach, limits

    async def put(self, url: str, body: bytes, say: Callable[[str], Awaitable[None]]) -> JSON | None:
        """Hand over a result; what is the matter, of OpenAI's shape, if it can't be done.

        Args:
            url: Where to.
            body: The result.
            say: Is told how it goes.
        """
        attempt, last = 0, ""

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(body), CHUNK):
                yield body[start : start + CHUNK]

        async def once() -> None:
            nonlocal attempt, last
            attempt += 1
            await say(
                f"Uploading the result, attempt {attempt} of {self._limits.attempts}{f': {last}' if last else ''}"
            )
            parts = urlsplit(url)
            location = Location(UPLOAD_URL, url, parts.scheme, parts.netloc, parts.path)
            try:
                await puts.put(location, len(body), chunks, self._limits, Environment(), self._reach.connector)
            except OutputNotWritable as e:
                last = str(e)
                raise

        try:
            await patiently(once, self._limits, renewable=False)
        except OutputNotWritable as e:
            code = "upload_expired" if isinstance(e, OutputExpired) else "upload_failed"
            return dict(RequestError(502, code, str(e), UPLOAD_URL).error)
        return None
