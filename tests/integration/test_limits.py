"""What an administrator allows to wait and to run, and what waiting costs, on a real API server."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpubatch_operator.kube.client import Client
from support.api import JSON, Api, at_rest, eventually, inference_job, namespace, template_job
from support.process import OperatorProcess
from support.story import NOWHERE, condition, on, run_spec, states, validated

AddNode = Callable[..., Awaitable[str]]

CAPPED = f"capped-{secrets.token_hex(4)}"
CAPS = {CAPPED: {"maxQueueDepth": 2, "maxSlots": 1, "maxPriority": 5}}


@pytest.fixture(scope="module")
def metrics_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def operator(
    kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory, metrics_port: int
) -> Iterator[OperatorProcess]:
    """One operator for all of these tests."""
    settings: dict[str, Any] = {
        "max_queue_depth": 20,
        "max_total_queued_requests": 25,
        "max_requests_per_job": 15,
        "full_queue_policy": "Hold",
        "namespace_caps": json.dumps(CAPS),
        "scale_up_pods": 0,
        "metrics_port": metrics_port,
    }
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("limits") / "operator.log", **settings) as process:
        yield process


@pytest.fixture
async def capped(client: Client) -> AsyncIterator[Api]:
    """The namespace that has caps."""
    async with namespace(client, CAPPED) as api:
        yield api


async def by_phase(api: Api) -> dict[str, list[str]]:
    """Names by phase, sorted."""
    out: dict[str, list[str]] = {}
    for name, job in sorted((await api.jobs()).items()):
        out.setdefault(job.get("status", {}).get("phase", ""), []).append(name)
    return out


async def phases(api: Api, **expected: list[str]) -> None:
    """Wait until these jobs are in these phases, and no other is."""

    async def there() -> bool:
        return await by_phase(api) == {phase: sorted(names) for phase, names in expected.items() if names}

    try:
        await eventually("the phases", there)
    except AssertionError as e:
        raise AssertionError(f"{e}: {await by_phase(api)}, not {expected}") from None


async def test_of_25_jobs_five_are_held_and_enter_in_order(api: Api, add_node: AddNode) -> None:
    node = await add_node()
    await api.create(template_job("runs", **on(node)))
    running = await api.bound("runs")  # those that run don't count
    await api.create(template_job("suspended", suspend=True))  # nor do these
    done = template_job("done", runId="1", cancel=True)
    await api.create(done)
    await api.phase("suspended", "Suspended")
    await api.phase("done", "Cancelled")
    names = [f"job-{i:02d}" for i in range(25)]
    for name in names:
        await api.create(template_job(name, **on(node)))
    parked: dict[str, list[str]] = {"Starting": ["runs"], "Suspended": ["suspended"], "Cancelled": ["done"]}
    await phases(api, **parked, Queued=names[:20], Held=names[20:])
    await api.positions(*names[:20])
    held = (await api.job("job-20"))["status"]
    assert held["pending"]["reason"] == "QueueFull"
    assert "Queue full (20/20 jobs)" in held["pending"]["message"]
    assert held["pending"]["nextStep"]
    assert "queuePosition" not in held
    # What comes back while the queue is full is held, too.
    await api.edit("suspended", suspend=False)
    await api.edit("done", runId="2", cancel=None)
    await phases(api, Starting=["runs"], Queued=names[:20], Held=[*names[20:], "suspended", "done"])
    # Each that leaves lets one in, the first in order: by priority, then by creation; a new run comes last.
    await api.edit("job-22", priority=1)
    await _version(api, "job-22")
    await api.delete("job-00")
    await api.phase("job-22", "Queued")
    await api.edit("job-01", cancel=True)
    await api.phase("suspended", "Queued")
    await api.edit("job-02", suspend=True)
    await api.phase("job-20", "Queued")
    await api.play_end(running)
    await api.bound("job-22")
    await api.phase("job-21", "Queued")
    entered = [*names[3:22], "suspended"]
    await phases(
        api,
        Succeeded=["runs"],
        Starting=["job-22"],
        Cancelled=["job-01"],
        Suspended=["job-02"],
        Queued=entered,
        Held=["job-23", "job-24", "done"],
    )
    await api.edit("job-02", suspend=False)  # it keeps its place, but the queue is full
    await api.phase("job-02", "Held")
    await api.delete("job-03")
    await api.phase("job-02", "Queued")
    for name in ("job-23", "job-24", "done"):
        assert (await api.job(name))["status"]["phase"] == "Held"


async def _version(api: Api, name: str) -> None:
    """Wait until the operator has taken note of a job's newest spec."""

    async def seen() -> bool:
        job = await api.job(name)
        return bool(job["status"].get("observedGeneration") == job["metadata"]["generation"])

    await eventually(f"{name} to be observed", seen)


async def test_more_requests_than_may_wait_are_held_until_others_have_left(api: Api) -> None:
    for name in ("a", "b", "c"):
        await api.create(inference_job(name, **NOWHERE))
        await validated(api, name)  # 10 requests each; 25 may wait
    held = await api.phase("c", "Held")
    assert held["status"]["pending"]["reason"] == "QueueFull"
    assert "20 requests" in held["status"]["pending"]["message"]
    assert "25" in held["status"]["pending"]["message"]
    await api.create(template_job("small", **NOWHERE))  # nothing is counted of it
    await api.phase("small", "Queued")
    await api.delete("a")
    job = await api.phase("c", "Queued")  # what was counted isn't counted again
    assert job["status"]["inspection"]["requests"] == 10
    assert condition(job, "Validated")["status"] == "True"
    await api.positions("b", "c", "small")


