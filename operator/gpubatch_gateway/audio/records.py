"""Transcriptions in the object store, which holds all of their state:

    NAMESPACE/transcriptions/ID/audio          as it came, or was downloaded
                                record.json    what is wanted; once it is there, the transcription was accepted
                                claim-000001   who works on it, and how far it is; written anew while they live
                                freed-000001   that claim was given back, and why
                                outcome        what is PUT; decided once
                                end.json       what became of it
    _transcriptions/NAMESPACE/ID               empty: it isn't finished

What must be decided once is created where nothing was: a store takes each key once. The marker is there before the
record and until after the end, so that unfinished ones are found without a look at all others.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from gpubatch_gateway import names
from gpubatch_gateway.audio import transcription
from gpubatch_gateway.audio.transcription import JSON, Outcome, Place, Record, Said, View
from gpubatch_gateway.objects import Objects


class Records:
    """The transcriptions of all namespaces; each method raises RequestError 503 if the store doesn't answer.

    Args:
        objects: The store.
        ttl: Seconds after its end for which one is remembered.
    """

    def __init__(self, objects: Objects, ttl: float) -> None:
        self._objects, self._ttl = objects, ttl

    # --- audio

    async def take_audio(self, place: Place, chunks: AsyncIterator[bytes]) -> None:
        """Store the audio.

        Raises:
            Exception: What `chunks` raises; nothing is left then.
        """
        await self._objects.take(place.key(transcription.AUDIO), chunks)

    async def drop_audio(self, place: Place) -> None:
        """Remove the audio of one that won't be accepted."""
        await self._objects.delete(place.key(transcription.AUDIO))

    def audio(self, place: Place, size: int) -> AsyncIterator[bytes]:
        """The audio, which has `size` bytes."""
        return self._objects.read(place.key(transcription.AUDIO), 0, size)

    # --- a transcription's life

    async def accept(self, place: Place, record: Record) -> None:
        """From here on it will be done, whatever happens to this replica."""
        await self._objects.put(place.marker, b"")
        await self._objects.put(place.key(transcription.RECORD), record.model_dump_json().encode())

    async def record(self, place: Place) -> Record | None:
        """What was asked for; None: nothing, or it was forgotten."""
        found = await self._objects.get(place.key(transcription.RECORD))
        return None if found is None else Record.model_validate_json(found)

    async def look(self, place: Place) -> View:
        """What there is of one."""
        return transcription.view(place, await self._objects.all(place.key("").rstrip("/")))

    async def claim(self, place: Place, number: int, said: Said) -> bool:
        """Whether the claim of this number is the caller's now."""
        return await self._objects.create(_claim(place, number), said.model_dump_json().encode())

    async def say(self, place: Place, number: int, said: Said) -> None:
        """Tell, as the one who has the claim, how far it is."""
        await self._objects.put(_claim(place, number), said.model_dump_json().encode())

    async def free(self, place: Place, number: int, said: Said) -> None:
        """Give the claim back."""
        await self._objects.put(_claim(place, number, transcription.FREED), said.model_dump_json().encode())

    async def outcome(self, place: Place) -> Outcome | None:
        """What was decided."""
        found = await self._objects.get(place.key(transcription.OUTCOME))
        return None if found is None else Outcome.of(found)

    async def decide(self, place: Place, outcome: Outcome) -> Outcome:
        """What will be PUT: this, unless something was decided before."""
        if await self._objects.create(place.key(transcription.OUTCOME), outcome.to_bytes()):
            return outcome
        return await self.outcome(place) or outcome

    async def end(self, place: Place, said: Said) -> bool:
        """Nothing is left to do; whether it wasn't so before."""
        first = await self._objects.create(place.key(transcription.END), said.model_dump_json().encode())
        await self.settle(place)
        return first

    async def settle(self, place: Place) -> None:
        """It counts as unfinished no more."""
        await self._objects.delete(place.marker)

    # --- all of them

    async def unfinished(self, namespace: str = "") -> list[Place]:
        """Those of a namespace, or all."""
        found = await self._objects.all(f"{names.UNFINISHED}/{namespace}".rstrip("/"))
        parts = [each.key.split("/") for each in found]
        return [Place(p[1], p[2]) for p in parts if len(p) == 3 and names.is_transcription(p[2])]

    async def known(self, namespace: str) -> list[View]:
        """Those of a namespace that clients may hear of, the newest first."""
        there = transcription.places(await self._objects.all(names.transcriptions(namespace)))
        views = [transcription.view(place, there[place]) for place in sorted(there, reverse=True)]
        return [each for each in views if self._remembered(each)]

    async def find(self, namespace: str, transcription_id: str) -> View | None:
        """One of them; None: there is none."""
        if not names.is_transcription(transcription_id):
            return None
        found = await self.look(Place(namespace, transcription_id))
        return found if self._remembered(found) else None

    async def document(self, found: View) -> JSON:
        """One as clients see it."""
        kept = await self._objects.get(found.said) if found.said else None
        return transcription.document(found.place, Said.model_validate_json(kept) if kept else None, time.time())

    def _remembered(self, found: View) -> bool:
        return found.accepted and (found.ended is None or found.ended + self._ttl > time.time())

    # --- what is forgotten

    async def forget(self, place: Place) -> None:
        """Remove all of it, and first what makes it one."""
        await self._objects.delete(place.key(transcription.RECORD))
        for each in await self._objects.all(place.key("").rstrip("/")):
            await self._objects.delete(each.key)

    async def sweep(self, unfinished_seconds: float) -> None:
        """Remove those that have ended long ago, and what killed replicas left of those that were never accepted.

        Args:
            unfinished_seconds: What wasn't accepted after so long won't be.
        """
        before = time.time() - unfinished_seconds
        for namespace in await self._objects.folders():
            there = transcription.places(await self._objects.all(names.transcriptions(namespace)))
            for place, objects in there.items():
                found = transcription.view(place, objects)
                abandoned = not found.accepted and names.came_at(place.id) < before
                if abandoned or (found.accepted and not self._remembered(found)):
                    await self.forget(place)
        for place in await self.unfinished():
            if names.came_at(place.id) < before and not (await self.look(place)).accepted:
                await self.settle(place)


def _claim(place: Place, number: int, kind: str = transcription.CLAIM) -> str:
    return place.key(f"{kind}{number:06d}")
