"""A transcription in the background: what is kept of it, and how it is told to clients. Nothing here asks anybody."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from gpubatch_gateway import names
from gpubatch_gateway.objects import Object
from gpubatch_gateway.problems import RequestError

JSON = dict[str, Any]
Status = Literal["queued", "processing", "completed", "failed"]

AUDIO, RECORD, OUTCOME, END = "audio", "record.json", "outcome", "end.json"
CLAIM, FREED = "claim-", "freed-"
_CLAIM = re.compile(rf"{CLAIM}[0-9]{{6}}")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Which transcription."""

    namespace: str
    id: str

    def key(self, name: str) -> str:
        """Where something of it is."""
        return f"{names.transcriptions(self.namespace)}/{self.id}/{name}"

    @property
    def marker(self) -> str:
        """What is there until it is finished."""
        return f"{names.UNFINISHED}/{self.namespace}/{self.id}"


def places(objects: Iterable[Object]) -> dict[Place, list[Object]]:
    """The objects of a list, by the transcription whose they are."""
    found: dict[Place, list[Object]] = {}
    for each in objects:
        namespace, _, rest = each.key.partition("/transcriptions/")
        transcription = rest.partition("/")[0]
        if names.is_transcription(transcription):
            found.setdefault(Place(namespace, transcription), []).append(each)
    return found


class _Kept(BaseModel):
    """A document in the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # another version of the gateway may say more


class Record(_Kept):
    """What was asked for.

    Attributes:
        fields: What the engine is sent beside the audio.
        filename: Of the audio; its ending tells engines its format.
        content_type: The same, as the client named it; may be empty.
        download: The field that says where the audio is, and its URL; None: it was stored with the request.
        upload: Where the result is PUT.
        may_start: Whether the client may create jobs.
    """

    model: str
    fields: tuple[tuple[str, str], ...]
    filename: str
    content_type: str
    download: tuple[str, str] | None
    upload: str
    may_start: bool


class Said(_Kept):
    """How far it is.

    Attributes:
        text: For people.
        started: When the present attempt began, seconds since the epoch.
        ended: When it came to its end; None: it hasn't.
        error: Of OpenAI's shape, if it has failed.
        replica: Who says so.
        beat: How often it was said.
    """

    status: Status
    text: str
    started: float | None = None
    ended: float | None = None
    error: JSON | None = None
    replica: str = ""
    beat: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is PUT.

    Attributes:
        body: The engine's answer, or an error document.
        error: What is the matter, of OpenAI's shape; None: the body is the text.
    """

    body: bytes
    error: JSON | None

    @classmethod
    def failed(cls, problem: RequestError) -> Self:
        """That of a problem."""
        return cls(problem.body, dict(problem.error))

    def to_bytes(self) -> bytes:
        """As it is kept: the error on a line of its own, then the body."""
        return json.dumps(self.error).encode() + b"\n" + self.body

    @classmethod
    def of(cls, kept: bytes) -> Self:
        """The opposite of `to_bytes`."""
        error, _, body = kept.partition(b"\n")
        return cls(body, json.loads(error))


@dataclass(frozen=True, slots=True)
class View:
    """What a list of its objects says of a transcription.

    Attributes:
        accepted: Whether a client was told of it.
        audio: Bytes of the audio; None: it isn't there.
        claim: Number of the last claim; 0: there was none.
        beat: Changes as long as who has that claim is alive.
        freed: The claim was given back.
    """

    place: Place
    accepted: bool
    audio: int | None
    claim: int
    beat: tuple[int, str | None]
    freed: bool
    decided: bool
    ended: int | None

    @property
    def said(self) -> str | None:
        """The key at which it is said how far it is; None: nobody has worked on it yet."""
        if self.ended is not None:
            return self.place.key(END)
        return self.place.key(f"{FREED if self.freed else CLAIM}{self.claim:06d}") if self.claim else None


def view(place: Place, objects: Iterable[Object]) -> View:
    """What its objects say."""
    there = {each.key.rpartition("/")[2]: each for each in objects}
    last = max((name for name in there if _CLAIM.fullmatch(name)), default="")
    claim = there.get(last)
    return View(
        place=place,
        accepted=RECORD in there,
        audio=there[AUDIO].size if AUDIO in there else None,
        claim=int(last.removeprefix(CLAIM)) if last else 0,
        beat=(claim.modified, claim.etag) if claim else (0, None),
        freed=last.replace(CLAIM, FREED) in there,
        decided=OUTCOME in there,
        ended=there[END].modified if END in there else None,
    )


def document(place: Place, said: Said | None, now: float) -> JSON:
    """The transcription as clients see it. Times in seconds since the epoch.

    Args:
        said: How far it is; None: nobody has worked on it yet.
        now: Seconds since the epoch.
    """
    said = said or Said(status="queued", text="Waiting for its turn")
    elapsed = (said.ended or now) - said.started if said.started is not None else 0.0
    return {
        "job_id": place.id,
        "object": "transcription.job",
        "status": said.status,
        "progress": said.text,
        "created_at": int(names.came_at(place.id)),
        "start_time": int(said.started) if said.started is not None else None,
        "end_time": int(said.ended) if said.ended is not None else None,
        "elapsed_time": round(max(elapsed, 0.0), 1),
        "error": said.error,
    }
