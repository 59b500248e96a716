"""Watching: kopf brings events into the store; a list of our own at the start and now and then heals what it misses.

The handlers are async, only record, and never decide. No other kind of kopf's handlers is used: they would write
annotations or finalizers to each object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import kopf

from gpubatch_operator.api.crd import GROUP, PLURAL, VERSION
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.client import Client
from gpubatch_operator.kube.store import Store

JSON = dict[str, Any]
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


class _NoDiff(kopf.DiffBaseStorage):
    """Kopf compares nothing for us: what each version of an object was is neither kept nor built."""

    def build(self, **_: Any) -> Any:
        return None

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Our handlers have no progress that would have to be kept in the objects."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf without its writes and without what would only prepare them, and watching only our own pods."""
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiff()
    settings.persistence.progress_storage = _NoProgress()
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

    async def listed(path: str, put: Callable[[JSON], None], key: str, **query: str) -> set[str]:
        names: set[str] = set()
        async for page in client.pages(path, **query):  # and not all of ten thousand at once
            for raw in page:
                put(raw)
            names.update(raw["metadata"][key] for raw in page)
        return names

    # Pods before jobs, and both before anything is decided: a job whose pod isn't known looks lost.
    nodes = await listed(NODES, store.put_node, "name")
    pods = await listed(PODS, store.put_pod, "uid", labelSelector=convert.JOB_UID)
    jobs = await listed(JOBS, store.put_job, "uid")
    for uid in held[0] - jobs:
        store.drop_job(uid)
    for uid in held[1] - pods:
        store.lose_pod(uid)
    for name in held[2] - nodes:
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
