"""Pods of live jobs as a kubelet would run them: each is the runner as a process, at an address of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from support.api import JSON, Api, eventually
from support.forge import ROOT
from support.story import run_spec
from unit.runner.fake_engine import FakeEngine

RUNNER = """
import sys
from functools import partial
from gpubatch_runner import live
from gpubatch_runner.server import serving
live.serving = partial(serving, host=sys.argv.pop(1))
from gpubatch_runner.__main__ import main
sys.exit(main())
"""


class LivePod:
    """One pod.

    Args:
        api: Where it is.
        pod: The object.
        engine: Of its engine.
        folder: Its volumes.
        address: Its own.
    """

    def __init__(self, api: Api, pod: JSON, engine: str, folder: Path, address: str) -> None:
        self.api, self.pod, self.address = api, pod, address
        self.name = str(pod["metadata"]["name"])
        self._engine, self._folder = engine, folder / self.name
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """It runs, and has its address."""
        self._folder.mkdir()
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "runner"),
            "GPUBATCH_RUN": json.dumps(run_spec(self.pod) | {"engineUrl": self._engine}),
            "GPUBATCH_JOURNAL_DIR": str(self._folder / "journal"),
            "GPUBATCH_POD_DIR": str(self._folder / "pod"),
            "GPUBATCH_TERMINATION_LOG": str(self._folder / "termination-log"),
        }
        with (self._folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", RUNNER, self.address, "run", env=env, stdout=log, stderr=log
            )
        await self.api.play_running(self.pod)
        status = {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        await self.api.client.patch(f"{self.api.pods_path}/{self.name}/status", {"status": status})

    async def end(self) -> None:
        """It ends by itself; its last words are in the pod's status."""
        assert self._process is not None
        await self._process.wait()
        await self.api.play_end(self.pod, message=(self._folder / "termination-log").read_text())

    async def kill(self) -> None:
        """Its process is gone at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def vanish(self) -> None:
        """The same with all of its node."""
        await self.kill()
        await self.api.play_gone(self.pod)


class Kubelet:
    """Runs the pods of a namespace's live jobs, as they come.

    Args:
        api: The namespace.
        engine: Of all pods.
        folder: For their volumes.
    """

    def __init__(self, api: Api, engine: str, folder: Path) -> None:
        self._api, self._engine, self._folder = api, engine, folder
        self._addresses = (f"127.40.{zlib.crc32(api.namespace.encode()) % 250}.{n}" for n in itertools.count(1))
        self.pods: list[LivePod] = []

    async def next(self, job: str) -> LivePod:
        """The next pod of a job, which runs."""

        async def there() -> JSON | None:
            pod = await self._api.bound(job)
            return None if pod["metadata"]["name"] in {each.name for each in self.pods} else pod

        pod = await eventually(f"the next pod of {job}", there)
        found = LivePod(self._api, pod, self._engine, self._folder, next(self._addresses))
        self.pods.append(found)
        await found.start()
        return found


@asynccontextmanager
async def kubelet(api: Api, engine: str, folder: Path) -> AsyncIterator[Kubelet]:
    """One whose pods end with the context."""
    found = Kubelet(api, engine, folder)
    try:
        yield found
    finally:
        for pod in found.pods:
            await pod.kill()


class Streaming(FakeEngine):
    """Streams, where it is asked to, as many parts as the prompt says; behind each it waits for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Semaphore(0)
        self.gone = asyncio.Event()

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            return await super()._post(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for n in range(int(body["messages"][0]["content"])):
                choice = {"index": 0, "delta": {"content": f"{n} "}, "finish_reason": None}
                chunk = {
                    "id": "c",
                    "object": "chat.completion.chunk",
                    "created": 1,
                    "model": "tiny",
                    "choices": [choice],
                }
                await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                await self.go.acquire()
            await response.write(b"data: [DONE]\n\n")
        except asyncio.CancelledError:
            self.gone.set()
            raise
        return response
