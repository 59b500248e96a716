"""A live run: requests over HTTP through the queue to the engine, for as long as anybody wants something."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gpubatch_runner import live, supervisor
from gpubatch_runner.contract import Live, Outcome, Reason
from gpubatch_runner.http1 import Connection
from gpubatch_runner.workdir import Workdir
from unit.runner.fake_engine import Behaviour, FakeEngine
from unit.runner.hostile_engine import FAULTS, SOUND, HostileEngine
from unit.runner.jobs import STATUS_FIELDS, Job

KEY = "a-key"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(supervisor, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(live, "HEALTH_SECONDS", 0.05)


@dataclass
class Server:
    """A live run in this process, and a client of it."""

    url: str
    session: aiohttp.ClientSession
    running: asyncio.Task[Outcome]
    terminated: asyncio.Event

    def chat(self, prompt: str = "1", path: str = "/v1/chat/completions", **body: Any) -> Any:
        document = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], **body}
        return self.session.post(self.url + path, json=document)

    async def ask(self, prompt: str = "1", **body: Any) -> tuple[int, dict[str, Any]]:
        async with self.chat(prompt, **body) as response:
            return response.status, await response.json()

    async def status(self) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/v1/queue/status") as response:
            return dict(await response.json())

    async def progress(self) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/progress") as response:
            return dict(await response.json())

    async def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status of the queue, once it is as it should be."""
        while not true(status := await self.status()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return status

    async def serving(self) -> None:
        """Returns once the engine is up."""
        await self.stage("Processing")

    async def stage(self, name: str) -> None:
        """Returns once that is its stage."""
        while (await self.progress())["stage"] != name:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def end(self) -> Outcome:
        return await self.running


@pytest.fixture
def start(job: Job, caplog: pytest.LogCaptureFixture) -> Callable[..., Any]:
    caplog.set_level("INFO")

    @contextlib.asynccontextmanager
    async def serve(engine: FakeEngine, **changes: Any) -> AsyncIterator[Server]:
        of_live = {"idle_timeout_seconds": 3600, "key_digest": DIGEST, "drain_seconds": 3600}
        of_live |= {name: changes.pop(name) for name in tuple(changes) if name in Live.model_fields}
        files = {"input": None, "output": None, "errors": None}
        spec = job.spec(engine_url=engine.url, live=Live(**of_live), **files, **changes)
        terminated = asyncio.Event()
        caplog.clear()
        running = asyncio.create_task(live.run(spec, Live(**of_live), job.environment, terminated))
        while not (ports := [record.port for record in caplog.records if hasattr(record, "port")]):
            assert not running.done(), running
            await asyncio.sleep(0.002)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
            yield Server(f"http://127.0.0.1:{ports[0]}", session, running, terminated)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    return serve


class Held:
    """An engine's behaviour: who comes waits until he is let go."""

    def __init__(self, *prompts: str) -> None:
        self.prompts = prompts
        self.go = asyncio.Event()
        self.gone: list[str] = []
        self.lost = asyncio.Event()

    async def __call__(self, prompt: str, before: int) -> web.StreamResponse | None:
        if not self.prompts or prompt in self.prompts:
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.gone.append(prompt)
                self.lost.set()
                raise
        return None


async def test_an_answer_is_passed_on_as_the_engine_gave_it(start: Any) -> None:
    async with FakeEngine() as engine, start(engine) as server:
        async with server.chat("7") as response:
            body = await response.json()
            request_id = response.headers["X-Request-Id"]
        assert response.status == 200
        assert body["choices"][0]["message"]["content"] == "echo 7"
        status = await server.status()
        assert set(status) == STATUS_FIELDS
        assert (status["total_processed"], status["total_queued"], status["active_requests"]) == (1, 1, 0)
        assert status["is_running"] is True
        async with server.session.get(f"{server.url}/v1/queue/request/{request_id}") as response:
            document = await response.json()
        assert set(document) == {"id", "status", "completion_type", "timestamp", "error"}
        assert (document["id"], document["status"]) == (request_id, "completed")
        assert (document["completion_type"], document["error"]) == ("chat", None)
        async with server.session.get(f"{server.url}/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
        progress = await server.progress()
        assert (progress["live"], progress["completed"]) == (True, 1)
        assert progress["usage"] == {"inputTokens": 2, "outputTokens": 3}
        assert progress["engineProven"] is True


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer another", f"Basic {KEY}", "Bearer ä"])
async def test_whoever_shows_no_key_gets_nothing_below_v1(start: Any, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with FakeEngine() as engine, start(engine) as server, aiohttp.ClientSession(headers=headers) as session:
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "/v1/queue/status"),
            ("GET", "/v1/nothing"),
        ):
            async with session.request(method, server.url + path) as response:
                assert response.status == 401
                assert (await response.json())["error"]["code"] == "invalid_api_key"
        async with session.get(f"{server.url}/healthz") as response:
            assert response.status == 200
        assert not engine.seen


async def test_the_keys_of_a_secret_count_as_they_are_now(job: Job, start: Any) -> None:
    file = job.environment.secrets_dir / "links" / "key"
    file.parent.mkdir(parents=True)
    file.write_text("old\n")
    async with FakeEngine() as engine, start(engine, key="secret://links/key", key_digest=None) as server:
        assert (await server.ask())[0] == 401
        file.write_text(f"old\n{KEY}\n")
        assert (await server.ask())[0] == 200
        file.unlink()
        assert (await server.ask())[0] == 401


async def test_a_secret_without_a_key_fails_the_run_at_once(job: Job) -> None:
    of_live = Live(key="secret://links/key")
    outcome = await live.run(job.spec(live=of_live), of_live, job.environment, asyncio.Event())
    assert outcome.reason is Reason.INPUT_UNREADABLE
    assert outcome.message.startswith("spec.inference.input.live.keyFrom: the Secret 'links' has no key 'key'")
    assert "kubectl create secret generic links" in outcome.message


async def test_what_the_engine_refuses_is_its_answer(start: Any) -> None:
    async def refuse(prompt: str, _: int) -> web.Response:
        return web.json_response({"error": {"message": "no such model"}}, status=404, headers={"Retry-After": "7"})

    async with FakeEngine(refuse) as engine, start(engine) as server:
        async with server.chat() as response:
            assert (response.status, response.headers["Retry-After"]) == (404, "7")
            assert (await response.json()) == {"error": {"message": "no such model"}}
        assert (await server.status())["total_failed"] == 1
        async with server.session.get(f"{server.url}/v1/chat/completions") as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "unknown_url"


async def test_a_stream_comes_part_by_part_in_its_order(start: Any) -> None:
    steps = [asyncio.Event() for _ in range(4)]

    async def stream(prompt: str, _: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(request_of(engine))
        for number, step in enumerate(steps):
            await step.wait()
            usage = ', "usage": {"prompt_tokens": 5, "completion_tokens": 4}' if number == 3 else ""
            await response.write(b'data: {"n": %d%s}\n\n' % (number, usage.encode()))
        await response.write(b"data: [DONE]\n\n")
        return response

    steps[0].set()
    async with StreamingEngine(stream) as engine, start(engine) as server, server.chat(stream=True) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        for number in range(len(steps)):
            part = await response.content.readuntil(b"\n\n")
            assert json.loads(part.removeprefix(b"data: "))["n"] == number
            for step in steps[number + 1 : number + 2]:
                step.set()  # the next part is made only when this one has come
        assert await response.content.read() == b"data: [DONE]\n\n"
        status = await server.until(lambda status: not status["active_requests"])
        assert status["total_processed"] == 1
        assert (await server.progress())["usage"] == {"inputTokens": 5, "outputTokens": 4}


class StreamingEngine(FakeEngine):
    """Its behaviour may begin an answer itself."""

    request: web.Request

    async def _post(self, request: web.Request) -> web.StreamResponse:
        self.request = request
        return await super()._post(request)


def request_of(engine: FakeEngine) -> web.Request:
    assert isinstance(engine, StreamingEngine)
    return engine.request


def endless(engine_of: Callable[[], FakeEngine], part: bytes, kind: str = "text/event-stream") -> Behaviour:
    """An answer that begins and never ends."""

    async def begin(prompt: str, _: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request_of(engine_of()))
        await response.write(part)
        await asyncio.Event().wait()
        return response

    return begin


async def test_a_client_that_does_not_read_holds_the_engine_back_and_not_the_memory(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def flood(prompt: str, _: int) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request_of(engine))
        while True:
            await response.write(b"x" * 65536)
            sent += 65536

    paused = asyncio.Event()
    original = Connection.read_on

    def noted(self: Connection, wanted: bool) -> None:
        if not wanted:
            paused.set()
        original(self, wanted)

    monkeypatch.setattr(Connection, "read_on", noted)
    async with StreamingEngine(flood) as engine, start(engine) as server:
        response = await server.chat(stream=True)
        await paused.wait()
        await asyncio.sleep(0.2)
        before = sent
        await asyncio.sleep(0.2)
        assert sent == before
        response.close()
        await server.until(lambda status: not status["active_requests"])


async def test_a_full_queue_is_503_and_each_other_has_its_turn_in_order(start: Any) -> None:
    held = Held("0")
    order: list[str] = []

    async def behave(prompt: str, before: int) -> web.StreamResponse | None:
        order.append(prompt)
        return await held(prompt, before)

    async with FakeEngine(behave) as engine, start(engine, max_concurrent_requests=1, max_queue_size=2) as server:
        await server.serving()
        asked = [asyncio.create_task(server.ask("0"))]
        await server.until(lambda status: status["processing_count"] == 1)
        for waiting in (1, 2):
            asked.append(asyncio.create_task(server.ask(str(waiting))))
            await server.until(lambda status, n=waiting: status["queue_size"] == n)
        code, refused = await server.ask("3")
        assert code == 503
        assert refused["error"]["code"] == "queue_full"
        assert refused["error"]["type"] == "server_error"
        status = await server.status()
        assert (status["queue_size"], status["max_concurrent"], status["max_queue_size"]) == (2, 1, 2)
        held.go.set()
        assert [code for code, _ in await asyncio.gather(*asked)] == [200] * 3
        assert order == ["0", "1", "2"]
        assert engine.most_in_flight == 1
        assert (await server.status())["total_queued"] == 3


async def test_requests_that_could_go_to_the_engine_at_once_do_not_count_as_waiting(start: Any) -> None:
    async with FakeEngine(delay=0.05) as engine, start(engine, max_concurrent_requests=20, max_queue_size=1) as server:
        await server.serving()
        answers = await asyncio.gather(*(server.ask(str(n)) for n in range(20)))
        assert [code for code, _ in answers] == [200] * 20


async def test_no_answer_in_time_is_408_and_frees_the_place(start: Any) -> None:
    held = Held("slow")
    async with FakeEngine(held) as engine, start(engine, request_timeout_seconds=1) as server:
        await server.serving()
        code, body = await server.ask("slow")
        assert code == 408
        assert body["error"]["code"] == "request_timeout"
        assert "waiting for the engine" in body["error"]["message"]
        await server.until(lambda status: status["active_requests"] == 0)
        await held.lost.wait()
        assert held.gone == ["slow"]


async def test_a_body_that_does_not_come_in_time_is_408(start: Any) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with FakeEngine() as engine, start(engine, request_timeout_seconds=0.2) as server:
        async with server.session.post(f"{server.url}/v1/chat/completions", data=slow()) as response:
            assert response.status == 408
        assert not engine.seen


async def test_a_client_that_goes_away_frees_its_place_and_ends_the_engines_work(start: Any) -> None:
    held = Held("gone", "waits")
    async with FakeEngine(held) as engine, start(engine, max_concurrent_requests=1) as server:
        await server.serving()
        at_engine = asyncio.create_task(server.ask("gone"))
        await server.until(lambda status: status["processing_count"] == 1)
        waiting = asyncio.create_task(server.ask("waits"))
        await server.until(lambda status: status["queue_size"] == 1)
        waiting.cancel()
        await server.until(lambda status: status["queue_size"] == 0)
        at_engine.cancel()
        await server.until(lambda status: status["active_requests"] == 0)
        assert (await server.ask("next"))[0] == 200
        assert held.gone == ["gone"]
        assert set(engine.seen) == {"gone", "next"}
        status = await server.status()
        assert (status["total_processed"], status["total_failed"]) == (1, 2)


async def test_a_client_that_goes_away_in_the_middle_of_its_body_leaves_nothing_behind(start: Any) -> None:
    async with FakeEngine() as engine, start(engine) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 99\r\n"
        writer.write(head.encode() + b"\r\n{")
        await server.until(lambda status: status["active_requests"] == 1)
        writer.close()
        status = await server.until(lambda status: status["active_requests"] == 0)
        assert (status["total_failed"], status["processing_count"]) == (1, 0)


async def test_a_client_that_leaves_its_stream_ends_the_engines_work(start: Any) -> None:
    over = asyncio.Event()

    async def begin(prompt: str, _: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request_of(engine))
        try:
            await response.write(b"data: {}\n\n")
            await asyncio.Event().wait()
        finally:
            over.set()
        return response

    async with StreamingEngine(begin) as engine, start(engine) as server:
        response = await server.chat(stream=True)
        await response.content.readuntil(b"\n\n")
        response.close()
        await over.wait()
        assert (await server.until(lambda status: not status["active_requests"]))["total_failed"] == 1


async def test_requests_wait_while_the_engine_loads(start: Any) -> None:
    async with FakeEngine() as engine:
        engine.healthy = False
        async with start(engine) as server:
            asked = asyncio.create_task(server.ask("early"))
            await server.until(lambda status: status["queue_size"] == 1)
            assert (await server.progress())["stage"] == "LoadingModel"
            engine.healthy = True
            assert (await asked)[0] == 200


async def test_while_the_engine_loads_a_request_waits_no_longer_than_its_time(start: Any) -> None:
    async with FakeEngine() as engine:
        engine.healthy = False
        async with start(engine, request_timeout_seconds=0.2) as server:
            code, body = await server.ask("early")
            assert code == 408
            assert "a place at the engine" in body["error"]["message"]


async def test_the_death_of_the_engine_is_502_for_what_it_worked_on_and_the_others_wait(start: Any) -> None:
    held = Held("victim")
    engine = FakeEngine(held)
    await engine.start()
    async with start(engine, max_concurrent_requests=1) as server:
        await server.serving()
        victim = asyncio.create_task(server.ask("victim"))
        await server.until(lambda status: status["processing_count"] == 1)
        waits = asyncio.create_task(server.ask("waits"))
        await server.until(lambda status: status["queue_size"] == 1)
        await engine.stop()
        code, body = await victim
        assert code == 502
        assert body["error"]["code"] == "engine_died"
        assert (await server.progress())["stage"] == "LoadingModel"
        assert not waits.done()
        await engine.start()
        assert (await waits)[0] == 200
    await engine.stop()


async def test_an_engine_that_dies_unused_is_noticed_and_its_next_request_waits(start: Any) -> None:
    engine = FakeEngine()
    await engine.start()
    async with start(engine) as server:
        await server.serving()
        await engine.stop()
        asked = asyncio.create_task(server.ask())
        await server.stage("LoadingModel")
        assert not asked.done()
        await engine.start()
        assert (await asked)[0] == 200
        assert (await server.status())["total_failed"] == 0
    await engine.stop()


async def test_a_dead_engine_behind_a_living_server_is_502_too(start: Any) -> None:
    async def dead(prompt: str, before: int) -> web.Response | None:
        if before == 0:
            return web.json_response({"error": {"message": "EngineCore encountered an issue."}}, status=500)
        return None

    async with FakeEngine(dead) as engine, start(engine) as server:
        assert (await server.ask())[0] == 502
        assert (await server.ask())[0] == 200


async def test_a_connection_that_breaks_under_a_living_engine_is_tried_again(start: Any) -> None:
    async def break_once(prompt: str, before: int) -> web.StreamResponse | None:
        if before == 0:
            transport = request_of(engine).transport
            assert transport is not None
            transport.abort()
        return None

    async with StreamingEngine(break_once) as engine, start(engine) as server:
        assert (await server.ask())[0] == 200
        assert engine.seen["1"] == 2


async def test_a_stream_that_the_engines_death_cuts_off_ends_with_an_error_event(start: Any) -> None:
    engine = StreamingEngine(endless(lambda: engine, b'data: {"n": 1}\n\n'))
    await engine.start()
    async with start(engine) as server:
        async with server.chat(stream=True) as response:
            assert response.status == 200
            await response.content.readuntil(b"\n\n")
            await engine.stop()
            rest = await response.content.read()
        assert json.loads(rest.strip().removeprefix(b"data: "))["error"]["code"] == "engine_died"
        assert (await server.status())["total_failed"] == 1


async def test_a_stream_without_a_part_in_time_ends_with_an_error_event(start: Any) -> None:
    engine = StreamingEngine(endless(lambda: engine, b'data: {"n": 1}\n\n'))
    async with engine, start(engine, request_timeout_seconds=0.3) as server:
        async with server.chat(stream=True) as response:
            text = await response.content.read()
        assert json.loads(text.split(b"data: ")[2])["error"]["code"] == "request_timeout"


async def test_half_an_answer_that_is_no_stream_of_events_does_not_look_whole(start: Any) -> None:
    engine = StreamingEngine(endless(lambda: engine, b"half", "text/plain"))
    async with engine, start(engine, request_timeout_seconds=0.3) as server, server.chat() as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()


async def test_a_form_with_a_file_reaches_the_engine_to_the_byte(start: Any) -> None:
    audio = bytes(range(256)) * 8192  # longer than what stays in memory

    class Listener(FakeEngine):
        async def _post(self, request: web.Request) -> web.StreamResponse:
            body, boundary = await request.content.read(), request.headers["Content-Type"].partition("boundary=")[2]
            return web.json_response({"whole": audio in body and body.count(boundary.encode()) == 3})

    async with Listener() as engine, start(engine) as server:
        form = aiohttp.FormData({"model": "tiny"})
        form.add_field("file", io.BytesIO(audio), filename="speech.wav", content_type="audio/wav")
        async with server.session.post(f"{server.url}/v1/audio/transcriptions", data=form) as response:
            assert await response.json() == {"whole": True}


async def test_a_body_that_is_too_long_is_413(job: Job, start: Any) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b" " * (1 << 20)

    async with FakeEngine() as engine, start(engine) as server:
        for data in (io.BytesIO(b" " * (9 << 20)), parts()):
            async with server.session.post(f"{server.url}/v1/chat/completions", data=data) as response:
                assert response.status == 413
                assert (await response.json())["error"]["code"] == "request_too_large"
        assert not list((job.environment.journal_dir / "files").iterdir())


PASSED = {"error_500": 500, "busy_429": 429, "full_503": 503, "refused_400": 400, "too_short": 200, "no_json": 200}
"""What a hostile engine says that is an answer."""


async def test_whatever_the_engine_does_each_client_is_told_and_no_place_is_lost(start: Any) -> None:
    limits = {"request_timeout_seconds": 5, "max_retries": 1, "max_concurrent_requests": 4}
    async with HostileEngine() as engine, start(engine, **limits) as server:

        async def told(fault: str) -> int:
            async with server.chat(f"{fault} 1") as response:
                await response.read()
                return int(response.status)

        codes = dict(zip(FAULTS, await asyncio.gather(*map(told, FAULTS)), strict=True))
        for fault, code in codes.items():  # 408: it waited for too long behind those that hang
            expected = (200,) if fault in SOUND else (PASSED.get(fault, 502),)
            assert code in (*expected, 408), fault
        status = await server.until(lambda status: not status["active_requests"])
        assert status["processing_count"] == status["queue_size"] == 0
        assert status["total_processed"] + status["total_failed"] == len(FAULTS)


async def test_a_header_that_is_no_ascii_harms_nobody(start: Any) -> None:
    async with FakeEngine() as engine, start(engine) as server:
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "1"}]})
        headers = {"Content-Type": "application/json; x=\u00e4"}
        async with server.session.post(f"{server.url}/v1/chat/completions", data=body, headers=headers) as response:
            assert response.status == 200


