"""The right of a replica to work on a transcription: numbered, refreshed while it works, and lost when it isn't.

Another replica's claim has lapsed when it was the same for a while by one's own clock: no two clocks need to agree.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from gpubatch_gateway.audio.records import Records
from gpubatch_gateway.audio.transcription import JSON, Place, Said, Status, View
from gpubatch_gateway.problems import RequestError

BEATS = 3  # in the time after which a claim lapses

log = logging.getLogger(__name__)


class Claim:
    """One that this replica has.

    Args:
        records: Where it stands.
        place: Which transcription.
        number: Of the claim.
        said: What it was created with.
        seconds: After which it lapses.
    """

    def __init__(self, records: Records, place: Place, number: int, said: Said, seconds: float) -> None:
        self.place = place
        self._records, self._number, self._said, self._seconds = records, number, said, seconds
        self._writing = asyncio.Lock()

    async def say(self, status: Status, text: str) -> None:
        """How far it is; written if it is news."""
        if (status, text) == (self._said.status, self._said.text):
            return
        started = self._said.started if self._said.started is not None or status == "queued" else time.time()
        self._said = self._said.model_copy(update={"status": status, "text": text, "started": started})
        if status == "processing":
            log.info("transcription %s of %s: %s", self.place.id, self.place.namespace, text)
        await self._write()

    async def kept(self) -> None:
        """Refresh it; returns when it is lost: another replica has one, or the store hasn't answered for long."""
        pause, heard = self._seconds / BEATS, time.monotonic()
        while True:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(pause):
                    there = await self._records.look(self.place)
                    if there.claim != self._number or there.ended is not None:
                        return
                    self._said = self._said.model_copy(update={"beat": self._said.beat + 1})
                    await self._write()
                heard = time.monotonic()
            except (RequestError, TimeoutError):
                if time.monotonic() - heard > self._seconds - pause:
                    return

    async def free(self, text: str) -> None:
        """Give it back, and say why."""
        said = self._said.model_copy(update={"status": "queued", "text": text, "started": None})
        async with self._writing:
            await self._records.free(self.place, self._number, said)

    def ended(self, status: Status, text: str, error: JSON | None) -> Said:
        """What is said at the end."""
        now = time.time()
        started = self._said.started if self._said.started is not None else now
        changes = {"status": status, "text": text, "error": error, "started": started, "ended": now}
        return self._said.model_copy(update=changes)

    async def _write(self) -> None:
        async with self._writing:
            await self._records.say(self.place, self._number, self._said)


class Claims:
    """Gets claims.

    Args:
        records: Where they stand.
        replica: Who gets them.
        seconds: After which one lapses.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, records: Records, replica: str, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records, self._replica, self._seconds, self._clock = records, replica, seconds, clock
        self._seen: dict[Place, tuple[object, float]] = {}  # others' claims: the last beat, and since when

    def only(self, places: set[Place]) -> None:
        """Forget what was seen of others."""
        self._seen = {place: seen for place, seen in self._seen.items() if place in places}

    def free(self, found: View) -> bool:
        """Whether nobody alive works on a transcription, as far as is known."""
        if not found.claim or found.freed:
            return True
        beat = found.claim, found.beat
        last, since = self._seen.get(found.place, (None, 0.0))
        if beat != last:
            self._seen[found.place] = beat, self._clock()
            return False
        return self._clock() - since >= self._seconds

    async def get(self, found: View) -> Claim | None:
        """The next claim of a transcription; None: another replica was faster."""
        said = Said(status="queued", text="Waiting for the model", replica=self._replica)
        number = found.claim + 1
        if not await self._records.claim(found.place, number, said):
            return None
        return Claim(self._records, found.place, number, said, self._seconds)
