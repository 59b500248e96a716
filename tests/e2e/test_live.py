"""A live job end to end: chats over HTTP to a real vLLM, streamed, through its death, until nobody wants any more."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from support.api import JSON, Api, eventually
from support.installation import NAMESPACE, Installation, secret
from support.workloads import live

Say = Callable[[str], None]
ENGINE_PATIENCE = 600.0
"""Seconds for whatever waits for an engine to load."""


def chat(text: str, **more: Any) -> JSON:
    return {"model": "chat", "messages": [{"role": "user", "content": text}], "max_tokens": 24, **more}


async def serving(api: Api, name: str) -> JSON:
    """The job, once its engine has loaded and requests are taken."""

    async def there() -> JSON | None:
        job = await api.job(name)
        status = job.get("status", {})
        assert status.get("phase") != "Failed", status
        return job if status.get("live") and (status.get("progress") or {}).get("stage") == "Processing" else None

    job: JSON = await eventually(f"{name} to serve", there, ENGINE_PATIENCE)
    return job


@asynccontextmanager
async def client_of(installation: Installation, job: JSON, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the job's pod; the cluster's network may not be this machine's."""
    port = int(httpx.URL(job["status"]["live"]["url"]).port or 0)
    with installation.kube.forward(NAMESPACE, f"pod/{job['status']['podName']}", port) as local:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{local}/v1/"
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=ENGINE_PATIENCE) as client:
            yield client


async def test_chats_are_answered_and_streamed_the_engines_death_is_survived_and_idleness_ends_it(
    installation: Installation, api: Api, say: Say
) -> None:
    key = secrets.token_hex(16)
    name = f"live-key-{secrets.token_hex(4)}"
    await api.client.create(f"/api/v1/namespaces/{NAMESPACE}/secrets", secret(name, {"token": key}))
    wishes = {"idleTimeoutSeconds": 90, "keyFrom": {"secretKeyRef": {"name": name, "key": "token"}}}
    await api.create(live("live", wishes, {"requestTimeoutSeconds": 600}))
    job = await serving(api, "live")
    say("serves")
    async with client_of(installation, job, key) as client:
        assert (await client.get("models", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert [m["id"] for m in (await client.get("models")).json()["data"]] == ["chat"]
        whole = await client.post("chat/completions", json=chat("What is a lease?", temperature=0))
        assert whole.status_code == 200
        message = whole.json()["choices"][0]["message"]
        assert whole.json()["usage"]["completion_tokens"] == 24

        parts, text = 0, ""
        asked = chat("What is a lease?", temperature=0, stream=True)
        async with client.stream("POST", "chat/completions", json=asked) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    parts += 1
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        assert parts > 2
        assert text == message["content"]

        found = await client.get(f"queue/request/{whole.headers['x-request-id']}")
        assert found.json()["status"] == "completed"
        assert (await client.get("queue/status")).json()["total_processed"] == 2

        asking = [asyncio.create_task(client.post("chat/completions", json=chat(f"{n}?"))) for n in range(8)]
        assert [(await answer).status_code for answer in asking] == [200] * 8

        say("kills the engine")
        pod = await api.pod_of("live")
        installation.kill(pod, "engine")

        async def answered() -> bool:
            answer = await client.post("chat/completions", json=chat("Are you back?"))
            assert answer.status_code in (200, 502), answer.text
            return answer.status_code == 200

        await eventually("an answer of the engine that was started again", answered, ENGINE_PATIENCE)
        say("answers again")
    done = await api.phase("live", "Succeeded", "Failed", patience=ENGINE_PATIENCE)
    assert done["status"]["phase"] == "Succeeded"
    assert "live" not in done["status"]
    assert done["status"]["results"]["completed"] >= 11
    assert len(done["status"]["attempts"]) == 1


async def test_a_client_that_goes_away_ends_the_engines_work_and_a_cancelled_job_finishes_what_runs(
    installation: Installation, api: Api, say: Say
) -> None:
    key = secrets.token_hex(16)
    name = f"live-key-{secrets.token_hex(4)}"
    await api.client.create(f"/api/v1/namespaces/{NAMESPACE}/secrets", secret(name, {"token": key}))
    wishes = {"idleTimeoutSeconds": 3600, "keyFrom": {"secretKeyRef": {"name": name, "key": "token"}}}
    await api.create(live("live", wishes, {"maxConcurrentRequests": 1, "maxQueueSize": 1}))
    job = await serving(api, "live")
    slow = chat("Count.", max_tokens=450, ignore_eos=True, stream=True)
    async with client_of(installation, job, key) as client:

        async def busy(count: int) -> None:
            async def there() -> bool:
                return bool((await client.get("queue/status")).json()["active_requests"] == count)

            await eventually(f"{count} requests to be active", there)

        async with client.stream("POST", "chat/completions", json=slow) as answer:
            await anext(answer.aiter_lines())
            waits = asyncio.create_task(client.post("chat/completions", json=chat("Is it my turn?")))
            await busy(2)
            refused = await client.post("chat/completions", json=chat("One too many."))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
        assert (await waits).status_code == 200
        await busy(0)

        async with client.stream("POST", "chat/completions", json=slow) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            await api.edit("live", cancel=True)
            say("cancelled while a chat is streamed")
            assert [line async for line in lines if line.strip()][-1] == "data: [DONE]"
    ended = await api.phase("live", "Cancelled", patience=ENGINE_PATIENCE)
    results = ended["status"]["results"]
    assert results["completed"] + results["failed"] == 3
    assert results["completed"] >= 2
