"""The process: settings, logs, one event loop in which everything runs; crash-only.

If any part ends, the process ends, and the kubelet starts it anew: it has no state of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import prometheus_client
import uvloop

from gpubatch_gateway import keys, kube, metrics, models, rereading, server
from gpubatch_gateway import settings as config
from gpubatch_gateway.audio.records import Records
from gpubatch_gateway.audio.transcriptions import Transcriptions
from gpubatch_gateway.auth import Gate
from gpubatch_gateway.batch.board import Board
from gpubatch_gateway.batch.creation import Creation, Known
from gpubatch_gateway.batch.routes import Routes
from gpubatch_gateway.batch.storage import Files
from gpubatch_gateway.batch.workers import Workers
from gpubatch_gateway.live import runners
from gpubatch_gateway.live.live_routes import LiveRoutes
from gpubatch_gateway.live.livekeys import LiveKeys
from gpubatch_gateway.live.lives import Lives
from gpubatch_gateway.live.routing import Router
from gpubatch_gateway.live.runners import Runners
from gpubatch_gateway.live.starting import Starting
from gpubatch_gateway.model_routes import ModelRoutes
from gpubatch_gateway.objects import Objects
from gpubatch_operator import health, logs, parts
from gpubatch_operator.kube import following
from gpubatch_operator.kube.client import Client
from gpubatch_operator.settings import SettingsError
from gpubatch_runner.environment import Environment

RESYNC_SECONDS = 300.0
MODELS_FILE = "models.yaml"

log = logging.getLogger("gpubatch_gateway")


class Mounted:
    """What administrators say in mounted objects, as it was read last."""

    def __init__(self) -> None:
        self.models, self.keys = models.Models({}), keys.Keys()

    def take_models(self, files: dict[str, str]) -> None:
        """The ConfigMap's files."""
        self.models = models.read(files.get(MODELS_FILE, ""))
        log.info("models: %s", ", ".join(sorted(self.models.templates)) or "none")

    def take_keys(self, files: dict[str, str]) -> None:
        """The Secret's files."""
        self.keys = keys.read(files)
        log.info("API keys: %d", len(self.keys))


async def serve(settings: config.Settings) -> None:
    """Run until SIGTERM, or until a part fails."""
    client, reviews = await Client.connect(), await Client.connect()
    objects = Objects(settings, Environment.load())
    board, lives, files, mounted = Board(), Lives(), Files(objects), Mounted()
    records = Records(objects, settings.transcription_ttl_seconds)
    watched = settings.namespaces_watched()
    workers = Workers(time.time()) if settings.read_nodes else None
    synced = asyncio.Event()
    gate = Gate(reviews.review, lambda: mounted.keys, watched)
    creation = Creation(client, board, files, lambda: mounted.models, workers, settings)
    known = Known(client, board)
    routes = Routes(gate, files, board, known, creation, settings)
    live_keys = LiveKeys(client, settings.namespace, settings.live_secret_name)
    starting = Starting(client, lives, lambda: mounted.models, settings.live_idle_seconds)
    followed = [kube.jobs(board, lives, n) for n in watched or ("",)]
    if workers is not None:
        followed.append(kube.nodes(workers))

    async def see() -> None:
        versions = await following.relist(client, *followed)
        log.info("synced: %d batches, %d live jobs", len(board), len(lives.held()))
        synced.set()
        watches = {f"watch of {c.path}": following.follow(client, c, versions[c.path]) for c in followed}
        await parts.run({**watches, "resync": resync()})

    async def resync() -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                await following.relist(client, *followed)
            except Exception as e:
                log.warning("resync failed, the next one may succeed: %s", e)

    async def look() -> None:
        while True:
            metrics.BATCHES.set(len(board))
            if workers is not None:
                workers.look(time.time())
            await asyncio.sleep(1.0)

    async def sweep() -> None:
        while True:
            try:
                await files.sweep(settings.unfinished_seconds)
                await records.sweep(settings.unfinished_seconds)
            except Exception as e:
                log.warning("remainders of uploads and old transcriptions can't be looked for: %s", e)
            await asyncio.sleep(settings.sweep_seconds)

    async def http() -> None:
        await synced.wait()
        async with runners.connections(settings.live_request_seconds) as connections:
            asked = Runners(connections, live_keys)
            router = Router(lives, asked, starting, settings.live_max_waiting)
            transcriptions = Transcriptions(gate, router, starting, lives, records, settings)
            endpoints = (
                routes,
                LiveRoutes(gate, router, asked, lives, settings),
                transcriptions,
                ModelRoutes(gate, lambda: mounted.models, lives),
            )
            app = server.application(endpoints, settings.request_seconds)
            async with server.listening(app, None, settings.port) as port:
                log.info("the gateway is served at port %d", port)
                await transcriptions.work()

    running: dict[str, Coroutine[Any, Any, None]] = {
        "http": http(),  # first, so that at the end requests under way are answered
        "signal": signalled(),
        "models": rereading.follow(Path(settings.models_folder), mounted.take_models),
        "keys": rereading.follow(Path(settings.keys_folder), mounted.take_keys),
        "jobs": see(),
        "look": look(),
        "sweep": sweep(),
    }
    if settings.health_port:
        why = "the first list of jobs isn't complete"
        running["health"] = health.serve(settings.health_port, lambda: "" if synced.is_set() else why)
    try:
        await parts.run(running, may_end=frozenset({"signal"}))
        log.info("stopped")
    finally:
        for each in (client, reviews):
            await each.close()


async def signalled() -> None:
    """Wait for SIGTERM or SIGINT."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()


def main() -> None:
    """Entry point of the image."""
    try:
        settings = config.load()
    except SettingsError as e:
        sys.exit(f"gpubatch-gateway: {e}")
    logs.setup(settings.log_format)
    if settings.metrics_port:
        prometheus_client.start_http_server(settings.metrics_port, registry=metrics.REGISTRY)
    try:
        uvloop.run(serve(settings))
    except Exception:
        log.exception("the gateway stops; the kubelet starts it anew")
        sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
