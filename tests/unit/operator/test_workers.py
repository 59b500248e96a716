"""Work on jobs: one task each, errors are told, those who can wait hold nobody up."""

from __future__ import annotations

import asyncio

import pytest

from gpubatch_operator.workers import Workers

Ends = list[tuple[str, Exception | None]]


@pytest.fixture
def ends() -> Ends:
    return []


@pytest.fixture
async def workers(ends: Ends) -> Workers:
    return Workers({"quick": 2, "patient": 1}, lambda uid, error: ends.append((uid, error)))


async def test_a_job_is_busy_until_its_work_has_ended_and_the_end_is_told(workers: Workers, ends: Ends):
    done = asyncio.Event()

    async def work() -> None:
        await done.wait()

    workers.start("a", work, "quick")
    await asyncio.sleep(0)
    assert (workers.busy("a"), workers.busy("b"), ends) == (True, False, [])
    done.set()
    await workers.join()
    assert (workers.busy("a"), ends) == (False, [("a", None)])


async def test_an_error_is_told_and_ends_nothing_else(workers: Workers, ends: Ends):
    error = OSError("no route to host")

    async def fail() -> None:
        raise error

    async def work() -> None:
        await asyncio.sleep(0)

    workers.start("a", fail, "quick")
    workers.start("b", work, "quick")
    await workers.join()
    assert sorted(ends, key=str) == sorted([("a", error), ("b", None)], key=str)


async def test_thousands_who_can_wait_hold_nobody_up(workers: Workers, ends: Ends):
    never = asyncio.Event()

    async def hang() -> None:
        await never.wait()

    worked = asyncio.Event()

    async def work() -> None:
        worked.set()

    for i in range(1000):
        workers.start(f"new-{i}", hang, "patient")
    workers.start("urgent", work, "quick")
    await worked.wait()
    await asyncio.sleep(0)
    assert ends == [("urgent", None)]
    await workers.stop()
    assert not workers.busy("new-0")
