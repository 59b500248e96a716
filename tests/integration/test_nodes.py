"""Nodes that come, go and change under the queue, on a real API server and scheduler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpubatch_operator.kube.client import ApiError
from support.api import JSON, Api, eventually, template_job
from support.process import OperatorProcess
from support.story import condition, drained, inference_running, on, outcome, recorded, run_spec, states

AddNode = Callable[..., Awaitable[str]]

SETTINGS: dict[str, Any] = {"unschedulable_seconds": 2, "unresponsive_seconds": 3, "scale_up_pods": 0}


@pytest.fixture(scope="module", autouse=True)
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all of these tests."""
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("nodes") / "operator.log", **SETTINGS) as process:
        yield process


async def change(api: Api, node: str, **spec: Any) -> None:
    await api.client.patch(f"/api/v1/nodes/{node}", {"spec": spec})


async def label(api: Api, node: str, **labels: str | None) -> None:
    marks = {k.replace("__", "/").replace("_", "."): v for k, v in labels.items()}
    await api.client.patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": marks}})


async def slots(api: Api, node: str, count: str | None) -> None:
    await api.client.patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": {"gpubatch.dev/slots": count}}})


async def has(api: Api, node: str, gpus: int) -> None:
    room = {"nvidia.com/gpu": str(gpus)}
    await api.client.patch(f"/api/v1/nodes/{node}/status", {"status": {"capacity": room, "allocatable": room}})


async def ready(api: Api, node: str, status: str) -> None:
    said = {"type": "Ready", "status": status, "reason": "Test", "message": ""}
    await api.client.patch(f"/api/v1/nodes/{node}/status", {"status": {"conditions": [said]}})


async def alive(api: Api) -> list[JSON]:
    """Runner pods that hold a slot."""
    return [
        p
        for p in await api.pods()
        if p["metadata"].get("labels", {}).get("gpubatch.dev/kind") == "run"
        and p["status"]["phase"] in ("Pending", "Running")
    ]


@asynccontextmanager
async def strangers(api: Api, node: str, gpus: int) -> AsyncIterator[JSON]:
    """Somebody else's pod that holds GPUs of a node."""
    room = {"limits": {"nvidia.com/gpu": str(gpus)}}
    main = {"name": "main", "image": "gpubatch.dev/test", "resources": room}
    spec = {"nodeName": node, "containers": [main], "tolerations": [{"operator": "Exists"}]}
    pod = await api.client.create(
        api.pods_path, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"stranger-{node}"}, "spec": spec}
    )
    yield pod
    await api.play_gone(pod)


async def test_a_node_that_does_not_fit_is_named_with_its_reason_and_used_once_it_does(
    api: Api, add_node: AddNode
) -> None:
    pool = {"pool": api.namespace}
    cordoned = await add_node(labels=pool)
    tainted = await add_node(labels=pool)
    broken = await add_node(labels=pool)
    small = await add_node(labels=pool)
    elsewhere = await add_node()
    await change(api, cordoned, unschedulable=True)
    await change(api, tainted, taints=[{"key": "team", "value": "a", "effect": "NoSchedule"}])
    await ready(api, broken, "False")
    await api.create(template_job("big", gpus=2, nodeSelector=pool))
    blocked = await api.pending("big", "NoMatchingNode")
    for cause in ("cordoned", "taint team is not tolerated", "not ready", "has 1 of 2 GPUs", "label pool is not"):
        assert f"1 node: {cause}" in blocked["message"], blocked["message"]
    assert "nodeSelector" in blocked["nextStep"]
    names = {"uncordoned": cordoned, "tolerating": tainted, "recovered": broken}
    for name, node in names.items():
        await api.create(template_job(name, **on(node)))
        await api.pending(name, "NoMatchingNode")
    await change(api, cordoned, unschedulable=False)
    await api.edit("tolerating", tolerations=[{"key": "team", "operator": "Equal", "value": "a"}])
    await ready(api, broken, "True")
    for name, node in names.items():
        assert (await api.bound(name))["spec"]["nodeName"] == node
    await has(api, elsewhere, 2)
    await label(api, elsewhere, **pool)
    assert (await api.bound("big"))["spec"]["nodeName"] == elsewhere
    await api.create(template_job("last", nodeSelector=pool))
    assert (await api.bound("last"))["spec"]["nodeName"] == small


