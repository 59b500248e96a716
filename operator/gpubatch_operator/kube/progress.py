"""Asks each runner for its progress, every few seconds, into the store. A silent runner is not a dead one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

import aiohttp
from pydantic import ValidationError

from gpubatch_operator.core.model import Pod
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.store import Store
from gpubatch_runner.contract import Progress

MAX_BYTES = 1 << 16
TIMEOUT = aiohttp.ClientTimeout(total=3)

log = logging.getLogger(__name__)


async def poll(store: Store, interval: float, unresponsive_seconds: float) -> None:
    """Poll all runners every `interval` seconds, for ever; report those that don't answer for so long."""
    silence = Silence(unresponsive_seconds, 3 * interval + 3)
    connector = aiohttp.TCPConnector(limit=64, force_close=False)
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector) as session:
        while True:
            pods = [p for p in store.pods.values() if p.kind == "run" and p.address and p.reports and not p.finished]
            answers = await asyncio.gather(*(_ask(session, store, p) for p in pods))
            answered = {p.uid: answer for p, answer in zip(pods, answers, strict=True) if p.started}
            for uid, since in silence.after(answered, time.time()):
                if pod := store.pods.get(uid):
                    store.put_silence(pod, since)
            await asyncio.sleep(interval)


class Silence:
    """Who hasn't answered for long. Only polls that were really made count, and not a pause of our own.

    Args:
        patience: Seconds of silence that are worth a report.
        longest_pause: Seconds between two polls that still count as asking again and again.
    """

    def __init__(self, patience: float, longest_pause: float) -> None:
        self._patience, self._longest_pause = patience, longest_pause
        self._heard: dict[str, float] = {}
        self._last_poll = 0.0

    def after(self, answered: Mapping[str, bool], now: float) -> list[tuple[str, float]]:
        """Take one poll into account: who has been silent for too long (by key), and since when."""
        pause = now - self._last_poll
        shift = pause if pause > self._longest_pause else 0.0
        self._last_poll = now
        self._heard = {
            key: now if answer else min(now, self._heard.get(key, now) + shift) for key, answer in answered.items()
        }
        return [(key, at) for key, at in self._heard.items() if now - at >= self._patience]


async def _ask(session: aiohttp.ClientSession, store: Store, pod: Pod) -> bool:
    try:
        # A template's own program may answer there: no redirect of its is followed, nor all of its answer read.
        url = f"http://{pod.address}/progress"
        async with session.get(url, allow_redirects=False) as response:
            body = b""
            while chunk := await response.content.read(MAX_BYTES + 1 - len(body)):
                body += chunk
            progress = Progress.model_validate_json(body)
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as e:
        log.debug("no progress from %s/%s: %s", pod.namespace, pod.name, e)
        return False
    store.put_report(pod, convert.report_of(progress))
    return True
