"""Whatever an engine does to its client: no request is lost, none is answered twice, and each failure is told."""

from __future__ import annotations

import asyncio

import pytest

from gpubatch_runner import dispatch, http1_answer
from gpubatch_runner.run import run
from unit.runner.hostile_engine import FAULTS, SOUND, HostileEngine
from unit.runner.jobs import Job, ids, records, request

LASTING = {
    "silent": (408, "request_timeout"),
    "unending": (408, "request_timeout"),
    "error_500": (500, None),
    "busy_429": (429, None),
    "full_503": (503, None),
    "refused_400": (400, None),
    "cut": (None, "connection_error"),
    "closed": (None, "connection_error"),
    "too_long": (None, "connection_error"),
    "unending_head": (None, "connection_error"),
    "huge": (None, "connection_error"),
    "no_http": (None, "connection_error"),
    "bad_chunk": (None, "connection_error"),
    "too_short": (None, "invalid_answer"),
    "no_json": (None, "invalid_answer"),
}
FINAL = ("silent", "unending", "refused_400")
"""What is an answer, or none in time: not sent again."""


def asking(prompt: str) -> dict[str, object]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}]}
    return request(0, custom_id=prompt, body=body)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BACKOFF_SECONDS", 0.01)


async def test_nothing_is_lost_and_each_failure_is_told(job: Job) -> None:
    assert set(LASTING) | set(SOUND) == set(FAULTS)
    prompts = [f"{fault} {n}" for fault in FAULTS for n in range(3)]
    job.write([asking(prompt) for prompt in prompts])
    async with HostileEngine() as engine:
        spec = job.spec(engine_url=engine.url, request_timeout_seconds=3, max_retries=2, max_concurrent_requests=16)
        outcome = await asyncio.wait_for(run(spec, job.environment, asyncio.Event()), 60)
    assert sorted(ids(job.output) + ids(job.errors)) == sorted(prompts)
    assert ids(job.output) == sorted(prompt for prompt in prompts if prompt.split()[0] in SOUND)
    assert (outcome.completed, outcome.failed) == (3 * len(SOUND), 3 * len(LASTING))
    for record in records(job.errors):
        fault = record["custom_id"].split()[0]
        response, error = record["response"] or {}, record["error"] or {}
        assert (response.get("status_code"), error.get("code")) == LASTING[fault], record
        assert engine.seen[record["custom_id"]] == (1 if fault in FINAL else 3)


async def test_what_heals_is_answered(job: Job) -> None:
    prompts = [f"{fault} once" for fault in LASTING if fault not in FINAL]
    job.write([asking(prompt) for prompt in prompts])
    async with HostileEngine() as engine:
        spec = job.spec(engine_url=engine.url, request_timeout_seconds=5)
        outcome = await asyncio.wait_for(run(spec, job.environment, asyncio.Event()), 60)
    assert (outcome.completed, outcome.failed) == (len(prompts), 0)
    assert set(engine.seen.values()) == {2}


async def test_an_answer_that_never_ends_does_not_fill_the_memory(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_answer, "MAX_BODY", 20)
    job.write([asking("unending 1")])
    async with HostileEngine() as engine:
        spec = job.spec(engine_url=engine.url, request_timeout_seconds=30, max_retries=0)
        await asyncio.wait_for(run(spec, job.environment, asyncio.Event()), 60)
    [record] = records(job.errors)
    assert "longer than 20 bytes" in record["error"]["message"]