async def test_a_job_that_runs_is_left_alone_by_what_happens_to_its_node(api: Api, add_node: AddNode) -> None:
    node = await add_node(gpus=2)
    await api.create(template_job("job", **on(node)))
    pod = await api.bound("job")
    await api.play_running(pod)
    await api.phase("job", "Running")
    await change(api, node, unschedulable=True)
    await ready(api, node, "Unknown")  # its kubelet is silent: the job may well run on
    await has(api, node, 1)
    await label(api, node, gone="yes")
    await api.create(template_job("next", **on(node)))
    await api.pending("next", "NoMatchingNode")
    job = await api.job("job")
    assert job["status"]["phase"] == "Running"
    assert len(job["status"]["attempts"]) == 1
    now = await api.pod(pod["metadata"]["name"])
    assert now is not None
    assert "deletionTimestamp" not in now["metadata"]
    await api.play_end(pod)
    await api.phase("job", "Succeeded")


async def test_a_label_gives_a_node_several_slots_and_taking_it_away_lets_what_runs_end(
    api: Api, add_node: AddNode
) -> None:
    node = await add_node(gpus=4, labels={"gpubatch.dev/slots": "2"})
    for name in "abcd":
        await api.create(template_job(name, **on(node)))
    first, second = await api.bound("a"), await api.bound("b")
    assert {p["metadata"]["labels"]["gpubatch.dev/slot"] for p in (first, second)} == {"0", "1"}
    assert (await api.pending("c", "NodesBusy"))["message"].startswith("position 1")
    await slots(api, node, None)
    await asyncio.sleep(1)
    assert len(await alive(api)) == 2
    await api.play_end(first)  # now one runs, and the node has one slot
    await api.phase("a", "Succeeded")
    await api.positions("c", "d")
    await asyncio.sleep(1)
    assert [p["metadata"]["name"] for p in await alive(api)] == [second["metadata"]["name"]]
    await api.play_end(second)
    third = await api.bound("c")
    await slots(api, node, "0")  # no new ones at all
    await api.play_end(third)
    await api.pending("d", "NoMatchingNode")
    await slots(api, node, "2")
    await api.bound("d")


async def test_a_pod_that_finds_its_gpus_taken_says_so_and_its_job_goes_to_another_node(
    api: Api, add_node: AddNode
) -> None:
    pool = {"pool": api.namespace}
    taken = await add_node(labels=pool)
    async with strangers(api, taken, 1):
        await api.create(template_job("job", nodeSelector=pool))
        shown = await api.pending("job", "Unschedulable")
        assert "nvidia.com/gpu" in shown["message"]  # kube-scheduler's own sentence
        assert "GPUs" in shown["nextStep"]
        free = await add_node(labels=pool)
        assert (await _bound_to(api, "job", free))["metadata"]["labels"]["gpubatch.dev/attempt"] == "2"
        job = await api.job("job")
        assert job["status"]["attempts"][0]["state"] == "Lost"
        assert job["status"]["attempts"][0]["reason"] == "Unschedulable"
        assert "nvidia.com/gpu" in job["status"]["attempts"][0]["message"]
        assert not job["status"].get("lostAttempts")  # nothing of it ever ran


async def _bound_to(api: Api, job: str, node: str) -> JSON:
    async def there() -> JSON | None:
        pod = await api.pod_of(job)
        return pod if pod["spec"].get("nodeName") == node else None

    found: JSON = await eventually(f"{job} to be bound to {node}", there)
    return found


async def test_a_job_whose_gpus_are_taken_lets_another_one_try_and_never_spins(api: Api, add_node: AddNode) -> None:
    node = await add_node(gpus=2)
    async with strangers(api, node, 1):
        await api.create(template_job("big", gpus=2, **on(node)))
        await api.pending("big", "Unschedulable")
        await api.create(template_job("small", **on(node)))
        await api.bound("small")  # the one that fits what is left
        lost = (await api.job("big"))["status"]
        assert states({"status": lost}) == ["Lost"]
        await api.play_end(await api.bound("small"))
        await asyncio.sleep(7)  # the node is free again, as far as slots go
        assert len((await api.job("big"))["status"]["attempts"]) <= 2  # one now, one after ten seconds


async def test_the_job_of_a_lost_node_runs_elsewhere_from_what_it_has_saved(api: Api, add_node: AddNode) -> None:
    pool = {"pool": api.namespace}
    lost = await add_node(labels=pool)
    first = await inference_running(api, "job", nodeSelector=pool)
    await recorded(api, "job")
    other = await add_node(labels=pool)
    await api.client.request("DELETE", f"/api/v1/nodes/{lost}")
    await _garbage_collected(api, first)
    second = await _bound_to(api, "job", other)
    assert run_spec(second)["run"] == run_spec(first)["run"]
    await api.play_end(second, message=outcome())
    job = await api.phase("job", "Succeeded")
    assert states(job) == ["Lost", "Succeeded"]
    assert [a["node"] for a in job["status"]["attempts"]] == [lost, other]
    assert not job["status"].get("failedAttempts")


