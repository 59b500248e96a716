"""The process: settings, logs, one event loop in which everything runs; crash-only.

If any part ends, the process ends, and the kubelet starts it anew: all state is in the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Any

import kopf
import prometheus_client
from pythonjsonlogger.json import JsonFormatter

from gpubatch_operator import settings as config
from gpubatch_operator.kube import progress, watch
from gpubatch_operator.kube.client import Client
from gpubatch_operator.kube.events import Recorder
from gpubatch_operator.kube.store import Store
from gpubatch_operator.notify.notifier import Notifier
from gpubatch_operator.publisher import Publisher
from gpubatch_operator.reconciler import Reconciler

# Kopf would else ask for the user's name, and the user 65532 of a container has none.
IDENTITY: Any = "gpubatch-operator"

log = logging.getLogger("gpubatch_operator")


async def serve(settings: config.Settings) -> None:
    """Run until SIGTERM (kopf handles signals), or until a part fails."""
    client, store = await Client.connect(), Store(settings.slots_per_node)
    events = Recorder(client)
    try:
        # No plan before everything is known: a job whose pod wasn't seen yet would look lost.
        await watch.resync(client, store)
        log.info("synced: %d jobs, %d pods, %d nodes", len(store.jobs), len(store.pods), len(store.nodes))
        reconciler = Reconciler(client, store, settings, events)
        parts = {
            "watch": kopf.operator(
                registry=watch.registry(store),
                settings=watch.kopf_settings(),
                clusterwide=True,
                identity=IDENTITY,
                liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz" if settings.health_port else None,
            ),
            "sync": watch.keep_synced(client, store, settings.resync_seconds),
            "reconciler": reconciler.run(),
            "publisher": Publisher(client, store, reconciler).run(),
            "progress": progress.poll(store, settings.progress_seconds),
            "notifier": Notifier(client, store, settings, events).run(),
        }
        tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()
            if task.get_name() != "watch":  # kopf returns on a signal; nothing else ever returns
                raise RuntimeError(f"{task.get_name()} ended")
        log.info("stopped")
    finally:
        await client.close()


def setup_logs(form: str) -> None:
    """One handler for everything; kopf's own chatter only from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    text = "%(asctime)s %(levelname)s %(name)s %(message)s"
    fields = {"levelname": "level", "asctime": "time", "name": "logger"}
    handler.setFormatter(JsonFormatter(text, rename_fields=fields) if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # the kubelet's probes


def main() -> None:
    """Entry point of the image."""
    try:
        settings = config.load()
    except config.SettingsError as e:
        sys.exit(f"gpubatch-operator: {e}")
    setup_logs(settings.log_format)
    if settings.metrics_port:
        prometheus_client.start_http_server(settings.metrics_port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until kopf has handlers of its own
    try:
        asyncio.run(serve(settings))
    except Exception:
        log.exception("the operator stops; the kubelet starts it anew")
        sys.exit(1)


if __name__ == "__main__":
    main()
