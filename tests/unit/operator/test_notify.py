"""Webhooks: signed as Standard Webhooks are, never to a private address, tried again, given up, remembered."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from gpubatch_operator.core.clock import seconds
from gpubatch_operator.kube.store import Store
from gpubatch_operator.kube.watch import resync
from gpubatch_operator.notify import dial, message
from gpubatch_operator.notify.notifier import SECRET_LABEL, Notifier
from gpubatch_operator.settings import Settings
from unit.operator.build import inference_spec, raw_job
from unit.operator.fake import Clock, Cluster, Recorder

JSON = dict[str, Any]
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
DELIVERY = {
    "id": "msg_1",
    "webhook": 0,
    "event": "failed",
    "state": "Pending",
    "attempts": 0,
    "time": "2027-01-15T08:01:00Z",
}
FAILED = {
    "phase": "Failed",
    "completionTime": "2027-01-15T08:01:00Z",
    "conditions": [
        {
            "type": "Failed",
            "status": "True",
            "reason": "EngineFailed",
            "message": "out of memory",
            "lastTransitionTime": "2027-01-15T08:01:00Z",
        }
    ],
    "results": {"completed": 2},
    "webhookDeliveries": [DELIVERY],
}

# --- what is said


def test_the_body_says_what_happened_to_which_job():
    body = json.loads(message.payload(raw_job(status=FAILED), DELIVERY))
    assert (body["type"], body["timestamp"]) == ("gpubatchjob.failed", "2027-01-15T08:01:00Z")
    assert body["data"]["job"] == {"namespace": "default", "name": "job", "uid": "uid-job"}
    assert body["data"]["error"] == {"reason": "EngineFailed", "message": "out of memory"}
    assert body["data"]["results"] == {"completed": 2}


def test_each_attempt_sends_the_same_bytes():
    tried = DELIVERY | {"attempts": 2, "lastError": "x"}
    again = raw_job(status=FAILED | {"webhookDeliveries": [tried]}, version=99)
    assert message.payload(again, tried) == message.payload(raw_job(status=FAILED), DELIVERY)


@pytest.mark.parametrize("secret", [SECRET, SECRET.removeprefix("whsec_")])
def test_the_signature_verifies_with_the_standard_library_of_webhooks(secret: str):
    body = message.payload(raw_job(status=FAILED), DELIVERY)
    headers = message.headers("msg_1", body, secret)
    assert Webhook(SECRET).verify(body, headers)["type"] == "gpubatchjob.failed"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"memory", b"luck  "), headers)


def test_without_a_secret_there_is_no_signature():
    assert "webhook-signature" not in message.headers("msg_1", b"{}", None)


@pytest.mark.parametrize("secret", ["", "whsec_???", "é"])
def test_a_secret_that_is_no_secret_is_named(secret: str):
    with pytest.raises(ValueError, match="not a base64 secret"):
        message.headers("msg_1", b"{}", secret)


# --- where it may go


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"),
    *("169.254.169.254", "fe80::1", "fd00:ec2::254", "::1", "::", "ff02::1", "fec0::1", "fc00::1"),  # metadata, local
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),  # IPv4-mapped
    *("::127.0.0.1", "::10.0.0.1"),  # IPv4-compatible
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1"),  # NAT64
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::"),  # 6to4, Teredo
    *("2001:db8::1", "192.0.2.1", "198.18.0.1", "240.0.0.1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(address: str):
    assert not dial.allowed(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"])
def test_public_addresses_are_allowed(address: str):
    assert dial.allowed(ipaddress.ip_address(address), ())


def test_an_administrator_may_allow_a_network_and_no_more():
    extra = dial.networks("10.0.0.0/8, fd00::/8")
    for address, ok in [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("fd00::1", True), ("192.168.0.1", False)]:
        assert dial.allowed(ipaddress.ip_address(address), extra) is ok
    assert dial.networks("") == ()


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost/", "http://127.0.0.1/", "http://[::1]:80/", "http://0x7f.1/", "http://2130706433/"),
        *("http://[::ffff:127.0.0.1]/", "http://user:pass@127.0.0.1/", "http://169.254.169.254/latest/meta-data"),
    ],
)
async def test_a_url_to_a_private_address_is_refused_however_it_is_written(url: str):
    with pytest.raises(dial.RefusedError, match="webhookAllowedNetworks"):
        await dial.resolve(url, ())


@pytest.mark.parametrize("url", ["http://h:99999/", "http://" + "a" * 64 + ".example/", "http://a..b/", "http://[::1/"])
async def test_a_url_that_cannot_be_used_is_refused_with_a_sentence(url: str):
    with pytest.raises(dial.RefusedError, match="isn't a usable URL"):
        await dial.resolve(url, ())


async def test_the_connection_goes_to_the_address_that_was_checked_and_the_name_stays_for_tls():
    target = await dial.resolve("https://localhost:8443/hook?a=b", dial.networks("127.0.0.0/8,::1/128"))
    assert target.url in ("https://127.0.0.1:8443/hook?a=b", "https://[::1]:8443/hook?a=b")
    assert (target.host_header, target.hostname) == ("localhost:8443", "localhost")


async def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch):
    async def answers(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", ("8.8.8.8", 80)), (0, 0, 0, "", ("10.0.0.1", 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answers)
    with pytest.raises(dial.RefusedError, match=r"10\.0\.0\.1"):
        await dial.resolve("http://rebinding.example/", ())


# --- how often it is tried


class Receiver:
    """Answers what it is told to, and keeps what it got."""

    def __init__(self) -> None:
        self.answers: list[web.Response] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        return self.answers.pop(0) if self.answers else web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    it, app = Receiver(), web.Application()
    app.router.add_post("/hook", it.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    it.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook"  # type: ignore[union-attr]
    yield it
    await runner.cleanup()


class Desk:
    """A finished job with one delivery to make, and the notifier that makes it."""

    def __init__(self, url: str, hook: JSON | None = None, **settings: Any) -> None:
        self.cluster, self.store, self.events = Cluster(Clock()), Store(1), Recorder()
        self.cluster.apply("job", inference_spec(webhooks=[{"url": url} | (hook or {})]))
        self.cluster.jobs["job"]["status"] = json.loads(json.dumps(FAILED))
        chosen = {"webhook_allowed_networks": "127.0.0.0/8", "webhook_timeout_seconds": 2.0} | settings
        self.settings = Settings(**chosen)
        self.notifier = self.restarted()

    def restarted(self) -> Notifier:
        return Notifier(self.cluster, self.store, self.settings, self.events)  # type: ignore[arg-type]

    def secret(self, value: str = SECRET, **labels: str) -> None:
        data = {"secret": base64.b64encode(value.encode()).decode()}
        self.cluster.secrets["hook"] = {"metadata": {"name": "hook", "labels": labels}, "data": data}

    async def work(self, now: float | None = None) -> JSON:
        """Make what is due, and say how the delivery stands."""
        await resync(self.cluster, self.store)  # type: ignore[arg-type]
        async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
            self.notifier._start_due(http, time.time() if now is None else now)
            await asyncio.gather(*self.notifier._in_flight.values())
        return self.delivery

    @property
    def delivery(self) -> JSON:
        return self.cluster.jobs["job"]["status"]["webhookDeliveries"][0]


LATER = time.time() + 10**6


async def test_a_delivery_is_made_once_signed_and_recorded(receiver: Receiver):
    desk = Desk(receiver.url, {"secretName": "hook"})
    desk.secret(**{SECRET_LABEL: "true"})
    assert (await desk.work())["state"] == "Delivered"
    ((headers, body),) = receiver.got
    assert Webhook(SECRET).verify(body, headers)
    assert headers["webhook-id"] == "msg_1"
    assert headers["host"] == receiver.url.split("/")[2]
    assert (desk.delivery["attempts"], desk.delivery["lastStatusCode"]) == (1, 200)
    await desk.work(LATER)
    assert len(receiver.got) == 1


async def test_a_failed_attempt_is_made_again_later_with_the_same_id_and_body(receiver: Receiver):
    receiver.answers = [web.Response(status=500, text="no luck")]
    desk = Desk(receiver.url)
    before = time.time()
    state = await desk.work()
    assert (state["state"], state["lastStatusCode"]) == ("Pending", 500)
    assert "no luck" in state["lastError"]
    assert before + 4 <= seconds(state["nextAttemptTime"]) <= time.time() + 7
    await desk.work()
    assert len(receiver.got) == 1, "not before its time"
    assert (await desk.work(LATER))["state"] == "Delivered"
    first, second = receiver.got
    assert (first[0]["webhook-id"], first[1]) == (second[0]["webhook-id"], second[1])
    assert not {"lastError", "nextAttemptTime"} & desk.delivery.keys()


async def test_the_delay_doubles_and_the_last_attempt_ends_in_a_dead_letter(receiver: Receiver):
    receiver.answers = [web.Response(status=503) for _ in range(9)]
    desk = Desk(receiver.url, webhook_attempts=4, webhook_backoff_seconds=100)
    delays = []
    for _ in range(3):
        start = time.time()
        delays.append(seconds((await desk.work(LATER))["nextAttemptTime"]) - start)
    for delay, base in zip(delays, (100, 200, 400), strict=True):
        assert 0.8 * base <= delay <= 1.2 * base + 2
    assert (await desk.work(LATER))["state"] == "DeadLettered"
    assert "nextAttemptTime" not in desk.delivery
    await desk.work(LATER)
    assert len(receiver.got) == 4
    assert [e[1] for e in desk.events.notes] == ["WebhookDeadLettered"]


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("120", 120),
        ("999999", 3600),
        ("soon", 5),
        ("²", 5),
        ("-5", 5),
        ("a date", 290),
    ],
)
async def test_retry_after_is_honoured_up_to_an_hour(receiver: Receiver, value: str, delay: float):
    given = formatdate(time.time() + 300, usegmt=True) if value == "a date" else value
    receiver.answers = [web.Response(status=429, headers={"Retry-After": given})]
    before = time.time()
    at = seconds((await Desk(receiver.url).work())["nextAttemptTime"])
    assert before + 0.8 * delay <= at <= time.time() + 1.3 * delay + 2
    if value == "120":
        assert at >= before + 120, "never earlier than it was asked for"


async def test_a_restart_goes_on_where_it_was(receiver: Receiver):
    receiver.answers = [web.Response(status=500)]
    desk = Desk(receiver.url)
    await desk.work()
    desk.notifier = desk.restarted()
    assert (await desk.work(LATER))["attempts"] == 2


async def test_no_redirect_is_followed(receiver: Receiver):
    receiver.answers = [web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})]
    assert (await Desk(receiver.url).work())["lastStatusCode"] == 302


async def test_a_private_address_is_refused_unless_the_settings_allow_it(receiver: Receiver):
    state = await Desk(receiver.url, webhook_allowed_networks="").work()
    assert (state["state"], receiver.got) == ("Pending", [])
    assert "webhookAllowedNetworks" in state["lastError"]


async def test_a_receiver_that_is_not_there_is_an_attempt():
    state = await Desk("http://127.0.0.1:1/hook").work()
    assert (state["attempts"], state["state"]) == (1, "Pending")
    assert "ConnectError" in state["lastError"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/", "http://" + "a" * 70 + ".example/", "http://127.0.0.1/\x00"]
)
async def test_a_url_that_cannot_be_used_is_given_up_like_any_other(url: str):
    """And is not tried for ever, without a record, twice a second."""
    desk = Desk(url, webhook_attempts=2)
    await desk.work()
    state = await desk.work(LATER)
    assert (state["state"], state["attempts"]) == ("DeadLettered", 2)
    assert state["lastError"]


@pytest.mark.parametrize(
    ("labels", "value", "why"),
    [
        ({}, SECRET, "lacks the label gpubatch.dev/webhook-secret=true"),
        ({SECRET_LABEL: "true"}, "", "not a base64 secret"),
        (None, "", "Secret hook doesn't exist in namespace default"),
    ],
)
async def test_a_secret_that_may_not_or_cannot_be_used_is_named(receiver: Receiver, labels, value: str, why: str):
    desk = Desk(receiver.url, {"secretName": "hook"})
    if labels is not None:
        desk.secret(value, **labels)
    assert why in (await desk.work())["lastError"]
    assert receiver.got == []


async def test_an_attempt_that_was_not_recorded_is_made_again(receiver: Receiver):
    desk = Desk(receiver.url)
    desk.cluster.trouble = ["refused"]
    assert (await desk.work())["attempts"] == 0
    assert (await desk.work())["state"] == "Delivered"
    assert len(receiver.got) == 2, "at least once"


async def test_a_job_that_changed_meanwhile_still_gets_its_record(receiver: Receiver):
    desk = Desk(receiver.url)
    await resync(desk.cluster, desk.store)  # type: ignore[arg-type]
    desk.cluster._put("jobs", desk.cluster.jobs["job"])  # somebody edits it
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
        desk.notifier._start_due(http, time.time())
        await asyncio.gather(*desk.notifier._in_flight.values())
    assert desk.delivery["state"] == "Delivered"