async def test_a_job_with_more_requests_than_allowed_fails_with_the_limit(api: Api) -> None:
    await api.create(inference_job("job", **NOWHERE))
    pod = await api.pod_of("job", "inspect")
    assert run_spec(pod)["maxRequests"] == 15
    said = {"valid": False, "reason": "TooManyRequests", "message": "more than 15 requests", "requests": 16}
    await api.play_end(pod, message=json.dumps(said))
    job = await api.phase("job", "Failed")
    assert condition(job, "Failed")["reason"] == "TooManyRequests"
    assert "15" in condition(job, "Failed")["message"]


async def test_a_namespace_has_caps_of_its_own_and_others_are_free(api: Api, capped: Api, add_node: AddNode) -> None:
    pool = {"nodeSelector": {"pool": api.namespace}}
    for _ in range(2):
        await add_node(labels=pool["nodeSelector"])
    for name in "abcd":
        await capped.create(template_job(name, priority=100, **pool))
    running = await capped.bound("a")
    await phases(capped, Starting=["a"], Queued=["b", "c"], Held=["d"])  # one slot, two that wait
    assert f"2/2 jobs in namespace {CAPPED}" in (await capped.job("d"))["status"]["pending"]["message"]
    waits = await capped.pending("b", "NamespaceSlots")  # though a node is free
    assert CAPPED in waits["message"]
    assert waits["nextStep"]
    for name in ("e", "f", "g", "h"):
        await api.create(template_job(name, priority=6, **pool))
    other = await api.bound("e")
    await phases(api, Starting=["e"], Queued=["f", "g", "h"])
    assert (await capped.job("b"))["status"]["effectivePriority"] == 5
    assert "effectivePriority" not in (await api.job("f"))["status"]

    async def queue() -> bool:
        found = {n: j["status"].get("queuePosition") for a in (api, capped) for n, j in (await a.jobs()).items()}
        return [found[n] for n in "fghbc"] == [1, 2, 3, 4, 5]  # 6 comes before the 100 that counts as 5

    await eventually("the order of both namespaces' jobs", queue)
    await capped.play_end(running)
    assert (await api.bound("f"))["metadata"]["uid"] != other["metadata"]["uid"]
    await capped.phase("d", "Held")  # two still wait
    await api.play_end(other)
    await api.play_end(await api.bound("g"))
    await api.play_end(await api.bound("h"))
    await api.play_end(await api.bound("f"))
    second = await capped.bound("b")
    await phases(capped, Succeeded=["a"], Starting=["b"], Queued=["c", "d"])
    assert (await capped.pending("c", "NamespaceSlots"))["message"]
    await capped.play_end(second)
    await capped.bound("c")


async def test_a_quota_that_is_used_up_is_shown_and_the_job_runs_once_there_is_room(
    api: Api, add_node: AddNode
) -> None:
    node = await add_node()
    path = f"/api/v1/namespaces/{api.namespace}/resourcequotas"
    hard = {"requests.nvidia.com/gpu": "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus"}, "spec": {"hard": hard}}
    await api.client.create(path, quota)

    async def counts() -> bool:
        return "hard" in (await api.client.get(f"{path}/gpus")).get("status", {})

    await eventually("the quota to be in force", counts)
    await api.create(template_job("job", **on(node)))
    waits = await api.pending("job", "Quota")
    assert "exceeded quota" in waits["message"]
    assert "quota" in waits["nextStep"]
    await asyncio.sleep(2)
    job = await api.job("job")
    assert job["status"]["pending"]["reason"] == "Quota"  # and that is what it goes on saying
    assert not job["status"].get("lostAttempts")
    assert await api.pods() == []
    await api.client.request("DELETE", f"{path}/gpus")
    await api.play_end(await api.bound("job"))
    done = await api.phase("job", "Succeeded")
    assert len(states(done)) <= 4  # it was tried now and then, not in a loop


async def test_a_thousand_plans_cost_a_waiting_job_no_event_and_no_write(
    api: Api, add_node: AddNode, metrics_port: int
) -> None:
    node, idle = await add_node(), await add_node(gpus=0)
    # Of an image that nobody has seen the duration of: an estimate that passes would have to be written anew.
    runs = template_job("runs", **on(node), estimatedDurationSeconds=86400)
    runs["spec"]["template"]["spec"]["containers"][0]["image"] = "gpubatch.dev/long"
    await api.create(runs)
    await api.play_running(await api.bound("runs"))
    waiting = {"busy": on(node), "nowhere": NOWHERE, "suspended": {"suspend": True}}
    for name, spec in waiting.items():
        await api.create(template_job(name, **spec))
    await api.create(inference_job("validating", **NOWHERE))
    await api.pod_of("validating", "inspect")
    await api.positions("busy", "nowhere", "validating")
    await api.phase("suspended", "Suspended")
    before = await at_rest(lambda: _written(api))  # the last Events and positions
    begun = await _plans(metrics_port)
    turn = 0
    while await _plans(metrics_port) < begun + 1000:
        for _ in range(50):
            turn += 1
            await api.client.patch(f"/api/v1/nodes/{idle}", {"metadata": {"labels": {"turn": str(turn)}}})
    assert await _written(api) == before
    events = [e["regarding"]["name"] for e in await api.events()]
    assert {n: events.count(n) for n in (*waiting, "validating")} == dict.fromkeys((*waiting, "validating"), 1)


async def _written(api: Api) -> JSON:
    """The version of each job, and how many Events there are."""
    jobs = {n: j["metadata"]["resourceVersion"] for n, j in (await api.jobs()).items()}
    return {**jobs, "events": len(await api.events())}


async def _plans(port: int) -> int:
    """How often the operator has planned."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return str(answer.read().decode())

    lines = (await asyncio.to_thread(read)).splitlines()
    [count] = [line.split()[1] for line in lines if line.startswith("gpubatch_plan_duration_seconds_count ")]
    return int(float(count))
