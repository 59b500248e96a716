"""The queue's order: priority, then creation, then the order in which the API server stored the jobs."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core.order import in_order
from unit.operator.build import EPOCH, job


def names(jobs) -> list[str]:
    return [j.name for j in jobs]


def test_high_runs_before_normal_before_low_whatever_the_order_of_creation():
    jobs = [
        job(name, priority=p, queued_at=EPOCH + i) for i, (name, p) in enumerate([("low", -1), ("high", 1), ("mid", 0)])
    ]
    for order in itertools.permutations(jobs):
        assert names(in_order(order)) == ["high", "mid", "low"]


def test_among_equals_the_older_job_runs_first():
    assert names(in_order([job("new", queued_at=EPOCH + 1), job("old", queued_at=EPOCH)])) == ["old", "new"]


def test_jobs_of_one_second_run_in_the_order_in_which_they_were_stored():
    # 9 < 10 as numbers; as strings it would be the other way round
    jobs = [job(f"job-{ticket}", ticket=ticket) for ticket in (1000, 10, 9, 100)]
    assert names(in_order(jobs)) == ["job-9", "job-10", "job-100", "job-1000"]


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3), st.integers(0, 3)), max_size=30),
    st.randoms(use_true_random=False),
)
def test_the_order_is_total_and_the_same_whatever_order_the_jobs_come_in(keys, rng: random.Random):
    jobs = [job(f"job-{i}", priority=p, queued_at=EPOCH + q, ticket=t) for i, (p, q, t) in enumerate(keys)]
    shuffled = jobs[:]
    rng.shuffle(shuffled)
    ordered = in_order(shuffled)
    assert names(ordered) == names(in_order(jobs))
    for a, b in itertools.pairwise(ordered):
        assert (-a.priority, a.queued_at, a.ticket, a.uid) < (-b.priority, b.queued_at, b.ticket, b.uid)
