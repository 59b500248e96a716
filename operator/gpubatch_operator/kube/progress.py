"""Asks each runner for its progress, every few seconds, into the store. A silent runner is not a dead one."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from pydantic import ValidationError

from gpubatch_operator.core.model import Pod
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.store import Store
from gpubatch_runner.contract import PROGRESS_PORT, Progress

MAX_BYTES = 1 << 16
TIMEOUT = aiohttp.ClientTimeout(total=3)

log = logging.getLogger(__name__)


async def poll(store: Store, interval: float) -> None:
    """Poll all runners every `interval` seconds, for ever."""
    connector = aiohttp.TCPConnector(limit=64, force_close=False)
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector) as session:
        while True:
            pods = [p for p in store.pods.values() if p.kind == "run" and p.ip and not p.finished]
            await asyncio.gather(*(_ask(session, store, p) for p in pods))
            await asyncio.sleep(interval)


async def _ask(session: aiohttp.ClientSession, store: Store, pod: Pod) -> None:
    host = f"[{pod.ip}]" if pod.ip and ":" in pod.ip else pod.ip
    try:
        # A template's own program may answer there: no redirect of its is followed, nor all of its answer read.
        url = f"http://{host}:{PROGRESS_PORT}/progress"
        async with session.get(url, allow_redirects=False) as response:
            body = b""
            while chunk := await response.content.read(MAX_BYTES + 1 - len(body)):
                body += chunk
            progress = Progress.model_validate_json(body)
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as e:
        log.debug("no progress from %s/%s: %s", pod.namespace, pod.name, e)
        return
    store.put_report(pod, convert.report_of(progress))
