"""What only one replica does, and what the others do until it is their turn.

All replicas watch and hold everything in their store. A follower doesn't decide and doesn't write; what piles up in its
store for a reconciler to take is cleared now and then. Whoever wins the lease decides on a list that was begun after
that: what a watch has not told yet must not decide.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from gpubatch_operator import metrics, parts
from gpubatch_operator.core.model import AttemptState, Job, Pod
from gpubatch_operator.core.phases import FINISHED, Phase
from gpubatch_operator.kube import watch
from gpubatch_operator.kube.client import ApiError, Client
from gpubatch_operator.kube.lease import Elector
from gpubatch_operator.kube.store import Store

TIDY_SECONDS = 30.0
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)

Work = Callable[[], Mapping[str, Coroutine[Any, Any, None]]]


async def follow_then_lead(elector: Elector, client: Client, store: Store, synced: asyncio.Event, work: Work) -> None:
    """Wait for the lease, then do `work` for as long as it is held; at the end it is released.

    `synced` is set once everything was listed for the first time.
    """
    tidying = asyncio.create_task(_keep_tidy(store))
    try:
        elected_at = await elector.acquire()
    finally:
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
    metrics.LEADER.set(1)
    try:
        await parts.run({"work": _lead(client, store, synced, elected_at, work), "lease": elector.renew()})
    finally:
        metrics.LEADER.set(0)
        await elector.release()  # after everything that writes has ended


async def _lead(client: Client, store: Store, synced: asyncio.Event, elected_at: float, work: Work) -> None:
    await synced.wait()
    while store.listed_at < elected_at:
        try:
            await watch.resync(client, store)
        except (ApiError, OSError) as e:
            log.warning("what there is can't be listed, so nothing is decided yet: %s", e)
            await asyncio.sleep(RETRY_SECONDS)
    for uid in {*store.jobs, *store.pods_of}:
        store.touch(uid)
    log.info("deciding from %d jobs, %d pods, %d nodes", len(store.jobs), len(store.pods), len(store.nodes))
    await parts.run(work())


async def _keep_tidy(store: Store) -> None:
    while True:
        tidy(store)
        await asyncio.sleep(TIDY_SECONDS)


def tidy(store: Store) -> None:
    """Forget what a reconciler would have taken by now: a follower has none.

    Pods that are gone are kept as long as their last words may still decide, should the leader die before it has
    written them down.
    """
    store.take_dirty()
    store.finished = [job for job in store.finished if job.uid in store.jobs]
    for pod in list(store.pods.values()):
        if pod.gone and not _matters(pod, store.jobs.get(pod.job_uid)):
            store.forget_pod(pod)


def _matters(pod: Pod, job: Job | None) -> bool:
    if job is None or job.phase in FINISHED:
        return False
    if pod.kind != "run":
        return job.phase is Phase.VALIDATING
    attempt = job.attempt
    if attempt is None or attempt.number != pod.attempt:
        return False
    return attempt.state in (AttemptState.ACTIVE, AttemptState.STOPPING)