async def _garbage_collected(api: Api, pod: JSON) -> None:
    """What Kubernetes does with pods of nodes that don't exist, after the best part of a minute."""
    target = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByPodGC",
        "message": "PodGC: node no longer exists",
    }
    now = await api.pod(pod["metadata"]["name"])
    assert now is not None
    status = {"phase": "Failed", "conditions": [*now["status"].get("conditions", []), target]}
    with contextlib.suppress(ApiError):  # it was quicker
        await api.client.patch(f"{api.pods_path}/{pod['metadata']['name']}/status", {"status": status})
    await api.play_gone(pod)


async def test_a_node_that_is_drained_or_evicts_by_a_taint_has_its_jobs_run_elsewhere(
    api: Api, add_node: AddNode
) -> None:
    pool = {"pool": api.namespace}
    nodes = [await add_node(labels=pool) for _ in range(2)]
    drains = await inference_running(api, "drained", nodeSelector=pool)
    await api.create(template_job("tainted", nodeSelector=pool))
    tainted = await api.bound("tainted")
    assert {p["spec"]["nodeName"] for p in (drains, tainted)} == set(nodes)
    others = [await add_node(labels=pool) for _ in range(2)]
    for node in nodes:
        await change(api, node, unschedulable=True)
    await drained(api, drains)
    out = {"key": "maintenance", "effect": "NoExecute"}
    await change(api, tainted["spec"]["nodeName"], unschedulable=True, taints=[out])  # its controller is the cluster's
    for pod, code, message in ((drains, 0, outcome("Interrupted", completed=3)), (tainted, 143, "")):
        await api.terminating(pod)
        await api.play_end(pod, code, message)
        await api.play_gone(pod)
    where = set()
    for name in ("drained", "tainted"):
        again = await eventually(f"{name} to run elsewhere", lambda name=name: _elsewhere(api, name, others))
        where.add(again["spec"]["nodeName"])
        await api.play_end(again, message=outcome())
        job = await api.phase(name, "Succeeded")
        assert states(job) == ["Lost", "Succeeded"]
        assert not job["status"].get("failedAttempts")
    assert where == set(others)


async def _elsewhere(api: Api, job: str, nodes: list[str]) -> JSON | None:
    pod = await api.bound(job)
    return pod if pod["spec"]["nodeName"] in nodes else None


async def test_without_any_gpu_jobs_are_accepted_and_say_so(api: Api, add_node: AddNode) -> None:
    await api.create(template_job("job", gpuResource="example.com/none"))
    waits = await api.pending("job", "NoGPUNodes")
    assert "example.com/none" in waits["message"]
    assert "node" in waits["nextStep"]
    job = await api.job("job")
    assert job["status"]["phase"] == "Queued"
    assert job["status"]["queuePosition"] == 1


async def test_a_silent_runner_is_reported_and_never_killed_for_it(api: Api, add_node: AddNode) -> None:
    node = await add_node()
    pod = await inference_running(api, "job", **on(node))
    await recorded(api, "job")
    path = f"{api.pods_path}/{pod['metadata']['name']}/status"
    await api.client.patch(path, {"status": {"podIP": "127.0.0.97", "podIPs": [{"ip": "127.0.0.97"}]}})

    async def reported() -> JSON | None:
        job = await api.job("job")
        found = [c for c in job["status"]["conditions"] if c["type"] == "Unresponsive" and c["status"] == "True"]
        return job if found else None

    job = await eventually("the silence to be reported", reported)
    said = condition(job, "Unresponsive")
    assert said["reason"] == "Unresponsive"
    assert "last seen" in said["message"]
    reports = [e for e in await api.events() if e["reason"] == "Unresponsive"]
    await asyncio.sleep(4)  # more silence changes nothing
    now = await api.pod(pod["metadata"]["name"])
    assert now is not None
    assert "deletionTimestamp" not in now["metadata"]
    assert len([e for e in await api.events() if e["reason"] == "Unresponsive"]) == max(1, len(reports))
    assert states(await api.job("job")) == ["Active"]
    await api.play_end(pod, message=outcome())
    await api.phase("job", "Succeeded")
