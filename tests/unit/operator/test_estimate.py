"""Estimates: learned, replayed in the queue's order, honest, never in the past."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_operator.core.clock import iso, seconds
from gpubatch_operator.core.estimate import PRIOR_SECONDS, Durations, replay
from gpubatch_operator.core.model import Job
from gpubatch_operator.core.phases import Phase
from unit.operator.build import EPOCH, attempt, gpu_shape, job, node

NOW = EPOCH + 1000


def finished(
    duration: float, requests: int = 0, processing: float = 0.0, phase: Phase = Phase.SUCCEEDED, **more: Any
) -> Job:
    status = {
        "startTime": iso(EPOCH),
        "completionTime": iso(EPOCH + duration),
        "results": {"total": requests, "timings": {"processing": processing}},
    }
    return job("done", phase=phase, status=status, **more)


def learned(*jobs: Job) -> Durations:
    durations = Durations()
    for one in jobs:
        durations.learn(one)
    return durations


def running(started: float = NOW - 100, **progress: Any) -> Job:
    at = {"stage": "Processing", "processingSeconds": 50.0, "lastHeartbeatTime": iso(NOW)}
    status = {"progress": at | progress} if progress else {}
    return job("running", phase=Phase.RUNNING, attempt=attempt(started=started), status=status)


def test_nothing_known_falls_back_to_the_prior_and_before_it_to_the_users_own_estimate():
    assert Durations().duration(job()) == PRIOR_SECONDS
    assert Durations().duration(job(hint=42)) == 42


def test_a_model_that_was_never_seen_is_expected_to_be_like_the_others():
    known = learned(finished(200, requests=100, processing=100.0))
    assert known.duration(job(model="new", requests=50)) == 150
    assert known.duration(job(model="new", hint=42)) == 42
    assert known.duration(job(inference=False, model="train:1")) == PRIOR_SECONDS, "training says nothing of inference"


def test_the_work_is_overhead_plus_requests_at_the_learned_speed():
    known = learned(finished(200, requests=100, processing=100.0), finished(260, requests=300, processing=140.0))
    assert known.duration(job(requests=1000)) == pytest.approx(110 + 1000 * 240 / 400)
    assert known.duration(job(requests=None)) == pytest.approx(230), "uncounted work: the mean"


def test_what_was_learned_beats_the_users_hint():
    assert learned(finished(30)).duration(job(hint=9999)) == 30


def test_failed_jobs_say_nothing_about_how_long_work_takes():
    assert learned(finished(3, phase=Phase.FAILED)).duration(job()) == PRIOR_SECONDS


def test_a_running_job_is_extrapolated_from_its_own_progress():
    assert Durations().remaining(running(total=100, completed=40, failed=10), NOW) == pytest.approx(50)
    assert Durations().remaining(running(total=100, completed=40, failed=10), NOW + 20) == pytest.approx(30)


def test_without_progress_it_is_expected_to_take_what_such_jobs_take():
    assert learned(finished(300)).remaining(running(), NOW) == 200


def test_a_job_that_outlived_its_expectation_is_stretched():
    assert Durations().remaining(running(started=NOW - 5000), NOW) == 500
    assert Durations().remaining(running(total=10, completed=10), NOW) >= 1


def test_the_queue_is_replayed_in_order_over_the_slots():
    known = learned(finished(100))
    waiting = [job(f"job-{i}", ticket=i) for i in range(3)]
    got = replay(waiting, [running()], [node("node-a"), node("node-b")], known, NOW)
    assert got["uid-running"].completion == NOW + 10  # outlived by now: stretched
    assert [round(got[j.uid].start - NOW) for j in waiting] == [0, 10, 100]
    assert [round(got[j.uid].completion - NOW) for j in waiting] == [100, 110, 200]


def test_a_job_that_fits_no_node_gets_no_estimate():
    got = replay([job("huge", of=gpu_shape(64)), job("small")], [], [node()], Durations(), NOW)
    assert got.keys() == {"uid-small"}


def test_a_job_waits_for_a_slot_that_it_fits():
    busy = job("busy", phase=Phase.RUNNING, attempt=attempt(node="big", started=NOW), hint=500, of=gpu_shape(8))
    got = replay([job("wants-big", of=gpu_shape(8))], [busy], [node("big", 8), node("small")], Durations(), NOW)
    assert got["uid-wants-big"].start == NOW + 500


def test_slots_of_a_node_share_its_gpus():
    """A free slot without a free GPU is no place to start."""
    busy = job("busy", phase=Phase.RUNNING, attempt=attempt(slot=1, started=NOW), hint=500)
    got = replay([job("next", hint=70)], [busy], [node(gpus=1, slots=2)], Durations(), NOW)
    assert (got["uid-next"].start, got["uid-next"].completion) == (NOW + 500, NOW + 570)


def test_an_attempt_in_a_slot_that_was_abolished_opens_no_slot():
    busy = job("busy", phase=Phase.RUNNING, attempt=attempt(slot=5, started=NOW), hint=10)
    other = job("other", phase=Phase.RUNNING, attempt=attempt(slot=0, started=NOW), hint=500)
    got = replay([job("next")], [busy, other], [node()], Durations(), NOW)
    assert got["uid-next"].start == NOW + 500


@given(st.data())
def test_replay_keeps_order_and_slots_and_never_shows_the_past(data):
    gpus = st.sampled_from([1, 1, 2, 4])
    nodes = [
        node(f"node-{i}", g, slots=s)
        for i, (g, s) in enumerate(data.draw(st.lists(st.tuples(gpus, st.integers(1, 3)), max_size=4)))
    ]
    queue = [
        job(f"job-{i}", hint=hint, of=gpu_shape(g))
        for i, (hint, g) in enumerate(data.draw(st.lists(st.tuples(st.integers(1, 1000), gpus), max_size=15)))
    ]
    active = [
        job(f"active-{n.name}", phase=Phase.RUNNING, attempt=attempt(node=n.name, started=NOW - age), hint=300)
        for n in nodes
        if (age := data.draw(st.sampled_from([None, 1, 10_000]))) is not None
    ]
    got = replay(queue, active, nodes, Durations(), NOW)
    for one in [*queue, *active]:
        if one.uid in got:
            assert got[one.uid].completion > NOW
            assert got[one.uid].start >= NOW or one in active
        else:
            assert all(n.capacity["nvidia.com/gpu"] < one.shape.gpus for n in nodes)
    starts: dict[Any, float] = {}
    for one in queue:  # of equal shapes nobody starts before an earlier one
        if one.uid in got:
            assert got[one.uid].start >= starts.get(one.shape, 0)
            starts[one.shape] = got[one.uid].start
    for t in {e.start for e in got.values()} | {NOW}:  # and never more at once than there is room for
        at_once = [j for j in [*queue, *active] if j.uid in got and got[j.uid].start <= t < got[j.uid].completion]
        assert len(at_once) <= sum(n.slots for n in nodes)
        assert sum(j.shape.gpus for j in at_once) <= sum(n.capacity["nvidia.com/gpu"] for n in nodes)


@given(st.integers(0, 4_000_000_000))
def test_times_are_written_as_kubernetes_does_and_read_back(at: int):
    assert iso(at).endswith("Z")
    assert seconds(iso(at)) == at
