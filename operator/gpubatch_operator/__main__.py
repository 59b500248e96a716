"""The process: settings, logs, one event loop in which everything runs; crash-only.

If any part ends, the process ends, and the kubelet starts it anew: all state is in the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import kopf
import prometheus_client
import uvloop

from gpubatch_operator import garbage, health, logs, observe, parts
from gpubatch_operator import settings as config
from gpubatch_operator.admission.assembly import assemble
from gpubatch_operator.core.election import Terms
from gpubatch_operator.kube import following, progress, watch
from gpubatch_operator.kube.client import Client
from gpubatch_operator.kube.events import Recorder
from gpubatch_operator.kube.lease import Elector, random_name
from gpubatch_operator.kube.livekeys import LiveKeys
from gpubatch_operator.kube.store import Scope, Store
from gpubatch_operator.leadership import follow_then_lead
from gpubatch_operator.notify.notifier import Notifier
from gpubatch_operator.publisher import Publisher
from gpubatch_operator.reconciler import Reconciler
from gpubatch_operator.web import serving as web

# Kopf would else ask for the user's name, and the user 65532 of a container has none.
IDENTITY: Any = "gpubatch-operator"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
FIRST_TRY_SECONDS = 1.0

log = logging.getLogger("gpubatch_operator")


async def serve(settings: config.Settings) -> None:
    """Run until SIGTERM, or until a part fails."""
    instance, namespace = settings.instance or "gpubatch", settings.namespace or own_namespace()
    terms = Terms(settings.lease_duration_seconds, settings.lease_renew_seconds, settings.lease_retry_seconds)
    elector = Elector(await Client.connect(), namespace, instance, settings.replica or random_name(), terms)
    client, leaders_client = await Client.connect(), await Client.connect(before_write=elector.check)
    scope = Scope(settings.namespaces_watched(), settings.read_nodes)
    store = Store(settings.slots_per_node, settings.queue_limits(), scope)
    synced, watching, serving, signalled = (asyncio.Event() for _ in range(4))

    def decide() -> dict[str, Coroutine[Any, Any, None]]:
        events = Recorder(leaders_client)
        observe.read_from(store)
        keys = LiveKeys(leaders_client, namespace, f"{instance}-live")
        reconciler = Reconciler(leaders_client, store, settings, events, keys)
        return {
            "reconciler": reconciler.run(),
            "publisher": Publisher(leaders_client, store, reconciler).run(),
            "progress": progress.poll(store, settings.progress_seconds, settings.unresponsive_seconds),
            "notifier": Notifier(leaders_client, store, settings, events).run(),
        }

    async def see() -> None:
        await kopf.operator(
            registry=watch.registry(store),
            settings=watch.kopf_settings(),
            clusterwide=True,
            identity=IDENTITY,
            ready_flag=watching,
        )
        signalled.set()  # a signal came while kopf's handlers were in the place of ours: it ends for nothing else
        await asyncio.Event().wait()

    async def keep() -> None:
        with contextlib.suppress(TimeoutError):  # who leads from the start lists everything once, and not twice
            async with asyncio.timeout(FIRST_TRY_SECONDS):
                await elector.tried.wait()
        versions = await watch.resync(client, store)
        log.info("synced: %d jobs, %d pods, %d nodes", len(store.jobs), len(store.pods), len(store.nodes))
        garbage.settle()
        synced.set()
        webhook = assemble(client, store, settings, instance, namespace, serving) if settings.admission_port else {}
        http = {}
        if settings.http_port or settings.loopback_port:
            leads, led = (lambda: elector.leads), (lambda: elector.led)
            place = web.Place(instance, namespace, leads, led, elector.check, why_not_ready)
            http["http"] = web.serve(store, settings, place)
        followed = {f"watch of {c.path}": following.follow(client, c, versions[c.path]) for c in watch.followed(store)}
        sync = watch.keep_synced(client, store, settings.resync_seconds)
        of_nodes = {"watch of nodes": see()} if scope.nodes else {}
        await parts.run({**webhook, **http, **followed, **of_nodes, "sync": sync, "garbage": garbage.keep()})

    def why_not_ready() -> str:
        if not synced.is_set():
            return "the first list of jobs, pods and nodes isn't complete"
        return "the webhook isn't served yet" if settings.admission_port and not serving.is_set() else ""

    running = {
        # First, so that at the end the lease is released at once.
        "leadership": follow_then_lead(elector, client, store, synced, decide),
        "signal": until_signalled(signalled, watching),
        "store": keep(),
    }
    if settings.health_port:
        running["health"] = health.serve(settings.health_port, why_not_ready)
    try:
        await parts.run(running, may_end=frozenset({"signal"}))
        log.info("stopped")
    finally:
        for each in (client, leaders_client, elector):
            await each.close()


async def until_signalled(signalled: asyncio.Event, watching: asyncio.Event) -> None:
    """Wait for SIGTERM or SIGINT.

    Kopf puts its own handlers in the place of these when it starts, and takes five seconds to stop: ours go back then,
    so that the lease is released first.
    """
    loop = asyncio.get_running_loop()

    def handle() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled.set)

    handle()
    starting = asyncio.create_task(watching.wait())
    await asyncio.wait({starting, stop := asyncio.create_task(signalled.wait())}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.1)
    handle()
    await stop


def own_namespace() -> str:
    """The pod's own; `default` outside a cluster."""
    try:
        return NAMESPACE_FILE.read_text().strip()
    except OSError:
        return "default"


def main() -> None:
    """Entry point of the image."""
    try:
        settings = config.load()
    except config.SettingsError as e:
        sys.exit(f"gpubatch-operator: {e}")
    logs.setup(settings.log_format)
    if settings.metrics_port:
        prometheus_client.start_http_server(settings.metrics_port)
    try:
        uvloop.run(serve(settings))
    except Exception:
        log.exception("the operator stops; the kubelet starts it anew")
        sys.exit(1)


if __name__ == "__main__":
    main()
