"""Works on transcriptions in the background: those that came here, and those of other replicas that are full or dead.

What is done is in the store before it is told to anybody, so a replica may die at any moment: another one claims what
it was working on, and goes on with what is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from gpubatch_gateway import metrics
from gpubatch_gateway.audio.claims import BEATS, Claim, Claims
from gpubatch_gateway.audio.delivering import Delivery
from gpubatch_gateway.audio.records import Records
from gpubatch_gateway.audio.transcriber import NotNowError, Transcriber
from gpubatch_gateway.audio.transcription import JSON, Place, Status, View
from gpubatch_gateway.problems import RequestError
from gpubatch_gateway.settings import Settings

FREE_SECONDS = 5.0  # for giving claims back, when the process is told to end

log = logging.getLogger(__name__)


class Background:
    """One replica's share of the work.

    Args:
        records: All of it.
        claims: The right to work on one.
        transcriber: Makes the text.
        delivery: PUTs it.
        settings: How much at a time.
    """

    def __init__(
        self, records: Records, claims: Claims, transcriber: Transcriber, delivery: Delivery, settings: Settings
    ) -> None:
        self._records, self._claims = records, claims
        self._transcriber, self._delivery = transcriber, delivery
        self._most, self._pause = settings.max_transcribing, settings.claim_seconds / BEATS
        self._working: dict[Place, asyncio.Task[None]] = {}
        self._tried: dict[Place, float] = {}  # when one had its last turn here, by the loop's clock
        self._news = asyncio.Event()

    def poke(self) -> None:
        """There may be something to do."""
        self._news.set()

    async def run(self) -> None:
        """Work, until cancelled; what isn't done by then is given back."""
        try:
            while True:
                self._news.clear()
                try:
                    await self._look()
                except RequestError as e:
                    log.warning("transcriptions can't be looked for: %s", e)
                try:
                    async with asyncio.timeout(self._pause):
                        await self._news.wait()
                except TimeoutError:
                    continue
        finally:
            tasks = list(self._working.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- what to work on

    async def _look(self) -> None:
        """Begin with as many as there is room for, the oldest first, of the namespaces with the fewest here."""
        there = set(await self._records.unfinished())
        metrics.UNFINISHED.set(len(there))
        self._tried = {place: when for place, when in self._tried.items() if place in there}
        self._claims.only(there)
        now = asyncio.get_running_loop().time()
        waiting = {p for p in there if p not in self._working and self._tried.get(p, 0.0) + self._pause <= now}
        while waiting and len(self._working) < self._most:
            shares = Counter(place.namespace for place in self._working)
            place = min(waiting, key=lambda p: (shares[p.namespace], self._tried.get(p, 0.0), p.id))
            waiting.remove(place)
            await self._begin(await self._records.look(place))

    async def _begin(self, found: View) -> None:
        """Work on a transcription, unless another replica does."""
        place = found.place
        if found.ended is not None:  # a replica died just before it would have said so
            await self._records.settle(place)
        elif found.accepted and self._claims.free(found) and (claim := await self._claims.get(found)):
            if found.claim and not found.freed:
                log.info("transcription %s of %s: taken over", place.id, place.namespace)
                metrics.TRANSCRIPTIONS.labels("taken_over").inc()
            self._working[place] = asyncio.create_task(self._work(claim, found))

    # --- work

    async def _work(self, claim: Claim, found: View) -> None:
        place, about = claim.place, (claim.place.id, claim.place.namespace)
        metrics.TRANSCRIBING.inc()
        why = "A gateway's replica was stopped; another goes on"
        try:
            await self._while_kept(claim, self._do(claim, found))
            why = ""
        except NotNowError as e:
            why = f"Waiting for the model: {e}"
        except RequestError as e:
            why = f"Waiting: {e.message}"
            log.warning("transcription %s of %s: %s", *about, e.message)
        except Exception as e:
            why = f"Waiting for another attempt: {type(e).__name__}; the gateway's log says more"
            log.exception("transcription %s of %s failed in the gateway", *about)
        finally:
            metrics.TRANSCRIBING.dec()
            self._tried[place] = asyncio.get_running_loop().time()
            if why:
                await self._free(claim, why)
            del self._working[place]
            self.poke()

    async def _while_kept(self, claim: Claim, work: Coroutine[Any, Any, None]) -> None:
        """Do work, as long as the claim isn't lost."""
        keeping, working = asyncio.create_task(claim.kept()), asyncio.create_task(work)
        try:
            await asyncio.wait((keeping, working), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                log.warning("transcription %s of %s: the claim is lost", claim.place.id, claim.place.namespace)
            elif not working.cancelled():
                working.result()
        finally:
            for task in (keeping, working):
                task.cancel()
            await asyncio.gather(keeping, working, return_exceptions=True)

    async def _free(self, claim: Claim, why: str) -> None:
        try:
            async with asyncio.timeout(FREE_SECONDS):
                await claim.free(why)
        except (RequestError, TimeoutError):
            log.warning("transcription %s of %s: its claim will lapse", claim.place.id, claim.place.namespace)

    async def _do(self, claim: Claim, found: View) -> None:
        place = claim.place
        try:
            record = await self._records.record(place)
        except ValueError:  # somebody else has written it
            told = RequestError(500, "record_unreadable", "The record can't be read.")
            return await self._end(claim, "failed", f"Failed: {told.message}", dict(told.error))
        if record is None:
            return await self._records.settle(place)
        outcome = await self._records.outcome(place) if found.decided else None
        if outcome is None:
            made = await self._transcriber.outcome(place, record, found.audio, claim.say)
            outcome = await self._records.decide(place, made)

        async def say(text: str) -> None:
            await claim.say("processing", text)

        undelivered = await self._delivery.put(record.upload, outcome.body, say)
        error = outcome.error or undelivered
        text = "The result was uploaded" if not error else f"Failed: {error['message']}"
        if outcome.error and undelivered:
            text += f" The upload of this failed too: {undelivered['message']}"
        return await self._end(claim, "failed" if error else "completed", text, error)

    async def _end(self, claim: Claim, status: Status, text: str, error: JSON | None) -> None:
        if await self._records.end(claim.place, claim.ended(status, text, error)):
            metrics.TRANSCRIPTIONS.labels(status).inc()
            log.info("transcription %s of %s: %s: %s", claim.place.id, claim.place.namespace, status, text)
