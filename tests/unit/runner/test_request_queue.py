"""The queue of requests inside the runner: what it shows over HTTP, and that it stays short."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gpubatch_runner import dispatch
from gpubatch_runner.request_queue import REMEMBERED, Item, RequestQueue, State
from gpubatch_runner.requests import Request
from gpubatch_runner.run import run
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import STATUS_FIELDS, Job, request


class Looking:
    """A run of a job, and looks at its queue meanwhile."""

    def __init__(self, job: Job, log: pytest.LogCaptureFixture, **changes: Any) -> None:
        self._job, self._log, self._changes = job, log, changes
        log.set_level("INFO")

    async def __aenter__(self) -> Looking:
        self._session = aiohttp.ClientSession()
        spec = self._job.spec(**self._changes)
        self._run = asyncio.create_task(run(spec, self._job.environment, asyncio.Event()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._run.cancel()
        await asyncio.gather(self._run, return_exceptions=True)
        await self._session.close()

    async def get(self, path: str) -> tuple[int, Any]:
        while not (ports := [record.port for record in self._log.records if hasattr(record, "port")]):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        async with self._session.get(f"http://127.0.0.1:{ports[-1]}{path}") as response:
            return response.status, await response.json()

    async def ended(self, custom_id: str) -> Any:
        """What is said of a request, once it has ended."""
        while True:
            status, document = await self.get(f"/v1/queue/request/{custom_id}")
            if status == 200 and document["status"] not in ("queued", "processing"):
                return document
            await asyncio.sleep(0.005)


async def test_the_queue_says_what_waits_and_what_runs_in_nine_fields(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    hold = asyncio.Event()

    async def wait(*_: object) -> None:
        await hold.wait()

    job.write([request(n) for n in range(50)])
    async with FakeEngine(wait) as engine:
        changes = {"engine_url": engine.url, "max_concurrent_requests": 4, "max_queue_size": 10}
        async with Looking(job, caplog, **changes) as look:
            await engine.has_seen(4)
            assert await look.get("/v1/queue/status") == (
                200,
                {
                    "queue_size": 10,
                    "processing_count": 4,
                    "max_concurrent": 4,
                    "max_queue_size": 10,
                    "total_processed": 0,
                    "total_failed": 0,
                    "total_queued": 14,
                    "active_requests": 14,
                    "is_running": True,
                },
            )
            _, running = await look.get("/v1/queue/request/r0")
            assert set(running) == {"id", "status", "completion_type", "timestamp", "error"}
            assert (running["id"], running["status"], running["completion_type"]) == ("r0", "processing", "chat")
            assert running["error"] is None
            assert abs((datetime.fromisoformat(running["timestamp"]) - datetime.now(UTC)).total_seconds()) < 60
            assert (await look.get("/v1/queue/request/r13"))[1]["status"] == "queued"
            status, absent = await look.get("/v1/queue/request/r49")
            assert (status, absent["error"]["code"]) == (404, "not_found")
            hold.set()
            assert (await look.ended("r49"))["status"] == "completed"


async def test_while_the_model_loads_the_queue_is_there_and_does_not_run(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    job.write([request(1)])
    async with Looking(job, caplog, engine_url="http://127.0.0.1:1", max_concurrent_requests=7) as look:
        _, status = await look.get("/v1/queue/status")
    assert set(status) == STATUS_FIELDS
    assert (status["is_running"], status["max_concurrent"], status["max_queue_size"]) == (False, 7, 100)


async def test_a_request_that_timed_out_is_408_and_one_refused_by_a_full_engine_503_after_its_retries(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def behave(prompt: str, _: int) -> web.Response | None:
        if prompt == "1":
            await asyncio.sleep(30)
        if prompt == "2":
            return web.json_response({"error": {"message": "queue full"}}, status=503)
        await asyncio.sleep(0.1)
        return None

    monkeypatch.setattr(dispatch, "BACKOFF_SECONDS", 0.01)
    job.write([request(n) for n in range(1, 200)])  # enough for the run, and its port, to outlive the two
    async with FakeEngine(behave) as engine:
        changes = {"engine_url": engine.url, "request_timeout_seconds": 2, "max_concurrent_requests": 3}
        async with Looking(job, caplog, **changes) as look:
            timed_out, refused = await look.ended("r1"), await look.ended("r2")
            _, status = await look.get("/v1/queue/status")
        assert engine.seen["2"] == 4
    assert (timed_out["status"], timed_out["error"]) == ("timeout", "408: no answer within 2 s")
    assert refused["status"] == "failed"
    assert refused["error"].startswith("503: ")
    assert (status["total_failed"], status["is_running"]) == (2, True)


def test_ended_requests_are_remembered_up_to_a_number() -> None:
    queue = RequestQueue(10, lambda: 0.0)
    many = REMEMBERED + 50
    queue.open((Request(n, f"r{n}", "/v1/embeddings", b"{}") for n in range(many)), lambda _: None)
    while (item := queue.take(float("inf"))) is not None:
        queue.processing(item)
        queue.ended(item, State.COMPLETED, None)
    assert queue.request("r49") is None
    assert queue.request(f"r{many - 1}") is not None
    assert queue.status()["total_processed"] == many


def test_large_requests_make_the_queue_shorter() -> None:
    queue = RequestQueue(100, lambda: 0.0)
    queue.open((Request(n, f"r{n}", "/v1/embeddings", bytes(4 * 1024 * 1024)) for n in range(100)), lambda _: None)
    assert len(queue) == 4
    assert queue.take(room=1024) is None
    assert isinstance(queue.take(room=float("inf")), Item)
