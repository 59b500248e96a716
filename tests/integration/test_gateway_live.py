"""Live requests through the gateway, by OpenAI's own client: all is real here, but for kubelet and engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from support.accounts import account
from support.api import Api, eventually, inference_job, namespace, template_job
from support.gateways import MODEL, Gateways
from support.livepods import Kubelet, Streaming, kubelet
from support.process import OperatorProcess
from support.replicas import Replicas, address, asked
from support.story import NOWHERE, on
from support.webhook import Webhook

JSON = dict[str, Any]
AddNode = Callable[..., Awaitable[str]]


@pytest.fixture
async def engine() -> AsyncIterator[Streaming]:
    async with Streaming() as engine:
        yield engine


@pytest.fixture
async def pods(api: Api, engine: Streaming, tmp_path: Path) -> AsyncIterator[Kubelet]:
    async with kubelet(api, engine.url, tmp_path) as found:
        yield found


async def up(gateways: Gateways, **settings: str | float) -> int:
    """One more replica, beside the operator of the `operator` fixture."""
    return await gateways.start(namespace="default", **settings)


async def chat(client: AsyncOpenAI, text: str = "1", model: str = MODEL) -> str:
    answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return str(answer.choices[0].message.content)


async def job_of(api: Api, *before: str) -> str:
    """The name of the job that the gateway has made besides these."""

    async def there() -> str | None:
        return next((name for name in await api.jobs() if name.startswith("live-") and name not in before), None)

    name: str = await eventually("a live job", there)
    return name


async def test_chats_wait_for_the_job_that_they_start_are_streamed_and_survive_its_pods_death(
    api: Api, operator: OperatorProcess, add_node: AddNode, gateways: Gateways, engine: Streaming, pods: Kubelet
) -> None:
    node = await add_node()
    gateways.models(**{MODEL: on(node)})
    port, token = await up(gateways), await gateways.account(api)
    client = await gateways.client(port, token)
    first = asyncio.create_task(chat(client))
    name = await job_of(api)
    assert (await api.job(name))["spec"]["ttlSecondsAfterFinished"] == 3600
    pod = await pods.next(name)
    assert await first == "echo 1"
    assert [m.id async for m in client.models.list()] == [MODEL]

    stream = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "3"}], stream=True)
    got = []
    async for chunk in stream:
        got.append(chunk.choices[0].delta.content)  # the engine goes on only when it has come
        engine.go.release()
    assert got == ["0 ", "1 ", "2 "]

    counts: Any = await client.get("/queue/status", cast_to=object)
    assert (counts["total_processed"], counts["active_requests"], counts["is_running"]) == (2, 0, True)
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "5"}]
    )
    found: Any = await client.get(f"/queue/request/{raw.headers['x-request-id']}", cast_to=object)
    assert found["status"] == "completed"
    with pytest.raises(openai.NotFoundError, match="No live job of this namespace knows a request 'req_none'"):
        await client.get("/queue/request/req_none", cast_to=object)

    left = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "9"}], stream=True)
    await anext(aiter(left))
    await left.close()
    await engine.gone.wait()

    broken = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "9"}], stream=True)
    await anext(aiter(broken))
    await pod.vanish()
    with pytest.raises((httpx.TransportError, openai.APIError)):
        async for _ in broken:
            pass
    again = asyncio.create_task(chat(client, "2"))
    await pods.next(name)
    assert await again == "echo 2"
    assert list(await api.jobs()) == [name]


async def test_thirty_requests_through_two_replicas_start_one_job(
    api: Api, operator: OperatorProcess, add_node: AddNode, gateways: Gateways, pods: Kubelet
) -> None:
    node = await add_node()
    gateways.models(**{MODEL: on(node)})
    token = await gateways.account(api)
    clients = [await gateways.client(await up(gateways), token) for _ in range(2)]
    asking = [asyncio.create_task(chat(clients[n % 2], str(n))) for n in range(30)]
    name = await job_of(api)
    await pods.next(name)
    assert await asyncio.gather(*asking) == [f"echo {n}" for n in range(30)]
    assert list(await api.jobs()) == [name]


async def test_requests_that_come_while_jobs_end_for_idleness_are_all_answered(
    api: Api, operator: OperatorProcess, add_node: AddNode, gateways: Gateways, pods: Kubelet
) -> None:
    node = await add_node()
    gateways.models(**{MODEL: on(node)})
    client = await gateways.client(await up(gateways, live_idle_seconds=1), await gateways.account(api))
    names: list[str] = []

    async def play() -> None:
        while True:
            names.append(await job_of(api, *names))
            await (await pods.next(names[-1])).end()

    playing = asyncio.create_task(play())
    asked = 0
    while len(names) < 3:
        assert await chat(client, str(asked)) == f"echo {asked}"
        asked += 1
        await asyncio.sleep(0.9 + 0.02 * (asked % 11))
    assert await chat(client, "last") == "echo last"
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    for name in names[:-1]:
        await api.phase(name, "Succeeded")


async def test_a_job_of_somebodys_own_is_found_by_its_model_by_those_of_its_namespace_who_may(
    api: Api, operator: OperatorProcess, add_node: AddNode, gateways: Gateways, pods: Kubelet
) -> None:
    node = await add_node()
    gateways.models()
    port, token = await up(gateways), await gateways.account(api)
    client = await gateways.client(port, token)
    with pytest.raises(openai.NotFoundError, match=r"The model 'tiny' isn't served\. No model is set up here\."):
        await chat(client)
    job = inference_job("mine", **on(node))
    job["spec"]["inference"] = {"model": "org/m", "servedModelName": MODEL, "input": {"live": {}}}
    await api.create(job)
    await pods.next("mine")

    async def found() -> bool:
        return [m.id async for m in client.models.list()] == [MODEL]

    await eventually("the model", found)
    sends = await account(api, "sends", ["gpubatchjobs/requests"], ["create"], api.namespace)
    assert await chat(await gateways.client(port, sends)) == "echo 1"
    reads = await account(api, "reads", ["gpubatchjobs"], ["get", "list"], api.namespace)
    with pytest.raises(openai.PermissionDeniedError, match="may not create gpubatchjobs/requests"):
        await chat(await gateways.client(port, reads))
    gateways.models(other={})

    async def templated() -> bool:
        return [m.id async for m in client.models.list()] == ["other", MODEL]

    await eventually("the template", templated)
    with pytest.raises(openai.PermissionDeniedError, match="No live job serves 'other' now, and you may not start"):
        await chat(await gateways.client(port, sends), model="other")
    async with namespace(api.client, f"{api.namespace}-b") as other:
        stranger = await gateways.client(port, await gateways.account(other))
        with pytest.raises(openai.NotFoundError, match="'tiny' isn't served"):
            await chat(stranger)
        with pytest.raises(openai.PermissionDeniedError):
            await chat(await gateways.client(port, token, project=other.namespace))


async def test_where_the_queue_is_full_no_job_is_started(
    api: Api, kubeconfig: Path, tmp_path: Path, gateways: Gateways
) -> None:
    webhook = Webhook(api.client, api.namespace, address(kubeconfig))
    with ExitStack() as stack:
        operators = Replicas(api, webhook, kubeconfig, tmp_path, stack)
        await webhook.install()
        await operators.start("first", max_queue_depth=1, namespace_caps='{"*": {"maxPriority": 999}}')
        await asked(api)
        await api.create(template_job("waits", **NOWHERE))
        await api.phase("waits", "Queued")
        gateways.models(**{MODEL: NOWHERE})
        client = await gateways.client(await gateways.start(), await gateways.account(api))
        with pytest.raises(openai.RateLimitError) as refused:
            await chat(client)
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["message"] == "Queue full (1/1 jobs). Try again later."
        assert refused.value.code == "queue_full"
        await webhook.remove_all()
