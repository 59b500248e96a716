"""An object store that is slow, cuts, answers 429 and 500, lies or never ends: nothing is lost, and all is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gpubatch_runner import stores
from gpubatch_runner.contract import Outcome, Reason, Storage, Upload
from gpubatch_runner.environment import Environment
from gpubatch_runner.run import run
from support.s3 import S3, lines, spec
from support.storeproxy import StoreProxy
from support.web import cut, forever
from unit.runner.fake_engine import FakeEngine

PART = 5 * 1024 * 1024
QUICK = Upload(connect_seconds=1, read_seconds=2, write_seconds=2, total_seconds=30, backoff_seconds=0.1)
TEXT = "x" * 20_000
COUNT = 600
"""With the text 12 MB: three parts of an upload."""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PART", PART)


async def long_answer(prompt: str, _: int) -> web.Response:
    return web.json_response({"id": prompt, "choices": [{"message": {"content": TEXT}}]})


def all_ids(count: int) -> list[str]:
    return sorted(f"r{n}" for n in range(count))


async def finish(s3: S3, endpoint: str, folder: Path, **changes: Any) -> Outcome:
    values = {"storage": Storage(endpoint=endpoint, region="us-east-1"), "upload": QUICK} | changes
    environment = Environment(journal_dir=folder, progress_port=0, credentials_dir=folder / "credentials")
    return await asyncio.wait_for(run(spec(s3, **values), environment, asyncio.Event()), 120)


class Faulty:
    """Lets the first requests of each kind fail; a kind is a method and what it is about."""

    def __init__(self, times: int, fault: Any) -> None:
        self.seen: Counter[str] = Counter()
        self._times, self._fault = times, fault

    async def __call__(self, request: web.Request) -> web.StreamResponse | None:
        kind = f"{request.method} {'part' if 'partNumber' in request.query else request.query_string[:8]}"
        if "out.jsonl" not in request.path or "uploads=&prefix" in request.query_string:
            return None
        self.seen[kind] += 1
        if self.seen[kind] > self._times:
            return None
        response: web.StreamResponse | None = await self._fault(request)
        return response


async def error_500(request: web.Request) -> web.Response:
    return web.Response(status=500, text="<Error><Code>InternalError</Code><Message>We erred</Message></Error>")


async def slow_down(request: web.Request) -> web.Response:
    return web.Response(status=503, text="<Error><Code>SlowDown</Code><Message>Please</Message></Error>")


async def error_429(request: web.Request) -> web.Response:
    return web.Response(status=429)


async def cut_at_once(request: web.Request) -> web.Response:
    cut(request)
    return web.Response()


async def cut_midway(request: web.Request) -> web.Response:
    if request.can_read_body:
        await request.content.read(1000)
    cut(request)
    return web.Response()


async def never_answers(request: web.Request) -> web.Response:
    await forever()
    return web.Response()


async def wrong_length(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=500, headers={"Content-Length": "1000"})
    await response.prepare(request)
    if request.method != "HEAD":
        await response.write(b"0123456789")
    cut(request)
    return response


async def delayed(request: web.Request) -> None:
    await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    "fault",
    [error_500, slow_down, error_429, cut_at_once, cut_midway, never_answers, wrong_length, delayed],
    ids=lambda fault: fault.__name__,
)
async def test_nothing_is_lost_to_a_store_that_fails_now_and_then(s3: S3, tmp_path: Path, fault: Any) -> None:
    s3.put("in.jsonl", lines(COUNT))
    async with FakeEngine(long_answer) as engine, StoreProxy(s3.endpoint) as proxy:
        proxy.fault = faulty = Faulty(1, fault)
        outcome = await finish(s3, proxy.url, tmp_path, engine_url=engine.url)
        assert outcome.succeeded, outcome.message
        assert faulty.seen["PUT part"] >= (3 if fault is delayed else 4), "no part was uploaded again"
    assert s3.ids("out.jsonl") == all_ids(COUNT)
    assert set(engine.seen.values()) == {1}
    assert [name for name in s3.names() if "manifest" not in name] == ["in.jsonl", "out.jsonl"]
    assert s3.unfinished() == []


async def test_an_answer_that_was_lost_does_not_publish_twice(s3: S3, tmp_path: Path) -> None:
    """The store does what it is asked and the connection breaks before it says so: the manifest is there already."""
    s3.put("in.jsonl", lines(5))
    done: list[str] = []
    async with FakeEngine() as engine, StoreProxy(s3.endpoint) as proxy:

        async def lose_the_answer(request: web.Request) -> web.Response | None:
            if "manifest" not in request.path or request.method != "PUT" or done:
                return None
            done.append(request.path)
            await proxy.answer(request, await request.read())
            cut(request)
            return web.Response()

        proxy.fault = lose_the_answer
        outcome = await finish(s3, proxy.url, tmp_path, engine_url=engine.url)
    assert done
    assert outcome.succeeded, outcome.message
    assert s3.ids("out.jsonl") == all_ids(5)


async def test_a_store_that_stays_down_is_told_and_the_journal_has_all(s3: S3, tmp_path: Path) -> None:
    s3.put("in.jsonl", lines(20))
    async with FakeEngine() as engine, StoreProxy(s3.endpoint) as proxy:

        async def down(request: web.Request) -> web.Response | None:
            return await error_500(request) if "staged" in request.path else None

        proxy.fault = down
        outcome = await finish(s3, proxy.url, tmp_path, engine_url=engine.url)
        assert outcome.reason is Reason.OUTPUT_NOT_WRITABLE
        assert (outcome.completed, outcome.total) == (20, 20)
        assert "InternalError: We erred" in outcome.message
        assert "out.jsonl" not in s3.names()
        proxy.fault = None
        outcome = await finish(s3, proxy.url, tmp_path, engine_url="http://127.0.0.1:1")
        assert outcome.succeeded
    assert set(engine.seen.values()) == {1}
    assert s3.ids("out.jsonl") == all_ids(20)


def put_into_secret(folder: Path, secret: str) -> None:
    """As the kubelet refreshes the volume."""
    keys = folder / "credentials"
    keys.mkdir(exist_ok=True)
    (keys / "AWS_ACCESS_KEY_ID").write_text("user")
    (keys / "AWS_SECRET_ACCESS_KEY").write_text(secret)


@pytest.mark.parametrize("renewed", [True, False])
async def test_keys_that_expire_before_the_upload_are_told_and_renewed_ones_in_the_secret_are_used(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    s3.put("in.jsonl", lines(20))
    put_into_secret(tmp_path, "usersecret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "as it was when the container began")
    refused = 0

    async def expire(prompt: str, _: int) -> None:
        put_into_secret(tmp_path, "expired")

    async def renew(request: web.Request) -> None:
        nonlocal refused
        if "staged" in request.path:
            refused += 1
            if refused == 2 and renewed:
                put_into_secret(tmp_path, "usersecret")

    async with FakeEngine(expire) as engine, StoreProxy(s3.endpoint) as proxy:
        proxy.fault = renew
        outcome = await finish(s3, proxy.url, tmp_path, engine_url=engine.url)
        if renewed:
            assert outcome.succeeded, outcome.message
            return
        assert outcome.reason is Reason.ACCESS_DENIED
        assert "SignatureDoesNotMatch" in outcome.message
        assert "tried 3 times" in outcome.message
        assert outcome.completed == 20
        put_into_secret(tmp_path, "usersecret")
        assert (await finish(s3, proxy.url, tmp_path, engine_url="http://127.0.0.1:1")).succeeded
    assert set(engine.seen.values()) == {1}
    assert s3.ids("out.jsonl") == all_ids(20)


async def test_finishing_takes_seconds_though_the_store_is_slow(s3: S3, tmp_path: Path) -> None:
    """12 MB through a store that takes 4 MB/s: 3 s if all were left to the end; the run itself takes longer."""
    s3.put("in.jsonl", lines(COUNT))
    rate, sent_before = 4e6, 0

    def parts() -> list[str]:
        return [path for method, path in proxy.requests if method == "PUT" and "partNumber" in path]

    async def unhurried(prompt: str, before: int) -> web.Response:
        nonlocal sent_before
        await asyncio.sleep(0.1)
        sent_before = len(parts())
        return await long_answer(prompt, before)

    async with FakeEngine(unhurried) as engine, StoreProxy(s3.endpoint) as proxy:
        proxy.bytes_per_second = rate
        began = time.monotonic()
        outcome = await finish(s3, proxy.url, tmp_path, engine_url=engine.url, max_concurrent_requests=8)
        assert outcome.succeeded, outcome.message
        took = time.monotonic() - began
        size = (s3.root / "batches" / "out.jsonl").stat().st_size
        print(
            f"{size / rate:.1f} s to upload, {outcome.timings.uploading:.1f} s of them at the end; in all {took:.1f} s"
        )
        assert len(parts()) == 3
        assert sent_before, "nothing was sent before the last answer"


async def test_an_upload_that_fails_while_the_run_goes_on_begins_anew(s3: S3, tmp_path: Path) -> None:
    s3.put("in.jsonl", lines(COUNT))
    down = 0

    async def unhurried(prompt: str, before: int) -> web.Response:
        await asyncio.sleep(0.05)
        return await long_answer(prompt, before)

    async with FakeEngine(unhurried) as engine, StoreProxy(s3.endpoint) as proxy:

        async def denied_once(request: web.Request) -> web.Response | None:
            nonlocal down
            if "partNumber" in request.query and down < 1:
                down += 1
                return web.Response(status=400, text="<Error><Code>NoSuchUpload</Code></Error>")
            return None

        proxy.fault = denied_once
        outcome = await finish(s3, proxy.url, tmp_path, engine_url=engine.url, max_concurrent_requests=8)
        assert down == 1
        assert outcome.succeeded, outcome.message
    assert s3.ids("out.jsonl") == all_ids(COUNT)
    assert s3.unfinished() == []


async def test_the_output_is_in_the_inputs_order_if_asked_for(s3: S3, tmp_path: Path) -> None:
    s3.put("in.jsonl", lines(COUNT))

    async def at_random(prompt: str, before: int) -> web.Response:
        await asyncio.sleep(int(prompt) * 7919 % 13 / 500)
        return await long_answer(prompt, before)

    async with FakeEngine(at_random) as engine:
        outcome = await finish(s3, s3.endpoint, tmp_path, engine_url=engine.url, output_order="Input")
    assert outcome.succeeded
    written = (s3.root / "batches" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in written] == [f"r{n}" for n in range(COUNT)]
