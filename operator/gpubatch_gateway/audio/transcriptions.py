"""The endpoints of transcriptions: `POST /v1/audio/transcriptions`, and the jobs of those in the background.

The audio goes through the object store in any case: its request's fields may stand behind it, a job that ends has it
sent to another one, and a replica needs no memory for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass

import orjson
from aiohttp import web

from gpubatch_gateway import metrics, names, refusals
from gpubatch_gateway.answering import of_json, of_page
from gpubatch_gateway.audio import speech
from gpubatch_gateway.audio.background import Background
from gpubatch_gateway.audio.claims import Claims
from gpubatch_gateway.audio.delivering import Delivery
from gpubatch_gateway.audio.reaching import Reach
from gpubatch_gateway.audio.records import Records
from gpubatch_gateway.audio.speech import SpeechFields, Wish
from gpubatch_gateway.audio.transcriber import Transcriber
from gpubatch_gateway.audio.transcription import Place, Record, View
from gpubatch_gateway.auth import REQUESTS, Act, Gate
from gpubatch_gateway.connections import ends_with_client
from gpubatch_gateway.live.lives import Lives
from gpubatch_gateway.live.relaying import relay
from gpubatch_gateway.live.routing import Router
from gpubatch_gateway.live.runners import Ask
from gpubatch_gateway.live.starting import Starting
from gpubatch_gateway.problems import DONT_RETRY, JSON_TYPE, RequestError, invalid
from gpubatch_gateway.reading import body_of, late, limit_of, query_of
from gpubatch_gateway.receiving import Form, Limits
from gpubatch_gateway.settings import Settings

MAX_JOBS = 100  # of a page
ROUTE = "transcribe"
_SEND, _START = Act("create", REQUESTS), Act("create")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Audio:
    """What came with a request; `size` is None if nothing did."""

    size: int | None = None
    filename: str = ""
    content_type: str = ""


class Transcriptions:
    """The handlers.

    Args:
        gate: Lets requests in.
        router: Finds who answers.
        starting: Knows which models there are.
        lives: The live jobs.
        records: Those in the background, and all audio.
        settings: Limits.
    """

    def __init__(
        self, gate: Gate, router: Router, starting: Starting, lives: Lives, records: Records, settings: Settings
    ) -> None:
        self._gate, self._router, self._starting, self._lives = gate, router, starting, lives
        self._records, self._settings, self._reach = records, settings, Reach(settings)
        self._transcriber = Transcriber(records, router, lives, self._reach, settings)
        claims = Claims(records, secrets.token_hex(8), settings.claim_seconds)
        delivery = Delivery(self._reach, settings.upload())
        self._background = Background(records, claims, self._transcriber, delivery, settings)
        self._limits = Limits(settings.max_audio_bytes, settings.body_seconds, settings.min_upload_bytes_per_second)
        self._uploads, self._downloads = (asyncio.Semaphore(settings.max_uploads) for _ in range(2))

    def add_to(self, app: web.Application) -> None:
        """Serve them."""
        app.router.add_post("/v1/audio/transcriptions", self.transcribe, name=ROUTE)
        app.router.add_get("/v1/jobs", self.list_jobs, name="list_jobs")
        app.router.add_get("/v1/jobs/{job}", self.job, name="job")

    async def work(self) -> None:
        """Work on those in the background, until cancelled."""
        await self._background.run()

    # --- POST /v1/audio/transcriptions

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        """Make text of audio: now, or in the background."""
        namespace = await self._gate.enter(request.headers, _SEND)
        place, accepted = Place(namespace, names.new_transcription_id(time.time())), False
        try:
            wish, audio = await self._receive(request, place)
            self._starting.check(namespace, wish.model)
            if wish.upload is None:
                metrics.TRANSCRIPTIONS.labels("waited").inc()
                with ends_with_client(request):
                    return await self._now(request, place, wish, audio)
            record = await self._record(request, place, wish, wish.upload, audio)
            accepted = True  # or it may be: what a store was told isn't taken back
            return await self._later(place, record)
        finally:
            if not accepted:
                await self._discard(place)

    async def _receive(self, request: web.Request, place: Place) -> tuple[Wish, Audio]:
        """What is asked for; the audio, if it came with the request, is in the store."""
        if request.content_type == JSON_TYPE:
            try:
                async with asyncio.timeout(self._limits.seconds):
                    document = await body_of(request)
            except TimeoutError:
                raise late(self._limits.seconds) from None
            return speech.wish(speech.of_document(document), False, self._reach.check), Audio()
        fields, audio = SpeechFields(), Audio()
        form = Form(request, self._limits, fields)
        async with self._uploads:
            metrics.UPLOADS.inc()
            try:
                if await form.begin():
                    await self._records.take_audio(place, form.chunks())
                    audio = Audio(form.size, form.filename, form.content_type)
            finally:
                metrics.UPLOADS.dec()
        metrics.RECEIVED.inc(form.size)
        return speech.wish(fields.all, audio.size is not None, self._reach.check), audio

    async def _now(self, request: web.Request, place: Place, wish: Wish, audio: Audio) -> web.StreamResponse:
        """The live job's answer."""
        seconds = self._settings.live_request_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        size, filename = audio.size, audio.filename
        if size is None:
            assert wish.download is not None
            try:
                async with asyncio.timeout_at(deadline), self._downloads:
                    size = await self._transcriber.fetch(place, wish.download)
            except TimeoutError:
                message = f"The audio of {wish.download[0]!r} wasn't there after {seconds:g} s."
                raise RequestError(408, "request_timeout", message, wish.download[0]) from None
            filename = speech.filename(wish.download[1])
        ask = Ask(
            speech.PATH,
            lambda: speech.form(wish.fields, self._records.audio(place, size), filename, audio.content_type),
        )

        async def may_start() -> None:
            await self._gate.enter(request.headers, _START)

        async with self._router.send(place.namespace, wish.model, ask, deadline, may_start) as answer:
            return await relay(request, answer, self._settings.body_seconds)

    async def _record(self, request: web.Request, place: Place, wish: Wish, upload: str, audio: Audio) -> Record:
        """What is kept of one that can be accepted."""
        namespace, may_start = place.namespace, True
        try:
            await self._gate.enter(request.headers, _START)
        except RequestError as e:
            if e.status != 403:
                raise
            if not any(job.wanted for job in self._lives.of(namespace, wish.model)):
                raise refusals.may_not_start(wish.model, e) from None
            may_start = False
        most = self._settings.max_transcriptions
        if (count := len(await self._records.unfinished(namespace))) >= most:
            message = f"Queue full ({count}/{most} transcriptions). Try again later."
            raise RequestError(429, "queue_full", message, headers=DONT_RETRY)
        return Record(
            model=wish.model,
            fields=wish.fields,
            filename=audio.filename if audio.size is not None else speech.filename((wish.download or ("", ""))[1]),
            content_type=audio.content_type,
            download=wish.download,
            upload=upload,
            may_start=may_start,
        )

    async def _later(self, place: Place, record: Record) -> web.Response:
        """It will be done, whatever happens."""
        await self._records.accept(place, record)
        metrics.TRANSCRIPTIONS.labels("accepted").inc()
        log.info("transcription %s of %s: accepted for %s", place.id, place.namespace, record.model)
        self._background.poke()
        return of_json(
            {
                "job_id": place.id,
                "object": "transcription.job",
                "status": "in_progress",
                "model": record.model,
                "created_at": int(names.came_at(place.id)),
            }
        )

    async def _discard(self, place: Place) -> None:
        """Remove the audio; what can't be removed now is swept."""
        try:
            await self._records.drop_audio(place)
        except RequestError:
            log.warning("transcription %s of %s: the audio will be swept", place.id, place.namespace)

    # --- jobs

    async def list_jobs(self, request: web.Request) -> web.Response:
        """Those in the background, the newest first."""
        namespace = await self._gate.enter(request.headers, Act("list", REQUESTS))
        query = query_of(request, "after", "limit")
        limit, after = limit_of(query, 20, MAX_JOBS), query.get("after")
        if after is not None and not names.is_transcription(after):
            raise invalid(f"Invalid 'after': {after[:100]!r}: expected a job_id.", "after")
        there = [each for each in await self._records.known(namespace) if after is None or each.place.id < after]
        page = there[:limit]
        documents = await asyncio.gather(*map(self._records.document, page))
        return of_page([each.place.id for each in page], map(orjson.dumps, documents), len(there) > limit)

    async def job(self, request: web.Request) -> web.Response:
        """One of them."""
        namespace = await self._gate.enter(request.headers, Act("get", REQUESTS))
        asked = request.match_info["job"]
        found: View | None = await self._records.find(namespace, asked)
        if found is None:
            message = (
                f"No such job: {asked[:100]!r}. GET /v1/jobs lists yours; they are forgotten a while after their end."
            )
            raise RequestError(404, "job_not_found", message, "job_id")
        return of_json(await self._records.document(found))
