"""Files that others keep fresh, a mounted ConfigMap or Secret: read anew when they change, without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

PAUSE = 2.0  # seconds between two looks; the kubelet takes up to a minute

log = logging.getLogger(__name__)


def entries(folder: Path) -> dict[str, str]:
    """The files of a mounted object by their names; none if it isn't there.

    Raises:
        OSError, UnicodeDecodeError: One can't be read.
    """
    if not folder.is_dir():
        return {}
    # What begins with a dot is the kubelet's own.
    return {p.name: p.read_text() for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")}


async def follow(folder: Path, take: Callable[[dict[str, str]], None], pause: float = PAUSE) -> None:
    """Give `take` the files of a folder each time that they have changed, for ever; what it raises is logged."""
    last: dict[str, str] | None = None
    while True:
        try:
            found = await asyncio.to_thread(entries, folder)
            if found != last:
                last = found
                take(found)
        except Exception as e:
            log.error("what is mounted at %s can't be used, what was read before stays: %s", folder, e)
        await asyncio.sleep(pause)
