"""Crash-only: what runs together ends together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any


async def run(parts: Mapping[str, Coroutine[Any, Any, None]], may_end: frozenset[str] = frozenset()) -> None:
    """Run all until one ends; then the others are ended, in the order in which they were given.

    Raises:
        RuntimeError: A part has ended that isn't in `may_end`.
        Exception: What a part has raised.
    """
    tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    for task in ended:
        task.result()
        if task.get_name() not in may_end:
            raise RuntimeError(f"{task.get_name()} ended")
