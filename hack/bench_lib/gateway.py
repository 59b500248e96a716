"""The gateway as a process of its own, its files in a folder, and its API server, which another process plays."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from bench_lib import runs

JSON = dict[str, Any]
NAMESPACE = "search"
SECRET = b"b" * 32  # from which the keys of live jobs follow


@dataclass(frozen=True)
class Gateway:
    """Where it is; `asked` counts the requests for a job that its API server has got."""

    port: int
    pid: int
    asked: Any


@contextmanager
def gateway(jobs: list[JSON], **settings: str | int) -> Iterator[Gateway]:
    """A gateway that knows of these jobs."""
    asked = multiprocessing.Value("i", 0)
    api, port = runs.free_port(), runs.free_port()
    server = multiprocessing.Process(target=api_server, args=(api, jobs, asked), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "kubeconfig")
        cluster = {"name": "a", "cluster": {"server": f"http://127.0.0.1:{api}"}}
        context = {"name": "a", "context": {"cluster": "a", "user": "a"}}
        user = {"name": "a", "user": {"token": "x"}}
        config.write_text(
            json.dumps({"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "a"})
        )
        Path(folder, "claims", "files").mkdir(parents=True)
        chosen = {
            "STORAGE_URL": "pvc://files/x",
            "NAMESPACE": NAMESPACE,
            "PORT": port,
            "HEALTH_PORT": 0,
            "METRICS_PORT": 0,
            "LOG_FORMAT": "text",
            **settings,
        }
        env = {
            **os.environ,
            "KUBECONFIG": str(config),
            "PYTHONPATH": f"{runs.REPOSITORY / 'operator'}:{runs.REPOSITORY / 'runner'}",
            "GPUBATCH_CLAIMS_DIR": str(Path(folder, "claims")),
            **{f"GPUBATCH_GATEWAY_{key}": str(value) for key, value in chosen.items()},
        }
        pid = os.spawnve(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "gpubatch_gateway"], env)
        try:
            asyncio.run(served(port))
            yield Gateway(port, pid, asked)
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            server.kill()


def api_server(port: int, jobs: list[JSON], asked: Any) -> None:
    """Lists the jobs, watches in silence, allows everything; `asked` counts each request for a job."""
    count = len(jobs)

    async def review(request: web.Request) -> web.Response:
        spec = (await request.json())["spec"]
        user = {"username": f"system:serviceaccount:{NAMESPACE}:app"}
        return web.json_response({"status": {"authenticated": "token" in spec, "user": user, "allowed": True}})

    async def read(request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            answer = web.StreamResponse()
            await answer.prepare(request)
            await asyncio.sleep(3600)
            return answer
        if request.path.endswith("/gpubatchjobs"):
            start, size = int(request.query.get("continue", "0")), int(request.query["limit"])
            more = {"continue": str(start + size)} if start + size < count else {}
            page = {"metadata": {"resourceVersion": str(count), **more}, "items": jobs[start : start + size]}
            return web.json_response(page)
        if "/secrets/" in request.path:
            return web.json_response({"data": {"key": base64.b64encode(SECRET).decode()}})
        if request.path.endswith("/nodes"):
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        asked.value += 1
        return web.json_response({"reason": "NotFound"}, status=404)

    app = web.Application()
    app.router.add_post("/apis/{rest:.*}", review)
    app.router.add_get("/{rest:.*}", read)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


async def served(port: int) -> None:
    """Wait for it."""
    async with aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(f"http://127.0.0.1:{port}/v1/none"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
