"""Writes for positions: exact soon after each move, few in a fast queue, all in one at rest."""

from __future__ import annotations

from gpubatch_operator.core.budget import LATEST, LEAST, MOST, SETTLED, STILL, Budget


def test_a_single_move_is_published_at_once_and_the_next_as_soon_as_the_queue_stands_still():
    budget = Budget()
    budget.see(0, 0.0)
    budget.see(1, 100.0)
    assert budget.exact(100.0)
    budget.see(2, 100.1)
    assert not budget.exact(100.1)
    budget.see(2, 100.1 + STILL)
    assert budget.exact(100.1 + STILL)


def test_a_queue_that_never_stands_still_is_published_every_few_seconds():
    budget, published = Budget(), 0
    for tick in range(600):  # a minute of ten moves a second
        budget.see(tick, tick / 10)
        published += budget.exact(tick / 10)
    assert published == 60 // LATEST


def test_the_faster_the_queue_the_fewer_the_other_writes():
    written = []
    for speed in (1, 10, 100):
        budget, total = Budget(), 0
        for second in range(100):
            budget.see(speed * second, float(second))
            wanted = budget.others()
            budget.spend(wanted)
            total += wanted
        written.append(total)
    slow, fast, fastest = written
    assert slow > 5 * fast > 5 * fastest
    assert fastest <= 100 * LEAST + 2 * MOST


def test_a_single_move_in_a_queue_at_rest_causes_no_storm():
    budget, total = Budget(), 0
    budget.see(0, 0.0)
    budget.see(0, 2 * SETTLED)
    assert budget.others() == MOST
    for tick in range(50):  # five seconds
        now = 2 * SETTLED + 0.1 + tick / 10
        budget.see(1, now)
        assert not budget.settled(now)
        total += (wanted := budget.others())
        budget.spend(wanted)
    assert total <= 20


def test_a_queue_at_rest_may_be_made_exact():
    budget = Budget()
    budget.see(5, 0.0)
    assert not budget.settled(SETTLED / 2)
    budget.see(5, 2 * SETTLED)
    assert budget.settled(2 * SETTLED)
    assert budget.others() == MOST
