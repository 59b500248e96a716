"""Jobs, nodes and pods through the API server, and waiting for what should become true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from gpubatch_operator.api.crd import API_VERSION, KIND, PLURAL
from gpubatch_operator.kube.client import MERGE_PATCH, ApiError, Client

JSON = dict[str, Any]
PATIENCE = 60.0  # of a wait; only a broken promise takes so long


async def eventually(what: str, check: Callable[[], Awaitable[Any]], patience: float = PATIENCE) -> Any:
    """The first true answer of `check`; an API server that doesn't answer is asked again.

    Raises:
        AssertionError: There was none for `patience` seconds.
    """
    end = time.monotonic() + patience
    while True:
        try:
            if answer := await check():
                return answer
        except ApiError as e:
            if e.status != 0:
                raise
        assert time.monotonic() < end, f"waited {patience:.0f} s in vain: {what}"
        await asyncio.sleep(0.05)


async def at_rest(look: Callable[[], Awaitable[Any]]) -> Any:
    """What `look` says, once it has said the same for two seconds."""
    last: list[Any] = [await look()]

    async def same() -> bool:
        await asyncio.sleep(2)
        last.append(await look())
        return bool(last[-1] == last[-2])

    await eventually("everything to come to rest", same)
    return last[-1]


def template_job(name: str, **spec: Any) -> JSON:
    """A job with the least template that the CRD takes."""
    pod = {"containers": [{"name": "main", "image": "gpubatch.dev/test", "command": ["true"]}]}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {"template": {"spec": pod}, **spec},
    }


def inference_job(name: str, **spec: Any) -> JSON:
    """A job with the least inference that the CRD takes."""
    work = {"model": "m", "input": {"url": "s3://bucket/in.jsonl"}, "output": {"url": "s3://bucket/out.jsonl"}}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": {"inference": work, **spec}}


class Api:
    """One namespace of a cluster, as a test needs it."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self.jobs_path = f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}"
        self.pods_path = f"/api/v1/namespaces/{namespace}/pods"

    # --- jobs

    async def create(self, job: JSON) -> JSON:
        return await self.client.create(self.jobs_path, job)

    async def job(self, name: str) -> JSON:
        return await self.client.get(f"{self.jobs_path}/{name}")

    async def edit(self, name: str, **spec: Any) -> JSON:
        """Change fields of a job's spec; None removes one."""
        return await self.client.patch(f"{self.jobs_path}/{name}", {"spec": spec})

    async def delete(self, name: str) -> None:
        await self.client.request("DELETE", f"{self.jobs_path}/{name}")

    async def jobs(self) -> dict[str, JSON]:
        items, _ = await self.client.list(self.jobs_path)
        return {i["metadata"]["name"]: i for i in items}

    async def phase(self, name: str, *phases: str, patience: float = PATIENCE) -> JSON:
        """Wait until the job is in one of the phases; the job then."""

        async def there() -> JSON | None:
            job = await self.job(name)
            return job if job.get("status", {}).get("phase") in phases else None

        try:
            found: JSON = await eventually(f"{name} to be {' or '.join(phases)}", there, patience)
        except AssertionError as e:
            job = await self.job(name)
            raise AssertionError(f"{e}; its status is {json.dumps(job.get('status'), indent=1)}") from None
        return found

    async def pending(self, name: str, reason: str) -> JSON:
        """Wait until the job says that it waits for this reason; all that it says of it."""

        async def there() -> JSON | None:
            found = (await self.job(name)).get("status", {}).get("pending") or {}
            return found if found.get("reason") == reason else None

        try:
            found: JSON = await eventually(f"{name} to wait for {reason}", there)
        except AssertionError as e:
            raise AssertionError(f"{e}; it is {json.dumps(await self.job(name), indent=1)}") from None
        return found

    async def positions(self, *names: str) -> None:
        """Wait until these jobs have the positions 1, 2, 3..."""

        async def there() -> bool:
            jobs = await self.jobs()
            found = [jobs[n].get("status", {}).get("queuePosition") for n in names]
            return found == list(range(1, len(names) + 1))

        await eventually(f"the queue to be {names}", there)

    async def gone(self, name: str) -> None:
        """Wait until the job is deleted."""

        async def there() -> bool:
            return name not in await self.jobs()

        await eventually(f"{name} to be gone", there)

    async def events(self) -> list[JSON]:
        """The operator's Events about jobs."""
        found, _ = await self.client.list(f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events")
        return [e for e in found if e.get("reportingController") == "gpubatch.dev/operator"]

    # --- pods

    async def pod(self, name: str) -> JSON | None:
        """A pod as it is now, None if there is none."""
        return next((p for p in await self.pods() if p["metadata"]["name"] == name), None)

    async def terminating(self, pod: JSON) -> None:
        """Wait until somebody has asked for the deletion of this very pod."""

        async def there() -> bool:
            now = await self.pod(pod["metadata"]["name"])
            return (
                now is None
                or now["metadata"]["uid"] != pod["metadata"]["uid"]
                or "deletionTimestamp" in now["metadata"]
            )

        await eventually(f"{pod['metadata']['name']} to be deleted", there)

    async def pods(self) -> list[JSON]:
        items, _ = await self.client.list(self.pods_path)
        return items

    async def pod_of(self, job: str, kind: str = "run") -> JSON:
        """The job's pod that lives; waits for it."""

        async def there() -> JSON | None:
            uid = (await self.job(job))["metadata"]["uid"]
            return next(
                (
                    p
                    for p in await self.pods()
                    if p["metadata"].get("labels", {}).get("gpubatch.dev/job-uid") == uid
                    and p["metadata"]["labels"]["gpubatch.dev/kind"] == kind
                    and "deletionTimestamp" not in p["metadata"]
                    and p["status"].get("phase") in ("Pending", "Running")
                ),
                None,
            )

        pod: JSON = await eventually(f"a {kind} pod of {job}", there)
        return pod

    async def bound(self, job: str) -> JSON:
        """The job's runner pod, once kube-scheduler has bound it."""

        async def there() -> JSON | None:
            pod = await self.pod_of(job)
            return pod if pod["spec"].get("nodeName") else None

        pod: JSON = await eventually(f"the pod of {job} to be bound", there)
        return pod

    # --- a kubelet, played by hand

    async def play(self, pod: JSON, phase: str, state: JSON, engine: JSON | None = None) -> None:
        """Report the state of a pod's main container (and of the engine) as the kubelet would."""
        name = pod["spec"]["containers"][0]["name"]
        main = {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        status: JSON = {"phase": phase, "containerStatuses": [main | {"started": "running" in state}]}
        if engine is not None:
            status["initContainerStatuses"] = [
                {"name": "engine", "image": "i", "imageID": "", "ready": False, "restartCount": 0, **engine}
            ]
        await self.client.patch(f"{self.pods_path}/{pod['metadata']['name']}/status", {"status": status})

    async def play_running(self, pod: JSON) -> None:
        """Its main container runs."""
        await self.play(pod, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})

    async def play_end(self, pod: JSON, code: int = 0, message: str = "", phase: str = "") -> None:
        """Its main container has ended with this termination message."""
        ended = {"exitCode": code, "message": message, "reason": "Completed" if code == 0 else "Error"}
        await self.play(pod, phase or ("Failed" if code else "Succeeded"), {"terminated": ended})

    async def play_gone(self, pod: JSON) -> None:
        """It vanishes, as with its node."""
        path = f"{self.pods_path}/{pod['metadata']['name']}"
        try:
            await self.client.request("DELETE", path, {"gracePeriodSeconds": 0})
        except ApiError as e:
            if e.status != 404:
                raise


@asynccontextmanager
async def namespace(client: Client, name: str) -> AsyncIterator[Api]:
    """A namespace that jobs can be created in; at the end it goes with all that is in it."""
    await client.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"

    async def ready() -> bool:
        try:
            await client.get(account)
        except ApiError:
            return False
        return True

    await eventually("the namespace's service account", ready)
    api = Api(client, name)
    yield api
    await client.request("DELETE", api.jobs_path)  # before the namespace, whose controller takes its time
    # No kubelet ends pods here.
    items, _ = await client.list(f"/api/v1/namespaces/{name}/pods")
    for pod in items:
        path = f"/api/v1/namespaces/{name}/pods/{pod['metadata']['name']}"
        for method, body in (("PATCH", {"metadata": {"finalizers": None}}), ("DELETE", {"gracePeriodSeconds": 0})):
            with contextlib.suppress(ApiError):  # gone with its last finalizer
                await client.request(method, path, body, content_type=MERGE_PATCH)
    with contextlib.suppress(ApiError):  # the test has deleted it
        await client.request("DELETE", f"/api/v1/namespaces/{name}")
