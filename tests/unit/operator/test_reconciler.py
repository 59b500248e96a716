"""The loop, step by step, against the cluster in a dict: who runs when, and what a lost answer does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from gpubatch_operator.core import lifecycle
from gpubatch_operator.core.limits import QueueLimits
from gpubatch_operator.kube.client import MERGE_PATCH
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.watch import resync
from gpubatch_operator.reconciler import Reconciler
from gpubatch_operator.settings import Settings
from unit.operator.build import template_spec
from unit.operator.fake import Clock, Cluster, LiveKeys, Recorder, finished

JSON = dict[str, Any]


class World:
    """An operator and its cluster, without trouble unless it is asked for."""

    def __init__(self, patch: pytest.MonkeyPatch, nodes: int = 1, depth: int | None = None) -> None:
        self.clock, self.store, self.events = Clock(), Store(1, QueueLimits(depth)), Recorder()
        self.clock.rule(patch)
        self.cluster = Cluster(self.clock)
        for i in range(nodes):
            self.cluster.add_node(f"node-{i}")
        self.reconciler = Reconciler(self.cluster, self.store, Settings(), self.events, LiveKeys())  # type: ignore[arg-type]

    async def round(self) -> None:
        self.cluster.deliver(self.store)
        await self.reconciler.round()
        assert not self.cluster.broken

    async def settle(self) -> None:
        for _ in range(3):
            await self.round()

    def running(self) -> list[str]:
        pods = [p for p in self.cluster.pods.values() if not finished(p)]
        return [p["metadata"]["annotations"]["gpubatch.dev/job"] for p in pods]

    def finish(self, code: int = 0) -> None:
        for pod in [p for p in self.cluster.pods.values() if not finished(p)]:
            self.cluster.bind(pod)
            self.cluster.end(pod, code)

    async def order(self) -> list[str]:
        out: list[str] = []
        for _ in range(len(self.cluster.jobs)):
            await self.settle()
            out += self.running()
            self.finish()
        await self.settle()
        return out

    def phases(self) -> dict[str, str]:
        return {name: job["status"]["phase"] for name, job in self.cluster.jobs.items()}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def test_five_jobs_of_one_second_run_one_after_another_in_the_order_of_their_creation(world: World):
    names = ["eve", "adam", "zoe", "bob", "mia"]
    for name in names:
        world.cluster.apply(name, template_spec())
    assert await world.order() == names
    assert set(world.phases().values()) == {"Succeeded"}


async def test_high_normal_low_run_in_that_order_whatever_the_order_of_creation(world: World):
    for name, priority in [("low", -1), ("high", 1), ("normal", 0)]:
        world.cluster.apply(name, template_spec(priority=priority))
    assert await world.order() == ["high", "normal", "low"]


async def test_a_failed_job_does_not_block_the_queue(world: World):
    world.cluster.apply("bad", template_spec())
    world.cluster.apply("good", template_spec())
    await world.settle()
    world.finish(code=1)
    await world.settle()
    assert (world.phases()["bad"], world.running()) == ("Failed", ["good"])


async def test_the_end_of_a_pod_and_the_next_ones_start_are_one_round(world: World):
    world.cluster.apply("first", template_spec())
    world.cluster.apply("next", template_spec())
    await world.settle()
    world.finish()
    await world.round()
    assert world.running() == ["next"]


async def test_a_pod_whose_creation_was_answered_by_silence_is_taken_for_ours(world: World):
    world.cluster.apply("job", template_spec())
    world.cluster.trouble = [None, None, "lost answer"]  # of being queued, admitted, and of the pod
    await world.round()
    assert len(world.cluster.pods) == 1
    assert world.store.pods == {}
    world.clock.now += 60
    await world.reconciler.round()  # no event has come
    assert list(world.store.pods) == ["pod-1"]
    assert (len(world.cluster.pods), world.phases()["job"]) == (1, "Starting")


async def test_somebody_elses_pod_of_that_name_is_never_taken_for_ours(world: World):
    world.cluster.apply("job", template_spec())
    world.cluster.trouble = [None, None, "refused"]
    await world.round()  # admitted, and its pod isn't there yet
    name = world.cluster.jobs["job"]["status"]["podName"]
    world.cluster.pods[name] = {
        "metadata": {"name": name, "uid": "x", "resourceVersion": "7"},
        "spec": {},
        "status": {},
    }
    world.clock.now += 60
    await world.reconciler.round()
    (failed,) = (c for c in world.cluster.jobs["job"]["status"]["conditions"] if c["type"] == "Failed")
    assert (world.phases()["job"], failed["reason"]) == ("Failed", "PodRejected")


async def test_who_fails_again_and_again_is_tried_later_and_later(world: World, monkeypatch: pytest.MonkeyPatch):
    looked: list[float] = []

    def broken(*_: Any) -> None:
        looked.append(world.clock.now)
        raise OSError("no route to host")

    world.cluster.apply("job", template_spec())
    monkeypatch.setattr(lifecycle, "advance", broken)
    for _ in range(600):
        world.clock.now += 0.1
        await world.round()
    gaps = [b - a for a, b in pairwise(looked)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 10


async def test_a_phase_is_announced_once(world: World):
    world.cluster.apply("job", template_spec())
    await world.order()
    await world.settle()
    assert [note[1] for note in world.events.notes] == ["Queued", "Starting", "Succeeded"]


async def test_a_request_that_hangs_holds_up_no_other_job(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, nodes=2)
    create = world.cluster.create

    async def slow(path: str, pod: JSON) -> JSON:
        if pod["metadata"]["annotations"]["gpubatch.dev/job"] == "slow":
            await asyncio.Event().wait()
        return await create(path, pod)

    monkeypatch.setattr(world.cluster, "create", slow)
    for name in ("slow", "quick", "next"):
        world.cluster.apply(name, template_spec())
    loop = asyncio.create_task(world.reconciler.run())
    for name in ("quick", "next"):
        while world.running() != [name]:
            world.cluster.deliver(world.store)
            await asyncio.sleep(0)
            assert not loop.done()
        world.finish()
    loop.cancel()
    assert world.phases()["slow"] == "Starting", "its slot is kept for it"
    assert not world.cluster.broken


async def test_a_job_is_queued_only_once_nobody_behind_it_is_being_admitted(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, nodes=1)
    patch, landed, written = world.cluster.patch, asyncio.Event(), list[tuple[str, str]]()

    async def slow(path: str, body: JSON, kind: str = MERGE_PATCH) -> JSON:
        what = path.removesuffix("/status").rpartition("/")[2], body.get("status", {}).get("phase", "")
        if what[1] == "Starting":
            await landed.wait()
        answer = await patch(path, body, kind)
        written.append(what)
        return answer

    async def turns(until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(200):
            world.cluster.deliver(world.store)
            await asyncio.sleep(0)
            if until():
                return

    monkeypatch.setattr(world.cluster, "patch", slow)
    loop = asyncio.create_task(world.reconciler.run())
    world.cluster.apply("low", template_spec())
    await turns()
    world.cluster.apply("high", template_spec(priority=1))
    await turns()
    assert written == [("low", "Queued")]
    landed.set()
    await turns(lambda: len(written) > 2)
    loop.cancel()
    assert written[:3] == [("low", "Queued"), ("low", "Starting"), ("high", "Queued")]


async def test_a_job_that_is_held_enters_before_one_that_comes_as_there_is_room_again(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, depth=1)
    for name in ("runs", "waits", "held"):
        world.cluster.apply(name, template_spec())
        await world.settle()
    assert world.phases() == {"runs": "Starting", "waits": "Queued", "held": "Held"}
    world.finish()
    while world.phases()["waits"] == "Queued":
        await world.round()
    assert world.phases()["held"] == "Held"
    world.cluster.apply("new", template_spec())
    await world.round()
    assert (world.phases()["held"], world.phases()["new"]) == ("Queued", "Held")


class Unhurried:
    """The loop runs as in life, while `slowed` writes of the phase Held take as long as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slowed: str = "") -> None:
        self.world, self.landed = World(monkeypatch, depth=1), asyncio.Event()
        patch = self.world.cluster.patch

        async def slow(path: str, body: JSON, kind: str = MERGE_PATCH) -> JSON:
            if path.endswith(f"/{slowed}/status") and body.get("status", {}).get("phase") == "Held":
                await self.landed.wait()
            return await patch(path, body, kind)

        monkeypatch.setattr(self.world.cluster, "patch", slow)

    async def turns(self, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(300):
            self.world.cluster.deliver(self.world.store)
            self.world.clock.now += 0.001
            await asyncio.sleep(0.001)
            if until():
                return

    def phase(self, name: str) -> str | None:
        phase: str | None = self.world.cluster.jobs[name].get("status", {}).get("phase")
        return phase

    async def apply(self, name: str, until: str | None) -> None:
        self.world.cluster.apply(name, template_spec())
        await self.turns(lambda: self.phase(name) == until)


async def test_nobody_enters_before_a_job_that_is_just_being_held(monkeypatch: pytest.MonkeyPatch):
    life = Unhurried(monkeypatch, slowed="held")
    loop = asyncio.create_task(life.world.reconciler.run())
    await life.apply("runs", "Starting")
    await life.apply("waits", "Queued")
    await life.apply("held", "Queued")
    life.world.finish()
    await life.turns(lambda: life.phase("waits") == "Starting")
    await life.apply("new", "Queued")
    assert (life.phase("held"), life.phase("new")) == (None, None)
    life.landed.set()
    await life.turns(lambda: life.phase("new") is not None)
    loop.cancel()
    assert (life.phase("held"), life.phase("new")) == ("Queued", "Held")


async def test_nobody_enters_before_a_held_job_when_the_same_round_makes_room(monkeypatch: pytest.MonkeyPatch):
    life = Unhurried(monkeypatch)
    loop = asyncio.create_task(life.world.reconciler.run())
    await life.apply("runs", "Starting")
    await life.apply("waits", "Queued")
    await life.apply("held", "Held")
    life.world.finish()
    await life.turns(lambda: life.phase("runs") == "Succeeded")  # the next round gives its slot to the next one
    await life.apply("new", "Held")  # and sees this one
    loop.cancel()
    assert (life.phase("waits"), life.phase("held"), life.phase("new")) == ("Starting", "Queued", "Held")


async def test_the_operator_starts_from_what_the_cluster_knows(world: World):
    world.cluster.apply("job", template_spec())
    await world.settle()
    writes = world.cluster.writes
    fresh = Store(1)
    again = Reconciler(world.cluster, fresh, Settings(), world.events, LiveKeys())  # type: ignore[arg-type]
    await resync(world.cluster, fresh)  # type: ignore[arg-type]
    await again.round()
    assert world.cluster.writes == writes, "it does nothing twice"
