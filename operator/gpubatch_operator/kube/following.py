"""Following: what is held in memory is made equal to a collection of the API server by a list, and kept so by a watch.

A watch goes on exactly where a list has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from gpubatch_operator.kube.client import ApiError, Client

JSON = dict[str, Any]
WATCH_SECONDS = 60.0  # life of one watch request: a connection that died in silence is noticed after so long
GRACE_SECONDS = 10.0  # for the server to end it
REST_SECONDS = 1.0  # after a failure
BURST = 64  # events in a row, before others get their turn
GONE = 410

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collection:
    """How objects of one kind get into what holds them.

    Attributes:
        path: Where they are listed.
        query: Which of them.
        key: What of the metadata they are known by.
        put: Takes an object as it is.
        drop: Takes one as it was when it was deleted.
        lose: Takes the key of one whose deletion was missed.
        held: The keys that are held.
    """

    path: str
    query: dict[str, str]
    key: str
    put: Callable[[JSON], None]
    drop: Callable[[JSON], None]
    lose: Callable[[str], None]
    held: Callable[[], set[str]]


async def follow(client: Client, collection: Collection, version: str) -> None:
    """Keep the store equal to a collection from this version of it on, for ever.

    When the version is too old for the API server to tell what has changed since, everything is listed again. An event
    that can't be used is logged, and made good by the object's next version or the next list.
    """
    while True:
        began = time.monotonic()
        try:
            if not version:
                version = (await relist(client, collection))[collection.path]
            query = {**collection.query, "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
            query["timeoutSeconds"] = str(int(WATCH_SECONDS))
            async with aclosing(client.stream(collection.path, query, WATCH_SECONDS + GRACE_SECONDS)) as lines:
                count = 0
                async for line in lines:
                    event = orjson.loads(line)
                    raw = event["object"]
                    if event["type"] == "ERROR":
                        raise ApiError(raw.get("code", 0), raw.get("reason", ""), raw.get("message", ""))
                    version = raw["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        _apply(collection, event["type"], raw)
                    count += 1
                    if count % BURST == 0:  # a line that is there already is no turn for anybody
                        await asyncio.sleep(0)
        except ApiError as e:
            if e.status == GONE:
                version = ""
            log.warning("the watch of %s ended, it begins anew: %s", collection.path, e)
        except ValueError as e:  # half a line, from something between us and the API server
            log.warning("the watch of %s said what isn't JSON, it begins anew: %s", collection.path, e)
        if time.monotonic() - began < REST_SECONDS:
            await asyncio.sleep(REST_SECONDS)


def _apply(collection: Collection, kind: str, raw: JSON) -> None:
    try:
        (collection.drop if kind == "DELETED" else collection.put)(raw)
    except Exception:
        log.exception("an event of %s %s can't be used", collection.path, raw["metadata"].get("name"))


async def relist(client: Client, *each: Collection) -> dict[str, str]:
    """List the collections, in this order, and make what is held equal to them.

    Returns:
        The version of each list, by its path.

    Raises:
        ApiError: The API server doesn't answer; what was listed until then is kept.
    """
    # Only what was held before the lists were made can be missing from them because it is deleted.
    held = [c.held() for c in each]
    listed = [await _put_all(client, c) for c in each]
    for collection, before, (there, _) in zip(each, held, listed, strict=True):
        for key in before - there:
            collection.lose(key)
    return {c.path: version for c, (_, version) in zip(each, listed, strict=True)}


async def _put_all(client: Client, collection: Collection) -> tuple[set[str], str]:
    """Put each object; their keys, and the version of the list."""
    keys: set[str] = set()
    version = ""
    async for page, of_list in client.pages(collection.path, **collection.query):  # not all of ten thousand at once
        for raw in page:
            collection.put(raw)
        keys.update(raw["metadata"][collection.key] for raw in page)
        version = of_list
    return keys, version
