"""Bytes that are held at a time."""

from __future__ import annotations

import asyncio

from gpubatch_gateway.live.budget import Budget


class Holder:
    """Somebody who holds bytes until told to let go."""

    def __init__(self, budget: Budget, size: int) -> None:
        self.has, self.go = False, asyncio.Event()
        self.task = asyncio.create_task(self._hold(budget, size))

    async def _hold(self, budget: Budget, size: int) -> None:
        async with budget.held(size):
            self.has = True
            await self.go.wait()
        self.has = False


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_finds_enough_free_does_not_wait() -> None:
    entered = False

    async def hold() -> None:
        nonlocal entered
        async with Budget(10).held(10):
            entered = True

    coroutine = hold()
    try:
        coroutine.send(None)
    except StopIteration:
        assert entered


async def test_turns_are_taken_in_order_and_none_is_skipped() -> None:
    budget = Budget(10)
    first, large, small = (Holder(budget, size) for size in (6, 8, 2))
    await settle()
    assert (first.has, large.has, small.has) == (True, False, False)
    first.go.set()
    await settle()
    assert (first.has, large.has, small.has) == (False, True, True)
    for each in (large, small):
        each.go.set()
    await asyncio.gather(first.task, large.task, small.task)


async def test_who_wants_more_than_there_is_gets_all() -> None:
    budget = Budget(10)
    small, huge = Holder(budget, 1), Holder(budget, 1000)
    await settle()
    assert not huge.has
    small.go.set()
    await settle()
    assert huge.has
    huge.go.set()
    await asyncio.gather(small.task, huge.task)


async def test_who_leaves_takes_nothing_along() -> None:
    budget = Budget(10)
    first, leaves, last = (Holder(budget, size) for size in (6, 8, 4))
    await settle()
    leaves.task.cancel()
    await settle()
    assert last.has
    next_one = Holder(budget, 6)
    await settle()
    first.go.set()
    await asyncio.sleep(0)
    next_one.task.cancel()  # in the moment in which it is its turn
    await asyncio.gather(leaves.task, next_one.task, return_exceptions=True)
    last.go.set()
    await last.task
    whole = Holder(budget, 10)
    await settle()
    assert whole.has
    whole.go.set()
    await whole.task
