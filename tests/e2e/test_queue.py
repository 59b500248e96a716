"""What the queue promises, on real nodes: order, one job at a time on each, and no job lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from demo_lib.queue import Job, Watcher
from support.api import Api, eventually
from support.installation import NAMESPACE, Installation
from support.podwatch import PodWatch
from support.workloads import on, script, sleeper

Say = Callable[[str], None]
FINISHED = ("Succeeded", "Failed")
NODES = {"gpu-a", "gpu-b"}


@pytest.fixture
async def node(installation: Installation) -> str:
    """A node with one GPU."""
    return "gpu-a"


async def look(api: Api) -> list[Job]:
    """The jobs as a user sees them now."""
    return [Job(name, raw) for name, raw in (await api.jobs()).items()]


async def finished(api: Api, watcher: Watcher | None = None, patience: float = 180) -> dict[str, Job]:
    """Look at the jobs until all have ended; the jobs then."""
    watcher = watcher or Watcher()

    async def ended() -> bool:
        watcher.look(await look(api))
        await asyncio.sleep(0.2)
        return watcher.finished

    await eventually("all jobs to end", ended, patience)
    return watcher.jobs


async def blocked(api: Api, image: str, node: str, seconds: float = 6) -> None:
    """Have a job run on the node, so that others must wait."""
    await api.create(sleeper("blocker", image, seconds, **on(node)))
    await api.phase("blocker", "Starting", "Running")


def order(watch: PodWatch) -> list[str]:
    """The jobs in the order in which the kubelets started their pods; each ran once."""
    jobs = [pod.job for pod in watch.runs()]
    assert len(jobs) == len(set(jobs)), f"a job ran twice: {jobs}"
    return jobs


async def test_five_jobs_at_once_are_all_accepted_and_run_one_after_another_in_order(
    api: Api, installation: Installation, image: str, node: str, say: Say
) -> None:
    names = [f"job-{i}" for i in range(5)]
    watcher = Watcher()
    with PodWatch(installation.kube, NAMESPACE) as watch:
        for name in names:
            await api.create(sleeper(name, image, **on(node), estimatedDurationSeconds=5))
        jobs = await finished(api, watcher)
    assert {job.phase for job in jobs.values()} == {"Succeeded"}
    assert order(watch) == names
    assert not watch.overlaps()
    assert {pod.node for pod in watch.runs()} == {node}
    assert not watcher.overtakings()
    say(watch.times())


async def test_a_running_job_has_position_0_and_the_next_one_position_1(api: Api, image: str, node: str) -> None:
    await blocked(api, image, node, 20)
    names = ["first", "second", "third"]
    for name in names:
        await api.create(sleeper(name, image, 1, **on(node)))

    async def positions() -> bool:
        jobs = {job.name: job for job in await look(api)}
        assert jobs["blocker"].phase in ("Starting", "Running")
        return {name: job.position for name, job in jobs.items()} == {
            "blocker": 0,
            **{name: i for i, name in enumerate(names, 1)},
        }

    await eventually("the positions to be 0, 1, 2, 3", positions, patience=15)
    jobs = await finished(api)
    assert {job.position for job in jobs.values()} == {None}, "a job that has ended has no position"


async def test_estimates_are_there_never_in_the_past_and_converge(
    api: Api, installation: Installation, node: str, say: Say
) -> None:
    # An image of which nothing was learned, and a user who expects far too much: the first jobs must correct it.
    unknown, names = installation.images["operator"], [f"job-{i}" for i in range(5)]
    for name in names:
        await api.create(sleeper(name, unknown, 3, **on(node), estimatedDurationSeconds=120))
    watcher, said = Watcher(), dict[str, list[tuple[float, datetime]]]()

    async def ended() -> bool:
        watcher.look(await look(api))
        for job in watcher.jobs.values():
            if job.phase == "Queued" and (start := job.time("estimatedStartTime")):
                said.setdefault(job.name, []).append((time.time(), start))
        await asyncio.sleep(0.2)
        return watcher.finished

    await eventually("all jobs to end", ended, 180)
    assert watcher.estimated == watcher.waited == set(names[1:])
    assert not watcher.outdated
    for name in names[2:]:
        actual = watcher.jobs[name].time("startTime")
        assert actual
        first, last = (abs((estimate - actual).total_seconds()) for _, estimate in (said[name][0], said[name][-1]))
        say(f"{name}: the first estimate of its start was {first:.0f} s off, the last {last:.0f} s")
        assert last <= max(10, first / 4), "two jobs have taught that the user expects far too much"


@pytest.mark.parametrize("created", [("low", "normal", "high"), ("normal", "high", "low")])
async def test_high_runs_before_normal_before_low_whatever_the_order_of_creation(
    created: Sequence[str], api: Api, installation: Installation, image: str, node: str
) -> None:
    priorities = {"low": -1, "normal": 0, "high": 1}
    with PodWatch(installation.kube, NAMESPACE) as watch:
        await blocked(api, image, node)
        for name in created:
            await api.create(sleeper(name, image, 1, **on(node), priority=priorities[name]))
        await finished(api)
    assert order(watch) == ["blocker", "high", "normal", "low"]


async def test_jobs_created_in_the_same_second_run_in_creation_order(
    api: Api, installation: Installation, image: str, node: str
) -> None:
    names = [f"job-{i}" for i in range(8)]
    random.Random(7).shuffle(names)  # their names must not matter
    with PodWatch(installation.kube, NAMESPACE) as watch:
        await blocked(api, image, node, 4)
        created = [await api.create(sleeper(name, image, 0.1, **on(node))) for name in names]
        jobs = await finished(api)
    seconds = [job["metadata"]["creationTimestamp"] for job in created]
    assert any(seconds.count(second) >= 3 for second in seconds), seconds
    starts = sorted(names, key=lambda name: jobs[name].status["attempts"][0]["startTime"])
    assert starts == names
    assert order(watch) == ["blocker", *names]


async def test_a_failed_job_does_not_block_the_queue(api: Api, image: str, node: str) -> None:
    failing = "import sys; print('loading'); sys.exit('no such file: train.py')"
    await api.create(script("failing", image, failing, **on(node)))
    await api.create(sleeper("next", image, 1, **on(node)))
    jobs = await finished(api)
    assert jobs["next"].phase == "Succeeded"
    assert jobs["failing"].phase == "Failed"
    condition = jobs["failing"].condition("Failed")
    assert condition["reason"] == "PodFailed"
    assert "no such file: train.py" in condition["message"]


async def test_two_nodes_run_two_jobs_side_by_side_and_never_two_on_one(
    api: Api, installation: Installation, image: str, say: Say
) -> None:
    watcher = Watcher()
    with PodWatch(installation.kube, NAMESPACE) as watch:
        for i in range(6):
            await api.create(sleeper(f"job-{i}", image, 3))
        jobs = await finished(api, watcher)
    assert {job.phase for job in jobs.values()} == {"Succeeded"}
    assert not watcher.crowded
    assert not watch.overlaps()
    runs = watch.runs()
    assert {pod.node for pod in runs} == NODES
    assert any(
        a.node != b.node and max(a.interval[0], b.interval[0]) < min(a.interval[1], b.interval[1])
        for a in runs
        for b in runs
    ), "no two jobs ran side by side"
    say(watch.times())


async def test_a_node_without_a_gpu_never_gets_a_job(api: Api, installation: Installation, image: str) -> None:
    installation.offer_gpus("gpu-b", 0)
    try:
        await api.create(sleeper("wants-two", image, 1, gpus=2))
        await api.create(sleeper("wants-b", image, 1, **on("gpu-b")))
        for i in range(3):
            await api.create(sleeper(f"job-{i}", image, 1))
        for i in range(3):
            assert Job("", await api.phase(f"job-{i}", "Succeeded")).node == "gpu-a"
        for name in ("wants-two", "wants-b"):
            job = Job(name, await api.job(name))
            assert job.phase == "Queued"
            assert job.status["pending"]["reason"] == "NoMatchingNode"
            assert job.status["pending"]["nextStep"]
            assert "attempts" not in job.status
    finally:
        installation.offer_gpus("gpu-b", 1)
    job = Job("", await api.phase("wants-b", "Succeeded"))
    assert job.node == "gpu-b", "a node that gets its GPU back is used again"


async def test_the_operator_killed_with_kill_9_loses_doubles_and_reorders_nothing(
    api: Api, installation: Installation, image: str, say: Say
) -> None:
    names = [f"job-{i:02d}" for i in range(10)]
    watcher, kills = Watcher(), 0
    with PodWatch(installation.kube, NAMESPACE) as watch:
        for i, name in enumerate(names):
            await api.create(sleeper(name, image, 2))
            if i == 4:  # while jobs are being submitted and admitted
                await asyncio.to_thread(installation.kill_operator)
                kills += 1

        async def ended() -> bool:
            nonlocal kills
            watcher.look(await look(api))
            done = sum(job.phase in FINISHED for job in watcher.jobs.values())
            if kills == 1 and done >= 4:
                await running(installation)
                await asyncio.to_thread(installation.kill_operator)
                kills += 1
            return watcher.finished

        await eventually("all jobs to end", ended, 240)
    assert kills == 2
    restarts = installation.operator_pod()["status"]["containerStatuses"][0]["restartCount"]
    assert restarts >= kills
    assert {name: job.phase for name, job in watcher.jobs.items()} == dict.fromkeys(names, "Succeeded")
    assert all(len(job.status["attempts"]) == 1 for job in watcher.jobs.values())
    assert sorted(order(watch)) == names
    assert not watch.overlaps()
    assert not watcher.crowded
    # By status, which records each admission: the kubelets of two nodes may start their pods in either order.
    admitted = sorted(names, key=lambda name: (watcher.jobs[name].status["attempts"][0]["startTime"], name))
    assert admitted == names
    assert not watcher.overtakings()
    say(watch.times())


async def running(installation: Installation) -> None:
    """Wait until the operator's container runs (again)."""

    async def up() -> bool:
        [status] = installation.operator_pod()["status"]["containerStatuses"]
        return "running" in status["state"]

    await eventually("the operator to run", up, 120)


async def test_kubectl_wait_sees_how_a_job_ends(api: Api, installation: Installation, image: str, node: str) -> None:
    await api.create(script("good", image, "pass", **on(node)))
    await api.create(script("bad", image, "raise SystemExit(1)", **on(node)))
    wait = ["-n", NAMESPACE, "wait", "--timeout=60s"]
    for condition, name in (("Complete", "good"), ("Failed", "bad")):
        said = await asyncio.to_thread(
            installation.kube.kubectl, *wait, f"--for=condition={condition}", f"gpubatchjob/{name}"
        )
        assert "condition met" in said
    assert datetime.now(UTC) > datetime.fromisoformat((await api.job("bad"))["status"]["completionTime"])
