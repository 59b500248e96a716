"""Webhooks on a real API server: what survives the operator's death, and what a receiver that hangs can't do."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from support.api import JSON, Api, eventually, template_job
from support.process import OperatorProcess
from support.story import NOWHERE, on

AddNode = Callable[..., Awaitable[str]]
EVERYTHING = ["queued", "started", "progress", "succeeded", "failed", "cancelled", "retrying"]
SETTINGS: dict[str, Any] = {"webhook_allowed_networks": "127.0.0.0/8"}


@pytest.fixture(scope="module", autouse=True)
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all of these tests."""
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("webhooks") / "operator.log", **SETTINGS) as process:
        yield process


class Receivers:
    """Some receivers, each with a path of its own: what each got, and what it answers (204; None: it hangs)."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.got: dict[str, list[JSON]] = defaultdict(list)
        self.ids: dict[str, list[str]] = defaultdict(list)
        self.answers: dict[str, int | None] = {}

    async def take(self, request: web.Request) -> web.Response:
        name = request.path.strip("/")
        self.ids[name].append(request.headers["webhook-id"])
        self.got[name].append(await request.json())
        status = self.answers.get(name, 204)
        if status is None:
            await asyncio.Event().wait()
        return web.Response(status=status or 500)

    def told(self, name: str) -> list[str]:
        """The events that it got, each once."""
        return [
            e["type"].removeprefix("gpubatchjob.") for e in {e["data"]["sequence"]: e for e in self.got[name]}.values()
        ]

    async def heard(self, name: str, *events: str) -> None:
        async def there() -> bool:
            return self.told(name) == list(events)

        try:
            await eventually(f"{name} to hear {events}", there)
        except AssertionError as e:
            raise AssertionError(f"{e}; it has heard {self.told(name)}") from None


@pytest.fixture
async def receivers(unused_tcp_port: int) -> AsyncIterator[Receivers]:
    it, app = Receivers(unused_tcp_port), web.Application()
    app.router.add_post("/{name}", it.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    yield it
    await runner.cleanup()


async def delivery(api: Api, job: str, state: str, attempts: int = 0) -> JSON:
    """The job's first delivery, once it is so and was tried so often."""

    async def there() -> JSON | None:
        listed = (await api.job(job)).get("status", {}).get("webhookDeliveries") or []
        found = [d for d in listed[:1] if d["state"] == state and d["attempts"] >= attempts]
        return found[0] if found else None

    found: JSON = await eventually(f"the delivery of {job} to be {state}", there)
    return found


def dead_letter(job: JSON) -> str | None:
    found = [c for c in job["status"].get("conditions", []) if c["type"] == "WebhookDeadLettered"]
    return found[0]["status"] if found else None


async def warned(api: Api) -> bool:
    return "WebhookDeadLettered" in {e["reason"] for e in await api.events()}


async def test_a_life_is_told_in_order_and_a_receiver_that_hangs_delays_neither_another_nor_the_queue(
    api: Api, add_node: AddNode, receivers: Receivers
) -> None:
    node = await add_node()
    receivers.answers["hangs"] = None
    hooks = [{"name": n, "url": f"{receivers.url}/{n}", "events": EVERYTHING} for n in ("hangs", "well")]
    hooks[0]["delivery"] = {"totalSeconds": 300, "readSeconds": 300}
    for name in ("first", "second"):
        await api.create(template_job(name, webhooks=hooks if name == "first" else [], **on(node)))
    pod = await api.bound("first")
    await api.play_running(pod)
    await receivers.heard("well", "queued", "started")
    await api.play_end(pod)
    await api.phase("first", "Succeeded")
    await api.play_end(await api.bound("second"))
    await api.phase("second", "Succeeded")
    await receivers.heard("well", "queued", "started", "succeeded")
    assert receivers.told("hangs") == ["queued"], "the next waits for the one before"
    listed = (await api.job("first"))["status"]["webhookDeliveries"]
    assert {d["signed"] for d in listed if d["webhook"] == "well"} == {False}
    assert [e["data"]["phase"] for e in receivers.got["well"]] == ["Queued", "Running", "Succeeded"]


async def test_an_operator_that_is_killed_between_attempts_goes_on_where_it_was(
    api: Api, receivers: Receivers, operator: OperatorProcess
) -> None:
    receivers.answers["a"] = 503
    patience = {"attempts": 20, "backoffSeconds": 1, "maxBackoffSeconds": 1}
    hook = {"url": f"{receivers.url}/a", "events": EVERYTHING, "delivery": patience}
    await api.create(template_job("job", webhooks=[hook], **NOWHERE))
    await delivery(api, "job", "Pending", attempts=1)
    operator.kill()
    before = await delivery(api, "job", "Pending", attempts=1)
    await api.edit("job", cancel=True)
    operator.start()
    await delivery(api, "job", "Pending", attempts=before["attempts"] + 1)
    receivers.answers["a"] = 204
    await receivers.heard("a", "queued", "cancelled")
    done = await delivery(api, "job", "Delivered")
    assert done["attempts"] > before["attempts"]
    assert done["id"] == before["id"]
    assert len(set(receivers.ids["a"])) == 2, "each attempt had the id of its delivery"


async def test_a_dead_letter_is_sent_again_to_a_url_that_was_mended_after_the_jobs_end(
    api: Api, receivers: Receivers
) -> None:
    receivers.answers["wrong"] = 404
    hook = {"name": "backend", "url": f"{receivers.url}/wrong", "delivery": {"attempts": 1}}
    await api.create(template_job("job", webhooks=[hook], cancel=True))
    await delivery(api, "job", "DeadLettered")
    assert dead_letter(await api.job("job")) == "True"
    await eventually("an Event", lambda: warned(api))
    await api.edit("job", webhooks=[{**hook, "url": f"{receivers.url}/right"}])
    notes = {"metadata": {"annotations": {"gpubatch.dev/redeliver": "all 1"}}}
    await api.client.patch(f"{api.jobs_path}/job", notes)
    await delivery(api, "job", "Delivered")
    assert receivers.ids["right"] == receivers.ids["wrong"]
    assert receivers.got["right"] == receivers.got["wrong"]
    assert dead_letter(await api.job("job")) == "False"
