"""How a job is read and told: order, times, what is known of each phase."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_cli import advice, api, jobs, outcome, render, steering
from gpubatch_operator.api import crd
from gpubatch_operator.core.phases import FINISHED, Phase
from gpubatch_operator.core.reasons import NEXT_STEP, Reason
from gpubatch_operator.kube import convert
from gpubatch_runner import contract
from unit.cli.fakeapi import job

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def test_the_names_of_the_api_are_the_operators() -> None:
    assert (api.API_VERSION, api.KIND, api.PLURAL) == (crd.API_VERSION, crd.KIND, crd.PLURAL)
    assert set(jobs.FINISHED) == {phase.value for phase in FINISHED}
    assert set(jobs.ORDER) == {phase.value for phase in Phase} | {jobs.UNSEEN}
    assert convert.RETRY == steering.RETRY


WAITS = (
    Reason.NODES_BUSY, Reason.NO_GPU_NODES, Reason.NO_MATCHING_NODE, Reason.UNSCHEDULABLE, Reason.BACKOFF, Reason.QUOTA,
    Reason.QUEUE_FULL, Reason.NAMESPACE_SLOTS, Reason.SCALING_UP, Reason.SUSPENDED,
)  # fmt: skip
FAILS = (
    Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_NOT_STARTED, Reason.ENGINE_OUT_OF_MEMORY, Reason.ENGINE_CRASHED,
    Reason.RUNNER_CRASHED, Reason.POD_REJECTED, Reason.POD_NOT_ALLOWED, Reason.POD_FAILED, Reason.CANCELLED,
    Reason.TOO_MANY_LOST_ATTEMPTS, Reason.DEADLINE_EXCEEDED, Reason.QUEUE_DEADLINE_EXCEEDED,
    Reason.COMPLETION_WINDOW_EXCEEDED, *(r for r in contract.Reason if r.value != "Interrupted"),
)  # fmt: skip


@pytest.mark.parametrize("reason", [*WAITS, *FAILS], ids=lambda reason: reason.value)
def test_a_job_that_failed_or_waits_is_told_what_to_do(reason: StrEnum) -> None:
    assert advice.advice(reason.value)


def test_advice_is_about_reasons_that_there_are() -> None:
    assert set(advice.OURS) <= {r.value for r in (*Reason, *contract.Reason)}
    assert advice.advice(Reason.QUOTA) == NEXT_STEP[Reason.QUOTA]


def test_the_queue_is_listed_as_it_runs() -> None:
    found = [
        job("old", "Succeeded", completionTime="2026-01-01T10:00:00Z"),
        job("second", queuePosition=2),
        job("suspended", "Suspended"),
        job("held", "Held"),
        job("runs", "Running", queuePosition=0, startTime="2026-01-01T10:00:00Z"),
        job("new", None),
        job("failed", "Failed", completionTime="2026-01-01T11:00:00Z"),
        job("first", queuePosition=1),
        job("starts", "Starting", queuePosition=0, startTime="2026-01-01T10:00:00Z"),
    ]
    names = [j["metadata"]["name"] for j in sorted(found, key=jobs.order)]
    assert names == ["runs", "starts", "first", "second", "new", "held", "suspended", "failed", "old"]


def test_a_finished_job_with_a_new_run_id_has_not_finished() -> None:
    done = job("a", "Succeeded", spec={"runId": "1"}, runId="1")
    assert jobs.finished(done)
    done["spec"]["runId"] = "2"
    assert not jobs.finished(done)
    assert jobs.finished(job("b", "Failed"))
    assert not jobs.finished(job("c", "Running"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-01-01T14:05:00Z", "~14:05"),
        ("2026-01-02T02:05:00Z", "~Fri 02:05"),
        ("2026-01-20T02:05:00Z", "~2026-01-20 02:05"),
        ("2025-12-31T02:05:00Z", "~2025-12-31 02:05"),
    ],
)
def test_times_are_as_short_as_they_can_be(text: str, shown: str) -> None:
    assert jobs.clock(text, NOW) == shown
    assert jobs.clock(text, NOW, sure=True) == shown[1:]


def test_times_are_those_of_this_machines_zone() -> None:
    zone = timezone(timedelta(hours=9))
    assert jobs.clock("2026-01-01T14:05:00Z", NOW.astimezone(zone)) == "~23:05"
    assert jobs.clock(None, NOW) == ""


@given(st.integers(0, 10**7))
def test_durations_read_back_as_nearly_what_they_were(seconds: int) -> None:
    shown = jobs.span(timedelta(seconds=seconds))
    lost = seconds - jobs.seconds(shown)
    assert 0 <= lost < max(60, seconds / 24)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1h30m", 5400), ("2d", 172800), ("10s", 10), ("0.5", 0.5)])
def test_durations_are_written_as_kubectl_takes_them(text: str, seconds: float) -> None:
    assert jobs.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1w", "h", "1h 2m", "1.5h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        jobs.seconds(text)


def told(name: str, phase: str | None, ahead: list[Any] | None = None, **more: Any) -> str:
    return "\n".join(render.standing(job(name, phase, **more), NOW, ahead or []))


def test_a_waiting_job_is_told_its_place_who_is_before_it_and_when_it_starts() -> None:
    pending = {"reason": "NodesBusy", "message": "all 2 nodes are taken", "nextStep": "Wait."}
    text = told(
        "a", "Queued", [job("b", "Running", progress={"percent": 40})], queuePosition=1, pending=pending,
        estimatedStartTime="2026-01-01T12:30:00Z", estimatedStartTimeP90="2026-01-01T13:00:00Z",
        estimatedCompletionTime="2026-01-01T14:00:00Z",
    )  # fmt: skip
    assert text == (
        "a (namespace team): Queued, position 1, priority 0, created 2h ago\n"
        "  why: NodesBusy: all 2 nodes are taken\n"
        "  what to do: Wait.\n"
        "  before it: b (Running 40%)\n"
        "  estimate: starts ~12:30 (in 30m, with 90% by 13:00), done ~14:00 (in 2h)"
    )


def test_a_running_job_is_told_how_far_it_is() -> None:
    text = told(
        "a", "Running", nodeName="gpu-a", startTime="2026-01-01T11:48:00Z",
        progress={"summary": "120/300 (40%)", "rate": 1.2345},
        attempts=[{"number": 1, "state": "Active", "node": "gpu-a", "startTime": "2026-01-01T11:48:00Z"}],
    )  # fmt: skip
    assert text.splitlines()[0] == "a (namespace team): Running on gpu-a since 12m, 120/300 (40%), 1.23 a second"
    assert text.splitlines()[-1] == "  attempt 1: Active on gpu-a for 12m"


def test_a_job_that_serves_is_told_where_and_has_no_results() -> None:
    serves = {"url": "http://10.0.0.7:9808/v1", "model": "chat"}
    text = told("a", "Running", nodeName="gpu-a", progress={"summary": "120 served"}, live=serves)
    assert text.splitlines()[0] == "a (namespace team): Running on gpu-a, 120 served"
    assert "  takes requests for 'chat' at http://10.0.0.7:9808/v1" in text.splitlines()
    live = job("a", "Succeeded")
    live["spec"]["inference"]["input"] = {"live": {}}
    assert str(outcome.none(live)) == "a takes its requests over HTTP: its clients have the answers"


def test_a_failed_job_is_told_why_and_what_to_do_then() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "OutputExpired", "message": "403 at https://s/x"}
    text = told(
        "a", "Failed", conditions=[failed], completionTime="2026-01-01T11:59:00Z",
        inspection={"requests": 10, "inputTokens": 99, "invalid": 1, "firstErrors": ["line 3: bad"]},
        results={"total": 10, "completed": 4, "failed": 6, "output": "s3://b/o"},
        webhookDeliveries=[{"state": "DeadLettered", "lastError": "410"}],
    )  # fmt: skip
    assert text == (
        "a (namespace team): Failed 60s ago\n"
        "  why: OutputExpired: 403 at https://s/x\n"
        "  what to do: Put a fresh URL into the Secret that urlFrom names, then `gpubatch retry JOB`.\n"
        "  input: 10 requests, 99 prompt tokens, 1 invalid lines\n"
        "    line 3: bad\n"
        "  results: 4 of 10 answered, 6 failed\n"
        "    output: s3://b/o\n"
        "  webhooks: 1 given up, the last one: 410"
    )


def test_a_job_that_nobody_has_seen_says_so() -> None:
    assert "no operator has looked at it yet" in told("a", None)
