"""Trying again: what fails at a place that results are written to may succeed a little later."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gpubatch_runner.contract import Upload
from gpubatch_runner.failures import AccessDenied, OutputExpired, OutputNotWritable

log = logging.getLogger(__name__)

T = TypeVar("T")


async def patiently(action: Callable[[], Awaitable[T]], limits: Upload, renewable: bool = True) -> T:
    """The result of `action`, which is tried `limits.attempts` times, with exponential backoff and jitter. Keys and
    URLs that a Secret holds are read anew each time: whoever renews them in time loses nothing.

    Args:
        action: Raises a failure of a place, or gives a result.
        limits: How often, how patiently.
        renewable: Whether a URL that was refused may become a better one.

    Raises:
        AccessDenied, OutputNotWritable: The last failure; its text has those before it too.
    """
    texts: list[str] = []
    while True:
        try:
            return await action()
        except (OutputNotWritable, AccessDenied) as error:
            texts.append(str(error))
            hopeless = isinstance(error, OutputExpired) and not renewable
            if len(texts) >= limits.attempts or hopeless:
                raise type(error)(_told(texts)) from error
            delay = limits.backoff_seconds * 2 ** (len(texts) - 1) * random.uniform(0.75, 1.25)
            log.warning("upload failed; trying again", extra={"problem": str(error), "seconds": round(delay, 1)})
            await asyncio.sleep(delay)


def _told(texts: list[str]) -> str:
    """The last text; those before it where they say something else."""
    *earlier, last = texts
    if not earlier:
        return last
    others = "; ".join(dict.fromkeys(text for text in earlier if text != last))
    return f"{last} (tried {len(texts)} times{f'; before that: {others}' if others else ''})"
