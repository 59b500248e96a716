"""The gateway, asked by OpenAI's own client: on a real API server with the operator, and a real S3 server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch

from gpubatch_operator.kube.client import ApiError
from gpubatch_runner.contract import SPEC_ENV, Outcome, RunSpec, Usage
from gpubatch_runner.environment import Environment
from gpubatch_runner.preflight import inspect
from support.api import Api, eventually, namespace
from support.gateways import MODEL, NOWHERE, Gateways
from support.process import OperatorProcess
from support.replicas import Replicas, address, asked
from support.s3 import lines
from support.webhook import Webhook

JSON = dict[str, Any]
AddNode = Callable[..., Awaitable[str]]
FULL = "Queue full (20/20 jobs). Try again later."


async def upload(client: AsyncOpenAI, data: bytes, name: str = "in.jsonl") -> str:
    return (await client.files.create(file=(name, data), purpose="batch")).id


async def create(client: AsyncOpenAI, file: str, window: str = "24h", **more: Any) -> Batch:
    given: Any = window
    return await client.batches.create(
        input_file_id=file, endpoint="/v1/chat/completions", completion_window=given, **more
    )


async def inspected(api: Api, batch: Batch) -> None:
    """The batch's inspection, by the runner itself."""
    pod = await api.pod_of(batch.id.replace("_", "-"), "inspect")
    [container] = pod["spec"]["containers"]
    spec = next(e["value"] for e in container["env"] if e["name"] == SPEC_ENV)
    verdict = await inspect(RunSpec.model_validate_json(spec), Environment())
    await api.play_end(pod, message=verdict.to_json())


async def status(client: AsyncOpenAI, batch: Batch, *words: str) -> Batch:
    """Poll until the batch has one of these words as its status."""

    async def there() -> Batch | None:
        found = await client.batches.retrieve(batch.id)
        return found if found.status in words else None

    found: Batch = await eventually(f"{batch.id} to be {words}", there)
    return found


async def test_a_batch_from_its_upload_to_its_results(
    api: Api, operator: OperatorProcess, add_node: AddNode, gateways: Gateways
) -> None:
    node = await add_node()
    gateways.models(**{MODEL: {"nodeSelector": {"kubernetes.io/hostname": node}}})
    client = await gateways.client(await gateways.start(), await gateways.account(api))
    data = lines(3)
    file = await upload(client, data, "reviews.jsonl")
    assert [f.id async for f in client.files.list()] == [file]
    assert (await client.files.retrieve(file)).filename == "reviews.jsonl"
    assert (await client.files.content(file)).content == data
    batch = await create(client, file, metadata={"team": "search", "priority": "1"})
    assert (await client.batches.retrieve(batch.id)).status == "validating"
    await inspected(api, batch)
    waiting = await status(client, batch, "in_progress")
    assert waiting.request_counts is not None
    assert waiting.request_counts.total == 3
    pod = await api.bound(batch.id.replace("_", "-"))
    await api.play_running(pod)

    async def processing() -> bool:
        return (await client.batches.retrieve(batch.id)).model_dump()["queue_position"] == 0

    await eventually("the position to be 0", processing)
    output = gateways.s3.root / "batches" / api.namespace / api.namespace / "batches" / batch.id[6:] / "output.jsonl"
    output.parent.mkdir(parents=True)
    output.write_bytes(b'{"id":"1"}\n' * 3)
    url = f"s3://batches/{api.namespace}/{api.namespace}/batches/{batch.id[6:]}/output.jsonl"
    outcome = Outcome(succeeded=True, total=3, completed=3, output=url, usage=Usage(input_tokens=9, output_tokens=6))
    await api.play_end(pod, message=outcome.to_json())
    done = await status(client, batch, "completed")
    assert (done.error_file_id, done.metadata) == (None, {"team": "search", "priority": "1"})
    assert done.usage is not None
    assert done.usage.total_tokens == 15
    assert done.completed_at is not None
    assert done.output_file_id is not None
    assert (await client.files.content(done.output_file_id)).text == '{"id":"1"}\n' * 3
    assert (await client.files.retrieve(done.output_file_id)).purpose == "batch_output"
    assert [b.id async for b in client.batches.list(limit=1)] == [batch.id]
    assert (await client.files.delete(file)).deleted
    assert [f.id async for f in client.files.list()] == [done.output_file_id]
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        await client.batches.cancel(batch.id)