# --- the end


async def test_a_run_that_nobody_uses_succeeds_after_its_time(start: Any) -> None:
    async with FakeEngine() as engine, start(engine, idle_timeout_seconds=0.3) as server:
        outcome = await server.end()
    assert outcome.succeeded
    assert outcome.message == "Nobody wanted anything for 0.3 s."
    assert (outcome.completed, outcome.failed, outcome.output) == (0, 0, None)


async def test_a_run_is_not_idle_while_a_request_is_answered(start: Any) -> None:
    held = Held()
    async with FakeEngine(held) as engine, start(engine, idle_timeout_seconds=0.2) as server:
        asked = asyncio.create_task(server.ask())
        await server.until(lambda status: status["processing_count"] == 1)
        await asyncio.sleep(0.4)
        assert (await server.progress())["message"] == "Serving; 1 in progress, 0 waiting."
        held.go.set()
        assert (await asked)[0] == 200
        outcome = await server.end()
    assert outcome.succeeded
    assert (outcome.completed, outcome.usage.output_tokens) == (1, 3)


async def test_progress_says_how_long_it_has_been_idle(start: Any) -> None:
    async with FakeEngine() as engine, start(engine) as server:
        await server.serving()
        assert (await server.progress())["message"] == "Serving; idle for 0 s, ends after 3600 s idle."


