"""The ceiling: a loop that does for each job what any operator with these locks must do, and nothing else.

The attempt is written to status, the pod is created with node affinity, anti-affinity and GPU, Running and Succeeded
are written; driven by one watch. It plans nothing, survives nothing, has no finalizers, positions or Events.

    python -m queuebench.bare KUBECONFIG NODES JOBS SECONDS
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp

JSON = dict[str, Any]
JOBS = "/apis/lab.gpubatch.dev/v1/namespaces/bench/barejobs"
PODS = "/api/v1/namespaces/bench/pods"
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "barejobs.lab.gpubatch.dev"},
    "spec": {
        "group": "lab.gpubatch.dev",
        "scope": "Namespaced",
        "names": {"plural": "barejobs", "singular": "barejob", "kind": "BareJob"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def pod(job: str, node: str, seconds: float) -> JSON:
    """A runner pod with the locks of the real one."""
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    here = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    alone = {
        "topologyKey": "kubernetes.io/hostname",
        "namespaceSelector": {},
        "labelSelector": {"matchLabels": {"gpubatch.dev/slot": "0"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{job}-1",
            "labels": {"gpubatch.dev/slot": "0"},
            "annotations": {"bench/duration": f"{seconds}s"},
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "bench", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
            "affinity": {
                "nodeAffinity": {required: {"nodeSelectorTerms": [here]}},
                "podAntiAffinity": {required: [alone]},
            },
        },
    }


class Loop:
    """One run over `count` jobs on `nodes` nodes."""

    def __init__(self, session: aiohttp.ClientSession, nodes: int, count: int, seconds: float) -> None:
        self._session, self._nodes, self._seconds = session, nodes, seconds
        self._jobs = [f"job-{i:05d}" for i in range(count)]
        self._queue = self._jobs[::-1]
        self._phase: dict[str, str] = {}
        self._left = count
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, method: str, path: str, body: JSON, kind: str = "application/json") -> JSON:
        """One request; any refusal ends the run."""
        headers = {"Content-Type": kind}
        async with self._session.request(method, path, data=json.dumps(body), headers=headers) as response:
            answer: JSON = await response.json()
            if response.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.get('message')}")
            return answer

    async def prepare(self) -> str:
        """Create all jobs; the version to watch pods from."""
        await self.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", CRD)
        await asyncio.sleep(5)  # until the new kind is served
        gate = asyncio.Semaphore(50)

        async def create(name: str) -> None:
            async with gate:
                body = {"apiVersion": "lab.gpubatch.dev/v1", "kind": "BareJob", "metadata": {"name": name}, "spec": {}}
                await self.call("POST", JOBS, body)

        await asyncio.gather(*map(create, self._jobs))
        async with self._session.get(PODS, params={"limit": "1"}) as response:
            return str((await response.json())["metadata"]["resourceVersion"])

    async def run(self, version: str) -> None:
        """All jobs, from the first to the last."""
        for i in range(self._nodes):
            self._spawn(self._start(f"gpu-{i:04d}"))
        while self._left:  # the API server cuts a watch off that is too slow for a burst
            async with self._session.get(PODS, params={"watch": "1", "resourceVersion": version}) as response:
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for item in (json.loads(line)["object"] for line in lines):
                        version = item["metadata"]["resourceVersion"]
                        self._see(item)
                    if not self._left:
                        break
        await asyncio.gather(*self._tasks)

    def _see(self, item: JSON) -> None:
        name, phase = item["metadata"]["name"].removesuffix("-1"), item["status"].get("phase")
        if phase == self._phase.get(name) or phase not in ("Running", "Succeeded"):
            return
        self._phase[name] = phase
        if phase == "Succeeded":
            self._left -= 1
            self._spawn(self._start(item["spec"]["nodeName"]))
        self._spawn(self._write(name, phase))

    async def _start(self, node: str) -> None:
        if not self._queue:
            return
        name = self._queue.pop()
        await self._write(name, "Starting", node=node, attempt=1)
        await self.call("POST", PODS, pod(name, node, self._seconds))

    async def _write(self, name: str, phase: str, **more: Any) -> None:
        patch = {"status": {"phase": phase, **more}}
        await self.call("PATCH", f"{JOBS}/{name}/status", patch, "application/merge-patch+json")

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if error := task.exception():
            raise SystemExit(f"bare loop: {error}")


async def main(config: JSON, nodes: int, count: int, seconds: float) -> None:
    """Say `ready` once all jobs are there, begin at SIGUSR1, say `done` at the end and wait to be killed."""
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    headers = {"Authorization": f"Bearer {user['token']}"}
    connector = aiohttp.TCPConnector(ssl=context, limit=200)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        base_url=cluster["server"], headers=headers, connector=connector, timeout=timeout
    ) as session:
        loop = Loop(session, nodes, count, seconds)
        version = await loop.prepare()
        begin = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, begin.set)
        print("ready", flush=True)
        await begin.wait()
        await loop.run(version)
        print("done", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
