"""Several operators on a real API server: one plans, and whatever happens to it, another one goes on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.api import Api, eventually, template_job
from support.process import OperatorProcess
from support.proxy import Proxy, proxied

AddNode = Callable[..., Awaitable[str]]
Start = Callable[..., OperatorProcess]

QUICK = {"lease_duration_seconds": 6, "lease_renew_seconds": 4.5, "lease_retry_seconds": 0.5}
ENDLESS = {"lease_duration_seconds": 3600, "lease_renew_seconds": 3000, "lease_retry_seconds": 600}
"""Nobody takes it over but by seeing its release; and no test is so slow that its leader loses it."""


@pytest.fixture
def start(kubeconfig: Path, tmp_path: Path, api: Api) -> Iterator[Start]:
    """Starts operators that share a Lease of the test's own; they run for as long as the test."""
    with ExitStack() as stack:

        def begin(replica: str, config: Path = kubeconfig, **settings: str | float) -> OperatorProcess:
            log = tmp_path / f"{replica}.log"
            named = {"replica": replica, "instance": api.namespace, "namespace": api.namespace}
            return stack.enter_context(OperatorProcess(config, log, **named, **settings))

        yield begin


def leads(operator: OperatorProcess) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return "deciding from" in operator.log

    return check


async def follows(operator: OperatorProcess) -> None:
    async def synced() -> bool:
        return "synced: " in operator.log

    await eventually("the follower to be synced", synced)


async def a_leader_and_a_follower(
    start: Start, config: Path | None = None, **settings: float
) -> tuple[OperatorProcess, OperatorProcess]:
    leader = start("first", config, **settings) if config else start("first", **settings)
    await eventually("the first to lead", leads(leader))
    follower = start("second", **settings)
    await follows(follower)
    assert not await leads(follower)()
    return leader, follower


def on(node: str) -> dict[str, dict[str, str]]:
    return {"nodeSelector": {"kubernetes.io/hostname": node}}


async def attempts(api: Api) -> dict[str, int]:
    """Of each job, how many attempts there ever were."""
    return {name: len(job["status"].get("attempts", [])) for name, job in (await api.jobs()).items()}


async def test_after_a_clean_shutdown_the_next_plans_at_once_since_it_watches_the_lease(
    api: Api, start: Start, add_node: AddNode
) -> None:
    node = await add_node()
    leader, follower = await a_leader_and_a_follower(start, **ENDLESS)
    began = time.monotonic()
    leader.terminate()
    await eventually("the follower to lead", leads(follower))
    print(f"{time.monotonic() - began:.1f} s from SIGTERM to the next leader's plan")
    await api.create(template_job("job", **on(node)))
    await api.phase("job", "Starting")
    assert leader.wait() == 0


async def test_after_kill_9_the_next_plans_when_the_lease_has_ended(api: Api, start: Start, add_node: AddNode) -> None:
    node = await add_node()
    leader, follower = await a_leader_and_a_follower(start, **QUICK)
    leader.kill()
    await eventually("the follower to lead", leads(follower))
    await api.create(template_job("job", **on(node)))
    await api.phase("job", "Starting")


async def test_a_killed_leader_that_is_started_again_leads_at_once(api: Api, start: Start, add_node: AddNode) -> None:
    node = await add_node()
    leader, follower = await a_leader_and_a_follower(start, **ENDLESS)
    leader.kill()
    leader.start()
    await api.create(template_job("job", **on(node)))
    await api.phase("job", "Starting")
    assert leader.log.count("deciding from") == 2
    assert not await leads(follower)()


async def test_a_follower_writes_nothing(api: Api, start: Start, add_node: AddNode) -> None:
    leader, _ = await a_leader_and_a_follower(start, **ENDLESS)
    leader.pause()
    await add_node()
    before = await api.create(template_job("job"))

    # The follower has seen it once it has seen what came after it; that it follows is what it logs on the way up.
    late = start("third", **ENDLESS)
    await follows(late)
    assert (await api.job("job"))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert await api.pods() == []


async def test_a_leader_that_was_paused_for_longer_than_its_lease_does_no_harm(
    api: Api, start: Start, add_node: AddNode
) -> None:
    node = await add_node()
    leader, follower = await a_leader_and_a_follower(start, **QUICK)
    for name in ("one", "two", "three"):
        await api.create(template_job(name, **on(node)))
    pod = await api.bound("one")
    leader.pause()
    await eventually("the second to lead", leads(follower))
    await api.play_end(pod)
    second = await api.bound("two")
    leader.resume()  # for all that it knows, `one` is running and `two` and `three` wait
    await ended(leader)
    assert (await attempts(api)) == {"one": 1, "two": 1, "three": 0}
    await api.play_end(second)
    await api.play_end(await api.bound("three"))
    await api.phase("three", "Succeeded")
    assert (await attempts(api)) == {"one": 1, "two": 1, "three": 1}
    assert len(await api.pods()) == 3


def moment(operator: OperatorProcess, text: str) -> str:
    """When it logged that, by the clock that both share."""
    return next(line[:23] for line in operator.log.splitlines() if text in line)


async def ended(leader: OperatorProcess) -> None:
    async def gone() -> bool:
        return leader.ended() is not None

    await eventually("the old leader to end", gone)
    assert leader.ended() == 1
    assert "the process ends at once" in leader.log


@pytest.fixture
async def proxy(kubeconfig: Path, tmp_path: Path) -> AsyncIterator[tuple[Proxy, Path]]:
    async with proxied(kubeconfig, tmp_path) as made:
        yield made


@pytest.mark.parametrize("partition", [Proxy.stall, Proxy.cut])
async def test_a_leader_that_is_cut_off_ends_and_another_one_plans(
    api: Api, start: Start, add_node: AddNode, proxy: tuple[Proxy, Path], partition: Callable[[Proxy], None]
) -> None:
    node = await add_node()
    leader, follower = await a_leader_and_a_follower(start, proxy[1], **QUICK)
    await api.create(template_job("one", **on(node)))
    pod = await api.bound("one")
    partition(proxy[0])
    await ended(leader)
    await eventually("the follower to lead", leads(follower))
    old, new = moment(leader, "the process ends at once"), moment(follower, "leading as")
    assert old < new, "the old leader had to end before the new one began"
    await api.play_end(pod)
    await api.create(template_job("two", **on(node)))
    await api.bound("two")
    assert (await attempts(api)) == {"one": 1, "two": 1}


async def test_an_outage_of_the_api_server_that_is_shorter_than_the_lease_costs_nothing(
    api: Api, start: Start, add_node: AddNode, proxy: tuple[Proxy, Path]
) -> None:
    node = await add_node()
    lease = {"lease_duration_seconds": 90, "lease_renew_seconds": 80, "lease_retry_seconds": 1}
    leader, follower = await a_leader_and_a_follower(start, proxy[1], **lease)
    proxy[0].cut()

    async def noticed() -> bool:
        return "the lease wasn't renewed" in leader.log

    await eventually("the leader to notice", noticed)
    proxy[0].heal()
    await api.create(template_job("job", **on(node)))
    await api.phase("job", "Starting")
    assert leader.ended() is None
    assert not await leads(follower)()