async def test_batches_that_fail_expire_or_are_cancelled(
    api: Api, operator: OperatorProcess, gateways: Gateways
) -> None:
    client = await gateways.client(await gateways.start(), await gateways.account(api))
    good = await upload(client, lines(2))
    bad = await upload(client, lines(1) + b'{"custom_id": "x", "method": "POST"}\nnonsense\n')
    invalid = await create(client, bad)
    await inspected(api, invalid)
    failed = await status(client, invalid, "failed")
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [(e.line, e.code, e.param) for e in failed.errors.data] == [
        (2, "invalid_url", "url"),
        (3, "invalid_json_line", None),
    ]
    assert failed.failed_at is not None
    assert failed.error_file_id is not None
    assert len((await client.files.content(failed.error_file_id)).text.splitlines()) == 2
    short = await create(client, good, "1s")
    expired = await status(client, short, "expired")
    assert expired.expired_at is not None
    batch = await create(client, good)
    assert (await client.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
    cancelled = await status(client, batch, "cancelled")
    assert cancelled.cancelled_at is not None
    assert [b.id async for b in client.batches.list(limit=2)] == [batch.id, short.id, invalid.id]


async def test_errors_are_the_clients_own_exceptions(api: Api, gateways: Gateways) -> None:
    port = await gateways.start(max_file_bytes=100_000)
    token = await gateways.account(api)
    client = await gateways.client(port, token)
    file = await upload(client, lines(1))
    with pytest.raises(openai.AuthenticationError, match="The bearer token can't be used"):
        await (await gateways.client(port, "sk-nobody-knows-this-one")).batches.list()
    with pytest.raises(openai.PermissionDeniedError, match="may not list gpubatchjobs in namespace kube-system"):
        await (await gateways.client(port, token, project="kube-system")).batches.list()
    with pytest.raises(openai.NotFoundError, match="No such file"):
        await client.files.retrieve("file-" + "0" * 32)
    with pytest.raises(openai.NotFoundError, match="No such batch"):
        await client.batches.retrieve("batch_" + "0" * 32)
    with pytest.raises(openai.BadRequestError, match=r"'gpt-9' isn't served\. Here are: 'tiny'"):
        await create(client, await upload(client, lines(1).replace(MODEL.encode(), b"gpt-9")))
    with pytest.raises(openai.APIStatusError, match="limit here") as refused:
        await upload(client, b"x" * 100_001)
    assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
    async with namespace(api.client, f"{api.namespace}-b") as other:
        stranger = await gateways.client(port, await gateways.account(other))
        batch = await create(client, file)
        for ask in (stranger.files.retrieve, stranger.files.content, stranger.files.delete, stranger.batches.retrieve):
            with pytest.raises(openai.NotFoundError):
                await ask(batch.id if ask == stranger.batches.retrieve else file)
        with pytest.raises(openai.BadRequestError, match="No such file"):
            await create(stranger, file)
        assert [f async for f in stranger.files.list()] == []
        assert [b async for b in stranger.batches.list()] == []


async def test_an_api_key_is_rotated_without_a_restart(api: Api, gateways: Gateways) -> None:
    await gateways.account(api)
    keys, port = gateways.folder / "keys", await gateways.start()
    keys.mkdir()
    old, new = (f"sk-0123456789-{which}-key" for which in ("old", "new"))

    def entry(key: str) -> str:
        return json.dumps({"key": key, "namespace": api.namespace, "serviceAccount": "app"})

    async def works(key: str) -> bool:
        try:
            await (await gateways.client(port, key)).batches.list()
        except openai.AuthenticationError:
            return False
        return True

    async def only(good: str, bad: str) -> None:
        async def there() -> bool:
            return await works(good) and not await works(bad)

        await eventually(f"{good} to be the key", there)

    (keys / "ci").write_text(entry(old))
    await only(old, new)
    (keys / "ci").write_text(entry(new))
    await only(new, old)
    assert "sk-" not in gateways.replicas[0].log


async def test_of_thirty_at_once_through_two_replicas_twenty_get_in(
    api: Api, kubeconfig: Path, tmp_path: Path, gateways: Gateways
) -> None:
    webhook = Webhook(api.client, api.namespace, address(kubeconfig))
    with ExitStack() as stack:
        operators = Replicas(api, webhook, kubeconfig, tmp_path, stack)
        await webhook.install()
        await operators.two(namespace_caps='{"*": {"maxPriority": 999}}')
        await asked(api)
        token = await gateways.account(api)
        clients = [await gateways.client(await gateways.start(), token) for _ in range(2)]
        file = await upload(clients[0], lines(1))

        async def one(n: int) -> Batch | openai.RateLimitError:
            try:
                return await create(clients[n % 2], file, metadata={"n": str(n)})
            except openai.RateLimitError as e:
                return e

        results = await asyncio.gather(*map(one, range(30)))
        refused = [r for r in results if isinstance(r, openai.RateLimitError)]
        assert (len(results) - len(refused), len(refused)) == (20, 10)
        for error in refused:
            assert isinstance(error.body, dict)
            assert (error.body["message"], error.code) == (FULL, "queue_full")
        made = [r for r in results if isinstance(r, Batch)]
        for client in clients:
            found = [await client.batches.retrieve(b.id) for b in made]
            assert {b.id for b in found} == {b.id for b in made}
        await webhook.remove_all()


async def test_killed_replicas_leave_no_batch_without_its_file_and_none_twice(api: Api, gateways: Gateways) -> None:
    token = await gateways.account(api)
    for _ in range(2):
        await gateways.start()
    clients = [await gateways.client(port, token) for port in gateways.ports]
    big = lines(150_000)
    kills, ended = 0, asyncio.Event()

    async def insist(n: int, ask: Callable[[AsyncOpenAI], Awaitable[Any]]) -> Any:
        """As a client that tries again elsewhere."""
        while True:
            try:
                return await ask(clients[n % 2])
            except (openai.APIConnectionError, openai.InternalServerError):
                n += 1
                await asyncio.sleep(0.1)

    async def work(n: int) -> str:
        file = await insist(n, lambda c: upload(c, big if n % 3 == 0 else lines(2)))
        given: dict[str, Any] = {"metadata": {"n": str(n)}}
        if n % 2:
            given["extra_headers"] = {"Idempotency-Key": f"key-{n}"}
        batch = await insist(n, lambda c: create(c, file, **given))
        return str(batch.id)

    async def kill() -> None:
        nonlocal kills
        while not ended.is_set():
            replica = gateways.replicas[kills % 2]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.3 + 0.2 * (kills % 3))
            replica.kill()
            kills, said = kills + 1, replica.log
            replica.start()
            await gateways.up(replica, said)

    killing = asyncio.create_task(kill())
    ids = await asyncio.gather(*(work(n) for n in range(24)))
    ended.set()
    await killing
    assert kills >= 3
    assert len(set(ids)) == 24
    jobs = await api.jobs()
    assert {f"batch_{name[6:]}" for name in jobs} == set(ids), "none twice"
    stored = {f"s3://batches/{p.relative_to(gateways.s3.root / 'batches')}" for p in gateways.stored()}
    assert {job["spec"]["inference"]["input"]["url"] for job in jobs.values()} <= stored, "none without its file"
    sizes = {p.stat().st_size for p in gateways.stored()}
    assert sizes <= {len(big), len(lines(2))}, "none in part"
    listed = [f.bytes async for f in clients[0].files.list()]
    assert len(listed) == len(gateways.stored())


