"""Told to stop, by whomever: what was answered is published or saved, and the outcome says why."""

from __future__ import annotations

import asyncio
import time

import pytest

from gpubatch_runner import stopping
from gpubatch_runner.contract import STOP_FILE, Outcome, Reason
from gpubatch_runner.run import run
from gpubatch_runner.stopping import Stop, unless
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import Job, ids, records, request


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "POLL_SECONDS", 0.02)


def say(job: Job, text: str) -> None:
    """As the operator does by the pod's annotation."""
    job.environment.pod_dir.mkdir(parents=True, exist_ok=True)
    (job.environment.pod_dir / STOP_FILE).write_text(text)


async def stopped_midway(job: Job, word: str, terminate: bool = False) -> tuple[Outcome, FakeEngine]:
    """The outcome of a run of 30 requests that was told to stop after 10."""
    job.write([request(n) for n in range(30)])
    say(job, "")
    terminated = asyncio.Event()
    async with FakeEngine(delay=0.02) as engine:
        spec = job.spec(engine_url=engine.url, max_concurrent_requests=2)
        running = asyncio.create_task(run(spec, job.environment, terminated))
        await engine.has_seen(10)
        say(job, word)
        if terminate:
            terminated.set()
        return await asyncio.wait_for(running, 60), engine


async def test_a_cancelled_run_publishes_what_was_answered_and_a_record_for_each_other_request(job: Job) -> None:
    outcome, engine = await stopped_midway(job, "Cancelled\n")
    assert (outcome.succeeded, outcome.reason) == (False, Reason.CANCELLED)
    assert outcome.completed == len(records(job.output)) >= 8
    assert outcome.failed == 30 - outcome.completed
    assert {record["error"]["code"] for record in records(job.errors)} == {"batch_cancelled"}
    assert sorted(ids(job.output) + ids(job.errors)) == sorted(f"r{n}" for n in range(30))
    assert sum(engine.seen.values()) == outcome.completed


async def test_a_cancelled_run_is_over_for_later_attempts_too(job: Job) -> None:
    first, _ = await stopped_midway(job, "Cancelled")
    job.attempt = 2
    assert await run(job.spec(engine_url="http://127.0.0.1:1"), job.environment, asyncio.Event()) == first
    assert not [path for path in job.claim.iterdir() if path.name.endswith((".checkpoint", ".staged", ".partial"))]


async def test_a_suspended_run_has_no_error_records_and_goes_on_where_it_was(job: Job) -> None:
    outcome, _ = await stopped_midway(job, "Suspended")
    assert outcome.reason is Reason.SUSPENDED
    assert outcome.failed == 0
    assert not job.output.exists()
    assert outcome.completed == len(records(job.claim / "out.jsonl.partial"))
    job.attempt = 2
    async with FakeEngine() as engine:
        ended = await run(job.spec(engine_url=engine.url), job.environment, asyncio.Event())
    assert ended.succeeded
    assert sum(engine.seen.values()) == 30 - outcome.completed
    assert ids(job.output) == sorted(f"r{n}" for n in range(30))


@pytest.mark.parametrize(
    ("word", "reason"),
    [("Cancelled", Reason.CANCELLED), ("Suspended", Reason.SUSPENDED), ("", Reason.INTERRUPTED)],
)
async def test_after_sigterm_the_reason_is_still_the_operators(job: Job, word: str, reason: Reason) -> None:
    outcome, _ = await stopped_midway(job, word, terminate=True)
    assert outcome.reason is reason


@pytest.mark.parametrize("reason", ["DeadlineExceeded", "CompletionWindowExceeded"])
async def test_at_its_deadline_a_run_ends_with_what_it_has(job: Job, reason: str) -> None:
    job.write([request(n) for n in range(200)])
    async with FakeEngine(delay=0.02) as engine:
        spec = job.spec(engine_url=engine.url, max_concurrent_requests=1, stop_at=time.time() + 0.7, stop_reason=reason)
        outcome = await asyncio.wait_for(run(spec, job.environment, asyncio.Event()), 60)
    assert outcome.reason == reason
    assert 0 < outcome.completed < 200
    assert {record["error"]["code"] for record in records(job.errors)} == {"batch_expired"}
    assert sorted(ids(job.output) + ids(job.errors)) == sorted(f"r{n}" for n in range(200))


async def test_a_run_cancelled_while_the_engine_loads_answers_for_each_request(job: Job) -> None:
    job.write([request(n) for n in range(3)])
    running = asyncio.create_task(run(job.spec(engine_url="http://127.0.0.1:1"), job.environment, asyncio.Event()))
    await asyncio.sleep(0.1)
    say(job, "Cancelled")
    outcome = await asyncio.wait_for(running, 60)
    assert (outcome.reason, outcome.completed, outcome.failed) == (Reason.CANCELLED, 0, 3)
    assert ids(job.errors) == ["r0", "r1", "r2"]


async def test_a_later_attempt_that_is_cancelled_at_its_start_publishes_what_the_earlier_one_answered(
    job: Job,
) -> None:
    suspended, _ = await stopped_midway(job, "Suspended")
    job.attempt = 2
    say(job, "Cancelled")
    outcome = await run(job.spec(engine_url="http://127.0.0.1:1"), job.environment, asyncio.Event())
    assert outcome.reason is Reason.CANCELLED
    assert outcome.completed == len(records(job.output)) == suspended.completed


async def test_a_file_that_says_nothing_known_stops_nothing(job: Job) -> None:
    outcome, _ = await stopped_midway(job, "soon, perhaps")
    assert outcome.succeeded


async def test_work_may_be_finished_within_its_grace_but_not_after_sigterm() -> None:
    terminated = asyncio.Event()
    stop = Stop(terminated, at=time.time())
    async with stop.watching():
        assert await unless(stop, asyncio.sleep(0.05, "done"), grace=5) == "done"
        asyncio.get_running_loop().call_later(0.05, terminated.set)
        with pytest.raises(stopping.DeadlineExceeded):
            await unless(stop, asyncio.sleep(30), grace=30)
