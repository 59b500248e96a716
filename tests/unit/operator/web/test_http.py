"""The endpoints over a real connection: what they answer, and that the OpenAPI document says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import ClientSession, web
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from bench_lib.crowd import crowd
from gpubatch_operator.core.model import Job
from gpubatch_operator.kube import convert
from gpubatch_operator.kube.store import Store
from gpubatch_operator.settings import Settings
from gpubatch_operator.web import feed, openapi, server
from gpubatch_operator.web.board import Board
from gpubatch_operator.web.problems import no_token
from gpubatch_operator.web.routes import Routes
from unit.operator.build import EPOCH, raw_job, raw_node

JSON = dict[str, Any]
DOCUMENT: JSON = json.loads(openapi.DOCUMENT)
CROWD = crowd(400, 20, EPOCH)
NASTY = "<img src=x onerror=alert(1)>"


class Site:
    """One listener, and a client of it."""

    def __init__(self, board: Board) -> None:
        self.board, self.scope, self.why = board, None, ""
        self.url = ""
        self.session: ClientSession

    async def find(self, _: web.Request, asked: tuple[str, ...]) -> frozenset[str] | None:
        if self.scope == "nobody":
            raise no_token()
        scope: frozenset[str] | None = self.scope
        return frozenset(asked) & scope if asked and scope is not None else frozenset(asked) if asked else scope

    async def get(self, path: str, status: int = 200, **headers: str) -> JSON:
        async with self.session.get(self.url + path, headers=headers) as answer:
            assert answer.status == status, await answer.text()
            body: JSON = await answer.json()
        check(path, status, body)
        return body


def check(path: str, status: int, body: JSON) -> None:
    """Against the OpenAPI document."""
    path = path.partition("?")[0]
    body = {**body, "items": body["items"][:5]} if "items" in body else body  # the validator takes its time
    route = "/v1/jobs/{namespace}/{name}" if path.startswith("/v1/jobs/") else path
    if route in DOCUMENT["paths"]:
        answers = DOCUMENT["paths"][route]["get"]["responses"]
        schema = answers[str(status)]["content"]["application/json"]["schema"]
    else:
        schema = {"$ref": "#/components/schemas/Error"}
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(body)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    board = Board()
    board.put_nodes(CROWD[1])
    for each in CROWD[0]:
        board.put(each, EPOCH)
    site = Site(board)
    routes = Routes(board, Settings(), site.find, lambda: (True, True), lambda: site.why, lambda: EPOCH)
    async with (
        server.listening(server.application(routes, local=True), "127.0.0.1", 0) as port,
        ClientSession() as http,
    ):
        site.url, site.session = f"http://127.0.0.1:{port}", http
        yield site


async def all_pages(site: Site, path: str, more: str = "") -> list[JSON]:
    items = []
    while True:
        page = await site.get(path + (f"&continue={more}" if more else ""))
        items += page["items"]
        if (more := page["continue"]) is None:
            return items


def test_the_openapi_document_is_valid() -> None:
    validate(DOCUMENT)


async def test_the_queue_is_told_in_order_with_exact_positions_page_by_page(site: Site) -> None:
    items = await all_pages(site, "/v1/queue?limit=7")
    running = sum(i["phase"] == "Running" for i in items)
    assert running
    assert [i["queuePosition"] for i in items] == [0] * running + list(range(1, len(items) - running + 1))
    assert all({"estimatedStartTime", "estimatedStartTimeP90"} <= i.keys() for i in items if i["phase"] == "Queued")
    assert all("elapsedSeconds" in i for i in items[:running])
    assert (await site.get("/v1/queue?limit=7"))["total"] == len(items)


async def test_a_caller_of_some_namespaces_sees_those_and_true_positions(site: Site) -> None:
    everyone = {i["uid"]: i["queuePosition"] for i in await all_pages(site, "/v1/queue?limit=500")}
    site.scope = frozenset({"team-01", "team-03"})
    mine = await all_pages(site, "/v1/queue?limit=9")
    assert {i["namespace"] for i in mine} == site.scope
    assert all(everyone[i["uid"]] == i["queuePosition"] for i in mine)
    assert {i["namespace"] for i in await all_pages(site, "/v1/jobs?limit=50")} == site.scope
    assert (await site.get("/v1/queue/status"))["namespaces"] == ["team-01", "team-03"]


async def test_jobs_are_filtered_by_phase_namespace_and_text(site: Site) -> None:
    jobs = await all_pages(site, "/v1/jobs?limit=500")
    assert len(jobs) == 400
    for query, matches in {
        "phase=Failed,cancelled": lambda j: j["phase"] in ("Failed", "Cancelled"),
        "namespace=team-02&phase=Queued": lambda j: (j["namespace"], j["phase"]) == ("team-02", "Queued"),
        "q=WHISPER": lambda j: "whisper" in j["model"],
        "q=team-01/eval": lambda j: j["namespace"] == "team-01" and j["name"].startswith("eval"),
    }.items():
        found = await all_pages(site, f"/v1/jobs?limit=13&{query}")
        assert [j["uid"] for j in found] == [j["uid"] for j in jobs if matches(j)], query
        assert found, query


async def test_a_page_goes_on_where_the_last_one_ended_although_jobs_came_and_went(site: Site) -> None:
    first = await site.get("/v1/jobs?limit=100")
    gone, last = first["items"][3], first["items"][-1]
    site.board.drop(gone["uid"])
    site.board.drop(last["uid"])
    rest = await all_pages(site, "/v1/jobs?limit=100", first["continue"])
    assert len(first["items"]) + len(rest) == 400
    assert not {i["uid"] for i in first["items"]} & {i["uid"] for i in rest}


async def test_one_job_is_told_with_status_progress_and_elapsed_time(site: Site) -> None:
    running = (await site.get("/v1/jobs?phase=Running&limit=1"))["items"][0]
    job = await site.get(f"/v1/jobs/{running['namespace']}/{running['name']}")
    assert job["status"]["progress"]["percent"] == job["progress"]["percent"]
    assert job["elapsedSeconds"] > 0
    assert job["queuePosition"] == 0
    error = (await site.get("/v1/jobs/team-00/nothing", 404))["error"]
    assert "team-00/nothing" in error["message"]
    assert "/v1/jobs?namespace=team-00" in error["nextStep"]


async def test_the_status_has_the_nine_fields_and_counts_jobs(site: Site) -> None:
    status = await site.get("/v1/queue/status")
    items = await all_pages(site, "/v1/jobs?limit=500")
    by_phase = {p: sum(i["phase"] == p for i in items) for p in status["phases"]}
    assert status["phases"] == by_phase
    assert status["queue_size"] == by_phase["Queued"] + by_phase["Validating"]
    assert status["processing_count"] == by_phase["Running"]
    assert status["active_requests"] == status["queue_size"] + status["processing_count"]
    assert (status["total_queued"], status["total_processed"]) == (400, by_phase["Succeeded"])
    assert (status["total_failed"], status["max_queue_size"], status["is_running"]) == (by_phase["Failed"], 20, True)
    assert status["max_concurrent"] == site.board.slots() > 0


async def test_nodes_are_told_with_their_attempts_page_by_page(site: Site) -> None:
    nodes = await all_pages(site, "/v1/nodes?limit=3")
    assert [n["name"] for n in nodes] == [f"gpu-{i:03}" for i in range(20)]
    assert any(a.get("percent") is not None for n in nodes for a in n["attempts"])
    site.scope = frozenset({"team-01"})
    mine = await all_pages(site, "/v1/nodes?limit=3")
    assert {a["namespace"] for n in mine for a in n["attempts"]} == {"team-01"}
    assert all(n["attempts"] for n in mine)


async def test_health_tells_concurrency_and_timeouts(site: Site) -> None:
    health = await site.get("/health")
    assert health["concurrency"]["maxQueueDepth"] == 20
    assert health["timeouts"]["uploadTotalSeconds"] == 600
    site.why = "the first list isn't complete"
    assert (await site.get("/health", 503))["status"] == "starting"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?limit=9999", "limit"),
        ("/v1/jobs?limit=x", "limit"),
        ("/v1/jobs?phase=Done", "phase"),
        ("/v1/jobs?namespace=Team_A", "namespace"),
        ("/v1/jobs?namespace=" + ",".join(f"n{i}" for i in range(101)), "namespace"),
        ("/v1/jobs?continue=AAAA", "continue"),
        ("/v1/jobs?continue=WzEsMl0", "continue"),
        ("/v1/jobs?continue=" + "A" * 3000, "continue"),
        ("/v1/queue?continue=W3RydWUsWzEsMiwieCIsInkiXV0", "continue"),
        ("/v1/queue?continue=WzEsWzEsMiwzLCJ5Il1d", "continue"),
        ("/v1/jobs?q=" + "x" * 101, "q"),
        ("/v1/jobs?colour=red", "colour"),
        ("/v1/jobs/A_b/c", "namespace"),
    ],
)
async def test_a_parameter_that_cannot_be_used_is_named(site: Site, path: str, name: str) -> None:
    error = (await site.get(path, 400))["error"]
    assert name in error["message"] + error["nextStep"]


async def test_errors_are_json_that_say_what_to_do(site: Site) -> None:
    for path, status in (("/nothing", 404), ("/v1/jobs/a/b/c", 404)):
        assert (await site.get(path, status))["error"]["nextStep"]
    async with site.session.post(site.url + "/v1/jobs") as answer:
        assert (answer.status, (await answer.json())["error"]["reason"]) == (405, "MethodNotAllowed")
    site.scope = "nobody"  # type: ignore[assignment]
    for path in ("/v1/queue/status", "/v1/queue", "/v1/jobs", "/v1/nodes", "/v1/jobs/a/b"):
        assert (await site.get(path, 401))["error"]["reason"] == "Unauthorized"


async def test_what_is_behind_a_token_is_behind_it_before_anything_is_told(site: Site) -> None:
    site.scope = "nobody"  # type: ignore[assignment]
    assert (await site.get("/v1/jobs/team-00/nothing", 401))["error"]["status"] == 401


async def test_the_loopback_answers_only_under_local_names(site: Site) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:9", "LOCALHOST"):
        await site.get("/v1/queue/status", Host=host)
    for host in ("evil.example.com", "127.0.0.1.evil.example.com:80", "localhost.evil.example.com"):
        assert (await site.get("/v1/queue/status", 403, Host=host))["error"]["reason"] == "ForeignHost"


async def test_metrics_are_on_the_loopback_and_browsers_are_told_to_be_strict(site: Site) -> None:
    async with site.session.get(site.url + "/metrics") as answer:
        assert "gpubatch_leader" in await answer.text()
    async with site.session.get(site.url + "/") as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_what_changes_in_the_store_is_shown_and_what_is_deleted_is_gone() -> None:
    store, board = Store(1), Board()
    store.put_job(raw_job("a", status={"phase": "Queued"}, version=1))
    store.put_node(raw_node())
    following = asyncio.create_task(feed.follow(store, lambda news: feed.take(board, news)))
    await until(lambda: len(board) == 1 and bool(board.nodes))
    store.put_job(raw_job("b", status={"phase": "Queued"}, version=2))
    await until(lambda: len(board) == 2)
    store.put_job(raw_job("b", status={"phase": "Held"}, version=3))
    await until(lambda: [board.job(k).name for k in board.in_order(None, None)] == ["a"])
    store.drop_job("uid-a")
    store.drop_node("node-a")
    await until(lambda: len(board) == 1 and not board.nodes)
    following.cancel()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)


async def test_what_users_write_is_told_as_they_wrote_it_in_valid_json(site: Site) -> None:
    spec = {"inference": {"model": NASTY, "input": {"url": "s3://b/i"}, "output": {"url": "s3://b/o"}}}
    job: Job = convert.job_of(raw_job("nasty", spec=spec, status={"phase": "Queued"}))
    site.board.put(job, EPOCH)
    assert (await site.get("/v1/jobs?q=onerror"))["items"][0]["model"] == NASTY
