"""Watching: the store is made equal to the cluster by lists, and kept so by watches.

Nodes come by kopf, whose handlers only record and never decide; no other kind of kopf's handlers is used, they would
write annotations or finalizers to each object. Jobs and pods come by the thousand: what kopf does with each event, for
handlers that we don't have, was more than a third of the operator's CPU time. Their watch is our own, and goes on
exactly where a list has ended. A list of everything now and then heals whatever is missed all the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import kopf

from gpubatch_operator.api.crd import GROUP, PLURAL, VERSION
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.client import Client
from gpubatch_operator.kube.following import Collection, relist
from gpubatch_operator.kube.store import Store

JSON = dict[str, Any]
JOBS = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"

log = logging.getLogger(__name__)


def nodes(store: Store) -> Collection:
    """All nodes."""

    def drop(raw: JSON) -> None:
        store.drop_node(raw["metadata"]["name"])

    return Collection(NODES, {}, "name", store.put_node, drop, store.drop_node, lambda: set(store.nodes))


def pods(store: Store, namespace: str = "") -> Collection:
    """The pods that carry our label, of one namespace or of all."""
    query = {"labelSelector": convert.JOB_UID}

    def held() -> set[str]:
        return {uid for uid, pod in store.pods.items() if namespace in ("", pod.namespace)}

    path = f"/api/v1/namespaces/{namespace}/pods" if namespace else PODS
    return Collection(path, query, "uid", store.put_pod, store.drop_pod, store.lose_pod, held)


def jobs(store: Store, namespace: str = "") -> Collection:
    """The jobs of one namespace, or all."""

    def drop(raw: JSON) -> None:
        store.drop_job(raw["metadata"]["uid"])

    def held() -> set[str]:
        return {uid for uid, job in store.jobs.items() if namespace in ("", job.namespace)}

    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}" if namespace else JOBS
    return Collection(path, {}, "uid", store.put_job, drop, store.drop_job, held)


def followed(store: Store) -> tuple[Collection, ...]:
    """What is watched by `follow`: pods before jobs."""
    namespaces = store.scope.namespaces or ("",)
    return *(pods(store, n) for n in namespaces), *(jobs(store, n) for n in namespaces)


def registry(store: Store) -> kopf.OperatorRegistry:
    """Kopf's handlers: each event of a node into the store."""
    handlers = kopf.OperatorRegistry()
    each = nodes(store)

    async def node(event: Any, **_: Any) -> None:
        (each.drop if event["type"] == "DELETED" else each.put)(event["object"])

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

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
    """Kopf without its writes and without what would only prepare them."""
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiff()
    settings.persistence.progress_storage = _NoProgress()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 600
    settings.queueing.idle_timeout = 0.5
    # Crash-only: when a watch has failed for good, kopf may take minutes to end; the process must not outlive it.
    settings.process.ultimate_exiting_timeout = 15
    return settings


async def resync(client: Client, store: Store) -> dict[str, str]:
    """List everything and make the store equal to it.

    Returns:
        The version of each list, by its path.

    Raises:
        ApiError, OSError: The API server doesn't answer; what was listed until then is kept.
    """
    began = time.monotonic()
    # Pods before jobs, and both before anything is decided: a job whose pod isn't known looks lost.
    versions = await relist(client, *((nodes(store),) if store.scope.nodes else ()), *followed(store))
    store.listed_at = began
    return versions


async def keep_synced(client: Client, store: Store, interval: float) -> None:
    """Heal the store every `interval` seconds, for ever."""
    while True:
        await asyncio.sleep(interval)
        try:
            await resync(client, store)
        except Exception as e:
            log.warning("resync failed, the next one may succeed: %s", e)
