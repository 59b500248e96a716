"""A run: every request answered once, in OpenAI's batch output format, whatever the engine does meanwhile."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web

from gpubatch_runner import dispatch, supervisor
from gpubatch_runner import run as run_module
from gpubatch_runner.contract import Outcome, Reason, RunSpec
from gpubatch_runner.results import Publication
from gpubatch_runner.run import run
from gpubatch_runner.workdir import Workdir
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import Job, ids, records, request


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(supervisor, "SETTLE_SECONDS", 0.05)


async def finish(job: Job, spec: RunSpec) -> Outcome:
    return await asyncio.wait_for(run(spec, job.environment, asyncio.Event()), 60)


async def test_each_request_is_answered_once_in_the_format_of_openai_batches(job: Job) -> None:
    job.write([request(n) for n in range(50)])
    async with FakeEngine() as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url))
    assert outcome.succeeded
    assert (outcome.total, outcome.completed, outcome.failed) == (50, 50, 0)
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (100, 150)
    assert (outcome.output, outcome.errors) == ("pvc://data/out.jsonl", None)
    assert outcome.timings.processing > 0
    assert outcome.timings.uploading > 0
    assert ids(job.output) == sorted(f"r{n}" for n in range(50))
    record = next(record for record in records(job.output) if record["custom_id"] == "r7")
    assert set(record) == {"id", "custom_id", "response", "error"}
    assert record["error"] is None
    assert record["response"]["status_code"] == 200
    assert record["response"]["request_id"] == "req-7"
    assert record["response"]["body"]["choices"][0]["message"]["content"] == "echo 7"


async def test_only_results_and_manifest_are_left_at_the_output(job: Job) -> None:
    job.write([request(1)])
    async with FakeEngine() as engine:
        await finish(job, job.spec(engine_url=engine.url))
    names = sorted(path.name for path in job.claim.iterdir())
    assert len(names) == 3
    assert names[0] == "in.jsonl"
    assert names[1].startswith("out.jsonl") or names[2].endswith(".manifest.json")


async def test_an_error_file_of_an_earlier_run_does_not_outlive_a_run_without_errors(job: Job) -> None:
    job.write([request(1)])
    job.errors.write_text("old\n")
    async with FakeEngine() as engine:
        await finish(job, job.spec(engine_url=engine.url))
    assert not job.errors.exists()


async def test_an_invalid_line_is_an_error_record_and_the_rest_is_answered(job: Job) -> None:
    job.write([request(1), "{not json", "", request(1), request(2)])
    async with FakeEngine() as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url))
    assert outcome.succeeded
    assert (outcome.total, outcome.completed, outcome.failed) == (4, 2, 2)
    found = {record["error"]["line"]: record for record in records(job.errors)}
    assert found[2]["error"]["code"] == "invalid_json_line"
    assert found[4]["error"]["code"] == "duplicate_custom_id"
    assert found[4]["response"] is None


async def test_a_4xx_is_an_answer_and_is_not_sent_again(job: Job) -> None:
    async def refuse(prompt: str, _: int) -> web.Response | None:
        return web.json_response({"error": {"message": "too long"}}, status=400) if prompt == "1" else None

    job.write([request(1), request(2)])
    async with FakeEngine(refuse) as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url))
    assert engine.seen["1"] == 1
    assert (outcome.completed, outcome.failed) == (1, 1)
    [record] = records(job.errors)
    assert record["response"]["status_code"] == 400
    assert record["response"]["body"] == {"error": {"message": "too long"}}


async def test_429_and_5xx_are_sent_again_until_the_answer_comes(job: Job) -> None:
    async def stumble(prompt: str, before: int) -> web.Response | None:
        return web.Response(status=429 if prompt == "1" else 503) if before < 2 else None

    job.write([request(1), request(2)])
    async with FakeEngine(stumble) as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url))
    assert outcome.completed == 2
    assert engine.seen == {"1": 3, "2": 3}


async def test_an_answer_of_503_stays_the_answer_after_the_last_retry(job: Job) -> None:
    async def full(prompt: str, _: int) -> web.Response | None:
        return web.Response(status=503, text="full") if prompt == "1" else None

    job.write([request(1), request(2)])
    async with FakeEngine(full) as engine:
        await finish(job, job.spec(engine_url=engine.url, max_retries=2))
    assert engine.seen["1"] == 3
    [record] = records(job.errors)
    assert record["response"]["status_code"] == 503
    assert record["response"]["body"] == {"message": "full"}


async def test_retry_after_is_honoured(job: Job) -> None:
    times: list[float] = []

    async def busy(_: str, before: int) -> web.Response | None:
        times.append(asyncio.get_running_loop().time())
        return web.Response(status=429, headers={"Retry-After": "0.5"}) if before == 0 else None

    job.write([request(1)])
    async with FakeEngine(busy) as engine:
        await finish(job, job.spec(engine_url=engine.url))
    assert times[1] - times[0] >= 0.5


async def test_a_request_without_answer_in_time_is_recorded_as_408(job: Job) -> None:
    async def hang(prompt: str, _: int) -> None:
        if prompt == "1":
            await asyncio.sleep(5)

    job.write([request(1), request(2)])
    async with FakeEngine(hang) as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url, request_timeout_seconds=0.2))
    assert (outcome.completed, outcome.failed) == (1, 1)
    assert engine.seen["1"] == 1
    [record] = records(job.errors)
    assert record["response"]["status_code"] == 408
    assert record["error"]["code"] == "request_timeout"
    assert "0.2 s" in record["error"]["message"]


async def test_no_more_requests_are_in_flight_than_the_job_allows(job: Job) -> None:
    job.write([request(n) for n in range(40)])
    async with FakeEngine(delay=0.01) as engine:
        await finish(job, job.spec(engine_url=engine.url, max_concurrent_requests=4))
    assert engine.most_in_flight == 4


async def test_requests_in_flight_when_the_engine_dies_are_sent_again_at_no_cost_to_their_retries(job: Job) -> None:
    job.write([request(n) for n in range(40)])
    engine = FakeEngine(delay=0.05)
    await engine.start()
    spec = job.spec(engine_url=engine.url, max_concurrent_requests=8, max_retries=0)
    running = asyncio.create_task(finish(job, spec))
    await engine.has_seen(12)
    await engine.stop()
    await asyncio.sleep(0.1)
    await engine.start()
    outcome = await running
    await engine.stop()
    assert outcome.succeeded
    assert (outcome.completed, outcome.failed) == (40, 0)
    assert ids(job.output) == sorted(f"r{n}" for n in range(40))
    assert sum(engine.seen.values()) <= 40 + 8


async def test_the_stage_says_that_the_engine_is_loading_again(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    job.write([request(n) for n in range(400)])
    async with FakeEngine(delay=0.02) as engine, aiohttp.ClientSession() as session:
        running = asyncio.create_task(finish(job, job.spec(engine_url=engine.url, max_concurrent_requests=2)))
        await engine.has_seen(4)
        [port] = [record.port for record in caplog.records if hasattr(record, "port")]
        async with session.get(f"http://127.0.0.1:{port}/progress") as response:
            during = await response.json()
        async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
            metrics = await response.text()
        engine.healthy = False
        await engine.stop()
        await asyncio.sleep(0.2)
        async with session.get(f"http://127.0.0.1:{port}/progress") as response:
            dead = await response.json()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (during["stage"], during["total"]) == ("Processing", 400)
    assert during["completed"] >= 1
    assert "gpubatch_runner_in_flight_requests 2.0" in metrics
    assert dead["stage"] == "LoadingModel"
    assert "engine died" in dead["message"]


async def test_a_dead_engine_behind_a_living_server_is_waited_for(job: Job) -> None:
    async def die_once(prompt: str, before: int) -> web.Response | None:
        if prompt == "3" and before == 0:
            engine.healthy = False
            asyncio.get_running_loop().call_later(0.2, setattr, engine, "healthy", True)
            return web.json_response({"error": {"message": "EngineCore encountered an issue."}}, status=500)
        return None

    job.write([request(n) for n in range(10)])
    async with FakeEngine(die_once) as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url, max_retries=0))
    assert (outcome.completed, outcome.failed) == (10, 0)


async def test_a_request_that_kills_the_engine_fails_alone(job: Job) -> None:
    async def poison(prompt: str, _: int) -> None:
        if prompt == "7":
            await asyncio.sleep(0.03)
            await engine.stop()
            await asyncio.sleep(0.05)
            await engine.start()

    async def slow(prompt: str, before: int) -> None:
        if prompt == "7":
            asyncio.get_running_loop().create_task(poison(prompt, before))
            await asyncio.sleep(5)
        await asyncio.sleep(0.04)

    job.write([request(n) for n in range(24)])
    async with FakeEngine(slow) as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url, max_concurrent_requests=8))
    assert outcome.succeeded
    assert (outcome.completed, outcome.failed) == (23, 1)
    [record] = records(job.errors)
    assert (record["custom_id"], record["error"]["code"]) == ("r7", "engine_died")
    assert engine.seen["7"] == 3


async def test_an_engine_that_never_answers_fails_the_run_with_an_error_record_for_each_request(job: Job) -> None:
    job.write([request(1), request(2)])
    outcome = await finish(job, job.spec(engine_url="http://127.0.0.1:1", engine_start_timeout_seconds=0.2))
    assert not outcome.succeeded
    assert outcome.reason is Reason.ENGINE_NOT_READY
    assert "startTimeoutSeconds" in outcome.message
    assert [record["error"]["code"] for record in records(job.errors)] == ["engine_not_ready"] * 2
    assert (outcome.completed, outcome.failed) == (0, 2)
    assert outcome.errors == "pvc://data/errors.jsonl"


async def test_an_engine_that_does_not_come_back_fails_the_run_but_keeps_what_was_done(job: Job) -> None:
    async def die(prompt: str, _: int) -> None:
        if prompt == "5":
            asyncio.get_running_loop().create_task(engine.stop())
            await asyncio.sleep(5)

    job.write([request(n) for n in range(10)])
    async with FakeEngine(die) as engine:
        spec = job.spec(engine_url=engine.url, max_concurrent_requests=1, engine_start_timeout_seconds=0.3)
        outcome = await finish(job, spec)
    assert outcome.reason is Reason.ENGINE_FAILED
    assert ids(job.output) == [f"r{n}" for n in range(5)]
    assert ids(job.errors) == [f"r{n}" for n in range(5, 10)]
    assert (outcome.completed, outcome.failed) == (5, 5)

    job.attempt = 2  # the next attempt goes on from there
    async with FakeEngine() as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url))
    assert outcome.succeeded
    assert outcome.completed == 10
    assert sum(engine.seen.values()) == 5
    assert ids(job.output) == [f"r{n}" for n in range(10)]
    assert not job.errors.exists()


async def test_a_run_whose_requests_all_failed_has_failed(job: Job) -> None:
    async def refuse(_: str, __: int) -> web.Response:
        return web.json_response({"error": {"message": "no such thing"}}, status=400)

    job.write([request(1), request(2)])
    async with FakeEngine(refuse) as engine:
        outcome = await finish(job, job.spec(engine_url=engine.url))
    assert outcome.reason is Reason.ALL_REQUESTS_FAILED
    assert "no such thing" in outcome.message
    assert job.output.read_text() == ""
    assert len(records(job.errors)) == 2


async def test_a_run_whose_input_vanished_leaves_an_error_document(job: Job) -> None:
    outcome = await finish(job, job.spec())
    assert outcome.reason is Reason.INPUT_NOT_FOUND
    assert "spec.inference.input.url pvc://data/in.jsonl" in outcome.message
    [record] = records(job.errors)
    assert record["error"]["code"] == "input_not_found"
    assert outcome.errors == "pvc://data/errors.jsonl"


async def test_a_job_that_refuses_invalid_lines_fails_if_its_input_was_replaced_since_the_inspection(job: Job) -> None:
    job.write([request(1), "{"])
    outcome = await finish(job, job.spec(invalid_requests="Fail"))
    assert outcome.reason is Reason.INVALID_REQUESTS


async def test_the_input_of_a_run_is_the_one_with_which_it_began(job: Job) -> None:
    job.write([request(n) for n in range(3)])
    async with FakeEngine(delay=0.05) as engine:
        spec = job.spec(engine_url=engine.url, max_concurrent_requests=1)
        running = asyncio.create_task(run(spec, job.environment, asyncio.Event()))
        await engine.has_seen(1)
        running.cancel()  # the container dies, the pod does not
        await asyncio.gather(running, return_exceptions=True)
        job.write([request(n) for n in range(90, 99)])
        await finish(job, spec)
    assert ids(job.output) == ["r0", "r1", "r2"]


async def test_the_engines_deadline_is_not_renewed_by_a_restart_of_the_runner(job: Job) -> None:
    job.write([request(1)])
    spec = job.spec(engine_url="http://127.0.0.1:1", engine_start_timeout_seconds=1800)
    first = asyncio.create_task(run(spec, job.environment, asyncio.Event()))

    def kept() -> Workdir:
        return Workdir(job.environment.journal_dir, spec.run, spec.attempt)

    while kept().state.loading_since is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    workdir = kept()
    assert workdir.state.loading_since
    workdir.state.loading_since -= 1800
    workdir.save()
    outcome = await finish(job, spec)  # and not after half an hour more
    assert outcome.reason is Reason.ENGINE_NOT_READY


async def test_sigterm_leaves_partial_results_and_the_next_attempt_goes_on_from_them(job: Job) -> None:
    job.write([request(n) for n in range(30)])
    stop = asyncio.Event()
    async with FakeEngine(delay=0.02) as engine:
        running = asyncio.create_task(
            run(job.spec(engine_url=engine.url, max_concurrent_requests=2), job.environment, stop)
        )
        await engine.has_seen(10)
        stop.set()
        outcome = await running
        assert outcome.reason is Reason.INTERRUPTED
        assert not job.output.exists()
        partial = job.claim / "out.jsonl.partial"
        assert outcome.output == "pvc://data/out.jsonl.partial"
        assert outcome.completed == len(records(partial)) >= 8

        job.attempt = 2
        outcome = await finish(job, job.spec(engine_url=engine.url))
    assert outcome.succeeded
    assert outcome.completed == 30
    assert set(engine.seen.values()) == {1}
    assert ids(job.output) == sorted(f"r{n}" for n in range(30))
    assert not partial.exists()
    assert not [path for path in job.claim.iterdir() if path.name.endswith((".checkpoint", ".staged"))]


async def test_after_the_loss_of_a_pod_the_next_attempt_goes_on_from_the_last_checkpoint(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "CHECKPOINT_SHARE", 0)
    job.write([request(n) for n in range(30)])
    async with FakeEngine(delay=0.02) as engine:
        spec = job.spec(engine_url=engine.url, max_concurrent_requests=1, checkpoint_seconds=0.05)
        lost = asyncio.create_task(run(spec, job.environment, asyncio.Event()))
        await engine.has_seen(15)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        job.attempt = 2
        outcome = await finish(job, job.spec(engine_url=engine.url))
    assert outcome.completed == 30
    assert sum(engine.seen.values()) < 30 + 10
    assert ids(job.output) == sorted(f"r{n}" for n in range(30))


async def test_a_checkpoint_of_another_input_is_not_used(job: Job) -> None:
    job.write([request(n) for n in range(30)])
    stop = asyncio.Event()
    async with FakeEngine(delay=0.02) as engine:
        running = asyncio.create_task(
            run(job.spec(engine_url=engine.url, max_concurrent_requests=2), job.environment, stop)
        )
        await engine.has_seen(6)
        stop.set()
        await running
        job.write([request(n) for n in range(100, 105)])
        job.attempt = 2
        await finish(job, job.spec(engine_url=engine.url))
    assert ids(job.output) == [f"r{n}" for n in range(100, 105)]


async def test_sigterm_while_the_engine_loads_ends_the_attempt_at_once(job: Job) -> None:
    job.write([request(1)])
    stop = asyncio.Event()
    running = asyncio.create_task(run(job.spec(engine_url="http://127.0.0.1:1"), job.environment, stop))
    await asyncio.sleep(0.1)
    stop.set()
    outcome = await asyncio.wait_for(running, 60)
    assert outcome.reason is Reason.INTERRUPTED
    assert outcome.output is None


async def test_an_attempt_of_a_concluded_run_reports_the_outcome_without_an_engine(job: Job) -> None:
    job.write([request(1)])
    async with FakeEngine() as engine:
        first = await finish(job, job.spec(engine_url=engine.url))
    job.attempt = 2
    assert await finish(job, job.spec(engine_url="http://127.0.0.1:1")) == first


async def test_an_attempt_that_fails_late_does_not_replace_the_errors_of_a_concluded_run(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conclude_meanwhile(_: Publication) -> None:
        monkeypatch.undo()
        job.attempt = 2
        async with FakeEngine() as engine:
            assert (await finish(job, job.spec(engine_url=engine.url))).failed == 1
        (job.claim / "in.jsonl").unlink()

    job.write([request(1), "{"])
    monkeypatch.setattr(Publication, "check_writable", conclude_meanwhile)
    outcome = await finish(job, job.spec())
    assert outcome.succeeded
    [record] = records(job.errors)
    assert record["error"]["code"] == "invalid_json_line"


async def test_a_new_run_of_a_job_replaces_the_results_of_the_old(job: Job) -> None:
    async with FakeEngine() as engine:
        job.write([request(1)])
        await finish(job, job.spec(engine_url=engine.url))
        job.write([request(2)])
        job.attempt = 2
        await finish(job, job.spec(engine_url=engine.url, run="u-1/run-2"))
    assert ids(job.output) == ["r2"]


async def test_the_body_of_an_answer_is_kept_to_the_byte(job: Job) -> None:
    body = '{"id": "x",  "n": 1.0000000000000001, "text": "\\u00e9 é", "usage": {"prompt_tokens": 1}}'

    async def exact(_: str, __: int) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    job.write([request(1)])
    async with FakeEngine(exact) as engine:
        await finish(job, job.spec(engine_url=engine.url))
    assert f'"body":{body}' in job.output.read_text()
    assert json.loads(job.output.read_text())["response"]["body"]["id"] == "x"
