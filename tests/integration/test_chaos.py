"""An operator that is killed, cut off, lied to and doubled, over a queue that never rests; then the whole history is
audited: no slot was ever held twice, no job was overtaken, lost, done twice or forgotten.

GPUBATCH_SEED replays the decisions of a run that failed, GPUBATCH_CHAOS=10 makes all runs ten times as long.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpubatch_operator.kube.client import ApiError, Client
from support.api import Api, eventually
from support.audit import Findings, audit
from support.churn import Churn
from support.faults import FaultyProxy
from support.history import Event, Recorder
from support.kubelet import Kubelets
from support.process import OperatorProcess

LENGTH = float(os.environ.get("GPUBATCH_CHAOS", "1"))
SEED = int(os.environ.get("GPUBATCH_SEED") or random.SystemRandom().randrange(10**6))
NODES = ((1, 1), (1, 1), (2, 1), (2, 2))  # GPUs, slots
KILLS = 100
FAULTS = 100
TAKEOVERS = 4
PACE = 1.5  # seconds that a run takes about
IMPATIENT = {
    "scale_up_pods": 0,
    "stop_seconds": 2,
    "unschedulable_seconds": 5,
    "progress_seconds": 3600,  # nobody listens there
}


QUICK = {"lease_duration_seconds": 6, "lease_renew_seconds": 4.5, "lease_retry_seconds": 0.5}


@dataclass
class Scene:
    """A cluster in use, and everything that ever happens in it."""

    churn: Churn
    recorder: Recorder
    drawn: random.Random  # decisions of whoever disturbs the operator
    start: Callable[..., OperatorProcess]
    caps: dict[str, int]
    kept: Path  # a history in which something was broken, an event a line

    async def writes(self, count: int, patience: float = 5.0) -> None:
        """Wait until operators have written so many statuses, or none does."""
        left, enough = count, asyncio.Event()

        def listen(event: Event) -> None:
            nonlocal left
            before = versions.get(event.object["metadata"]["uid"])
            versions[event.object["metadata"]["uid"]] = event.object["metadata"].get("generation", 0)
            left -= event.kind == "jobs" and before == event.object["metadata"].get("generation")
            if left <= 0:
                enough.set()

        versions = {uid: o["metadata"].get("generation", 0) for uid, o in self.recorder.now["jobs"].items()}
        self.recorder.listeners.append(listen)
        try:
            async with asyncio.timeout(patience):
                await enough.wait()
        except TimeoutError:
            pass
        finally:
            self.recorder.listeners.remove(listen)

    async def verdict(self, **how: float) -> None:
        """Let everything come to its end; then audit.

        Raises:
            AssertionError: A promise was broken.
        """
        await self.churn.settle()
        await self.churn.ended()
        await self.recorder.complete()
        found = audit(self.recorder.history(), deleted=self.churn.deleted, caps=self.caps, **how)
        print(json.dumps({"seed": SEED, "decisions": self.churn.done, "history": found.counts}))
        if found.broken:
            self.kept.write_text("\n".join(json.dumps(e) for e in self.recorder.history()))
        assert not found.broken, f"{report(found)}\nThe history is in {self.kept}"


def report(found: Findings) -> str:
    lines = [f"seed {SEED} (GPUBATCH_SEED={SEED} replays its decisions)"]
    for promise, cases in found.broken.items():
        lines += [f"BROKEN: {promise}: {len(cases)} times", *(f"  {c}" for c in cases[:5])]
    return "\n".join(lines)


@asynccontextmanager
async def scene(api: Api, kubeconfig: Path, folder: Path, busy: int, **settings: str | float) -> AsyncIterator[Scene]:
    """Nodes and jobs of two namespaces, of which the second may hold one slot at a time."""
    print(f"seed {SEED}")
    other = Api(api.client, f"{api.namespace}-b")
    spare = await Client.connect(str(kubeconfig))
    name = {"metadata": {"name": other.namespace}}
    await api.client.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", **name})
    caps = {other.namespace: 1}
    named = {"instance": api.namespace, "namespace": api.namespace}
    capped = {"namespace_caps": json.dumps({other.namespace: {"maxSlots": 1}})}
    operators: list[OperatorProcess] = []

    def start(replica: str = "one", config: Path = kubeconfig, **more: str | float) -> OperatorProcess:
        given = {**IMPATIENT, **named, **capped, "replica": replica, **settings, **more}
        operators.append(OperatorProcess(config, folder / f"{replica}.log", **given))
        return operators[-1]

    try:
        async with (
            Recorder(spare, {api.namespace, other.namespace}) as recorder,
            Kubelets(spare, recorder, SEED, PACE) as kubelets,
        ):
            churn = Churn([api, other], recorder, kubelets, SEED, busy)
            beating = asyncio.create_task(churn.heartbeats())
            try:
                await churn.add_nodes(*NODES)
                yield Scene(churn, recorder, random.Random(f"disturb {SEED}"), start, caps, folder / "history.jsonl")
            finally:
                beating.cancel()
                for operator in operators:
                    operator.kill()
                await churn.remove_nodes()
    finally:
        await api.client.request("DELETE", other.jobs_path)
        await api.client.request("DELETE", f"/api/v1/namespaces/{other.namespace}")
        await spare.close()


@asynccontextmanager
async def churning(churn: Churn) -> AsyncIterator[None]:
    """While the context lasts, decisions are made."""
    task = asyncio.create_task(churn.run())
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("depth", [6, 1000])
async def test_killed_at_any_moment_it_overtakes_loses_and_doubles_nothing(
    api: Api, kubeconfig: Path, tmp_path: Path, depth: int
) -> None:
    async with scene(api, kubeconfig, tmp_path, busy=30, max_queue_depth=depth) as s:
        operator, kills = s.start(), round(KILLS * LENGTH / 2)
        async with churning(s.churn):
            for _ in range(kills):
                operator.start()
                await s.writes(s.drawn.randrange(10))
                await asyncio.sleep(s.drawn.choice([0, 0, 0.01, 0.1]) * s.drawn.random())
                operator.kill()
                if s.drawn.random() < 0.2:  # it isn't back at once
                    await asyncio.sleep(s.drawn.uniform(0.5, 2.5))
                    if s.drawn.random() < 0.5:
                        await s.churn.collect_garbage()
        operator.start()
        await s.verdict()


async def test_an_api_server_that_fails_in_every_way_makes_it_overtake_lose_and_double_nothing(
    api: Api, kubeconfig: Path, tmp_path: Path
) -> None:
    async with (
        scene(api, kubeconfig, tmp_path, busy=30, max_queue_depth=1000, resync_seconds=2) as s,
        FaultyProxy(kubeconfig, tmp_path, SEED) as proxy,
    ):
        operator = s.start(config=proxy.kubeconfig)
        async with churning(s.churn):
            proxy.share = 0.06
            while sum(proxy.counts.values()) - proxy.counts["requests"] < FAULTS * LENGTH:
                if not operator.lives or s.drawn.random() < 0.05:
                    operator.kill()
                    operator.start()
                await s.writes(s.drawn.randrange(20), patience=2.0)
        proxy.heal()
        operator.kill()
        operator.start()
        print(json.dumps(proxy.counts))
        await s.verdict(grace=15.0, entered=15.0)


async def test_of_two_operators_one_paused_or_cut_off_nothing_is_overtaken_lost_or_doubled(
    api: Api, kubeconfig: Path, tmp_path: Path
) -> None:
    replicas = ("one", "two")
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases/{api.namespace}"

    async def leader() -> str | None:
        with suppress(ApiError):
            return (await api.client.get(lease))["spec"].get("holderIdentity") or None
        return None

    async with AsyncExitStack() as stack:
        s = await stack.enter_async_context(
            scene(api, kubeconfig, tmp_path, busy=30, max_queue_depth=1000, resync_seconds=5, **QUICK)
        )
        proxies: dict[str, FaultyProxy] = {}
        operators: dict[str, OperatorProcess] = {}
        for name in replicas:
            (folder := tmp_path / name).mkdir()
            proxies[name] = await stack.enter_async_context(FaultyProxy(kubeconfig, folder, SEED))
            operators[name] = s.start(name, proxies[name].kubeconfig)
            operators[name].start()
        async with churning(s.churn):
            for _ in range(round(TAKEOVERS * LENGTH)):
                old = await eventually("one to lead", leader)
                await s.writes(s.drawn.randrange(20), patience=10.0)
                paused = s.drawn.random() < 0.5
                if paused:
                    operators[old].pause()
                else:
                    proxies[old].dark = True
                await eventually("the other one to lead", lambda old=old: _another(leader, old))
                await s.writes(s.drawn.randrange(10), patience=10.0)
                if paused:
                    operators[old].resume()
                await eventually("the old leader to end", lambda old=old: _ended(operators[old]))
                proxies[old].heal()
                operators[old].start()
        await s.verdict(entered=5.0)


async def _another(leader: Callable[[], Awaitable[str | None]], old: str) -> bool:
    return await leader() not in (None, old)


async def _ended(operator: OperatorProcess) -> bool:
    return not operator.lives
