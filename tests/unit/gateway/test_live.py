"""Live requests: which job answers them, and how its answer is passed on."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gpubatch_gateway.live import livekeys, routing
from gpubatch_gateway.live.starting import Starting
from gpubatch_gateway.models import Models
from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.core.clock import iso
from gpubatch_operator.kube.client import ApiError
from unit.gateway.fake import MINILM, ApiServer, Site, raw, serving
from unit.gateway.pods import Pod, key, live_job, pod, stopping, told, up

JSON = dict[str, Any]
CHAT = "/v1/chat/completions"
JSON_BODY = {"Content-Type": "application/json"}
FULL = "Queue full (20/20 jobs). Try again later."


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as site:
        yield site


async def ask(site: Site, model: str = "m", path: str = CHAT, **more: Any) -> tuple[int, JSON]:
    return await site.ask("POST", path, json={"model": model, "messages": []}, **more)


def code(answer: tuple[int, JSON]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


async def eventually(there: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not there():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
async def served(site: Site) -> AsyncIterator[Pod]:
    """A pod that serves the model `m`."""
    live_job(site.api)
    async with pod(key(site.api, "live")) as found:
        up(site, "live", found)
        yield found


# --- the answer


PATHS = [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/score", "/v1/rerank"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_and_its_answer_are_passed_on_to_the_byte(site: Site, served: Pod, path: str) -> None:
    body = b'{ "x": "\xc3\xa4",  "model":"m" }'
    headers = site.headers(**{"Content-Type": "application/json; charset=utf-8"})
    async with site.http.post(f"http://127.0.0.1:{site.port}{path}", data=body, headers=headers) as answer:
        assert (answer.status, await answer.read()) == (200, body)
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        assert answer.headers["X-Request-Id"] == "req_1"
        assert "X-Engine" not in answer.headers
    assert served.seen == [path]
    assert site.api.asked == [f"get {path}" for path in ["/api/v1/namespaces/gpubatch-system/secrets/gpubatch-live"]]


async def test_large_bodies_go_both_ways(site: Site, served: Pod) -> None:
    text = "x" * 7_000_000
    status, answer = await site.ask(
        "POST", CHAT, data=json.dumps({"model": "m", "text": text}).encode(), headers=JSON_BODY
    )
    assert (status, answer["text"] == text) == (200, True)


async def test_an_error_of_the_job_is_the_answer(site: Site, served: Pod) -> None:
    async def full(request: web.Request) -> web.StreamResponse:
        error = {"error": {"message": "The queue is full", "code": "queue_full"}}
        return web.json_response(error, status=503, headers={"Retry-After": "7"})

    served.behave = full
    assert code(await ask(site)) == (503, "queue_full")
    assert len(served.seen) == 1


async def test_a_stream_comes_part_by_part(site: Site, served: Pod) -> None:
    go = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await go.wait()
        await response.write(b"data: 2\n\n")
        return response

    served.behave = stream
    url = f"http://127.0.0.1:{site.port}{CHAT}"
    async with site.http.post(url, json={"model": "m"}, headers=site.headers()) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.content.readany() == b"data: 1\n\n"
        go.set()
        assert await answer.read() == b"data: 2\n\n"


@pytest.mark.parametrize("length", [None, 20, 2_000_000])
async def test_an_answer_that_breaks_is_never_whole_for_the_client(site: Site, served: Pod, length: int | None) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.content_length = length
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    served.behave = breaks
    url = f"http://127.0.0.1:{site.port}{CHAT}"
    async with site.http.post(url, json={"model": "m"}, headers=site.headers()) as answer:
        if length == 20:  # nothing had been passed on
            assert (answer.status, (await answer.json())["error"]["code"]) == (502, "connection_error")
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()


@pytest.mark.parametrize("begun", [False, True])
async def test_the_job_stops_working_for_a_client_that_goes_away(site: Site, served: Pod, begun: bool) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if begun:
            await response.prepare(request)
            await response.write(b"x")
        await asyncio.Event().wait()
        return response

    served.behave = slow
    asking = asyncio.create_task(ask(site))
    await eventually(lambda: served.seen)
    await asyncio.sleep(0.02)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: served.dropped)
    served.behave = type(served).behave
    assert (await ask(site))[0] == 200


class Slow(ApiServer):
    """Says what callers may do only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.asks = asyncio.Event(), 0

    async def review(self, path: str, body: JSON) -> JSON:
        self.asks += 1
        await self.go.wait()
        return await super().review(path, body)


