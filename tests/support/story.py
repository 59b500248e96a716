"""What tests tell of jobs: where they run, what their runners say, whom they call at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from gpubatch_runner.contract import SPEC_ENV
from support.api import JSON, Api, eventually, inference_job

VALID = json.dumps({"valid": True, "requests": 10, "inputTokens": 100})


def on(node: str) -> JSON:
    """Keep a job on one node."""
    return {"nodeSelector": {"kubernetes.io/hostname": node}}


NOWHERE = {"nodeSelector": {"no": "such-node"}}
"""Keep a job waiting."""


def outcome(reason: str | None = None, completed: int = 10) -> str:
    """The runner's last words: it did it, or why not."""
    files = {"output": "s3://bucket/out.jsonl", "errors": "s3://bucket/errors.jsonl"}
    counts = {"total": 10, "completed": completed, "failed": 10 - completed}
    return json.dumps({"succeeded": reason is None, "reason": reason, "message": "so it says", **counts, **files})


async def validated(api: Api, name: str, verdict: str = VALID) -> None:
    """Play the inspection of a job's input."""
    await api.play_end(await api.pod_of(name, "inspect"), message=verdict)


async def inference_running(api: Api, name: str, **spec: Any) -> JSON:
    """Create an inference job and bring it to where its runner works; its pod."""
    await api.create(inference_job(name, **spec))
    await validated(api, name)
    pod = await api.bound(name)
    await api.play_running(pod)
    return pod


async def recorded(api: Api, name: str) -> None:
    """Wait until the operator has written down that it saw the pod of the newest attempt."""

    async def there() -> bool:
        attempts = (await api.job(name))["status"].get("attempts") or [{}]
        return "podUid" in attempts[-1]

    await eventually(f"the pod of {name} to be recorded", there)


def run_spec(pod: JSON) -> JSON:
    """What the runner of a pod is told."""
    env = {e["name"]: e.get("value") for e in pod["spec"]["containers"][0]["env"]}
    spec: JSON = json.loads(env[SPEC_ENV])
    return spec


def condition(job: JSON, kind: str) -> JSON:
    """One condition of a job."""
    [found] = [c for c in job["status"]["conditions"] if c["type"] == kind]
    return found


def states(job: JSON) -> list[str]:
    """How its attempts are."""
    return [a["state"] for a in job["status"].get("attempts", [])]


async def drained(api: Api, pod: JSON) -> None:
    """Ask for a pod's eviction, as `kubectl drain` does."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    await api.client.create(f"{api.pods_path}/{name}/eviction", eviction)


@asynccontextmanager
async def receiver(port: int) -> AsyncIterator[list[JSON]]:
    """Takes webhooks on this port of the machine, and what came."""
    bodies: list[JSON] = []

    async def take(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield bodies
    finally:
        await runner.cleanup()
