"""The gateway's files and transcriptions in Google's and Azure's object storage, by their emulators."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gpubatch_gateway import names
from gpubatch_gateway.audio.transcription import Outcome, Place, Record, Said
from gpubatch_runner.stores import PART
from support.clouds import Cloud
from unit.gateway.fake import Site, serving


@pytest.fixture
async def site(emptied: Cloud, tmp_path: Path) -> AsyncIterator[Site]:
    where = {"storage_url": f"{emptied.scheme}://batches/gateway", "storage_endpoint": emptied.endpoint}
    async with serving(tmp_path, **where, claim_seconds=600) as site:
        yield site


@pytest.mark.parametrize("size", [1, 2 * PART + 7])
async def test_a_file_is_kept_listed_read_and_removed(site: Site, emptied: Cloud, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    status, file = await site.upload(data)
    assert (status, file["bytes"]) == (200, size)
    _, listed = await site.ask("GET", "/v1/files")
    assert [(f["id"], f["bytes"], f["filename"]) for f in listed["data"]] == [(file["id"], size, "in.jsonl")]
    url = f"http://127.0.0.1:{site.port}/v1/files/{file['id']}/content"
    async with site.http.get(url, headers=site.headers()) as answer:
        assert await answer.read() == data
    async with site.http.get(url, headers=site.headers(Range="bytes=-1")) as answer:
        assert (answer.status, await answer.read()) == (206, data[-1:])
    site.token = "train"
    assert (await site.ask("GET", f"/v1/files/{file['id']}"))[0] == 404
    assert (await site.ask("GET", "/v1/files"))[1]["data"] == []
    site.token = "search"
    assert (await site.ask("DELETE", f"/v1/files/{file['id']}"))[1]["deleted"]
    assert await asyncio.to_thread(emptied.names) == []


async def test_what_is_not_as_it_should_be_leaves_nothing(site: Site, emptied: Cloud) -> None:
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", io.BytesIO(b"x" * (2 * PART)), filename="a")
    form.add_field("more", "unknown")
    assert (await site.ask("POST", "/v1/files", data=form))[0] == 400
    assert await asyncio.to_thread(emptied.names) == []


async def test_a_batch_reads_and_writes_beside_its_file(site: Site, emptied: Cloud) -> None:
    status, batch = await site.create(await site.uploaded())
    assert status == 200, batch
    [job] = site.api.jobs.values()
    work = job["spec"]["inference"]
    [stored] = await asyncio.to_thread(emptied.names)
    assert work["input"]["url"] == f"{emptied.scheme}://batches/{stored}"
    assert work["output"]["url"].startswith(f"{emptied.scheme}://batches/gateway/search/batches/")


async def test_a_transcription_is_claimed_decided_and_ended_once(site: Site, emptied: Cloud) -> None:
    place, records = Place("search", names.new_transcription_id(1_800_000_000.0)), site.records
    upload = "https://receiver.example/text"
    record = Record(
        model="minilm", fields=(), filename="a", content_type="", download=None, upload=upload, may_start=True
    )
    said = Said(status="queued", text="Waiting", replica="a")
    await records.accept(place, record)
    assert (await records.record(place)) == record
    assert await records.unfinished() == [place]
    assert [await records.claim(place, 1, said) for _ in range(2)] == [True, False]
    await records.say(place, 1, said.model_copy(update={"text": "Transcribing"}))
    assert (await records.document(await records.look(place)))["progress"] == "Transcribing"
    first, second = (Outcome(b"%d" % n, None) for n in (1, 2))
    assert [await records.decide(place, each) for each in (first, second)] == [first, first]
    assert [await records.end(place, said) for _ in range(2)] == [True, False]
    assert await records.unfinished() == []
    assert [view.place for view in await records.known("search")] == [place]
    await records.forget(place)
    assert await asyncio.to_thread(emptied.names) == []
