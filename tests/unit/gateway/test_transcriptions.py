"""Transcriptions over HTTP: who waits gets the job's answer; in the background each result is PUT, whatever dies."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gpubatch_gateway import names
from gpubatch_gateway.audio.transcription import Outcome, Place, Record, Said
from gpubatch_gateway.objects import Objects, refused
from support.web import PutServer, served
from unit.gateway.fake import Site, raw, serving
from unit.gateway.pods import key, live_job, pod, told, up

JSON = dict[str, Any]
PATH = "/v1/audio/transcriptions"
QUICK = {
    "allow_http": True,
    "allowed_networks": "127.0.0.0/8",
    "upload_backoff_seconds": 0.02,
    "upload_connect_seconds": 5,
    "claim_seconds": 0.6,
    "max_audio_bytes": 3_000_000,
}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path, **QUICK) as site:
        yield site


async def fields_of(request: web.Request) -> dict[str, Any]:
    """What an engine is sent."""
    form = await request.post()
    found: dict[str, Any] = {}
    for name, value in form.items():
        if isinstance(value, web.FileField):
            with value.file as file:
                found[name] = (value.filename, value.content_type, file.read())
        else:
            found.setdefault(name, []).append(value)
    return found


class Engine:
    """Answers with what it was sent; `behave` may say something else."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.behave: Callable[[dict[str, Any]], Awaitable[web.StreamResponse | None]] | None = None

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        fields = await fields_of(request)
        self.asked.append(fields)
        if self.behave is not None and (answer := await self.behave(fields)) is not None:
            return answer
        return web.Response(body=b'{ "text":"' + fields["file"][2][:20] + b'"}', content_type="application/json")


@pytest.fixture
async def engine(site: Site) -> AsyncIterator[Engine]:
    """That of a pod which serves the model `m`."""
    live_job(site.api)
    found = Engine()
    async with pod(key(site.api, "live"), found) as there:
        up(site, "live", there)
        yield found


