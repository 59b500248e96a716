"""The part of a kubelet that serves containers' logs, for nodes that are nothing but objects."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from gpubatch_operator.admission import certificates
from support.api import Api

ADDRESS = "127.0.0.1"


class ContainerLogs:
    """What containers have logged, by `POD/CONTAINER`."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        """As the API server asks a kubelet."""
        found = self.lines.get("{pod}/{container}".format(**request.match_info))
        return web.Response(text=found) if found is not None else web.Response(status=404, text="no such container")

    async def serve(self, api: Api, node: str) -> None:
        """Lets the API server know that this node's kubelet is here."""
        endpoint = {"kubeletEndpoint": {"Port": self.port}}
        status = {"addresses": [{"type": "InternalIP", "address": ADDRESS}], "daemonEndpoints": endpoint}
        await api.client.patch(f"/api/v1/nodes/{node}/status", {"status": status})


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[ContainerLogs]:
    """A kubelet's port, until the block ends."""
    pair, _ = certificates.make([ADDRESS], time.time(), 86400)
    (folder / "kubelet.crt").write_text(pair.certificate)
    (folder / "kubelet.key").write_text(pair.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "kubelet.crt", folder / "kubelet.key")
    logs = ContainerLogs()
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, ADDRESS, 0, ssl_context=context).start()
    logs.port = runner.addresses[0][1]
    try:
        yield logs
    finally:
        await runner.cleanup()
