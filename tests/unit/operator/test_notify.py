"""Webhooks: signed as Standard Webhooks are, tried again, given up, remembered, and nobody waits for somebody else."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from gpubatch_operator.core import deliveries
from gpubatch_operator.core.clock import seconds
from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.watch import resync
from gpubatch_operator.notify import message
from gpubatch_operator.notify.notifier import Notifier
from gpubatch_operator.notify.signing import LABEL
from gpubatch_operator.settings import Settings
from unit.operator.build import inference_spec, raw_job
from unit.operator.fake import Clock, Cluster, Recorder

JSON = dict[str, Any]
SECRET, OLD = (f"whsec_{base64.b64encode(letter * 32).decode()}" for letter in (b"k", b"o"))
TIME = "2027-01-15T08:01:00Z"
EVENT = {
    "sequence": 1,
    "event": "failed",
    "time": TIME,
    "phase": "Failed",
    "completionTime": TIME,
    "counts": {"completed": 2},
    "error": {"reason": "EngineFailed", "message": "out of memory"},
}
META = raw_job()["metadata"]
LATER = time.time() + 10**7

# --- what is said


def test_the_body_says_what_happened_to_which_job():
    body = json.loads(message.payload(META, EVENT))
    assert (body["type"], body["timestamp"]) == ("gpubatchjob.failed", TIME)
    assert body["data"]["job"] == {"namespace": "default", "name": "job", "uid": "uid-job"}
    assert body["data"]["error"] == {"reason": "EngineFailed", "message": "out of memory"}
    assert body["data"]["counts"] == {"completed": 2}
    assert body["data"]["results"] is None


@pytest.mark.parametrize("secret", [SECRET, SECRET.removeprefix("whsec_")])
def test_the_signature_verifies_with_the_standard_library_of_webhooks(secret: str):
    body = message.payload(META, EVENT)
    headers = message.headers("msg_1", body, [secret])
    assert Webhook(SECRET).verify(body, headers)["type"] == "gpubatchjob.failed"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"memory", b"luck  "), headers)


def test_while_a_secret_is_replaced_the_message_verifies_with_the_old_and_with_the_new_one():
    body = message.payload(META, EVENT)
    headers = message.headers("msg_1", body, [SECRET, OLD])
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (SECRET, OLD):
        assert Webhook(secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(base64.b64encode(b"x" * 32).decode()).verify(body, headers)


def test_without_a_secret_there_is_no_signature():
    assert "webhook-signature" not in message.headers("msg_1", b"{}", [])


@pytest.mark.parametrize("secret", ["", "whsec_???", "é"])
def test_a_secret_that_is_no_secret_is_named(secret: str):
    with pytest.raises(ValueError, match="not a base64 secret"):
        message.headers("msg_1", b"{}", [SECRET, secret])


# --- how it is delivered


class Receiver:
    """Answers what it is told to, and keeps what it got."""

    def __init__(self) -> None:
        self.answers: list[web.StreamResponse] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self._came = asyncio.Condition()
        self.hangs = asyncio.Event()  # set: it doesn't
        self.hangs.set()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.got.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        async with self._came:
            self._came.notify_all()
        await self.hangs.wait()
        return self.answers.pop(0) if self.answers else web.Response()

    async def arrived(self, count: int) -> None:
        async with self._came:
            await self._came.wait_for(lambda: len(self.got) >= count)


async def served(it: Receiver) -> AsyncIterator[Receiver]:
    app = web.Application()
    app.router.add_post("/hook", it.handle)
    app.router.add_post("/endless", endless)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    it.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook"  # type: ignore[union-attr]
    yield it
    it.hangs.set()
    await runner.cleanup()


async def endless(request: web.Request) -> web.StreamResponse:
    """A refusal without end."""
    answer = web.StreamResponse(status=500)
    await answer.prepare(request)
    while True:
        await answer.write(b"x" * 2**16)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async for it in served(Receiver()):
        yield it


@pytest.fixture
async def other() -> AsyncIterator[Receiver]:
    async for it in served(Receiver()):
        yield it


def delivery(job: str, webhook: str = "a", sequence: int = 1, **more: Any) -> JSON:
    head = {"id": f"msg_{job}_{sequence}_{webhook}", "webhook": webhook, "event": "failed", "sequence": sequence}
    return head | {"state": "Pending", "attempts": 0, "time": TIME} | more


def finished(*listed: JSON) -> JSON:
    """A job that has failed, and has this to deliver."""
    failed = {"type": "Failed", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": TIME}
    events = [EVENT | {"sequence": s} for s in sorted({d["sequence"] for d in listed})]
    return {
        "phase": "Failed",
        "completionTime": TIME,
        "conditions": [failed],
        "webhookEvents": events,
        "webhookDeliveries": list(listed),
    }


class Desk:
    """Finished jobs with deliveries to make, and the notifier that makes them."""

    def __init__(self, *hooks: JSON, jobs: int = 1, listed: tuple[JSON, ...] = (), **settings: Any) -> None:
        self.cluster, self.store, self.events = Cluster(Clock()), Store(1), Recorder()
        named = [{"name": "abcdefgh"[i]} | h for i, h in enumerate(hooks)]
        for n in range(jobs):
            name = "job" if jobs == 1 else f"job-{n}"
            self.cluster.apply(name, inference_spec(webhooks=named))
            mine = listed or tuple(delivery(name, h["name"]) for h in named)
            self.cluster.jobs[name]["status"] = json.loads(json.dumps(finished(*mine)))
        chosen = {"webhook_allowed_networks": "127.0.0.0/8", "webhook_timeout_seconds": 5.0} | settings
        self.settings = Settings(**chosen)
        self.notifier = self.restarted()

    def restarted(self) -> Notifier:
        return Notifier(self.cluster, self.store, self.settings, self.events)  # type: ignore[arg-type]

    def secret(self, labels: JSON, **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.cluster.secrets["hook"] = {"metadata": {"name": "hook", "labels": labels}, "data": data}

    async def see(self) -> None:
        await resync(self.cluster, self.store)  # type: ignore[arg-type]

    async def work(self, now: float | None = None) -> JSON:
        """Make what is due, and say how the first delivery stands."""
        await self.see()
        await self.notifier.turn(time.time() if now is None else now)
        await self.notifier.join()
        return self.deliveries()[0]

    def deliveries(self, job: str = "job") -> list[JSON]:
        return self.cluster.jobs[job]["status"]["webhookDeliveries"]


async def test_a_delivery_is_made_once_signed_and_recorded(receiver: Receiver):
    desk = Desk({"url": receiver.url, "secretName": "hook"})
    desk.secret({LABEL: "true"}, secret=SECRET)
    made = await desk.work()
    assert (made["state"], made["signed"], made["attempts"], made["lastStatusCode"]) == ("Delivered", True, 1, 200)
    ((headers, body),) = receiver.got
    assert Webhook(SECRET).verify(body, headers)
    assert headers["webhook-id"] == "msg_job_1_a"
    assert headers["host"] == receiver.url.split("/")[2]
    await desk.work(LATER)
    assert len(receiver.got) == 1


async def test_one_url_is_enough_and_status_says_that_nothing_was_signed(receiver: Receiver):
    made = await Desk({"url": receiver.url}).work()
    assert (made["state"], made["signed"]) == ("Delivered", False)
    assert "webhook-signature" not in receiver.got[0][0]


async def test_a_secret_is_rotated_without_a_message_that_a_receiver_refuses(receiver: Receiver):
    desk = Desk({"url": receiver.url, "secretName": "hook"})
    desk.secret({LABEL: "true"}, secret=SECRET, previousSecret=OLD)
    await desk.work()
    ((headers, body),) = receiver.got
    assert Webhook(OLD).verify(body, headers)
    assert Webhook(SECRET).verify(body, headers)


async def test_a_failed_attempt_is_made_again_later_with_the_same_id_and_body(receiver: Receiver):
    receiver.answers = [web.Response(status=500, text="no luck")]
    desk = Desk({"url": receiver.url})
    before = time.time()
    state = await desk.work()
    assert (state["state"], state["lastStatusCode"]) == ("Pending", 500)
    assert "no luck" in state["lastError"]
    assert before + 4 <= seconds(state["nextAttemptTime"]) <= time.time() + 7
    await desk.work(before)
    assert len(receiver.got) == 1, "not before its time"
    assert (await desk.work(LATER))["state"] == "Delivered"
    first, second = receiver.got
    assert (first[0]["webhook-id"], first[1]) == (second[0]["webhook-id"], second[1])
    assert not {"lastError", "nextAttemptTime"} & desk.deliveries()[0].keys()


async def test_what_a_webhook_says_of_its_attempts_counts_more_than_the_settings(receiver: Receiver):
    receiver.answers = [web.Response(status=503) for _ in range(9)]
    wish = {"attempts": 4, "backoffSeconds": 100, "maxBackoffSeconds": 300}
    desk = Desk({"url": receiver.url, "delivery": wish}, webhook_attempts=2)
    delays = []
    for _ in range(3):
        start = time.time()
        delays.append(seconds((await desk.work(LATER))["nextAttemptTime"]) - start)
    for delay, base in zip(delays, (100, 200, 300), strict=True):
        assert 0.8 * base <= delay <= 1.2 * base + 2
    assert (await desk.work(LATER))["state"] == "DeadLettered"
    assert "nextAttemptTime" not in desk.deliveries()[0]
    await desk.work(LATER)
    assert len(receiver.got) == 4
    assert [e[1] for e in desk.events.notes] == ["WebhookDeadLettered"]
    conditions = {c["type"]: c for c in desk.cluster.jobs["job"]["status"]["conditions"]}
    assert "503" in conditions["WebhookDeadLettered"]["message"]


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("120", 120),
        ("999999", 86_400),
        ("soon", 5),
        ("²", 5),
        ("-5", 5),
        ("a date", 290),
    ],
)
async def test_retry_after_is_honoured_up_to_a_day(receiver: Receiver, value: str, delay: float):
    given = formatdate(time.time() + 300, usegmt=True) if value == "a date" else value
    receiver.answers = [web.Response(status=429, headers={"Retry-After": given})]
    before = time.time()
    at = seconds((await Desk({"url": receiver.url}).work())["nextAttemptTime"])
    assert before + 0.8 * delay <= at <= time.time() + 1.3 * delay + 2
    if value == "120":
        assert at >= before + 120, "never earlier than it was asked for"


async def test_a_receiver_that_is_gone_is_not_asked_again(receiver: Receiver):
    receiver.answers = [web.Response(status=410)]
    desk = Desk({"url": receiver.url}, listed=(delivery("job"), delivery("job", sequence=2)))
    await desk.work()
    await desk.work(LATER)
    assert [d["state"] for d in desk.deliveries()] == ["DeadLettered", "DeadLettered"]
    assert len(receiver.got) == 1


async def test_a_restart_goes_on_where_it_was(receiver: Receiver):
    receiver.answers = [web.Response(status=500)]
    desk = Desk({"url": receiver.url})
    await desk.work()
    desk.notifier, desk.store = desk.restarted(), Store(1)
    desk.notifier = desk.restarted()
    made = await desk.work(LATER)
    assert (made["attempts"], made["state"]) == (2, "Delivered")


async def test_events_of_a_job_arrive_in_order_and_the_next_waits_for_the_one_before(receiver: Receiver):
    receiver.answers = [web.Response(status=500), web.Response(), web.Response(status=500)]
    listed = tuple(delivery("job", sequence=s) for s in (1, 2, 3))
    desk = Desk({"url": receiver.url}, listed=listed)
    for _ in range(3):
        await desk.work(LATER)
    sent = [json.loads(body)["data"]["sequence"] for _, body in receiver.got]
    assert sent == [1, 1, 2, 2, 3]


# --- what an attempt may not do


async def test_no_redirect_is_followed(receiver: Receiver, other: Receiver):
    receiver.answers = [web.Response(status=307, headers={"Location": other.url})]
    assert (await Desk({"url": receiver.url}).work())["lastStatusCode"] == 307
    assert other.got == []


async def test_no_proxy_is_used(receiver: Receiver, other: Receiver, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url)
    assert (await Desk({"url": receiver.url}).work())["state"] == "Delivered"
    assert (len(receiver.got), other.got) == (1, [])


async def test_a_private_address_is_refused_and_the_setting_that_would_allow_it_is_named(receiver: Receiver):
    state = await Desk({"url": receiver.url}, webhook_allowed_networks="").work()
    assert (state["state"], receiver.got) == ("Pending", [])
    assert "webhookAllowedNetworks" in state["lastError"]


async def test_an_answer_without_end_is_not_read_to_its_end(receiver: Receiver):
    url = receiver.url.replace("/hook", "/endless")
    state = await Desk({"url": url}, webhook_timeout_seconds=300).work()
    assert (state["lastStatusCode"], state["state"]) == (500, "Pending")
    assert len(state["lastError"]) < 1024


async def test_a_packed_answer_is_not_unpacked(receiver: Receiver):
    bomb = gzip.compress(b"x" * 2**26)
    receiver.answers = [web.Response(status=500, body=bomb, headers={"Content-Encoding": "gzip"})]
    state = await Desk({"url": receiver.url}).work()
    assert receiver.got[0][0]["accept-encoding"] == "identity"
    assert "xxx" not in state["lastError"]


@pytest.mark.parametrize(
    ("wish", "why"),
    [({"totalSeconds": 1}, "(totalSeconds)"), ({"readSeconds": 1, "totalSeconds": 60}, "(readSeconds)")],
)
async def test_a_receiver_that_hangs_is_left_after_its_own_time(receiver: Receiver, wish: JSON, why: str):
    receiver.hangs.clear()
    state = await Desk({"url": receiver.url, "delivery": wish}).work()
    assert why in state["lastError"]


async def test_a_receiver_that_is_not_there_is_an_attempt():
    state = await Desk({"url": "http://127.0.0.1:1/hook"}).work()
    assert (state["attempts"], state["state"]) == (1, "Pending")
    assert "ConnectError" in state["lastError"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/", "http://" + "a" * 70 + ".example/", "http://127.0.0.1/\x00"]
)
async def test_a_url_that_cannot_be_used_is_given_up_like_any_other(url: str):
    """And is not tried for ever, without a record."""
    desk = Desk({"url": url}, webhook_attempts=2)
    await desk.work()
    state = await desk.work(LATER)
    assert (state["state"], state["attempts"]) == ("DeadLettered", 2)
    assert state["lastError"]


@pytest.mark.parametrize(
    ("labels", "values", "why"),
    [
        ({}, {"secret": SECRET}, "lacks the label gpubatch.dev/webhook-secret=true"),
        ({LABEL: "true"}, {"secret": ""}, "not a base64 secret"),
        ({LABEL: "true"}, {"secret": SECRET, "previousSecret": "é"}, "not a base64 secret"),
        ({LABEL: "true"}, {"other": SECRET}, "has no key 'secret'"),
        (None, {}, "Secret hook doesn't exist in namespace default"),
    ],
)
async def test_a_secret_that_may_not_or_cannot_be_used_is_named(
    receiver: Receiver, labels: JSON | None, values: dict[str, str], why: str
):
    desk = Desk({"url": receiver.url, "secretName": "hook"})
    if labels is not None:
        desk.secret(labels, **values)
    assert why in (await desk.work())["lastError"]
    assert receiver.got == []


async def test_an_operator_that_may_not_read_the_secret_says_what_allows_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    desk = Desk({"url": receiver.url, "secretName": "hook"})
    get = desk.cluster.get

    async def forbidden(path: str) -> JSON:
        if "/secrets/" in path:
            raise ApiError(403, "Forbidden", "secrets is forbidden")
        return await get(path)

    monkeypatch.setattr(desk.cluster, "get", forbidden)
    assert "rbac.webhookSecrets" in (await desk.work())["lastError"]


# --- what is recorded


async def test_a_record_that_fails_is_repeated_and_not_the_delivery(receiver: Receiver):
    desk = Desk({"url": receiver.url})
    desk.cluster.trouble = ["refused", "lost answer"]
    made = await desk.work()
    assert (made["attempts"], made["state"]) == (1, "Delivered")
    assert len(receiver.got) == 1


async def test_a_job_that_changed_meanwhile_still_gets_its_record(receiver: Receiver):
    desk = Desk({"url": receiver.url})
    await desk.see()
    desk.cluster._put("jobs", desk.cluster.jobs["job"])  # somebody edits it
    await desk.notifier.turn(time.time())
    await desk.notifier.join()
    assert desk.deliveries()[0]["state"] == "Delivered"


async def test_what_a_jobs_receivers_answer_together_is_one_write(receiver: Receiver):
    desk = Desk(*({"url": receiver.url} for _ in range(8)))
    receiver.hangs.clear()
    await desk.see()
    await desk.notifier.turn(time.time())
    await receiver.arrived(2)
    receiver.hangs.set()
    await desk.notifier.join()
    assert {d["state"] for d in desk.deliveries()} == {"Delivered"}
    assert desk.cluster.writes < 8


async def test_a_job_that_is_deleted_meanwhile_is_forgotten(receiver: Receiver):
    desk = Desk({"url": receiver.url})
    receiver.hangs.clear()
    await desk.see()
    await desk.notifier.turn(time.time())
    await receiver.arrived(1)
    desk.cluster.delete_job("job")
    desk.cluster.deliver(desk.store)
    receiver.hangs.set()
    await desk.notifier.join()
    assert desk.cluster.writes == 0


# --- nobody waits for somebody else


async def test_a_receiver_that_hangs_does_not_delay_another(receiver: Receiver, other: Receiver):
    receiver.hangs.clear()
    desk = Desk({"url": receiver.url}, {"url": other.url}, jobs=50, webhook_timeout_seconds=300)
    await desk.see()
    await desk.notifier.turn(time.time())
    await other.arrived(50)
    assert 1 <= len(receiver.got) <= 2, "and isn't flooded by those who wait for it"
    await desk.notifier.stop()


async def test_jobs_that_wait_for_their_next_attempt_are_not_looked_through(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    later = (delivery("job", nextAttemptTime="2099-01-01T00:00:00Z", attempts=1),)
    desk = Desk({"url": receiver.url}, jobs=1_000, listed=later)
    desk.cluster.jobs["job-7"]["status"]["webhookDeliveries"][0].pop("nextAttemptTime")
    await desk.see()
    await desk.notifier.turn(time.time())
    looked: list[JSON] = []
    heads = deliveries.heads
    monkeypatch.setattr(deliveries, "heads", lambda status: looked.append(status) or heads(status))
    await desk.notifier.turn(time.time())
    assert looked == []
    await desk.notifier.join()
    await desk.notifier.turn(time.time())
    assert len(looked) < 10
    assert desk.deliveries("job-7")[0]["state"] == "Delivered"
