"""Transcriptions: the file behind `file_url` is fetched, and posted as a form; what can't be fetched is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from gpubatch_runner import files
from gpubatch_runner.contract import Outcome
from gpubatch_runner.run import run
from unit.runner.jobs import Job, ids, records

AUDIO = bytes(range(256)) * 2000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.random, "uniform", lambda *_: 0.001)


class Server:
    """An engine that takes forms, and the place where the audio is."""

    def __init__(self) -> None:
        self.url = ""
        self.forms: dict[str, list[tuple[str, bytes]]] = {}
        self.fetches = 0

    async def transcribe(self, asked: web.Request) -> web.Response:
        parts: list[tuple[str, bytes]] = []
        async for part in await asked.multipart():
            assert part.name
            parts.append((part.filename or part.name, bytes(await part.read())))
        fields = dict(parts)
        self.forms[fields["prompt"].decode()] = parts
        if fields.get("response_format") == b"text":
            return web.Response(text="hello\n")
        return web.json_response({"text": "hello", "usage": {"type": "duration", "seconds": 1}})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def audio(self, asked: web.Request) -> web.Response:
        self.fetches += 1
        name = asked.match_info["name"]
        if name == "flaky.wav" and self.fetches % 2:
            return web.Response(status=403)
        return web.Response(body=AUDIO) if name.endswith(".wav") else web.Response(status=404)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Server]:
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_post("/v1/audio/transcriptions", self.transcribe)
        app.router.add_get("/files/{name}", self.audio)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


def asking(name: str, url: str, **body: Any) -> dict[str, Any]:
    body = {"model": "tiny", "file_url": url, "prompt": name, **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/audio/transcriptions", "body": body}


async def finish(job: Job, server: Server, **changes: Any) -> Outcome:
    return await asyncio.wait_for(run(job.spec(engine_url=server.url, **changes), job.environment, asyncio.Event()), 30)


async def test_the_file_and_the_fields_arrive_as_a_form(job: Job) -> None:
    async with Server().serving() as server:
        data = "data:audio/mpeg;base64," + base64.b64encode(AUDIO).decode()
        fields = {"temperature": 0.5, "timestamp_granularities": ["word", "segment"], "language": "fr", "x": None}
        job.write(
            [
                asking("web", f"{server.url}/files/a%20b.wav?sig=1", **fields),
                asking("data", data),
                asking("flaky", f"{server.url}/files/flaky.wav"),
                asking("text", data, response_format="text"),
            ]
        )
        outcome = await finish(job, server)
    assert (outcome.completed, outcome.failed) == (4, 0)
    assert server.forms["web"] == [
        ("model", b"tiny"),
        ("prompt", b"web"),
        ("temperature", b"0.5"),
        ("timestamp_granularities[]", b"word"),
        ("timestamp_granularities[]", b"segment"),
        ("language", b"fr"),
        ("a b.wav", AUDIO),
    ]
    assert server.forms["data"][-1] == ("audio.mpeg", AUDIO)
    bodies = {record["custom_id"]: record["response"]["body"] for record in records(job.output)}
    assert bodies["web"]["text"] == "hello"
    assert bodies["text"] == {"text": "hello\n"}
    assert list((job.environment.journal_dir / "files").iterdir()) == []


async def test_a_file_that_cannot_be_had_fails_its_request_and_no_other(job: Job) -> None:
    async with Server().serving() as server:
        job.write(
            [
                asking("good", f"{server.url}/files/a.wav"),
                asking("absent", f"{server.url}/files/absent?sig=secret"),
                asking("nowhere", "http://127.0.0.1:1/a.wav"),
                asking("broken", "data:audio/wav;base64,###"),
            ]
        )
        outcome = await finish(job, server)
    assert (outcome.completed, outcome.failed) == (1, 3)
    assert ids(job.output) == ["good"]
    errors = {record["custom_id"]: record["error"] for record in records(job.errors)}
    assert {error["code"] for error in errors.values()} == {"file_unavailable"}
    assert "/files/absent: HTTP 404" in errors["absent"]["message"]
    assert "secret" not in errors["absent"]["message"]


async def test_a_file_above_the_limit_fails_its_request_with_the_limit(job: Job) -> None:
    async with Server().serving() as server:
        job.write([asking("long", f"{server.url}/files/a.wav"), asking("short", "data:,abc")])
        await finish(job, server, max_file_bytes=1000)
    [record] = records(job.errors)
    assert (record["custom_id"], record["error"]["code"]) == ("long", "file_too_large")
    assert "1000 bytes" in record["error"]["message"]


@pytest.mark.parametrize(
    ("url", "code"), [(None, "missing_file_url"), (7, "missing_file_url"), ("ftp://host/a.wav", "invalid_file_url")]
)
async def test_a_request_without_a_usable_url_is_invalid(job: Job, url: Any, code: str) -> None:
    async with Server().serving() as server:
        job.write([asking("good", "data:,abc"), asking("bad", url)])
        outcome = await finish(job, server)
    assert outcome.failed == 1
    assert records(job.errors)[0]["error"]["code"] == code