def speech(audio: bytes = b"sound", name: str = "a.wav", **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData({"model": "m", **fields})
    form.add_field("file", io.BytesIO(audio), filename=name, content_type="audio/wav")
    return form


async def put(site: Site, server: PutServer, path: str, audio: bytes = b"sound", **fields: str) -> str:
    """One in the background; its id."""
    status, answer = await site.ask("POST", PATH, data=speech(audio, upload_presigned_url=server.url(path), **fields))
    assert (status, answer["status"]) == (200, "in_progress"), answer
    return str(answer["job_id"])


async def job(site: Site, transcription: str, *statuses: str) -> JSON:
    """Poll until it has one of these as its status."""
    async with asyncio.timeout(30):
        while True:
            status, found = await site.ask("GET", f"/v1/jobs/{transcription}")
            assert status == 200, found
            if found["status"] in statuses:
                return found
            await asyncio.sleep(0.02)


async def ended(site: Site, transcription: str) -> JSON:
    return await job(site, transcription, "completed", "failed")


async def until(there: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not there():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def code(answer: tuple[int, JSON]) -> tuple[int, str, str | None]:
    return answer[0], answer[1]["error"]["code"], answer[1]["error"]["param"]


# --- who waits


async def test_who_waits_gets_the_jobs_answer_to_the_byte_and_nothing_stays(site: Site, engine: Engine) -> None:
    form = speech(b"sound" * 100_000, language="de", prompt="Köln", **{"timestamp_granularities[]": "word"})
    form.add_field("timestamp_granularities[]", "segment")
    async with site.http.post(f"http://127.0.0.1:{site.port}{PATH}", data=form, headers=site.headers()) as answer:
        assert (answer.status, await answer.read()) == (200, b'{ "text":"soundsoundsoundsound"}')
    [asked] = engine.asked
    assert asked.pop("file") == ("a.wav", "audio/wav", b"sound" * 100_000)
    assert asked == {
        "model": ["m"],
        "language": ["de"],
        "prompt": ["Köln"],
        "timestamp_granularities[]": ["word", "segment"],
    }
    assert site.stored() == []


async def test_fields_may_stand_behind_the_file(site: Site, engine: Engine) -> None:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", b"sound", filename='../../ä "1".wav')
    form.add_field("model", "m")
    assert (await site.ask("POST", PATH, data=form))[0] == 200
    assert engine.asked[0]["file"] == ('ä "1".wav', "application/octet-stream", b"sound")


@pytest.mark.parametrize("field", ["download_presigned_url", "file_url"])
@pytest.mark.parametrize("as_json", [True, False])
async def test_a_url_may_stand_in_the_place_of_the_file(site: Site, engine: Engine, field: str, as_json: bool) -> None:
    async with audio_at({"/x/talk%20one.mp3": b"from there"}) as url:
        fields = {"model": "m", field: f"{url}/x/talk%20one.mp3?X-Amz-Signature=s3cr3t"}
        form = aiohttp.FormData(fields, default_to_multipart=True)
        sent: JSON = {"json": fields | {"temperature": 0.2}} if as_json else {"data": form}
        status, answer = await site.ask("POST", PATH, **sent)
    assert (status, answer) == (200, {"text": "from there"})
    assert engine.asked[0]["file"] == ("talk one.mp3", "application/octet-stream", b"from there")
    assert engine.asked[0].get("temperature") == (["0.2"] if as_json else None)
    assert field not in engine.asked[0]
    assert site.stored() == []


async def test_an_error_of_the_job_is_the_answer(site: Site, engine: Engine) -> None:
    async def refuse(_: JSON) -> web.Response:
        return web.json_response({"error": {"message": "no such language", "code": "x"}}, status=400)

    engine.behave = refuse
    assert await site.ask("POST", PATH, data=speech()) == (400, {"error": {"message": "no such language", "code": "x"}})
    assert site.stored() == []


async def test_the_audio_of_who_goes_away_goes_too(site: Site, engine: Engine) -> None:
    came = asyncio.Event()

    async def slow(_: JSON) -> web.Response:
        came.set()
        await asyncio.Event().wait()
        raise AssertionError

    engine.behave = slow
    asking = asyncio.create_task(site.ask("POST", PATH, data=speech()))
    await came.wait()
    assert len(site.stored()) == 1
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: not site.stored())


# --- what is refused


URL = "https://93.184.216.34/x"
REFUSED: list[tuple[JSON, int, str, str]] = [
    ({}, 400, "missing_required_parameter", "model"),
    ({"model": "m"}, 400, "missing_required_parameter", "file"),
    ({"model": "gpt-9", "file_url": URL}, 404, "model_not_found", "model"),
    ({"model": "m", "file_url": URL, "download_presigned_url": URL}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "ftp://example.com/a"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "http://example.com/a"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "s3://bucket/a"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "data:audio/wav;base64,AAAA"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "https:///a"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "https://u:p@example.com/a"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "https://example.com/" + "a" * 9000}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "https://example.com/a b"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "https://example.com:99999/a"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "https://169.254.169.254/latest"}, 400, "invalid_value", "file_url"),
    ({"model": "m", "file_url": "https://[::ffff:10.0.0.1]/"}, 400, "invalid_value", "file_url"),
    (
        {"model": "m", "file_url": URL, "upload_presigned_url": "https://10.0.0.1/x"},
        400,
        "invalid_value",
        "upload_presigned_url",
    ),
    ({"model": "m", "file_url": URL, "upload_presigned_url": URL, "stream": True}, 400, "invalid_value", "stream"),
    (
        {"model": "m", "file_url": f"{URL}?X-Amz-Date=20200101T000000Z&X-Amz-Expires=60"},
        400,
        "expired_url",
        "file_url",
    ),
]


@pytest.mark.parametrize(("body", "status", "said", "param"), REFUSED, ids=[str(r[0])[:60] for r in REFUSED])
async def test_what_cannot_be_done_is_refused_at_once_with_the_field(
    tmp_path: Path, body: JSON, status: int, said: str, param: str
) -> None:
    async with serving(tmp_path) as site:
        live_job(site.api)
        told(site, "live", phase="Queued")
        answer = await site.ask("POST", PATH, json=body)
        assert code(answer) == (status, said, param)
        assert "X-Amz" not in json.dumps(answer)
        assert site.stored() == []


