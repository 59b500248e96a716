"""Outputs that can only be PUT: taken whole, once; nothing is lost when the URL has expired or the server is bad."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gpubatch_runner.contract import Outcome, Reason, Upload
from gpubatch_runner.preflight import inspect
from gpubatch_runner.puts import expiry
from gpubatch_runner.run import run
from support.web import PutServer, cut, forever
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import Job, request

QUICK = Upload(
    connect_seconds=1, read_seconds=0.4, write_seconds=0.4, pool_seconds=1, total_seconds=5, backoff_seconds=0.02
)
NO_ENGINE = "http://127.0.0.1:1"


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def ids(data: bytes) -> list[str]:
    return sorted(line["custom_id"] for line in lines(data))


def all_ids(count: int) -> list[str]:
    return sorted(f"r{n}" for n in range(count))


async def finish(job: Job, **changes: Any) -> Outcome:
    values = {"errors": None, "upload": QUICK, **changes}
    return await asyncio.wait_for(run(job.spec(**values), job.environment, asyncio.Event()), 60)


def put_into_secret(job: Job, url: str) -> None:
    folder = job.environment.secrets_dir / "links"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "out").write_text(url)


async def test_the_results_are_put_once_and_whole(job: Job) -> None:
    job.write([request(n) for n in range(50)])
    async with FakeEngine() as engine, PutServer() as server:
        outcome = await finish(job, engine_url=engine.url, output=server.url("out"), errors=server.url("err"))
        assert outcome.succeeded
        assert (outcome.output, outcome.errors) == (f"http://127.0.0.1:{server.port}/out", None)
        assert ids(server.files["out"]) == all_ids(50)
        assert server.puts == ["out"]


async def test_without_an_error_file_every_custom_id_is_in_the_output_once(job: Job) -> None:
    job.write([request(0), "{", request(1), request(1)])
    async with FakeEngine() as engine, PutServer() as server:
        outcome = await finish(job, engine_url=engine.url, output=server.url("out"))
    assert (outcome.completed, outcome.failed, outcome.errors) == (2, 2, None)
    [*_] = written = lines(server.files["out"])
    assert sorted(str(line["custom_id"]) for line in written if line["error"] is None) == ["r0", "r1"]
    assert sorted(line["error"]["code"] for line in written if line["error"]) == [
        "duplicate_custom_id",
        "invalid_json_line",
    ]


async def test_an_expired_url_keeps_the_results_and_a_fresh_one_gets_them_without_the_engine(job: Job) -> None:
    job.write([request(n) for n in range(30)] + ["{"])
    async with FakeEngine() as engine, PutServer() as server:
        put_into_secret(job, server.url("out", "X-Amz-Signature=expired"))
        places = {"output": "secret://links/out", "checkpoint": "pvc://data/kept"}
        outcome = await finish(job, engine_url=engine.url, **places)
        assert (outcome.succeeded, outcome.reason) == (False, Reason.OUTPUT_EXPIRED)
        assert (outcome.completed, outcome.failed, outcome.output) == (30, 1, None)
        assert "HTTP 403 (AccessDenied: Request has expired)" in outcome.message
        assert "the key 'out' of the Secret 'links'" in outcome.message
        assert "kept beside pvc://data/kept" in outcome.message
        assert "s3cr3t" not in outcome.message
        assert server.files == {}

        job.attempt = 2
        put_into_secret(job, server.url("out"))
        outcome = await finish(job, engine_url=NO_ENGINE, **places)
        assert outcome.succeeded
        assert outcome.completed == 30
        assert len(lines(server.files["out"])) == 31
        assert sum(engine.seen.values()) == 30
        job.attempt = 3
        assert await finish(job, engine_url=NO_ENGINE, **places) == outcome
        assert server.puts.count("out") == QUICK.attempts + 1
    assert sorted(path.suffix for path in job.claim.iterdir()) == [".json", ".jsonl"]  # manifest and input


async def test_a_url_that_is_renewed_while_the_runner_tries_is_used_at_once(job: Job) -> None:
    job.write([request(n) for n in range(3)])

    async def renew(_: web.Request, before: int) -> None:
        if before == 1:
            put_into_secret(job, server.url("out"))

    async with FakeEngine() as engine, PutServer(renew) as server:
        put_into_secret(job, server.url("out", "X-Amz-Signature=expired"))
        outcome = await finish(job, engine_url=engine.url, output="secret://links/out")
        assert outcome.succeeded
        assert len(server.puts) == 3


async def test_without_a_checkpoint_an_expired_url_says_that_the_results_are_lost(job: Job) -> None:
    job.write([request(n) for n in range(3)])
    async with FakeEngine() as engine, PutServer() as server:
        outcome = await finish(job, engine_url=engine.url, output=server.url("out", "X-Amz-Signature=expired"))
        assert outcome.reason is Reason.OUTPUT_EXPIRED
        assert "lost with this pod: spec.inference.checkpoint" in outcome.message
        assert len(server.puts) == 1, "a URL that is not in a Secret gets no better"


async def test_an_answer_that_is_no_http_shows_no_signature(job: Job) -> None:
    job.write([request(0)])

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"SSH-2.0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with FakeEngine() as engine, server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/out?X-Amz-Signature=s3cr3t"
        outcome = await finish(job, engine_url=engine.url, output=url)
    assert outcome.reason is Reason.OUTPUT_NOT_WRITABLE
    assert "ClientResponseError" in outcome.message
    assert "s3cr3t" not in outcome.message


async def test_a_restarted_container_does_not_put_again_what_was_taken(job: Job) -> None:
    job.write([request(n) for n in range(3)])
    async with FakeEngine() as engine, PutServer() as server:
        first = await finish(job, engine_url=engine.url, output=server.url("out"))
        server.good = "none: the URL was good for one time"
        again = await finish(job, engine_url=engine.url, output=server.url("out"))
    assert first.succeeded
    assert again.succeeded
    assert server.puts == ["out"]


async def test_an_attempt_after_a_lost_one_says_that_it_starts_anew(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    job.write([request(n) for n in range(30)])
    async with FakeEngine(delay=0.02) as engine, PutServer() as server:
        stop = asyncio.Event()
        spec = job.spec(engine_url=engine.url, errors=None, output=server.url("out"), max_concurrent_requests=1)
        running = asyncio.create_task(run(spec, job.environment, stop))
        await engine.has_seen(5)
        stop.set()
        outcome = await running
        assert outcome.reason is Reason.INTERRUPTED
        assert "Nothing of its work is kept, since spec.inference.checkpoint is not set" in outcome.message
        assert server.puts == [], "half a result would be taken for the whole"
        job.attempt = 2
        assert (await finish(job, engine_url=engine.url, output=server.url("out"))).succeeded
    assert ids(server.files["out"]) == all_ids(30)


async def test_with_a_checkpoint_an_interrupted_run_goes_on(job: Job) -> None:
    job.write([request(n) for n in range(30)])
    async with FakeEngine(delay=0.02) as engine, PutServer() as server:
        stop = asyncio.Event()
        values = {"errors": None, "output": server.url("out"), "checkpoint": "pvc://data/kept", "upload": QUICK}
        spec = job.spec(engine_url=engine.url, max_concurrent_requests=1, **values)
        running = asyncio.create_task(run(spec, job.environment, stop))
        await engine.has_seen(5)
        stop.set()
        done = (await running).completed
        job.attempt = 2
        assert (await finish(job, engine_url=engine.url, **values)).succeeded
        assert sum(engine.seen.values()) == 30
        assert done >= 4
    assert ids(server.files["out"]) == all_ids(30)


@pytest.mark.parametrize("where", ["err", "out"])
async def test_a_failed_jobs_error_document_goes_to_its_error_location_else_to_its_output(job: Job, where: str) -> None:
    async with PutServer() as server:
        errors = server.url("err") if where == "err" else None
        spec = job.spec(attempt=0, output=server.url("out"), errors=errors, upload=QUICK)
        verdict = await inspect(spec, job.environment)
        assert verdict.reason is Reason.INPUT_NOT_FOUND
        [document] = lines(server.files[where])
        assert server.puts == [where]
    assert (document["code"], document["reason"]) == ("input_not_found", "InputNotFound")
    assert "no such file in this claim" in document["message"]
    assert document["job"] == {"namespace": "ns", "name": "job", "uid": "u-1"}
    assert document["request_counts"] == {"total": 0, "completed": 0, "failed": 0}


async def test_a_url_that_is_past_its_end_fails_the_inspection_and_costs_no_gpu(job: Job) -> None:
    job.write([request(1)])
    async with PutServer() as server:
        url = server.url("out", "X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600&X-Amz-Signature=secret")
        verdict = await inspect(job.spec(attempt=0, output=url, errors=None, upload=QUICK), job.environment)
    assert verdict.reason is Reason.OUTPUT_EXPIRED
    assert "expired at 2026-01-01T01:00:00Z" in verdict.message
    assert "secret" not in verdict.message.replace("secretKeyRef", "")


@pytest.mark.parametrize(
    ("query", "end"),
    [
        ("X-Goog-Date=20260101T000000Z&X-Goog-Expires=60", 1767225660),
        ("sv=1&sig=x&se=2026-01-01T00%3A00%3A00Z", 1767225600),
        ("Signature=x&Expires=1767225600", 1767225600),
        ("X-Amz-Date=nonsense&X-Amz-Expires=60", None),
        ("a=b", None),
    ],
)
def test_a_presigned_urls_end_is_read_off_it(query: str, end: float | None) -> None:
    assert expiry(f"https://host/path?{query}") == end


# --- a hostile server


async def slow(request: web.Request, before: int) -> None:
    await asyncio.sleep(0.1)


async def cut_before(request: web.Request, before: int) -> None:
    if before < 2:
        cut(request)


async def cut_midway(request: web.Request, before: int) -> None:
    if before < 2:
        await request.content.read(1000)
        cut(request)


async def cut_after(request: web.Request, before: int) -> None:
    if before < 2:
        await request.read()
        cut(request)


async def error_500(request: web.Request, before: int) -> web.Response | None:
    return web.Response(status=500, text="oops") if before < 2 else None


async def error_429(request: web.Request, before: int) -> web.Response | None:
    return web.Response(status=429) if before < 2 else None


async def early_503(request: web.Request, before: int) -> web.Response | None:
    """Answers and closes before the file was read."""
    return web.Response(status=503, headers={"Connection": "close"}) if before < 2 else None


async def never_reads(request: web.Request, before: int) -> None:
    if before < 2:
        await forever()


async def never_answers(request: web.Request, before: int) -> None:
    if before < 2:
        await request.read()
        await forever()


async def wrong_length(request: web.Request, before: int) -> web.StreamResponse | None:
    """Says that its answer has 1000 bytes, and sends ten."""
    if before >= 2:
        return None
    await request.read()
    response = web.StreamResponse(status=500, headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"0123456789")
    cut(request)
    return response


async def never_ends(request: web.Request, before: int) -> web.StreamResponse | None:
    """An error whose text has no end."""
    if before >= 2:
        return None
    await request.read()
    response = web.StreamResponse(status=500)
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)


FAULTS = [
    slow,
    cut_before,
    cut_midway,
    cut_after,
    error_500,
    error_429,
    early_503,
    never_reads,
    never_answers,
    wrong_length,
    never_ends,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("kept", [False, True], ids=["no-checkpoint", "checkpoint"])
async def test_nothing_is_lost_to_a_hostile_server(job: Job, fault: Any, kept: bool) -> None:
    job.write([request(n) for n in range(200)])
    checkpoint = "pvc://data/kept" if kept else None
    async with FakeEngine() as engine, PutServer(fault) as server:
        outcome = await finish(job, engine_url=engine.url, output=server.url("out"), checkpoint=checkpoint)
        assert outcome.succeeded, outcome.message
        assert ids(server.files["out"]) == all_ids(200)
        assert set(engine.seen.values()) == {1}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (error_500, "HTTP 500"),
        (error_429, "HTTP 429"),
        (cut_before, "ServerDisconnectedError"),
        (never_answers, "TimeoutError: no progress within its time limits"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_server_that_stays_hostile_is_told_and_the_results_wait_for_it(job: Job, fault: Any, said: str) -> None:
    async def always(request: web.Request, _: int) -> web.StreamResponse | None:
        response: web.StreamResponse | None = await fault(request, 0)
        return response

    job.write([request(n) for n in range(20)])
    places = {"checkpoint": "pvc://data/kept"}
    async with FakeEngine() as engine, PutServer(always) as server:
        outcome = await finish(job, engine_url=engine.url, output=server.url("out"), **places)
        assert outcome.reason is Reason.OUTPUT_NOT_WRITABLE
        assert said in outcome.message
        assert "tried 3 times" in outcome.message
        assert "kept beside pvc://data/kept" in outcome.message
        server.fault, job.attempt = None, 2
        assert (await finish(job, engine_url=NO_ENGINE, output=server.url("out"), **places)).succeeded
        assert ids(server.files["out"]) == all_ids(20)


async def test_a_slow_but_steady_server_is_not_given_up_within_its_limits(job: Job) -> None:
    """Longer than the limit of one write, shorter than that of the whole."""
    job.write([request(n) for n in range(60)])

    async def long_answer(prompt: str, _: int) -> web.Response:
        return web.json_response({"text": "x" * 100_000})

    async def trickle(request: web.Request, _: int) -> web.Response:
        size = 0
        while chunk := await request.content.read(500_000):
            size += len(chunk)
            await asyncio.sleep(0.05)
        server.files["out"] = b"x" * size
        return web.Response()

    async with FakeEngine(long_answer) as engine, PutServer(trickle) as server:
        begin = time.monotonic()
        limits = QUICK.model_copy(update={"read_seconds": 4.0})  # what the kernel has taken counts as sent
        outcome = await finish(job, engine_url=engine.url, output=server.url("out"), upload=limits)
        assert outcome.succeeded, outcome.message
        assert time.monotonic() - begin > QUICK.write_seconds
        assert len(server.files["out"]) > 60 * 100_000


async def test_a_file_that_is_not_there_yet_when_a_run_starts_is_told(job: Job, tmp_path: Path) -> None:
    outcome = await finish(job, output="secret://links/out")
    assert outcome.reason is Reason.OUTPUT_NOT_WRITABLE
    assert "spec.inference.output.urlFrom: the Secret 'links' has no key 'out'" in outcome.message