async def test_a_client_that_goes_away_before_it_was_let_in_costs_nothing(tmp_path: Path) -> None:
    api = Slow()
    async with serving(tmp_path, api) as site:
        live_job(api)
        async with pod(key(api, "live")) as found:
            up(site, "live", found)
            asking = asyncio.create_task(ask(site))
            await eventually(lambda: api.asks)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.sleep(0.05)
            api.go.set()
            await asyncio.sleep(0.05)
            assert found.seen == []
            assert (await ask(site))[0] == 200


async def test_connections_are_kept(site: Site, served: Pod) -> None:
    peers = set()

    async def note(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response({})

    served.behave = note
    for _ in range(5):
        assert (await ask(site))[0] == 200
    assert len(peers) == 1


# --- what can't be taken


async def test_bodies_that_cannot_be_taken(tmp_path: Path) -> None:
    async with serving(tmp_path, live_max_body_bytes=1000, body_seconds=0.2) as site:
        assert code(await site.ask("POST", CHAT, data=b"{")) == (400, "invalid_json")
        for body in (b"[]", b"{}", b'{"model": 3}', b'{"model": ""}'):
            assert code(await site.ask("POST", CHAT, data=body)) == (400, "missing_required_parameter")
        assert code(await site.ask("POST", CHAT, data=b" " * 1001)) == (413, "request_too_large")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 100

        assert code(await site.ask("POST", CHAT, data=chunks())) == (413, "request_too_large")
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer search\r\nContent-Length: 10\r\n\r\n{{"
        assert b'"code":"upload_timeout"' in await raw(site.port, head.encode())


async def test_bodies_that_are_held_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path, live_held_bytes=1000) as site:
        live_job(site.api)
        go, text = asyncio.Event(), "x" * 600

        async def held(request: web.Request) -> web.StreamResponse:
            await go.wait()
            return web.json_response({})

        async with pod(key(site.api, "live"), held) as found:
            up(site, "live", found)
            asking = [asyncio.create_task(site.ask("POST", CHAT, json={"model": "m", "x": text})) for _ in range(3)]
            await eventually(lambda: found.seen)
            await asyncio.sleep(0.05)
            assert len(found.seen) == 1
            asking[1].cancel()  # who goes away has no turn
            go.set()
            assert [(await asking[n])[0] for n in (0, 2)] == [200, 200]


async def test_who_may_not_send_is_told_so(site: Site, served: Pod) -> None:
    site.api.rights["search"] = frozenset({"get", "list"})
    status, body = await ask(site)
    assert (status, served.seen) == (403, [])
    assert "may not create gpubatchjobs/requests in namespace search" in body["error"]["message"]


async def test_another_namespaces_jobs_answer_nobody(site: Site, served: Pod) -> None:
    site.token = "train"
    assert code(await ask(site)) == (404, "model_not_found")
    assert served.seen == []


# --- which job


async def test_the_job_with_the_fewest_requests_is_asked(site: Site) -> None:
    go = asyncio.Event()

    async def held(request: web.Request) -> web.StreamResponse:
        await go.wait()
        return web.json_response({})

    for name in ("a", "b"):
        live_job(site.api, name)
    async with pod(key(site.api, "a"), held) as a, pod(key(site.api, "b"), held) as b:
        up(site, "a", a)
        up(site, "b", b)
        asking = [asyncio.create_task(ask(site)) for _ in range(10)]
        await eventually(lambda: len(a.seen) + len(b.seen) == 10)
        assert (len(a.seen), len(b.seen)) == (5, 5)
        go.set()
        assert {(await each)[0] for each in asking} == {200}


@pytest.mark.parametrize("how", ["stopping", "refused"])
async def test_what_a_job_has_not_taken_goes_to_another(site: Site, how: str) -> None:
    for name in ("a", "b"):
        live_job(site.api, name)
    async with pod(key(site.api, "a"), stopping) as a, pod(key(site.api, "b")) as b:
        up(site, "a", a)
        if how == "refused":
            await a.stop()
        asking = asyncio.create_task(ask(site))
        await asyncio.sleep(0.05)
        up(site, "b", b)
        assert (await asking)[0] == 200
        assert len(b.seen) == 1


async def test_a_job_that_ends_meanwhile_is_followed_by_another(site: Site) -> None:
    site.models = {"m": MINILM}
    live_job(site.api, "a")
    async with pod(key(site.api, "a"), stopping) as a:
        up(site, "a", a)
        asking = asyncio.create_task(ask(site))
        await eventually(lambda: a.seen)
        told(site, "a", phase="Succeeded")
        [name] = await started(site)
        async with pod(key(site.api, name)) as b:
            up(site, name, b)
            assert (await asking)[0] == 200


async def test_a_job_that_is_alone_is_asked_again_after_a_rest(
    site: Site, served: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "REST_SECONDS", 0.02)
    calls = itertools.count()

    async def at_first(request: web.Request) -> web.StreamResponse:
        return await stopping(request) if next(calls) < 3 else web.json_response({})

    served.behave = at_first
    assert (await ask(site))[0] == 200
    assert len(served.seen) == 4


async def test_a_connection_that_breaks_before_the_answer_is_tried_once_more(
    site: Site, served: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "REST_SECONDS", 0.02)

    async def breaks(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    served.behave = breaks
    assert code(await ask(site)) == (502, "connection_error")
    assert len(served.seen) == 2


async def test_a_job_with_a_secret_of_its_own_is_not_asked(site: Site) -> None:
    job = live_job(site.api, live={"keyFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})
    assert site.lives.put(job) is None
    assert code(await ask(site)) == (404, "model_not_found")


async def test_the_secret_is_read_anew_when_a_job_does_not_take_its_key(
    site: Site, served: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await ask(site))[0] == 200
    site.api.secret = b"n" * 32
    served.key = key(site.api, "live")
    assert code(await ask(site)) == (503, "live_key_changed")
    monkeypatch.setattr(livekeys, "REST_SECONDS", 0.0)
    assert (await ask(site))[0] == 200
    site.api.down = True
    served.key = "other"
    assert code(await ask(site)) == (503, "unavailable")


# --- jobs that are started


async def started(site: Site, count: int = 1) -> list[str]:
    """The names of the jobs that the gateway has made, once there are so many."""

    def there() -> list[str]:
        return [name for _, name in site.api.jobs if name.startswith("live-")]

    await eventually(lambda: len(there()) >= count)
    return there()


async def test_one_job_is_started_for_many_requests_and_replicas(site: Site, tmp_path: Path) -> None:
    site.models = {"m": {**MINILM, "priority": 3, "inference": {"model": "org/m", "invalidRequests": "Skip"}}}
    async with serving(tmp_path, site.api) as other:
        other.models = site.models
        asking = [asyncio.create_task(ask((site, other)[n % 2])) for n in range(30)]
        [name] = await started(site)
        await asyncio.sleep(0.05)
        assert len(site.api.jobs) == 1
        job = site.api.jobs["search", name]
        assert job["spec"] == {
            "gpus": 1,
            "priority": 3,
            "ttlSecondsAfterFinished": 3600,
            "inference": {
                "model": "org/m",
                "servedModelName": "m",
                "input": {"live": {"idleTimeoutSeconds": 600}},
            },
        }
        JobSpec.model_validate(job["spec"])
        async with pod(key(site.api, name)) as found:
            for each in (site, other):
                up(each, name, found)
            assert {(await each)[0] for each in asking} == {200}
            assert len(found.seen) == 30


async def test_the_next_job_has_the_next_name_even_if_the_last_ones_order_is_not_known(site: Site) -> None:
    site.models = {"m": MINILM}
    for count in range(1, 4):
        asking = asyncio.create_task(ask(site))
        name = (await started(site, count))[-1]
        site.api.jobs["search", name]["metadata"]["creationTimestamp"] = iso(0)
        asking.cancel()
        told(site, name, phase="Succeeded")
    assert len(site.api.jobs) == 3


async def test_a_job_that_is_to_stop_counts_as_none(site: Site) -> None:
    site.models = {"m": MINILM}
    site.lives.put(live_job(site.api, "a", suspend=True))
    site.lives.put(live_job(site.api, "b", cancel=True))
    asking = asyncio.create_task(ask(site))
    await started(site)
    asking.cancel()
    site.models = {}
    status, body = await ask(site, "other")
    assert status == 404
    site.lives.put(live_job(site.api, "c", model="held", suspend=True))
    status, body = await ask(site, "held")
    assert (status, "'c', which would serve it, is suspended" in body["error"]["message"]) == (404, True)


async def test_a_model_that_is_not_there(site: Site, served: Pod) -> None:
    status, body = await ask(site, "gpt-9")
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")
    assert body["error"]["message"] == "The model 'gpt-9' isn't served. Here are: 'm', 'minilm'."


async def test_who_may_not_create_jobs_starts_none(site: Site) -> None:
    site.api.rights["search"] = frozenset({"create requests"})
    status, body = await ask(site, "minilm")
    assert (status, body["error"]["code"]) == (403, "permission_denied")
    assert body["error"]["message"].startswith("No live job serves 'minilm' now, and you may not start one: ")
    assert not site.api.jobs


async def test_a_full_queue_of_jobs_is_told_in_the_operators_words(site: Site) -> None:
    denied = f'admission webhook "queue.gpubatch.dev" denied the request: {FULL}'
    site.api.refusal = ApiError(429, "TooManyRequests", denied)
    status, body = await ask(site, "minilm")
    assert (status, body["error"]["code"], body["error"]["message"]) == (429, "queue_full", FULL)


async def test_what_the_api_server_finds_wrong_with_a_template_is_told(site: Site) -> None:
    site.api.refusal = ApiError(422, "Invalid", "spec.gpus: too many")
    status, body = await ask(site, "minilm")
    assert (status, body["error"]["code"], body["error"]["message"]) == (400, "invalid_job", "spec.gpus: too many")
    site.api.refusal = ApiError(500, "InternalError", "etcd")
    assert code(await ask(site, "minilm")) == (503, "unavailable")
    site.api.down = True
    assert code(await ask(site, "minilm")) == (503, "unavailable")


async def test_a_job_fails_without_a_template(site: Site) -> None:
    live_job(site.api)
    failed = {
        "type": "Failed",
        "reason": "DeadlineExceeded",
        "message": "too long",
        "lastTransitionTime": iso(time.time()),
    }
    told(site, "live", phase="Failed", conditions=[failed])
    assert code(await ask(site)) == (503, "model_failed")


async def test_a_job_that_fails_is_not_followed_by_another_at_once(site: Site) -> None:
    asking = asyncio.create_task(ask(site, "minilm"))
    [name] = await started(site)
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "EngineFailed",
        "message": "out of memory",
        "lastTransitionTime": iso(time.time()),
    }
    told(site, name, phase="Failed", conditions=[failed])
    status, body = await asking
    assert (status, body["error"]["code"]) == (503, "model_failed")
    assert "has failed: EngineFailed: out of memory" in body["error"]["message"]
    async with site.http.post(
        f"http://127.0.0.1:{site.port}{CHAT}", json={"model": "minilm"}, headers=site.headers()
    ) as answer:
        assert 50 < int(answer.headers["Retry-After"]) <= 60
    assert len(site.api.jobs) == 1
    failed["lastTransitionTime"] = iso(time.time() - 61)
    told(site, name, phase="Failed", conditions=[failed])
    again = asyncio.create_task(ask(site, "minilm"))
    await started(site, 2)
    again.cancel()


async def test_who_waits_too_long_is_told_what_the_job_does(tmp_path: Path) -> None:
    async with serving(tmp_path, live_request_seconds=0.3) as site:
        site.lives.put(live_job(site.api))
        told(site, "live", phase="Queued", queuePosition=3, estimatedStartTime="2027-01-15T09:00:00Z")
        status, body = await ask(site)
        assert (status, body["error"]["code"]) == (408, "request_timeout")
        assert "is Queued at position 3, estimated start 2027-01-15T09:00:00Z." in body["error"]["message"]

        async def silent(request: web.Request) -> web.StreamResponse:
            await asyncio.Event().wait()
            raise AssertionError

        async with pod(key(site.api, "live"), silent) as found:
            up(site, "live", found, progress={"stage": "LoadingModel"})
            status, body = await ask(site)
            assert (status, "is Running, LoadingModel." in body["error"]["message"]) == (408, True)
            await eventually(lambda: found.dropped)
            await found.stop()
            up(site, "live", found)
            _, body = await ask(site)
            assert "its pod can't be reached" in body["error"]["message"]


async def test_those_who_wait_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path, live_max_waiting=2) as site:
        site.lives.put(live_job(site.api))
        asking = [asyncio.create_task(ask(site)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert code(await ask(site)) == (503, "queue_full")
        asking[0].cancel()
        await asyncio.sleep(0.05)
        asking.append(asyncio.create_task(ask(site)))
        async with pod(key(site.api, "live")) as found:
            up(site, "live", found)
            assert [(await each)[0] for each in asking[1:]] == [200, 200]


# --- what is told of them


async def test_the_queues_of_all_jobs_are_summed_up(site: Site) -> None:
    path = "/v1/queue/status"
    none = {"queue_size": 0, "processing_count": 0, "max_concurrent": 0, "max_queue_size": 0, "total_processed": 0}
    none |= {"total_failed": 0, "total_queued": 0, "active_requests": 0, "is_running": False}
    assert await site.ask("GET", path) == (200, none)
    for name, model in (("a", "m"), ("b", "n")):
        live_job(site.api, name, model)
    async with pod(key(site.api, "a")) as a, pod(key(site.api, "b")) as b:
        for name, found in (("a", a), ("b", b)):
            up(site, name, found)
            found.answers[path] = {**none, "queue_size": 3, "max_queue_size": 100, "is_running": True}
        both = {**none, "queue_size": 6, "max_queue_size": 200, "is_running": True}
        assert await site.ask("GET", path) == (200, both)
        assert await site.ask("GET", f"{path}?model=n") == (200, a.answers[path])
        await b.stop()
        assert await site.ask("GET", path) == (200, a.answers[path])
        a.answers["/v1/queue/request/req_1"] = {"id": "req_1", "status": "queued"}
        assert (await site.ask("GET", "/v1/queue/request/req_1"))[1]["status"] == "queued"
        assert code(await site.ask("GET", "/v1/queue/request/req_2")) == (404, "request_not_found")
        assert code(await site.ask("GET", "/v1/queue/request/..%2Fstatus")) == (404, "request_not_found")


async def test_models_are_those_of_templates_and_of_live_jobs(site: Site, served: Pod) -> None:
    _, body = await site.ask("GET", "/v1/models")
    assert [each["id"] for each in body["data"]] == ["m", "minilm"]
    assert (await site.ask("GET", "/v1/models/m"))[0] == 200
    told(site, "live", phase="Succeeded")
    assert (await site.ask("GET", "/v1/models/m"))[0] == 404


def test_what_comes_late_changes_nothing(tmp_path: Path) -> None:
    api, lives = ApiServer(), Site(ApiServer(), None, 0, None, tmp_path).lives  # type: ignore[arg-type]
    old = live_job(api)
    new = api.status("search", "live", phase="Running", live={"url": "http://x/v1"})
    lives.put(new)
    held = lives.put(json.loads(json.dumps(old)))
    assert held is not None
    assert held.url == "http://x/v1"
    lives.lose("uid-live")
    assert list(lives.of("search", "m")) == []


async def test_one_that_another_replica_makes_while_rights_are_asked_for_is_enough(site: Site) -> None:
    client: Any = site.api
    starting = Starting(client, site.lives, lambda: Models(site.models), 600)

    async def may_start() -> None:
        site.lives.put(live_job(site.api, "other", "minilm"))

    await starting.start("search", "minilm", may_start)
    assert [name for _, name in site.api.jobs] == ["other"]
