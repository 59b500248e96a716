"""Python's garbage collector beside a heap of ten thousand jobs.

Nearly all that lives long is reachable for as long as it lives, and a full collection looks at all of it: 100 ms, every
few seconds at a busy queue, in which nobody is admitted or answered. So full collections come only when they are called
for, a few in an hour; young objects, among which the cycles are, are looked at as ever.
"""

from __future__ import annotations

import asyncio
import gc

SECONDS = 600.0
NEVER = 2**30


def settle() -> None:
    """Collect everything now, and leave what remains out of account until the next time."""
    _, young, _ = gc.get_threshold()
    gc.set_threshold(10_000, young, NEVER)
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def keep() -> None:
    """Do it every ten minutes, for ever."""
    while True:
        await asyncio.sleep(SECONDS)
        settle()
