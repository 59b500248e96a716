"""A follower's store stays warm and doesn't pile up; what runs together ends together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gpubatch_operator import parts
from gpubatch_operator.core.election import Terms
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.kube.lease import Elector
from gpubatch_operator.kube.store import Store
from gpubatch_operator.leadership import tidy
from unit.operator.build import raw_job
from unit.operator.test_store import DONE, STARTING, raw_pod


def store_with(status: dict[str, object]) -> Store:
    store = Store(1)
    store.put_job(raw_job(status=status, version=1))
    store.put_pod(raw_pod(2, "Running"))
    return store


def test_the_last_words_of_a_pod_are_kept_until_its_end_is_recorded():
    store = store_with(STARTING)
    store.drop_pod(raw_pod(3, "Succeeded"))
    tidy(store)
    assert [p.gone for p in store.pods_for("uid-job")] == [True], "the leader may die before it has written them down"
    store.put_job(raw_job(status=STARTING | DONE, version=4))
    tidy(store)
    assert store.pods == {}


def test_a_gone_pod_of_a_job_that_is_gone_or_in_another_attempt_is_forgotten():
    store = store_with(STARTING)
    store.drop_pod(raw_pod(3, "Failed"))
    second = [STARTING["attempts"][0] | {"state": "Lost"}, STARTING["attempts"][0] | {"number": 2}]  # type: ignore[index]
    store.put_job(raw_job(status=STARTING | {"attempts": second}, version=4))
    tidy(store)
    assert store.pods == {}
    store = store_with(STARTING)
    store.drop_job("uid-job")
    tidy(store)
    assert len(store.pods) == 1, "it lives"
    store.drop_pod(raw_pod(3, "Failed"))
    tidy(store)
    assert store.pods == {}


def test_what_only_a_reconciler_takes_does_not_pile_up():
    store = Store(1)
    for version in range(1, 100):
        store.put_job(raw_job(f"job-{version}", status=DONE, version=version))
        store.drop_job(f"uid-job-{version}")
    tidy(store)
    assert store.finished == []
    assert store.take_dirty() == set()


async def test_when_one_part_ends_the_others_end_in_their_order():
    ended: list[str] = []

    async def part(name: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.append(name)

    running = {name: part(name, 60) for name in ("leadership", "webhook", "watch")}
    await parts.run({**running, "signal": part("signal", 0)}, may_end=frozenset({"signal"}))
    assert ended == ["signal", "leadership", "webhook", "watch"]


async def test_a_part_that_fails_or_ends_unasked_ends_the_process():
    async def fails() -> None:
        raise OSError("no")

    async def ends() -> None:
        return

    with pytest.raises(OSError, match="no"):
        await parts.run({"a": fails(), "b": asyncio.sleep(60)})
    with pytest.raises(RuntimeError, match="a ended"):
        await parts.run({"a": ends(), "b": asyncio.sleep(60)})


class NoLeaseYet:
    """An API server without the Lease, of which nobody else makes one."""

    async def get(self, path: str) -> dict[str, Any]:
        raise ApiError(404, "NotFound", path)

    async def create(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        return body | {"metadata": body["metadata"] | {"resourceVersion": "1"}}

    async def stream(self, *_: object) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""


async def test_a_list_that_is_begun_as_soon_as_the_lease_was_tried_is_new_enough_for_who_has_won_it():
    elector = Elector(NoLeaseYet(), "default", "lease", "me", Terms(15, 10, 2))  # type: ignore[arg-type]

    async def begun() -> float:
        await elector.tried.wait()
        return time.monotonic()

    listing = asyncio.create_task(begun())
    won_at = await elector.acquire()
    await asyncio.sleep(0.01)
    assert won_at <= await listing
