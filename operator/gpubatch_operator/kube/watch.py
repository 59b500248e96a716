"""Watching: kopf brings events into the store; a list of our own at the start and now and then heals what it misses.

The handlers are async, only record, and never decide. No other kind of kopf's handlers is used: they would write
annotations or finalizers to each object.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import kopf

from gpubatch_operator.api.crd import GROUP, PLURAL, VERSION
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.client import Client
from gpubatch_operator.kube.store import Store

JOBS = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"

log = logging.getLogger(__name__)


def registry(store: Store) -> kopf.OperatorRegistry:
    """Kopf's handlers: each event into the store."""
    handlers = kopf.OperatorRegistry()

    async def job(event: Any, **_: Any) -> None:
        raw = event["object"]
        if event["type"] == "DELETED":
            store.drop_job(raw["metadata"]["uid"])
        else:
            store.put_job(_plain(raw))

    async def pod(event: Any, **_: Any) -> None:
        (store.drop_pod if event["type"] == "DELETED" else store.put_pod)(_plain(event["object"]))

    async def node(event: Any, **_: Any) -> None:
        if event["type"] == "DELETED":
            store.drop_node(event["object"]["metadata"]["name"])
        else:
            store.put_node(event["object"])

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)(job)
    kopf.on.event("", "v1", "pods", registry=handlers)(pod)
    kopf.on.event("", "v1", "nodes", registry=handlers)(node)
    return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf without its writes, and watching only our own pods."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 600
    settings.watching.label_selectors["", "pods"] = convert.JOB_UID
    settings.queueing.idle_timeout = 0.5
    # Crash-only: when a watch has failed for good, kopf may take minutes to end; the process must not outlive it.
    settings.process.ultimate_exiting_timeout = 15
    return settings


async def resync(client: Client, store: Store) -> None:
    """List everything and make the store equal to it.

    Raises:
        ApiError, OSError: The API server doesn't answer; what was listed until then is kept.
    """
    # Only what was held before the lists were made can be missing from them because it is deleted.
    held = set(store.jobs), set(store.pods), set(store.nodes)
    (jobs, _), (pods, _), (nodes, _) = await asyncio.gather(
        client.list(JOBS), client.list(PODS, labelSelector=convert.JOB_UID), client.list(NODES)
    )
    for node in nodes:
        store.put_node(node)
    for pod in pods:
        store.put_pod(pod)
    for job in jobs:
        store.put_job(job)
    for uid in held[0] - {j["metadata"]["uid"] for j in jobs}:
        store.drop_job(uid)
    for uid in held[1] - {p["metadata"]["uid"] for p in pods}:
        store.lose_pod(uid)
    for name in held[2] - {n["metadata"]["name"] for n in nodes}:
        store.drop_node(name)


async def keep_synced(client: Client, store: Store, interval: float) -> None:
    """Heal the store every `interval` seconds, for ever: events get lost across kopf's relists."""
    while True:
        await asyncio.sleep(interval)
        try:
            await resync(client, store)
        except Exception as e:
            log.warning("resync failed, the next one may succeed: %s", e)


def _plain(raw: Any) -> dict[str, Any]:
    return dict(raw)
