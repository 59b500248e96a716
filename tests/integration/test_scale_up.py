"""Nodes that don't exist yet, and waiting that raises the priority: what an administrator turns on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.api import JSON, Api, eventually, template_job
from support.process import OperatorProcess
from support.story import on, states

AddNode = Callable[..., Awaitable[str]]

SETTINGS: dict[str, Any] = {
    "scale_up_pods": 1,
    "scale_up_seconds": 6,
    "aging_step": 1,
    "aging_interval_seconds": 3600,
    "aging_cap": 1,
}


@pytest.fixture(scope="module", autouse=True)
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all of these tests."""
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("scale-up") / "operator.log", **SETTINGS) as process:
        yield process


async def unschedulable(api: Api, job: str) -> JSON:
    """The job's pod, once kube-scheduler has told autoscalers that a node is missing."""

    async def there() -> JSON | None:
        pod = await api.pod_of(job)
        scheduled = [c for c in pod["status"].get("conditions", []) if c["type"] == "PodScheduled"]
        return pod if scheduled and scheduled[0].get("reason") == "Unschedulable" else None

    pod: JSON = await eventually(f"the pod of {job} to be unschedulable", there)
    return pod


async def test_a_node_comes_for_the_first_job_that_fits_none_and_takes_the_next_one_too(
    api: Api, add_node: AddNode
) -> None:
    pool = {"nodeSelector": {"pool": api.namespace}}
    for name in ("first", "second"):
        await api.create(template_job(name, **pool))
    pod = await unschedulable(api, "first")
    waits = await api.pending("first", "ScalingUp")
    assert "autoscaler" in waits["nextStep"]
    assert (await api.job("second"))["status"]["phase"] == "Queued"
    assert len(await api.pods()) == 1  # one node is enough to ask for
    tolerated = {t.get("key") for t in pod["spec"]["tolerations"]}
    assert "nvidia.com/gpu" in tolerated
    notes = pod["metadata"]["annotations"]
    assert notes["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert notes["karpenter.sh/do-not-disrupt"] == "true"
    # That is what makes the autoscaler act, and only now is there a node.
    node = await add_node(labels=pool["nodeSelector"])
    bound = await api.bound("first")
    assert bound["metadata"]["uid"] == pod["metadata"]["uid"]
    assert bound["spec"]["nodeName"] == node
    await api.play_running(bound)
    running = await api.phase("first", "Running")
    assert running["status"]["nodeName"] == node
    assert running["status"]["attempts"][0]["node"] == node
    assert "pending" not in running["status"]
    assert len(await api.pods()) == 1  # the second waits for the slot: its pod would share the node
    await api.pending("second", "NodesBusy")
    await api.play_end(bound)
    second = await api.bound("second")
    assert second["spec"]["nodeName"] == node
    await api.play_end(second)
    assert states(await api.phase("second", "Succeeded")) == ["Succeeded"]


async def test_if_no_node_comes_the_next_job_gets_the_chance(api: Api) -> None:
    for name in ("first", "second"):
        await api.create(template_job(name, nodeSelector={"pool": name}))
    await unschedulable(api, "first")
    await api.phase("second", "Queued")
    await unschedulable(api, "second")
    first = await api.job("first")
    assert first["status"]["phase"] == "Queued"
    assert states(first) == ["Lost"]
    assert first["status"]["attempts"][0]["reason"] == "ScalingUp"
    assert not first["status"].get("lostAttempts")
    live = [p for p in await api.pods() if "deletionTimestamp" not in p["metadata"]]
    assert len(live) == 1


async def test_waiting_raises_a_job_past_a_newer_one_of_higher_priority_but_not_above_the_cap(
    api: Api, add_node: AddNode
) -> None:
    node = await add_node()
    await api.create(template_job("runs", **on(node)))
    running = await api.bound("runs")
    await api.create(template_job("old", **on(node)))
    await api.phase("old", "Queued")
    long_ago = (datetime.now(UTC) - timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    await api.client.patch(f"{api.jobs_path}/old/status", {"status": {"queuedAt": long_ago}})  # the cap: one step
    await api.create(template_job("newer", priority=1, **on(node)))
    await api.create(template_job("urgent", priority=2, **on(node)))
    await api.positions("urgent", "old", "newer")
    await api.play_end(running)
    await api.bound("urgent")