@pytest.mark.parametrize(
    ("said", "reason"),
    [("Cancelled", Reason.CANCELLED), ("Suspended", Reason.SUSPENDED), ("", Reason.INTERRUPTED)],
)
async def test_told_to_stop_it_takes_no_more_and_finishes_what_is_in_progress(
    job: Job, start: Any, said: str, reason: Reason
) -> None:
    held = Held("runs")
    async with FakeEngine(held) as engine, start(engine, max_concurrent_requests=1) as server:
        await server.serving()
        runs = asyncio.create_task(server.ask("runs"))
        await server.until(lambda status: status["processing_count"] == 1)
        waits = asyncio.create_task(server.ask("waits"))
        await server.until(lambda status: status["queue_size"] == 1)
        if said:
            job.environment.pod_dir.mkdir(parents=True)
            (job.environment.pod_dir / "stop").write_text(said)
        else:
            server.terminated.set()
        assert (await waits)[0] == 503
        async with server.chat("late") as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "10"
            assert (await response.json())["error"]["code"] == "stopping"
        assert (await server.progress())["message"] == "Finishing what is in progress (1); no more requests are taken."
        held.go.set()
        assert (await runs)[0] == 200
        outcome = await server.end()
    assert outcome.reason is reason
    assert outcome.completed == 1
    assert set(engine.seen) == {"runs"}