async def test_a_cut_upload_is_in_no_list_and_its_parts_are_swept(api: Api, gateways: Gateways) -> None:
    port = await gateways.start()
    token = await gateways.account(api)
    sent = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield b"x" * 1_000_000
        sent.set()
        await asyncio.Event().wait()

    async def post() -> None:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "multipart/form-data; boundary=x"}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"http://127.0.0.1:{port}/v1/files", data=half(), headers=headers) as answer,
        ):
            await answer.read()

    async def cut(how: Callable[[], None]) -> None:
        sent.clear()
        sending = asyncio.create_task(post())
        await sent.wait()
        how()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    async def nothing() -> bool:
        return not gateways.stored() and not gateways.s3.unfinished()

    async def told() -> bool:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/v1/files/none") as answer:
            return answer.status == 401

    await cut(lambda: None)
    await eventually("the gateway to go on", told)
    assert gateways.stored() == []
    # A part that was on its way when the upload was given up: the server keeps it, and lists no upload that it is of.
    shutil.rmtree(gateways.s3.root / "batches" / ".sgwtmp", ignore_errors=True)
    await cut(gateways.replicas[0].kill)
    assert gateways.stored() == []
    # Not before: it would sweep a slow upload while it is being sent, and the server keep the part on its way.
    await gateways.start(sweep_seconds=1, unfinished_seconds=1)
    await eventually("the killed replica's parts to be swept", nothing)


async def test_a_model_is_added_without_a_restart(api: Api, gateways: Gateways) -> None:
    client = await gateways.client(await gateways.start(), await gateways.account(api))
    assert [m.id async for m in client.models.list()] == [MODEL]
    gateways.models(**{MODEL: NOWHERE, "other": NOWHERE})

    async def there() -> bool:
        return [m.id async for m in client.models.list()] == ["other", MODEL]

    await eventually("the new model", there)


async def test_what_was_deleted_is_gone_on_all_replicas(api: Api, gateways: Gateways) -> None:
    token = await gateways.account(api)
    first, second = [await gateways.client(await gateways.start(), token) for _ in range(2)]
    batch = await create(first, await upload(second, lines(1)))
    assert (await second.batches.retrieve(batch.id)).id == batch.id
    with contextlib.suppress(ApiError):
        await api.delete(batch.id.replace("_", "-"))

    async def gone() -> bool:
        return not [b async for b in first.batches.list()] and not [b async for b in second.batches.list()]

    await eventually("the batch to be gone", gone)