async def test_forms_that_are_not_as_they_should_be_leave_nothing(site: Site, engine: Engine) -> None:
    twice = speech()
    twice.add_field("file", b"more", filename="b")
    assert code(await site.ask("POST", PATH, data=twice)) == (400, "invalid_value", "file")
    again = speech(language="de")
    again.add_field("language", "en")
    assert code(await site.ask("POST", PATH, data=again)) == (400, "invalid_value", "language")
    both = speech(file_url=URL)
    assert code(await site.ask("POST", PATH, data=both)) == (400, "invalid_value", "file_url")
    assert code(await site.ask("POST", PATH, data=speech(prompt="x" * 70_000))) == (400, "invalid_value", "prompt")
    assert code(await site.ask("POST", PATH, data=speech(b""))) == (400, "empty_file", "file")
    assert code(await site.ask("POST", PATH, data=speech(b"x" * 3_000_001))) == (413, "file_too_large", "file")
    many = speech(**{f"f{n}": "" for n in range(70)})
    assert (await site.ask("POST", PATH, data=many))[0] == 400
    headers = {"Content-Type": "application/json"}
    assert (await site.ask("POST", PATH, data=b"[1]", headers=headers))[1]["error"]["code"] == "invalid_json"
    assert (await site.ask("POST", PATH, data=b"x=1", headers={"Content-Type": "text/plain"}))[0] == 415
    assert (site.stored(), engine.asked) == ([], [])


@pytest.mark.parametrize("complete", [0, 500])
async def test_a_cut_upload_leaves_nothing(site: Site, engine: Engine, complete: int) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"s" * complete
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer search\r\nContent-Length: 100000\r\n"
    await raw(site.port, head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + part, eof=True)
    assert (await site.ask("GET", "/v1/jobs"))[1]["data"] == []
    await until(lambda: not site.stored())


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path, body_seconds=0.3) as site:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer search\r\nContent-Length: 1000\r\n"
        answer = await raw(site.port, f"{head}Connection: close\r\nContent-Type: {kind}\r\n\r\n".encode() + b"{--x")
        assert b" 408 " in answer
        assert b"upload_timeout" in answer
        assert site.stored() == []


async def test_only_who_has_the_right_may_ask(site: Site, engine: Engine) -> None:
    site.api.rights["search"] = frozenset({"list"})
    assert (await site.ask("POST", PATH, data=speech()))[0] == 403
    site.api.rights["search"] = frozenset({"create"})
    assert (await site.ask("GET", "/v1/jobs"))[0] == 403
    assert (await site.ask("GET", f"/v1/jobs/{names.new_transcription_id(1)}"))[0] == 403


# --- audio that is fetched


def audio_at(files: dict[str, bytes]) -> Any:
    return _Audio(files)


