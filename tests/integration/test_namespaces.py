"""A namespace that is deleted with all its jobs, whether an operator is there or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from gpubatch_operator.kube.client import ApiError
from support.api import JSON, Api, eventually, inference_job, template_job
from support.process import OperatorProcess
from support.story import inference_running, on, outcome, recorded

AddNode = Callable[..., Awaitable[str]]


async def gone(api: Api) -> bool:
    try:
        await api.client.get(f"/api/v1/namespaces/{api.namespace}")
    except ApiError as e:
        return e.status == 404
    return False


async def a_namespace_full_of_jobs(api: Api, add_node: AddNode) -> tuple[JSON, JSON]:
    """One that waits, one that is inspected, a template that runs and an inference that uploads; the pods of these."""
    nodes = [await add_node(), await add_node()]
    await api.create(template_job("runs", **on(nodes[0])))
    running = await api.bound("runs")
    await api.play_running(running)
    uploading = await inference_running(api, "uploads", **on(nodes[1]))
    await recorded(api, "runs")
    await recorded(api, "uploads")
    await api.create(template_job("waits", **on(nodes[0])))
    await api.phase("waits", "Queued")
    await api.create(inference_job("inspected", **on(nodes[0])))
    await api.pod_of("inspected", "inspect")
    assert not any(j["metadata"].get("finalizers") for j in (await api.jobs()).values())
    return running, uploading


async def ends(api: Api, pod: JSON, code: int, message: str = "") -> None:
    """What the kubelet does with a pod that is deleted: it waits for the containers, then lets the pod go."""
    await api.terminating(pod)
    if await api.pod(pod["metadata"]["name"]) is not None:
        await api.play_end(pod, code, message)
        await api.play_gone(pod)


async def test_a_deleted_namespace_is_gone_once_its_pods_have_ended(
    api: Api, kubeconfig: Path, tmp_path: Path, add_node: AddNode
) -> None:
    with OperatorProcess(kubeconfig, tmp_path / "log"):
        running, uploading = await a_namespace_full_of_jobs(api, add_node)
        await api.client.request("DELETE", f"/api/v1/namespaces/{api.namespace}")
        await asyncio.gather(
            ends(api, running, 143), ends(api, uploading, 0, outcome()), _inspections_end(api)
        )  # the upload came to its end within the grace period
        await eventually("the namespace to be gone", lambda: gone(api))


async def test_a_namespace_that_was_deleted_without_an_operator_is_gone_once_there_is_one(
    api: Api, kubeconfig: Path, tmp_path: Path, add_node: AddNode
) -> None:
    operator = OperatorProcess(kubeconfig, tmp_path / "log")
    with operator:
        running, uploading = await a_namespace_full_of_jobs(api, add_node)
        operator.kill()
        await api.client.request("DELETE", f"/api/v1/namespaces/{api.namespace}")
        await asyncio.gather(ends(api, running, 0), ends(api, uploading, 0, outcome()), _inspections_end(api))

        async def only_the_template_pod() -> bool:
            return [p["metadata"]["name"] for p in await api.pods()] == [running["metadata"]["name"]]

        await eventually("all but the pod whose outcome nobody has recorded to be gone", only_the_template_pod)
        operator.start()
        await eventually("the namespace to be gone", lambda: gone(api))


async def _inspections_end(api: Api) -> None:
    """Those that are bound nowhere are gone at once; there is no kubelet to end the others."""

    async def none() -> bool:
        inspections = [p for p in await api.pods() if p["metadata"]["labels"].get("gpubatch.dev/kind") == "inspect"]
        for pod in inspections:
            if "deletionTimestamp" in pod["metadata"]:
                await api.play_gone(pod)
        return not inspections

    await eventually("inspections to be gone", none)
