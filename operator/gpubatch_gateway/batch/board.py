"""The batches that there are, as the watch tells of them; each is made into its document once for each version.

A question is answered from here, without one to the API server, and costs the same whatever their number.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from gpubatch_gateway import names
from gpubatch_gateway.batch import batches

JSON = dict[str, Any]
Place = tuple[float, int, str]
"""The newest first: minus the time of creation in two parts, then the name."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One batch.

    Attributes:
        version: Of the job; a later one is larger.
        document: The batch object as JSON.
        finished: Whether it has ended.
        content: What was asked for; see `wishes.Wish.content`.
    """

    uid: str
    namespace: str
    name: str
    place: Place
    version: int
    document: bytes
    finished: bool
    status: str
    content: str


def entry(job: Mapping[str, Any]) -> Entry:
    """The batch of a job."""
    meta, document, (second, at) = job["metadata"], batches.batch(job), batches.born(job)
    return Entry(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        place=(-second, -at, meta["name"]),
        version=int(meta["resourceVersion"]),
        document=orjson.dumps(document),
        finished=batches.finished(job),
        status=document["status"],
        content=batches.request_of(job).get("content", ""),
    )


class Board:
    """Holds them. What comes late, of an older version, changes nothing."""

    def __init__(self) -> None:
        self._by_uid: dict[str, Entry] = {}
        self._by_name: dict[tuple[str, str], Entry] = {}
        self._places: dict[str, list[Place]] = {}  # of each namespace, in order

    def __len__(self) -> int:
        return len(self._by_uid)

    def put(self, job: JSON) -> Entry | None:
        """Take a job as it is; what is known of it then. None: it is no batch, whatever its labels say."""
        meta = job["metadata"]
        held = self._by_uid.get(meta["uid"])
        if not names.is_ours(meta["name"]) or (held and int(meta["resourceVersion"]) <= held.version):
            return held
        try:
            new = entry(job)
        except (
            ValueError,
            TypeError,
            RecursionError,
        ) as e:  # whoever may create jobs may write what they like into one
            log.warning("%s/%s is no batch, though it has the label: %s", meta["namespace"], meta["name"], e)
            return held
        if (old := self._by_name.get((new.namespace, new.name))) and old.uid != new.uid:
            self.lose(old.uid)
        if held is not None:
            new = replace(new, place=held.place)  # whoever edits the job doesn't move it
        else:
            bisect.insort(self._places.setdefault(new.namespace, []), new.place)
        self._by_uid[new.uid] = self._by_name[new.namespace, new.name] = new
        return new

    def drop(self, job: JSON) -> None:
        """It was deleted."""
        self.lose(job["metadata"]["uid"])

    def lose(self, uid: str) -> None:
        """The same, by its uid."""
        if (held := self._by_uid.pop(uid, None)) is None:
            return
        self._by_name.pop((held.namespace, held.name), None)
        places = self._places[held.namespace]
        del places[bisect.bisect_left(places, held.place)]
        if not places:
            del self._places[held.namespace]

    def held(self, namespace: str = "") -> set[str]:
        """The uids, of one namespace or of all."""
        return {uid for uid, each in self._by_uid.items() if namespace in ("", each.namespace)}

    def get(self, namespace: str, name: str) -> Entry | None:
        """A batch by its job's name."""
        return self._by_name.get((namespace, name))

    def page(self, namespace: str, after: Entry | None, limit: int) -> tuple[list[Entry], bool]:
        """The newest first, from behind `after`, and whether there are more."""
        places = self._places.get(namespace, [])
        start = bisect.bisect_right(places, after.place) if after else 0
        found = [self._by_name[namespace, name] for *_, name in places[start : start + limit]]
        return found, len(places) > start + limit
