"""Concurrency found by itself: the engine's queue is short but never empty, whatever the engine."""

from __future__ import annotations

import pytest

from gpubatch_runner.concurrency import MOST, START, Adaptive, Load


class Simulated:
    """An engine that works on so many requests at a time, each for so long."""

    def __init__(self, places: int, seconds: float, tells: bool = True) -> None:
        self.places, self.seconds, self.tells = places, seconds, tells
        self.answered = 0.0
        self.now = 0.0
        self.control = Adaptive()
        self.limits: list[int] = []

    def live(self, seconds: float, saturated: bool = True) -> None:
        """So many seconds with always enough to send."""
        end = self.now + seconds
        while self.now < end:
            running = min(self.places, self.control.limit)
            load = Load(running, self.control.limit - running) if self.tells else None
            self.control.observe(load, int(self.answered), saturated, self.now)
            self.limits.append(self.control.limit)
            self.answered += 0.5 * min(self.places, self.control.limit) / self.seconds
            self.now += 0.5


@pytest.mark.parametrize("places", [1, 8, 64, 256, 1024])
def test_an_engine_that_tells_its_load_has_a_short_queue_that_is_never_empty(places: int) -> None:
    engine = Simulated(places, seconds=2.0)
    engine.live(60)
    waiting = engine.control.limit - places
    assert 0 < waiting <= max(24, places)
    assert len(set(engine.limits[-40:])) == 1, "and it comes to rest"


def test_an_engine_that_runs_all_that_it_is_sent_has_enough_within_three_seconds() -> None:
    engine = Simulated(1024, seconds=5.0)
    engine.live(3)
    assert engine.control.limit >= 1024


def test_one_that_is_slow_to_take_requests_in_is_not_flooded() -> None:
    control = Adaptive()
    for look in range(8):  # its front-end hands over fifty a second
        control.observe(Load(25 * look, 0), 0, True, look / 2)
    assert control.limit <= 1.5**2 * START, "by half, every two seconds"


@pytest.mark.parametrize("places", [1, 8, 100, 500])
def test_an_engine_that_tells_nothing_is_kept_busy_by_counting_its_answers(places: int) -> None:
    engine = Simulated(places, seconds=0.5, tells=False)
    engine.live(120)
    assert places <= engine.control.limit <= max(32, 4 * places)


def test_more_in_flight_is_taken_back_where_it_makes_no_difference() -> None:
    control, now = Adaptive(), 0.0
    most = 0
    for look in range(200):  # answers by the thousand, but hardly ever a look that finds some in the engine's core
        control.observe(Load(0, 0), look * 500, True, now)
        most, now = max(most, control.limit), now + 0.5
    assert control.limit == START
    assert most < MOST


def test_a_shortage_of_requests_teaches_nothing() -> None:
    engine = Simulated(8, seconds=1.0)
    engine.live(60, saturated=False)
    assert engine.control.limit == START


def test_a_refusal_halves_the_number_once_and_not_for_each_request() -> None:
    control = Adaptive()
    control.observe(Load(256, 0), 0, True, 0.0)
    for _ in range(50):
        control.refused(1.0)
    assert control.limit == START // 2


def test_the_number_stays_below_what_the_engine_died_of() -> None:
    engine = Simulated(1024, seconds=2.0)
    engine.live(30)
    before = engine.control.limit
    engine.control.died()
    engine.live(60)
    assert engine.control.limit <= before // 2
