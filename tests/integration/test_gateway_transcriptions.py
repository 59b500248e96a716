"""Transcriptions through the gateway: API server, operator, S3 server, runner and OpenAI's client are real, the engine
isn't. Replicas are killed in the middle of their work."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import obstore
import openai
import pytest
from aiohttp import web
from obstore.store import S3Store
from openai import AsyncOpenAI

from support.api import Api, eventually
from support.gateways import MODEL, Gateways
from support.livepods import Kubelet, kubelet
from support.process import OperatorProcess
from support.s3 import KEYS, S3
from support.story import on
from support.web import PutServer
from unit.runner.fake_engine import FakeEngine

JSON = dict[str, Any]
AddNode = Callable[..., Awaitable[str]]
NEAR = {
    "allow_http": "true",
    "allowed_networks": "127.0.0.0/8",
    "claim_seconds": 2,
    "upload_backoff_seconds": 0.3,
}


class Ears(FakeEngine):
    """Hears the digest of what it is sent, once `go` is set; and nothing in audio that begins with `bad`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()
        self._counted = itertools.count()

    async def _post(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        sent = form["file"]
        assert isinstance(sent, web.FileField)
        with sent.file as file:
            audio = file.read()
        self.seen[heard(audio)] += 1
        self.in_flight += 1
        try:
            await self.go.wait()
        finally:
            self.in_flight -= 1
        if audio.startswith(b"bad"):
            return web.json_response({"error": {"message": "no audio at all", "code": "bad_audio"}}, status=400)
        document = {"text": heard(audio), "language": form.get("language")}
        if form.get("prompt") == "count":  # never the same twice
            document["count"] = next(self._counted)
        return web.json_response(document)


def heard(audio: bytes) -> str:
    return hashlib.sha256(audio).hexdigest()


def audio(n: int) -> bytes:
    return b"%d" % n * 300_000


@dataclass
class Place:
    """Two replicas of the gateway, a live job's pods, and where results are PUT."""

    gateways: Gateways
    engine: Ears
    pods: Kubelet
    s3: S3
    clients: list[AsyncOpenAI]
    polls: list[httpx.AsyncClient]

    @property
    def folder(self) -> str:
        return f"{self.gateways.api.namespace}/results"

    def url(self, name: str, seconds: float = 3600, method: str = "PUT") -> str:
        """A presigned one."""
        store = S3Store(
            "batches",
            endpoint=self.s3.endpoint,
            region="us-east-1",
            access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        return obstore.sign(store, method, f"{self.folder}/{name}", timedelta(seconds=seconds))  # type: ignore[call-overload,no-any-return]

    def result(self, name: str) -> JSON:
        """What was PUT."""
        found: JSON = json.loads((self.s3.root / "batches" / self.folder / name).read_bytes())
        return found

    async def put(self, client: AsyncOpenAI, sound: bytes, url: str, **more: Any) -> str:
        """One in the background; its id."""
        answer = await client.audio.transcriptions.create(
            model=MODEL, file=("a.wav", sound), extra_body={"upload_presigned_url": url}, **more
        )
        found = answer.model_dump()
        assert found["status"] == "in_progress"
        return str(found["job_id"])

    async def ended(self, transcription: str) -> JSON:
        """By the last replica, once it is over."""

        async def there() -> JSON | None:
            found: JSON = (await self.polls[-1].get(f"/jobs/{transcription}")).raise_for_status().json()
            return found if found["status"] in ("completed", "failed") else None

        found: JSON = await eventually(f"{transcription} to end", there)
        return found

    async def up(self, api: Api) -> None:
        """The live job that was asked for runs."""

        async def made() -> str | None:
            return next(iter(await api.jobs()), None)

        await self.pods.next(await eventually("a live job", made))


@pytest.fixture
async def place(
    api: Api, operator: OperatorProcess, add_node: AddNode, gateways: Gateways, s3: S3, tmp_path: Path
) -> AsyncIterator[Place]:
    gateways.models(**{MODEL: on(await add_node())})
    token = await gateways.account(api)
    async with Ears() as engine, kubelet(api, engine.url, tmp_path) as pods:
        found = Place(gateways, engine, pods, s3, [], [])
        for _ in range(2):
            port = await gateways.start(namespace="default", **NEAR)
            found.clients.append(await gateways.client(port, token))
            headers = {"Authorization": f"Bearer {token}"}
            polls = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1", headers=headers)
            found.polls.append(await gateways.stack.enter_async_context(polls))
        yield found


async def test_ten_in_the_background_outlive_a_replica_that_is_killed(api: Api, place: Place) -> None:
    place.engine.go.clear()
    ids = await asyncio.gather(
        *(place.put(place.clients[n % 2], audio(n), place.url(f"r{n}"), language="de") for n in range(10))
    )
    first = (await place.polls[1].get(f"/jobs/{ids[0]}")).json()
    assert first["status"] == "queued"
    await place.up(api)

    async def busy() -> bool:
        return place.engine.in_flight == 8

    await eventually("both replicas to be busy", busy)
    place.gateways.replicas[0].kill()
    place.engine.go.set()
    for n, transcription in enumerate(ids):
        done = await place.ended(transcription)
        assert (done["status"], done["error"]) == ("completed", None)
        assert place.result(f"r{n}") == {"text": heard(audio(n)), "language": "de"}
    page = (await place.polls[1].get("/jobs")).json()
    assert [each["job_id"] for each in page["data"]] == sorted(ids, reverse=True)
    assert "taken over" in place.gateways.replicas[1].log
    logs = "".join(replica.log for replica in place.gateways.replicas)
    assert "Signature" not in logs + json.dumps(page)
    assert len(await api.jobs()) == 1


async def test_what_a_replica_had_accepted_when_all_were_killed_is_done_by_the_next(api: Api, place: Place) -> None:
    place.engine.go.clear()
    ids = [await place.put(place.clients[0], audio(n), place.url(f"r{n}")) for n in range(6)]
    await place.up(api)
    for replica in place.gateways.replicas:
        replica.kill()
    place.engine.go.set()
    said = place.gateways.replicas[1].log
    place.gateways.replicas[1].start()
    await place.gateways.up(place.gateways.replicas[1], said)
    for n, transcription in enumerate(ids):
        assert (await place.ended(transcription))["status"] == "completed"
        assert place.result(f"r{n}")["text"] == heard(audio(n))


async def test_a_replica_that_was_frozen_puts_nothing_else_than_the_one_that_took_over(api: Api, place: Place) -> None:
    place.engine.go.clear()
    bodies = []

    async def note(request: web.Request, _: int) -> None:
        bodies.append(await request.read())

    async with PutServer(note) as server:
        transcription = await place.put(place.clients[0], audio(1), server.url("r"), prompt="count")
        await place.up(api)
        await place.engine.has_seen(1)
        frozen, other = place.gateways.replicas
        if f"{transcription} of {api.namespace}: Transcribing" in other.log:
            frozen, other = other, frozen
        frozen.pause()
        place.polls.append(place.polls[place.gateways.replicas.index(other)])

        async def taken_over() -> bool:
            return sum(place.engine.seen.values()) == 2

        await eventually("the other replica to go on", taken_over)
        place.engine.go.set()
        assert (await place.ended(transcription))["status"] == "completed"
        frozen.resume()

        async def heard() -> bool:
            return "the claim is lost" in frozen.log or len(bodies) > 1

        await eventually("the frozen one to see it", heard)
        assert len(set(bodies)) == 1


async def test_a_replica_that_is_stopped_gives_back_what_it_works_on(api: Api, place: Place) -> None:
    place.engine.go.clear()
    ids = [await place.put(place.clients[0], audio(n), place.url(f"r{n}")) for n in range(4)]
    await place.up(api)
    await place.engine.has_seen(4)
    assert place.gateways.replicas[0].stop() == 0
    place.engine.go.set()
    for transcription in ids:
        assert (await place.ended(transcription))["status"] == "completed"
    assert "taken over" not in place.gateways.replicas[1].log, "nothing had to lapse"


async def test_who_waits_gets_the_text_by_openais_client_from_a_file_or_a_url(api: Api, place: Place) -> None:
    client = place.clients[0]
    asking = asyncio.create_task(client.audio.transcriptions.create(model=MODEL, file=("a.wav", audio(1))))
    await place.up(api)
    assert (await asking).text == heard(audio(1))
    with pytest.raises(openai.BadRequestError, match="no audio at all") as refused:
        await client.audio.transcriptions.create(model=MODEL, file=("a.wav", b"bad"))
    assert refused.value.code == "bad_audio"
    kept = place.s3.root / "batches" / place.folder
    kept.mkdir(parents=True)
    (kept / "talk.wav").write_bytes(audio(2))
    body = {"model": MODEL, "download_presigned_url": place.url("talk.wav", method="GET")}
    answer = await place.polls[0].post("/audio/transcriptions", json=body)
    assert answer.json()["text"] == heard(audio(2))
    with pytest.raises(openai.NotFoundError, match="'gpt-9' isn't served"):
        await client.audio.transcriptions.create(model="gpt-9", file=("a.wav", audio(1)))
    assert {path.name for path in place.gateways.stored()} == {"talk.wav"}, "no audio stays of those who waited"


async def test_what_cannot_be_made_or_handed_over_is_told_as_it_is(api: Api, place: Place) -> None:
    place.engine.go.clear()
    client = place.clients[0]
    bad = await place.put(client, b"bad sound", place.url("bad"))
    late = await place.put(client, audio(1), place.url("late", 8))
    await place.up(api)
    await asyncio.sleep(9)
    place.engine.go.set()
    failed = await place.ended(bad)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "bad_audio")
    assert place.result("bad") == {"error": {"message": "no audio at all", "code": "bad_audio"}}
    expired = await place.ended(late)
    assert (expired["status"], expired["error"]["code"]) == ("failed", "upload_expired")
    assert "HTTP 403" in expired["error"]["message"]
    assert "Signature" not in json.dumps(expired)
    with pytest.raises(openai.BadRequestError, match="the URL has expired"):
        await place.put(client, audio(1), place.url("late", 1).replace("X-Amz-Date=2", "X-Amz-Date=1"))

    async def out(_: web.Request, before: int) -> web.Response | None:
        return web.Response(status=503) if before < 2 else None

    async with PutServer(out) as server:
        outage = await place.ended(await place.put(client, audio(3), server.url("r")))
        assert (outage["status"], len(server.puts)) == ("completed", 3)
        assert json.loads(server.files["r"])["text"] == heard(audio(3))
