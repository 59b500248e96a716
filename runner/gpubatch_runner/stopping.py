"""Work that SIGTERM may end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from gpubatch_runner.failures import Interrupted

T = TypeVar("T")


def interrupted() -> Interrupted:
    """The failure of an attempt that SIGTERM ended."""
    return Interrupted("The pod was told to stop before the work was done; a later attempt can go on from here.")


async def unless(stop: asyncio.Event, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, unless `stop` is set first.

    Raises:
        Interrupted: It was.
    """
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise interrupted()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
