"""From a record to what is PUT for it: the audio is fetched, the live job asked, its answer judged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp

from gpubatch_gateway import names
from gpubatch_gateway.audio import speech
from gpubatch_gateway.audio.reaching import DownloadError, Reach
from gpubatch_gateway.audio.records import Records
from gpubatch_gateway.audio.transcription import Outcome, Place, Record, Status
from gpubatch_gateway.live.lives import Lives
from gpubatch_gateway.live.routing import Router
from gpubatch_gateway.live.runners import Ask
from gpubatch_gateway.problems import RequestError
from gpubatch_gateway.settings import Settings

Say = Callable[[Status, str], Awaitable[None]]
LOOK_SECONDS = 1.0  # between two looks at the job that is waited for
MAX_ANSWER = 64 * 1024 * 1024  # bytes
BUSY = (429, 503)
"""Answers that say that a job will take the request later."""

LATER = ("queue_full", "unavailable", "live_key_changed")
"""The same of the gateway's own: codes."""


class NotNowError(Exception):
    """Nobody can take it now; why. It waits for another turn."""


class _AgainError(Exception):
    """An attempt has failed; the next one may not.

    Args:
        outcome: What it comes to if none is left.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str((outcome.error or {}).get("message")))
        self.outcome = outcome


class Transcriber:
    """Makes text of audio.

    Args:
        records: Where the audio is.
        router: Finds who makes the text.
        lives: What the jobs do.
        reach: Where audio may be fetched.
        settings: Patience.
    """

    def __init__(self, records: Records, router: Router, lives: Lives, reach: Reach, settings: Settings) -> None:
        self._records, self._router, self._lives, self._reach = records, router, lives, reach
        self._settings = settings

    async def fetch(self, place: Place, download: tuple[str, str], say: Say | None = None) -> int:
        """Store the audio that is at a URL; its bytes.

        Args:
            place: Of which transcription.
            download: The field of the request that says where, and the URL.
            say: Is told how it goes.

        Raises:
            RequestError: It can't be had.
        """
        field, url = download
        attempts = self._settings.upload_attempts
        for attempt in range(1, attempts + 1):
            size = 0

            async def counted() -> AsyncIterator[bytes]:
                nonlocal size
                async for chunk in self._reach.read(url, field):
                    size += len(chunk)
                    yield chunk

            try:
                await self._records.take_audio(place, counted())
                return size
            except DownloadError as e:
                if not e.again or attempt == attempts:
                    raise e.problem from e
                if say:
                    await say("processing", f"Fetching the audio, attempt {attempt + 1} of {attempts}: {e}")
            await self._pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    async def outcome(self, place: Place, record: Record, size: int | None, say: Say) -> Outcome:
        """What is to be PUT.

        Args:
            place: Which transcription.
            record: What was asked for.
            size: Bytes of the audio in the store; None: it isn't there yet.
            say: Is told how far it is.

        Raises:
            NotNowError: Nobody can make the text now.
            RequestError: 503; the store doesn't answer.
        """
        seconds = self._settings.transcription_seconds
        if names.came_at(place.id) + seconds < time.time():
            return Outcome.failed(RequestError(408, "expired", f"There was no text within {seconds:g} s."))
        if size is None:
            if record.download is None:
                return Outcome.failed(RequestError(500, "audio_missing", "The audio is gone from the store.", "file"))
            await say("processing", "Fetching the audio")
            try:
                size = await self.fetch(place, record.download, say)
            except RequestError as e:
                if e.code == "storage_unavailable":
                    raise
                return Outcome.failed(e)
        attempts = self._settings.upload_attempts
        for attempt in range(1, attempts + 1):
            try:
                async with self._telling(place.namespace, record.model, say):
                    return await self._ask(place, record, size)
            except _AgainError as e:
                if attempt == attempts:
                    return e.outcome
                await say("processing", f"Transcribing, attempt {attempt + 1} of {attempts}: {e}")
            await self._pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, place: Place, record: Record, size: int) -> Outcome:
        """One attempt."""

        async def may_start() -> None:
            if not record.may_start:
                message = f"No live job serves {record.model!r} now, and who asked for it could not start one."
                raise RequestError(403, "permission_denied", message)

        ask = Ask(
            speech.PATH,
            lambda: speech.form(record.fields, self._records.audio(place, size), record.filename, record.content_type),
        )
        deadline = asyncio.get_running_loop().time() + self._settings.live_request_seconds
        try:
            async with self._router.send(place.namespace, record.model, ask, deadline, may_start) as answer:
                return await _judged(answer)
        except RequestError as e:
            if e.code in LATER or (e.code == "request_timeout" and not self._is_up(place.namespace, record.model)):
                raise NotNowError(e.message) from e
            if e.status >= 500 or e.status == 408:
                raise _AgainError(Outcome.failed(e)) from e
            return Outcome.failed(e)

    # --- how far it is

    def _is_up(self, namespace: str, model: str) -> bool:
        return any(job.wanted and job.url for job in self._lives.of(namespace, model))

    @asynccontextmanager
    async def _telling(self, namespace: str, model: str, say: Say) -> AsyncIterator[None]:
        """Say what is waited for while the context lasts."""

        async def tell() -> None:
            while True:
                await say(*self._doing(namespace, model))
                await asyncio.sleep(LOOK_SECONDS)

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError, RequestError):
                await telling

    def _doing(self, namespace: str, model: str) -> tuple[Status, str]:
        there = [job for job in self._lives.of(namespace, model) if job.wanted]
        if any(job.url for job in there):
            return "processing", "Transcribing"
        if not there:
            return "queued", "Waiting for the model"
        first = min(there, key=lambda job: job.created)
        return "queued", f"Waiting for the model: the job {first.name!r} is {first.doing}"

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(self._settings.upload_backoff_seconds * 2 ** (attempt - 1))


async def _judged(answer: aiohttp.ClientResponse) -> Outcome:
    """What an answer comes to.

    Raises:
        NotNowError, _AgainError: See there.
    """
    try:
        body = b""
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > MAX_ANSWER:
                problem = RequestError(502, "answer_too_long", f"The answer is longer than {MAX_ANSWER} bytes.")
                return Outcome.failed(problem)
    except (aiohttp.ClientError, TimeoutError) as e:
        problem = RequestError(502, "connection_error", f"The answer broke off: {type(e).__name__}: {e}.")
        raise _AgainError(Outcome.failed(problem)) from e
    if answer.status < 400:
        return Outcome(body, None)
    outcome = _complaint(answer.status, body)
    if answer.status in BUSY:
        raise NotNowError(f"The job answered {answer.status}: {(outcome.error or {}).get('message')}")
    if answer.status >= 500 or answer.status == 408:
        raise _AgainError(outcome)
    return outcome


def _complaint(status: int, body: bytes) -> Outcome:
    """What an answer says is wrong: as it came, if it has OpenAI's shape."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(body)["error"]
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return Outcome(body, error)
    text = body[:1000].decode("utf-8", "replace")
    return Outcome.failed(RequestError(status, "engine_error", f"The engine answered {status}: {text}"))
