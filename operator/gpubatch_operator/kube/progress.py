"""Asks each runner for its progress, every few seconds, into the store. A silent runner is not a dead one."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from pydantic import ValidationError

from gpubatch_operator.core.model import Pod
from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.kube.store import Store
from gpubatch_runner.contract import PROGRESS_PORT, Progress

TIMEOUT = aiohttp.ClientTimeout(total=3)

log = logging.getLogger(__name__)


async def poll(store: Store, interval: float) -> None:
    """Poll all runners every `interval` seconds, for ever."""
    connector = aiohttp.TCPConnector(limit=64, force_close=False)
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector) as session:
        while True:
            pods = [p for p in store.pods.values() if p.kind == "run" and p.ip and p.started and not p.finished]
            inference = [p for p in pods if (job := store.jobs.get(p.job_uid)) and job.inference]
            await asyncio.gather(*(_ask(session, store, p) for p in inference))
            await asyncio.sleep(interval)


async def _ask(session: aiohttp.ClientSession, store: Store, pod: Pod) -> None:
    host = f"[{pod.ip}]" if pod.ip and ":" in pod.ip else pod.ip
    try:
        async with session.get(f"http://{host}:{PROGRESS_PORT}/progress") as response:
            progress = Progress.model_validate_json(await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as e:
        log.debug("no progress from %s/%s: %s", pod.namespace, pod.name, e)
        return
    store.put_report(pod, _report(progress))


def _report(p: Progress) -> ProgressReport:
    return ProgressReport(
        stage=p.stage.value,
        message=p.message,
        total=p.total,
        completed=p.completed,
        failed=p.failed,
        rate=p.rate,
        input_tokens=p.usage.input_tokens,
        output_tokens=p.usage.output_tokens,
        processing_seconds=p.processing_seconds,
        at=p.time.timestamp(),
    )
