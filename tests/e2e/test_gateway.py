"""The gateway end to end, by OpenAI's own client: batches and live chats, each answered by a real vLLM, and speech."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from obstore.store import S3Store
from openai import AsyncOpenAI
from openai.types import Batch

from demo_lib import inputs
from demo_lib.results import answered_once, ids
from support.api import Api, eventually
from support.installation import Installation
from support.speech import SENTENCES, recall
from support.workloads import script

JSON = dict[str, Any]
Say = Callable[[str], None]
ENGINE_PATIENCE = 600.0
"""Seconds for whatever waits for an engine to load."""


async def upload(client: AsyncOpenAI, lines: list[str]) -> str:
    data = "\n".join([*lines, ""]).encode()
    return (await client.files.create(file=("requests.jsonl", data), purpose="batch")).id


async def create(client: AsyncOpenAI, file: str, endpoint: Any, window: str = "24h") -> Batch:
    given: Any = window
    return await client.batches.create(input_file_id=file, endpoint=endpoint, completion_window=given)


async def ended(client: AsyncOpenAI, batch: Batch, status: str) -> Batch:
    """Poll until the batch has ended, which it should with this status."""

    async def there() -> Batch | None:
        found = await client.batches.retrieve(batch.id)
        await asyncio.sleep(0.2)
        return found if found.status in ("completed", "failed", "expired", "cancelled") else None

    found: Batch = await eventually(f"{batch.id} to be {status}", there, ENGINE_PATIENCE)
    assert found.status == status, found
    return found


async def chats(client: AsyncOpenAI, say: Say) -> None:
    """Chats with a model that nothing serves yet: the first one waits for its engine."""
    question: Any = [{"role": "user", "content": "What is a lease?"}]
    whole = await client.chat.completions.create(model="chat", messages=question, max_tokens=24, temperature=0)
    say("the live job answers")
    assert whole.usage is not None
    text, parts = "", 0
    stream = await client.chat.completions.create(
        model="chat", messages=question, max_tokens=24, temperature=0, stream=True
    )
    async for part in stream:
        parts += 1
        text += (part.choices[0].delta.content or "") if part.choices else ""
    assert parts > 2
    assert text == whole.choices[0].message.content

    left = await client.chat.completions.create(
        model="chat", messages=question, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(left))
    await left.close()

    async def free() -> bool:
        counts: Any = await client.get("/queue/status", cast_to=object)
        return bool(counts["is_running"] and counts["active_requests"] == 0)

    await eventually("the engine to stop working for a client that left", free)
    several = [client.chat.completions.create(model="chat", messages=question, max_tokens=8) for _ in range(8)]
    assert len(await asyncio.gather(*several)) == 8
    with pytest.raises(openai.NotFoundError, match=r"'gpt-9' isn't served\. Here are: 'chat', 'minilm', 'whisper'\."):
        await client.chat.completions.create(model="gpt-9", messages=question)
    with pytest.raises(openai.BadRequestError):  # the engine's own word
        await client.chat.completions.create(model="chat", messages=question, temperature=-5)


async def test_openais_client_runs_batches_and_chats_with_a_job_that_it_starts(
    installation: Installation, api: Api, say: Say
) -> None:
    with installation.gateway() as (url, token):
        async with AsyncOpenAI(base_url=url, api_key=token, max_retries=0, timeout=ENGINE_PATIENCE) as client:
            assert {model.id async for model in client.models.list()} >= {"chat", "minilm"}
            chatting = asyncio.create_task(chats(client, say))

            requests = inputs.embedding_requests()
            file = await upload(client, requests)
            batch = await create(client, file, "/v1/embeddings")
            say("a live job and a batch wait for their engines")

            questions = await upload(client, inputs.chat_requests(5))
            short = await create(client, questions, "/v1/chat/completions", "2s")
            expired = await ended(client, short, "expired")
            assert expired.expired_at is not None
            unwanted = await create(client, questions, "/v1/chat/completions")
            assert (await client.batches.cancel(unwanted.id)).status in ("cancelling", "cancelled")
            await ended(client, unwanted, "cancelled")

            lines, codes = inputs.broken_requests()
            broken = await create(client, await upload(client, lines), "/v1/chat/completions")
            failed = await ended(client, broken, "failed")
            assert failed.errors is not None
            assert {error.line: error.code for error in failed.errors.data or []} == codes
            say("expired, cancelled, failed")

            done = await ended(client, batch, "completed")
            assert done.request_counts is not None
            assert (done.request_counts.completed, done.request_counts.failed) == (len(requests), 0)
            assert done.output_file_id is not None
            answers = [json.loads(line) for line in (await client.files.content(done.output_file_id)).text.splitlines()]
            assert not answered_once(answers, ids(requests))
            assert {each.id async for each in client.batches.list(limit=2)} == {
                each.id for each in (batch, short, unwanted, broken)
            }
            assert file in [each.id async for each in client.files.list()]
            assert (await client.files.delete(file)).deleted
            say("completed")
            await chatting
            [live] = [name for name in await api.jobs() if name.startswith("live-")]
            finished = await api.phase(live, "Succeeded", "Failed", patience=ENGINE_PATIENCE)
            assert finished["status"]["phase"] == "Succeeded"
            assert finished["status"]["results"]["completed"] >= 10


COPY = """
import pathlib, sys, urllib.request
for n, url in enumerate({urls!r}):
    data = pathlib.Path(f"/samples/{{n}}.wav").read_bytes()
    urllib.request.urlopen(urllib.request.Request(url, data, method="PUT"))
