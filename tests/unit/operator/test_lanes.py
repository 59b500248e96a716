"""Attempts at a time: a hanging receiver takes room from nobody who answers well."""

from __future__ import annotations

import asyncio
from collections import Counter

from gpubatch_operator.notify.lanes import OTHERS, WELL, Lanes


class World:
    """Receivers that answer when they are told to, and the order in which they were asked."""

    def __init__(self, room: int = 8) -> None:
        self.lanes, self.asked = Lanes(room), list[str]()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.go: dict[str, asyncio.Event] = {}

    def submit(self, name: str, count: int = 1, *, well: bool = True, hangs: bool = False) -> None:
        async def work(_: bool) -> bool:
            self.asked.append(name)
            self.running[name] += 1
            self.most[name] = max(self.most[name], self.running[name])
            if hangs:
                await self.go.setdefault(name, asyncio.Event()).wait()
            else:
                await asyncio.sleep(0)
            self.running[name] -= 1
            return well

        for _ in range(count):
            self.lanes.submit(name, work)


async def settle() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


async def test_all_that_is_submitted_is_done_in_order_for_each_receiver():
    world = World()
    world.submit("a", 50)
    world.submit("b", 50)
    await world.lanes.join()
    assert Counter(world.asked) == {"a": 50, "b": 50}
    assert world.asked.index("b") < 4, "each gets its turn"


async def test_who_answers_well_is_asked_more_at_a_time_than_who_does_not():
    world = World(room=100)
    world.submit("well", 100)
    world.submit("bad", 100, well=False)
    await world.lanes.join()
    assert (world.most["well"], world.most["bad"]) == (WELL, OTHERS)


async def test_hanging_receivers_that_fill_their_class_leave_the_other_alone():
    world = World(room=4)
    world.submit("good")
    await world.lanes.join()
    for n in range(20):
        world.submit(f"hanging-{n}", 5, hangs=True)
    world.submit("unknown")
    await settle()
    assert "unknown" not in world.asked
    world.submit("good", 100)
    await settle()
    assert world.asked.count("good") == 101
    await world.lanes.stop()


async def test_a_receiver_that_comes_to_its_senses_is_trusted_again():
    world = World(room=100)
    world.submit("a", 4, well=False)
    await world.lanes.join()
    world.submit("a", 20)
    await world.lanes.join()
    assert world.most["a"] == WELL


async def test_an_attempt_that_raises_costs_nobody_its_room():
    lanes = Lanes(room=1)
    done: list[str] = []

    async def bad(_: bool) -> bool:
        raise ValueError("unforeseen")

    async def good(_: bool) -> bool:
        done.append("good")
        return True

    lanes.submit("a", bad)
    lanes.submit("b", good)
    await lanes.join()
    assert done == ["good"]


async def test_receivers_that_have_nothing_to_do_are_forgotten():
    world = World()
    world.lanes = Lanes(remembered=10)
    for n in range(50):
        world.submit(f"receiver-{n}", well=n % 2 == 0)
        await world.lanes.join()
    assert len(world.lanes._receivers) == 10
    world.lanes = Lanes()
    world.submit("bad", well=False)
    await world.lanes.join()
    assert not world.lanes._receivers
