"""Keeps the record of the totals in a ConfigMap, which the leader writes once a minute at most, if something ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import orjson

from gpubatch_operator.core.totals import Tally, Totals
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.configmap import ConfigMap

JSON = dict[str, Any]
PAUSE = 60.0  # seconds between two looks
LAG = 60.0  # seconds until all that happened has surely been seen
KEY = "totals.json"

log = logging.getLogger(__name__)


class Record:
    """The ConfigMap.

    Args:
        client: For requests.
        namespace: Where it is.
        name: What it is called.
    """

    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._configmap = ConfigMap(client, namespace, name)
        self._version: str | None = None

    async def read(self) -> Totals:
        """What is recorded; nothing, if there is no record or it can't be read.

        Raises:
            ApiError: The API server refuses, or doesn't answer.
        """
        data, self._version = await self._configmap.read()
        if self._version is None:
            return Totals()
        try:
            return Totals.of(orjson.loads(data.get(KEY, "")))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            log.error("the ConfigMap %s can't be read and is begun anew: %s", self._configmap, e)
            return Totals()

    async def write(self, totals: Totals) -> None:
        """Record it in the place of what was read.

        Raises:
            ApiError: 409 if somebody else has written meanwhile.
        """
        data = {KEY: orjson.dumps(totals.document()).decode()}
        self._version = await self._configmap.write(data, self._version)


async def keep(
    tally: Tally,
    record: Record,
    leads: Callable[[], bool],
    pause: float = PAUSE,
    clock: Callable[[], float] = time.time,
) -> None:
    """Take over what is recorded and, on the replica that plans, record what is new, for ever."""
    while True:
        try:
            await once(tally, record, leads(), clock())
        except ApiError as e:
            log.warning("the totals weren't read or recorded, the next time may succeed: %s", e)
        await asyncio.sleep(pause)


async def once(tally: Tally, record: Record, leads: bool, now: float) -> None:
    """One look.

    Raises:
        ApiError: The API server refuses, or doesn't answer; nothing is lost.
    """
    tally.rebase(await record.read())
    if leads and (new := tally.recorded_through(now - LAG)) is not None:
        await record.write(new)
        tally.rebase(new)
