"""Who is let in, where, and with what."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpubatch_gateway import keys
from unit.gateway.fake import VERBS, ApiServer, Site, raw, serving

KEY = "sk-0123456789abcdefghij"
SECRET = {"ci": json.dumps({"key": KEY, "namespace": "search", "serviceAccount": "batches"})}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path, accounts=keys.read(SECRET)) as site:
        yield site


async def test_a_service_account_works_in_its_own_namespace(site: Site) -> None:
    assert await site.uploaded()
    status, body = await site.ask("GET", "/v1/files", headers={"OpenAI-Project": "train"})
    assert status == 403
    assert "system:serviceaccount:search:app may not list gpubatchjobs/files in namespace train" in str(body)


async def test_a_user_names_the_namespace(site: Site) -> None:
    site.token = "ann"
    assert (await site.ask("GET", "/v1/batches"))[0] == 400
    for header in ("OpenAI-Project", "X-GPUBatch-Namespace"):
        assert (await site.ask("GET", "/v1/batches", headers={header: "search"}))[0] == 200
        for name in ("../search", "proj_123", "a" * 64, "search,train"):
            assert (await site.ask("GET", "/v1/batches", headers={header: name}))[0] == 400


async def test_an_api_key_stands_for_its_service_account_in_its_namespace(site: Site) -> None:
    site.token = KEY
    assert await site.uploaded()
    assert (await site.ask("GET", "/v1/batches", headers={"OpenAI-Project": "search"}))[0] == 200
    assert (await site.ask("GET", "/v1/batches", headers={"OpenAI-Project": "train"}))[0] == 403
    site.token = KEY + "x"
    assert (await site.ask("GET", "/v1/batches"))[0] == 401


async def test_an_api_key_may_no_more_than_its_account(tmp_path: Path) -> None:
    api = ApiServer()
    api.rights = {"search": frozenset({"get", "list"})}
    async with serving(tmp_path, api, keys.read(SECRET)) as site:
        site.token = KEY
        assert (await site.ask("GET", "/v1/batches"))[0] == 200
        status, body = await site.upload(b"x")
        assert (status, body["error"]["type"]) == (403, "permission_error")
        assert (await site.ask("POST", "/v1/batches", json={}))[0] == 403
        assert site.stored() == []


@pytest.mark.parametrize("verb", sorted(VERBS))
async def test_each_act_is_a_verb_of_its_own(tmp_path: Path, verb: str) -> None:
    api = ApiServer()
    async with serving(tmp_path, api) as site:
        file = await site.uploaded()
        _, batch = await site.create(file)
        acts = {
            "get": ("GET", f"/v1/batches/{batch['id']}"),
            "list": ("GET", "/v1/batches"),
            "create": ("POST", "/v1/batches"),
            "patch": ("POST", f"/v1/batches/{batch['id']}/cancel"),
            "delete": ("DELETE", f"/v1/files/{file}"),
        }
    api.rights = {"search": VERBS - {verb}, "train": VERBS}
    async with serving(tmp_path, api) as site:
        for name, (method, path) in acts.items():
            status, _ = await site.ask(method, path)
            assert (status == 403) == (name == verb), name


@pytest.mark.parametrize(
    "header",
    ["", "Basic c2VhcmNo", "Bearer", "Bearer ", "search", "Bearer ä", "Bearer " + "x" * 20_000, "Bearer nobody"],
)
async def test_without_a_good_token_nothing(site: Site, header: str) -> None:
    lines = f"GET /v1/batches HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {header}\r\n\r\n"
    answer = await raw(site.port, lines.encode())
    assert b" 401 " in answer.splitlines()[0]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    ],
    ids=["token", "path", "headers", "tls", "nonsense", "smuggling"],
)
async def test_what_is_no_request_is_answered_in_openais_shape(site: Site, head: bytes) -> None:
    answer = await raw(site.port, head)
    assert b" 400 " in answer.splitlines()[0]
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}
    assert (await site.ask("GET", "/v1/batches"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/chat", 404),
        ("PUT", "/v1/files", 405),
        ("GET", "/v1/batches/x", 404),
        ("GET", "/v1/batches/batch_" + "0" * 32, 404),
        ("POST", "/v1/batches/batch_" + "0" * 32 + "/cancel", 404),
        ("GET", "/v1/models/gpt-9", 404),
        ("GET", "/v1/batches?sort=1", 400),
    ],
)
async def test_what_is_not_there(site: Site, method: str, path: str, status: int) -> None:
    found, body = await site.ask(method, path)
    assert found == status
    assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_models_are_listed(site: Site) -> None:
    assert [m["id"] for m in (await site.ask("GET", "/v1/models"))[1]["data"]] == ["minilm"]
    assert (await site.ask("GET", "/v1/models/minilm"))[1]["object"] == "model"


async def test_only_watched_namespaces_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path, watch_namespaces="train") as site:
        status, body = await site.ask("GET", "/v1/batches")
        assert (status, body["error"]["code"]) == (403, "namespace_not_served")


def test_keys_that_cannot_be_used_are_left_out_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    bad = {
        "short": json.dumps({"key": "sk-short", "namespace": "a", "serviceAccount": "b"}),
        "both": json.dumps({"key": KEY, "sha256": "0" * 64, "namespace": "a", "serviceAccount": "b"}),
        "none": json.dumps({"namespace": "a", "serviceAccount": "b"}),
        "typo": json.dumps({"key": KEY, "namespce": "a", "serviceAccount": "b"}),
        "text": KEY,
    }
    with caplog.at_level(logging.ERROR):
        found = keys.read(SECRET | bad)
    assert len(found) == 1
    assert len(caplog.records) == len(bad)
    assert KEY not in caplog.text
    assert "sk-short" not in caplog.text


def test_a_key_may_be_kept_as_its_hash() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    found = keys.read({"ci": json.dumps({"sha256": digest, "namespace": "a", "serviceAccount": "b"})})
    assert found.account(digest) == keys.Account("a", "b")
    assert found.account("0" * 64) is None