class _Audio:
    """A server of audio."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    async def __aenter__(self) -> str:
        async def give(request: web.Request) -> web.Response:
            if (body := self.files.get(request.raw_path.partition("?")[0])) is None:
                return web.Response(status=404)
            return web.Response(body=body)

        app = web.Application()
        app.router.add_get("/{rest:.*}", give)
        self._runner, port = await served(app)
        return f"http://127.0.0.1:{port}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def test_audio_that_cannot_be_had_is_told_without_the_url(site: Site, engine: Engine) -> None:
    async with audio_at({"/empty": b"", "/long": b"x" * 3_000_001}) as url:
        for path, status, said in (("none", 400, "404"), ("empty", 400, "empty"), ("long", 413, "3000000")):
            found = await site.ask("POST", PATH, json={"model": "m", "file_url": f"{url}/{path}?sig=s3cr3t"})
            assert found[0] == status
            assert said in found[1]["error"]["message"]
            assert "s3cr3t" not in json.dumps(found)
    found = await site.ask("POST", PATH, json={"model": "m", "file_url": f"{url}/x"})
    assert code(found) == (400, "download_failed", "file_url")
    assert "ClientConnectorError" in found[1]["error"]["message"]
    assert site.stored() == []


async def test_no_name_and_no_redirect_leads_into_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []

    async def inside(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.Response(status=302, headers={"Location": f"http://127.0.0.2:{port}/there"})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", inside)
    runner, port = await served(app)
    async with serving(tmp_path, **{**QUICK, "allowed_networks": ""}) as site:
        live_job(site.api)
        told(site, "live", phase="Queued")
        for host in ("localhost", "127.1", "0x7f.1", "2130706433"):
            found = await site.ask("POST", PATH, json={"model": "m", "file_url": f"http://{host}:{port}/x"})
            assert code(found) == (400, "download_failed", "file_url")
            assert host != "localhost" or "allowedNetworks" in found[1]["error"]["message"]
    assert reached == []
    async with serving(tmp_path / "b", **{**QUICK, "allowed_networks": "127.0.0.1/32"}) as site:
        live_job(site.api)
        told(site, "live", phase="Queued")
        found = await site.ask("POST", PATH, json={"model": "m", "file_url": f"http://127.0.0.1:{port}/x"})
        assert "answered 302" in found[1]["error"]["message"]
    assert reached == ["/x"]
    await runner.cleanup()


# --- in the background


async def test_ten_at_once_are_answered_at_once_and_each_result_is_put(site: Site, engine: Engine) -> None:
    go = asyncio.Event()
    busy = most = 0

    async def when_told(_: JSON) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await go.wait()
        busy -= 1

    engine.behave = when_told
    async with PutServer() as server:
        ids = await asyncio.gather(*(put(site, server, f"r{n}", b"sound %d" % n) for n in range(10)))
        assert server.files == {}
        await until(lambda: busy == 4)
        _, page = await site.ask("GET", "/v1/jobs")
        assert [each["job_id"] for each in page["data"]] == sorted(ids, reverse=True)
        assert sorted(each["status"] for each in page["data"]) == ["processing"] * 4 + ["queued"] * 6
        assert {each["progress"] for each in page["data"]} == {"Transcribing", "Waiting for its turn"}
        go.set()
        for transcription in ids:
            done = await ended(site, transcription)
            assert (done["status"], done["progress"], done["error"]) == ("completed", "The result was uploaded", None)
            assert done["created_at"] <= done["start_time"] <= done["end_time"] <= time.time()
            assert done["elapsed_time"] >= 0
        assert server.files == {f"r{n}": b'{ "text":"sound %d"}' % n for n in range(10)}
        assert len(server.puts) == 10
    assert (most, len(engine.asked)) == (4, 10)
    assert not [path for path in site.stored() if names.UNFINISHED in path]


async def test_audio_at_a_url_is_fetched_in_the_background(site: Site, engine: Engine) -> None:
    async with audio_at({}) as url, PutServer() as server:
        fields = {
            "model": "m",
            "download_presigned_url": f"{url}/a.flac?s=s3cr3t",
            "upload_presigned_url": server.url("r"),
        }
        status, answer = await site.ask("POST", PATH, json=fields)
        assert status == 200
        failed = await ended(site, answer["job_id"])
        assert failed["error"]["code"] == "download_failed"
        assert json.loads(server.files["r"])["error"] == failed["error"]
        assert "s3cr3t" not in json.dumps(failed)
    async with audio_at({"/a.flac": b"from there"}) as url, PutServer() as server:
        fields = {"model": "m", "download_presigned_url": f"{url}/a.flac", "upload_presigned_url": server.url("r")}
        _, answer = await site.ask("POST", PATH, json=fields)
        assert (await ended(site, answer["job_id"]))["status"] == "completed"
        assert json.loads(server.files["r"]) == {"text": "from there"}
    assert engine.asked[0]["file"][0] == "a.flac"


@pytest.mark.parametrize(
    ("status", "body", "asked", "said"),
    [
        (400, b'{"error": {"message": "bad audio", "code": "x"} }', 1, "x"),
        (500, b'{"error": {"message": "it died", "code": "y"} }', 3, "y"),
        (422, b"what?", 1, "engine_error"),
    ],
)
async def test_a_failing_engine_gives_the_error_document(
    site: Site, engine: Engine, status: int, body: bytes, asked: int, said: str
) -> None:
    async def fail(_: JSON) -> web.Response:
        return web.Response(status=status, body=body, content_type="application/json")

    engine.behave = fail
    async with PutServer() as server:
        done = await ended(site, await put(site, server, "r"))
        assert (done["status"], done["error"]["code"], len(engine.asked)) == ("failed", said, asked)
        assert done["progress"].startswith("Failed: ")
        assert json.loads(server.files["r"])["error"] == done["error"]
        assert said == "engine_error" or server.files["r"] == body


async def test_an_outage_of_the_receiver_is_outlived(site: Site, engine: Engine) -> None:
    seen = []

    async def ill(_: web.Request, before: int) -> web.Response | None:
        if before < 2:
            return web.Response(status=503)
        seen.append((await site.ask("GET", f"/v1/jobs/{transcription}"))[1])
        return None

    async with PutServer(ill) as server:
        transcription = await put(site, server, "r")
        assert (await ended(site, transcription))["status"] == "completed"
        assert len(server.puts) == 3
    [during] = seen
    assert during["status"] == "processing"
    assert during["progress"].startswith("Uploading the result, attempt 3 of 3: upload_presigned_url http://127.0.0.1")
    assert "HTTP 503" in during["progress"]
    assert len(engine.asked) == 1


async def test_a_url_that_is_refused_is_not_tried_again_and_never_shown(
    site: Site, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with PutServer() as server:
        transcription = await put(site, server, "r")
        server.good = "X-Amz-Signature=renewed"
        done = await ended(site, transcription)
        assert (done["status"], done["error"]["code"]) == ("failed", "upload_expired")
        assert "HTTP 403 (AccessDenied: Request has expired); send the request again" in done["error"]["message"]
        assert server.puts == ["r"]
    listed = (await site.ask("GET", "/v1/jobs"))[1]
    assert "Signature" not in json.dumps([done, listed]) + caplog.text
    for said in (
        "accepted for m",
        "Transcribing",
        "Uploading the result, attempt 1 of 3",
        "failed: Failed: upload_pre",
    ):
        assert f"transcription {transcription} of search: {said}" in caplog.text


async def test_a_receiver_that_never_answers_fails_with_the_errors_type(site: Site, engine: Engine) -> None:
    server = PutServer()
    async with server:
        pass
    done = await ended(site, await put(site, server, "r"))
    assert done["error"]["code"] == "upload_failed"
    assert "ClientConnectorError" in done["error"]["message"]
    assert "tried 3 times" in done["error"]["message"]


async def test_it_waits_for_its_model_as_long_as_that_takes(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUICK, live_request_seconds=0.3) as site, PutServer() as server:
        live_job(site.api)
        told(site, "live", phase="Queued", queuePosition=3)
        transcription = await put(site, server, "r")
        assert (await job(site, transcription, "queued"))["start_time"] is None
        texts = set()
        async with asyncio.timeout(20):
            while len(texts) < 3:
                texts.add((await job(site, transcription, "queued"))["progress"])
                await asyncio.sleep(0.02)
        assert "Waiting for the model: the job 'live' is Queued at position 3" in texts
        assert any("There was no answer of the model 'm' in time" in text for text in texts)
        async with pod(key(site.api, "live"), Engine()) as there:
            up(site, "live", there)
            assert (await ended(site, transcription))["status"] == "completed"


async def test_what_has_no_text_for_too_long_has_failed(tmp_path: Path) -> None:
    limits = {"live_request_seconds": 0.1, "transcription_seconds": 1.0}
    async with serving(tmp_path, **QUICK, **limits) as site, PutServer() as server:
        live_job(site.api)
        told(site, "live", phase="Queued")
        done = await ended(site, await put(site, server, "r"))
        assert (done["status"], done["error"]["code"]) == ("failed", "expired")
        assert json.loads(server.files["r"])["error"]["code"] == "expired"


async def test_a_full_queue_refuses_more(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUICK, max_transcriptions=2) as site, PutServer() as server:
        live_job(site.api)
        told(site, "live", phase="Queued")
        for n in range(2):
            await put(site, server, f"r{n}")
        status, answer = await site.ask("POST", PATH, data=speech(upload_presigned_url=server.url("r")))
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert answer["error"]["message"] == "Queue full (2/2 transcriptions). Try again later."
        assert (await site.ask("POST", PATH, json={"model": "m", "file_url": URL}))[1]["error"]["code"] != "queue_full"


async def test_who_may_not_start_a_job_needs_one_that_is_there(site: Site) -> None:
    site.api.rights["search"] = frozenset({"create requests"})
    async with PutServer() as server:
        answer = await site.ask(
            "POST", PATH, json={"model": "minilm", "file_url": URL, "upload_presigned_url": server.url("r")}
        )
        assert (answer[0], answer[1]["error"]["code"]) == (403, "permission_denied")
        assert "No live job serves 'minilm' now, and you may not start one" in answer[1]["error"]["message"]
    assert site.stored() == []


# --- replicas that die


def record(server: PutServer) -> Record:
    return Record(
        model="m",
        fields=(("model", "m"),),
        filename="a",
        content_type="",
        download=None,
        upload=server.url("r"),
        may_start=True,
    )


async def left(site: Site, server: PutServer, *claims: str) -> Place:
    """What a dead replica has left of a transcription."""
    place = Place("search", names.new_transcription_id(time.time()))

    async def audio() -> AsyncIterator[bytes]:
        yield b"sound"

    await site.records.take_audio(place, audio())
    for number, replica in enumerate(claims):
        await site.records.claim(place, number + 1, Said(status="processing", text="Transcribing", replica=replica))
    await site.records.accept(place, record(server))
    return place


async def test_what_a_dead_replica_worked_on_is_taken_over(site: Site, engine: Engine) -> None:
    async with PutServer() as server:
        place = await left(site, server, "dead")
        done = await ended(site, place.id)
        assert (done["status"], server.files["r"]) == ("completed", b'{ "text":"sound"}')
    assert any(path.endswith("claim-000002") for path in site.stored())


async def test_what_another_replica_works_on_is_left_to_it(site: Site, engine: Engine) -> None:
    async with PutServer() as server:
        place = await left(site, server, "alive")
        for beat in range(15):
            said = Said(status="processing", text="Transcribing", replica="alive", beat=beat)
            await site.records.say(place, 1, said)
            await asyncio.sleep(0.1)
        assert engine.asked == []
        assert (await ended(site, place.id))["status"] == "completed"


async def test_a_result_that_was_decided_is_put_as_it_is(site: Site, engine: Engine) -> None:
    async with PutServer() as server:
        place = await left(site, server, "dead")
        first = await site.records.decide(place, Outcome(b"the first\nanswer", None))
        assert await site.records.decide(place, Outcome(b"another", None)) == first
        assert (await ended(site, place.id))["status"] == "completed"
        assert server.files["r"] == b"the first\nanswer"
    assert engine.asked == []


async def test_a_replica_that_has_lost_its_claim_stops(site: Site, engine: Engine) -> None:
    came = asyncio.Event()

    async def never(_: JSON) -> None:
        came.set()
        await asyncio.Event().wait()

    engine.behave = never
    async with PutServer() as server:
        place = await left(site, server)
        await came.wait()
        engine.behave = None
        await site.records.claim(place, 2, Said(status="processing", text="Transcribing", replica="other"))
        await until(lambda: len(engine.asked) == 2)  # it lapses as well, and comes back
        assert (await ended(site, place.id))["status"] == "completed"
    assert any(path.endswith("claim-000003") for path in site.stored())


async def test_an_outage_of_the_store_is_outlived(site: Site, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    came, go = asyncio.Event(), asyncio.Event()

    async def hold(_: JSON) -> None:
        came.set()
        await go.wait()

    engine.behave = hold
    async with PutServer() as server:
        transcription = await put(site, server, "r")
        await came.wait()

        def gone(*_: object) -> Any:
            raise refused(OSError("the store is gone"))

        with monkeypatch.context() as outage:
            for name in ("all", "put", "create", "get", "read", "delete"):
                outage.setattr(Objects, name, gone)
            await asyncio.sleep(1.5)  # longer than a claim lasts
            assert (await site.ask("GET", f"/v1/jobs/{transcription}"))[0] == 503
            assert (await site.ask("POST", PATH, data=speech(upload_presigned_url=server.url("x"))))[0] == 503
        go.set()
        assert (await ended(site, transcription))["status"] == "completed"
        assert server.files == {"r": b'{ "text":"sound"}'}
    assert len(engine.asked) == 2


async def test_two_replicas_share_the_work_and_do_nothing_twice(tmp_path: Path, site: Site, engine: Engine) -> None:
    async with serving(tmp_path, api=site.api, **QUICK) as other, PutServer() as server:
        site_job = site.api.jobs["search", "live"]
        other.lives.put(site_job)
        ids = [await put(each, server, f"r{n}", b"%d" % n) for n in range(10) for each in (site, other)]
        for transcription in ids:
            assert (await ended(other, transcription))["status"] == "completed"
    assert len(engine.asked) == 20


async def test_what_died_between_its_end_and_its_marker_is_settled(site: Site) -> None:
    async with PutServer() as server:
        place = Place("search", names.new_transcription_id(time.time()))
        await site.records.end(place, Said(status="completed", text="", ended=time.time(), started=time.time()))
        await site.records.accept(place, record(server))
        await until(lambda: not [path for path in site.stored() if names.UNFINISHED in path])
        assert server.puts == []


async def test_a_record_that_cannot_be_read_has_failed(site: Site) -> None:
    async with PutServer() as server:
        place = Place("search", names.new_transcription_id(time.time()))
        folder = site.root / "gpubatch" / place.key("")
        folder.mkdir(parents=True)
        (folder / "claim-x").write_bytes(b"not by us")
        await site.records.accept(place, record(server).model_copy(update={"model": None}))
        assert (await ended(site, place.id))["error"]["code"] == "record_unreadable"


# --- jobs


async def test_jobs_are_listed_page_by_page_in_their_namespace_only(site: Site, engine: Engine) -> None:
    async with PutServer() as server:
        ids = [await put(site, server, f"r{n}") for n in range(5)]
        for transcription in ids:
            await ended(site, transcription)
    ids.reverse()
    _, page = await site.ask("GET", "/v1/jobs?limit=2")
    assert ([each["job_id"] for each in page["data"]], page["has_more"]) == (ids[:2], True)
    _, page = await site.ask("GET", f"/v1/jobs?limit=3&after={page['last_id']}")
    assert ([each["job_id"] for each in page["data"]], page["has_more"]) == (ids[2:], False)
    assert code(await site.ask("GET", "/v1/jobs?after=x")) == (400, "invalid_value", "after")
    assert code(await site.ask("GET", "/v1/jobs?limit=101")) == (400, "invalid_value", "limit")
    site.token = "train"
    assert (await site.ask("GET", "/v1/jobs"))[1]["data"] == []
    assert code(await site.ask("GET", f"/v1/jobs/{ids[0]}")) == (404, "job_not_found", "job_id")


@pytest.mark.parametrize("wrong", ["..%2f..%2fx", "transcription-" + "0" * 32, "x" * 3000, "a%00b"])
async def test_unknown_jobs_are_not_found(site: Site, wrong: str) -> None:
    assert code(await site.ask("GET", f"/v1/jobs/{wrong}")) == (404, "job_not_found", "job_id")


async def test_a_job_is_forgotten_a_while_after_its_end_and_swept(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUICK, transcription_ttl_seconds=2) as site, PutServer() as server:
        live_job(site.api)
        told(site, "live", phase="Queued")
        waits = await put(site, server, "waits")
        async with pod(key(site.api, "live"), Engine()) as there:
            up(site, "live", there)
            done = await put(site, server, "r")
            for each in (waits, done):
                await ended(site, each)
            told(site, "live", phase="Queued")
        still = await put(site, server, "still")
        await asyncio.sleep(3)
        assert code(await site.ask("GET", f"/v1/jobs/{done}")) == (404, "job_not_found", "job_id")
        assert [each["job_id"] for each in (await site.ask("GET", "/v1/jobs"))[1]["data"]] == [still]
        await site.records.sweep(3600)
        assert {path.split("/")[3] for path in site.stored() if "/transcriptions/" in path} == {still}


async def test_audio_that_nobody_was_told_of_is_swept_once_it_is_old(site: Site) -> None:
    place = Place("search", names.new_transcription_id(time.time() - 100))

    async def audio() -> AsyncIterator[bytes]:
        yield b"sound"

    await site.records.take_audio(place, audio())
    assert (await site.ask("GET", "/v1/jobs"))[1]["data"] == []
    await site.records.sweep(200)
    assert len(site.stored()) == 1
    await site.records.sweep(50)
    assert site.stored() == []