"""


async def test_openais_client_has_speech_transcribed_at_once_and_in_the_background(
    installation: Installation, api: Api, bucket: S3Store, say: Say
) -> None:
    count = len(SENTENCES)
    urls = [installation.presigned("PUT", f"speech-{n}.wav") for n in range(count)]
    await api.create(script("speaks", installation.images["transcription"], COPY.format(urls=urls)))
    assert (await api.phase("speaks", "Succeeded", "Failed"))["status"]["phase"] == "Succeeded"
    sounds = [bytes(bucket.get(f"speech-{n}.wav").bytes()) for n in range(count)]
    with installation.gateway() as (base, token):
        async with AsyncOpenAI(base_url=base, api_key=token, max_retries=0, timeout=ENGINE_PATIENCE) as client:
            transcribe = client.audio.transcriptions.create

            async def begun(n: int) -> str:
                extra = {"upload_presigned_url": installation.presigned("PUT", f"text-{n}.json")}
                answer: Any = await transcribe(model="whisper", file=("a.wav", sounds[n]), extra_body=extra)
                assert answer.status == "in_progress"
                return str(answer.job_id)

            ids = await asyncio.gather(*map(begun, range(count)))
            say(f"{count} are answered")

            async def ended() -> list[Any] | None:
                found: Any = [await client.get(f"/jobs/{job}", cast_to=object) for job in ids]
                await asyncio.sleep(0.5)
                return found if all(job["status"] in ("completed", "failed") for job in found) else None

            for job in await eventually("all to end", ended, ENGINE_PATIENCE):
                assert job["status"] == "completed", job
            texts = [json.loads(bytes(bucket.get(f"text-{n}.json").bytes()))["text"] for n in range(count)]
            texts.append((await transcribe(model="whisper", file=("a.wav", sounds[0]), language="en")).text)
            understood = [recall(said, heard) for said, heard in zip([*SENTENCES, SENTENCES[0]], texts, strict=True)]
            say(f"words understood: {100 * sum(understood) / len(understood):.0f}%")
            assert sum(understood) / len(understood) > 0.7
            with pytest.raises(openai.BadRequestError, match="no audio that can be read"):
                await transcribe(model="whisper", file=("a.wav", b"nothing"))
            [live] = [name for name in await api.jobs() if name.startswith("live-")]
            finished = await api.phase(live, "Succeeded", "Failed", patience=ENGINE_PATIENCE)
            assert finished["status"]["results"]["completed"] == count + 1