async def test_what_is_not_finished_in_time_is_dropped(start: Any) -> None:
    held = Held()
    async with FakeEngine(held) as engine, start(engine, drain_seconds=0.1) as server:
        asked = asyncio.create_task(server.ask())
        await server.until(lambda status: status["processing_count"] == 1)
        server.terminated.set()
        outcome = await server.end()
        with pytest.raises(aiohttp.ClientError):
            await asked
    assert outcome.reason is Reason.INTERRUPTED
    assert (outcome.completed, outcome.failed) == (0, 1)


async def test_stopped_while_the_engine_loads_it_ends_at_once(start: Any) -> None:
    async with FakeEngine() as engine:
        engine.healthy = False
        async with start(engine) as server:
            asked = asyncio.create_task(server.ask())
            await server.until(lambda status: status["queue_size"] == 1)
            server.terminated.set()
            assert (await asked)[0] == 503
            assert (await server.end()).reason is Reason.INTERRUPTED


async def test_its_deadline_ends_it(start: Any) -> None:
    async with FakeEngine() as engine, start(engine, stop_at=1.0) as server:
        assert (await server.end()).reason is Reason.DEADLINE_EXCEEDED


async def test_an_engine_that_never_comes_fails_the_run(start: Any) -> None:
    async with FakeEngine() as engine:
        engine.healthy = False
        async with start(engine, engine_start_timeout_seconds=0.3) as server:
            asked = asyncio.create_task(server.ask())
            outcome = await server.end()
            assert (await asked)[0] == 503
    assert outcome.reason is Reason.ENGINE_NOT_READY


async def test_a_container_that_is_started_again_goes_on_counting(job: Job, start: Any) -> None:
    async with FakeEngine() as engine:
        async with start(engine) as server:
            await server.ask("1")
            await server.ask("2")
            server.terminated.set()
            await server.end()
        async with start(engine, idle_timeout_seconds=1.0) as server:
            await server.ask("3")
            progress = await server.progress()
            assert (progress["completed"], progress["usage"]["outputTokens"]) == (3, 9)
            assert (await server.status())["total_processed"] == 1  # of this container
            assert (await server.end()).completed == 3
    assert Workdir(job.environment.journal_dir, "u-1/run-1", 1).state.served.completed == 3
