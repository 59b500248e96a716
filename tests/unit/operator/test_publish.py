"""What is worth a write: near positions at once, deep ones and estimates when they have moved by more than a tenth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core import publish
from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.estimate import Estimate
from gpubatch_operator.core.phases import Phase
from gpubatch_operator.core.publish import Blockers, estimate_is_stale, position_is_stale, slip, stale, waiting
from gpubatch_operator.core.reasons import Reason
from unit.operator.build import EPOCH, ONE_GPU, gpu_shape, job, node
from unit.operator.schema import check_status

NOW = EPOCH
BUSY = (Reason.NODES_BUSY, "all 2 matching nodes are busy")


@given(st.integers(0, 10_000) | st.none(), st.integers(1, 20))
def test_the_first_twenty_positions_are_exact(published: int | None, position: int):
    assert position_is_stale(published, position) is (published != position)


@pytest.mark.parametrize(
    ("published", "position", "is_stale"),
    [(None, 500, True), (500, 500, False), (500, 451, False), (500, 449, True), (500, 550, False), (500, 551, True)],
)
def test_deeper_positions_are_written_when_they_moved_by_more_than_a_tenth(published, position, is_stale):
    assert position_is_stale(published, position) is is_stale


@pytest.mark.parametrize(
    ("published", "new", "is_stale"),
    [
        (None, None, False),
        (None, 1000, True),
        (1000, None, True),
        (1000, 1090, False),
        (1000, 1120, True),
        (1000, 880, True),
        (10, 14, False),  # noise
        (10, 16, True),
        (-1, 100, True),  # what is shown has passed
        (-1, -0.5, False),
    ],
)
def test_estimates_are_written_when_they_moved_by_more_than_a_tenth_or_have_passed(published, new, is_stale):
    def absolute(x):
        return None if x is None else NOW + x

    assert estimate_is_stale(absolute(published), absolute(new), NOW) is is_stale


@given(
    st.integers(1, 5000),
    st.sampled_from([BUSY, (Reason.NO_GPU_NODES, "no node advertises nvidia.com/gpu")]),
    st.none() | st.tuples(st.floats(0, 1e7), st.floats(1, 1e7)),
    st.sampled_from([Phase.QUEUED, Phase.VALIDATING]),
)
def test_what_was_just_written_is_not_written_again(position, blocker, times, phase):
    estimate = None
    if times:
        start, end = NOW + times[0], NOW + times[0] + times[1]
        estimate = Estimate(start, start + times[0], end, end + times[0])
    before = job(phase=phase)
    status = dict(before.status)
    waiting(before, status, position, blocker, estimate)
    check_status(status)
    after = job(
        phase=phase,
        status=status,
        position=status["queuePosition"],
        estimated_start=publish_seconds(status.get("estimatedStartTime")),
        estimated_completion=publish_seconds(status.get("estimatedCompletionTime")),
    )
    assert not stale(after, position, blocker, estimate, NOW)
    if estimate:
        assert after.estimated_start > NOW, "an estimate is never in the past"
    if phase is Phase.QUEUED:
        assert status["pending"]["reason"] == blocker[0]


def publish_seconds(text: str | None) -> float | None:
    return seconds(text) if text else None


def test_a_waiting_job_says_why_and_what_to_do():
    status: dict = {}
    waiting(job(), status, 3, BUSY, None)
    assert status["pending"] == {"reason": "NodesBusy", "message": "position 3: all 2 matching nodes are busy"}
    waiting(job(), status, 3, (Reason.NO_MATCHING_NODE, "1 node: cordoned"), None)
    assert "spec.nodeSelector" in status["pending"]["nextStep"]


def test_an_estimate_that_is_no_more_is_taken_away():
    status = {"estimatedStartTime": "2027-01-15T08:00:00Z"}
    publish.estimated(status, "estimatedStartTime", None)
    assert status == {}


def test_why_jobs_wait():
    nodes = [node("a"), node("b", unschedulable=True)]
    assert Blockers(nodes).of(ONE_GPU) == (Reason.NODES_BUSY, "the only matching node is busy")
    assert Blockers([node("a"), node("b")]).of(ONE_GPU) == (Reason.NODES_BUSY, "all 2 matching nodes are busy")
    assert Blockers([]).of(ONE_GPU)[0] is Reason.NO_GPU_NODES
    assert Blockers([node(gpus=0)]).of(ONE_GPU) == (Reason.NO_GPU_NODES, "no node advertises nvidia.com/gpu")
    reason, why = Blockers(nodes).of(gpu_shape(8))
    assert (reason, why) == (Reason.NO_MATCHING_NODE, "1 node: has 1 of 8 GPUs; 1 node: cordoned")


def test_a_start_that_slips_is_explained():
    late = Estimate(NOW + 9000, NOW + 9900, NOW + 10_000, NOW + 11_000)
    before = job(estimated_start=NOW + 3000, position=2, status={"phase": "Queued"})
    status: dict = {}
    waiting(before, status, 5, BUSY, late, NOW)
    assert "3 more jobs of higher priority came before it" in status["pending"]["message"]
    assert "take longer than expected" in str(slip(before, 2, late, NOW))
    assert slip(before, 2, Estimate(NOW + 3100, NOW + 3200, NOW + 3300, NOW + 3400), NOW) is None, "too little to tell"
    assert slip(job(), 2, late, NOW) is None, "nothing was promised"
