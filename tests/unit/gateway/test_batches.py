"""Batches over HTTP, and a job as a Batch object."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from gpubatch_gateway import names
from gpubatch_gateway.batch import batches
from gpubatch_gateway.batch.workers import Workers
from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.core.clock import iso
from gpubatch_operator.kube.client import ApiError
from unit.gateway.fake import ApiServer, Site, request, serving
from unit.operator.build import EPOCH, raw_node

JSON = dict[str, Any]
FULL = "Queue full (20/20 jobs). Try again later."
DENIED = f'admission webhook "queue.gpubatch.dev" denied the request: {FULL}'


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as site:
        yield site


async def test_a_batch_is_a_job_of_the_models_template(site: Site) -> None:
    file = await site.uploaded()
    metadata = {"webhook_url": "https://example.com/hook", "priority": "-1", "team": "x"}
    status, batch = await site.create(file, metadata=metadata)
    assert status == 200, batch
    Batch.model_validate(batch)
    assert (batch["status"], batch["input_file_id"], batch["metadata"]) == ("validating", file, metadata)
    assert (batch["created_at"], batch["expires_at"]) == (EPOCH, EPOCH + 86400)
    [job] = site.api.jobs.values()
    spec, work = job["spec"], job["spec"]["inference"]
    JobSpec.model_validate(spec)
    assert (spec["priority"], spec["completionWindowSeconds"], spec["gpus"]) == (-1, 86400, 1)
    assert spec["webhooks"] == [{"name": "client", "url": "https://example.com/hook"}]
    assert (work["model"], work["servedModelName"], work["invalidRequests"]) == (
        "sentence-transformers/all-MiniLM-L6-v2",
        "minilm",
        "Fail",
    )
    assert work["input"]["url"].startswith(f"pvc://files/gpubatch/search/files/{file}/")
    code = batch["id"].removeprefix("batch_")
    assert work["output"]["url"] == f"pvc://files/gpubatch/search/batches/{code}/output.jsonl"


async def test_a_batch_can_be_read_at_once_without_asking_the_api_server(site: Site) -> None:
    _, batch = await site.create(await site.uploaded())
    site.api.asked.clear()
    assert await site.ask("GET", f"/v1/batches/{batch['id']}") == (200, batch)
    assert (await site.ask("GET", "/v1/batches"))[1]["data"] == [batch]
    assert site.api.asked == []


async def test_another_replica_finds_it_before_its_watch_has_told(site: Site, tmp_path: Path) -> None:
    _, batch = await site.create(await site.uploaded())
    async with serving(tmp_path, site.api) as other:
        assert await other.ask("GET", f"/v1/batches/{batch['id']}") == (200, batch)


async def test_the_same_request_again_is_the_same_batch_until_that_is_finished(site: Site) -> None:
    file = await site.uploaded()
    results = await asyncio.gather(*(site.create(file) for _ in range(10)))
    assert len({b["id"] for _, b in results}) == len(site.api.jobs) == 1
    first = results[0][1]["id"]
    assert (await site.create(file, metadata={"a": "b"}))[1]["id"] != first
    site.api.status("search", str(names.job_of(first)), phase="Succeeded")
    again = await asyncio.gather(*(site.create(file) for _ in range(10)))
    assert len({b["id"] for _, b in again}) == 1
    assert again[0][1]["id"] != first


async def test_an_idempotency_key_stands_for_one_batch(site: Site) -> None:
    file, key = await site.uploaded(), {"Idempotency-Key": "k1"}
    _, first = await site.create(file, key)
    site.api.status("search", str(names.job_of(first["id"])), phase="Succeeded")
    assert (await site.create(file, key))[1]["id"] == first["id"]
    status, body = await site.create(file, key, completion_window="1h")
    assert (status, body["error"]["code"]) == (400, "idempotency_key_in_use")
    assert (await site.create(file, {"Idempotency-Key": "k2"}))[1]["id"] != first["id"]
    assert (await site.create(file, {"Idempotency-Key": "k" * 300}))[0] == 400


async def test_a_full_queue_is_429_in_the_queues_own_words(site: Site) -> None:
    file = await site.uploaded()
    site.api.refusal = ApiError(429, "TooManyRequests", DENIED)
    status, body = await site.create(file)
    assert (status, body["error"]["message"], body["error"]["code"]) == (429, FULL, "queue_full")
    assert (await site.create(file))[0] == 200


async def test_whether_it_was_made_is_looked_up_if_the_answer_is_lost(site: Site) -> None:
    file = await site.uploaded()
    made: list[JSON] = []
    create = site.api.create

    async def lost(path: str, body: JSON) -> JSON:
        made.append(await create(path, body))
        raise ApiError(0, "Unreachable", "timed out")

    site.api.create = lost  # type: ignore[method-assign]
    status, batch = await site.create(file)
    assert (status, batch["id"]) == (200, names.batch_id(made[0]["metadata"]["name"]))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ApiError(403, "Forbidden", "exceeded quota"), 403),
        (ApiError(422, "Invalid", "spec.gpus is wrong"), 400),
        (ApiError(429, "TooManyRequests", "too many requests, please try again later"), 503),
        (ApiError(500, "InternalError", "etcd is gone"), 503),
        (ApiError(404, "NotFound", 'namespaces "search" not found'), 400),
    ],
    ids=str,
)
async def test_what_the_api_server_refuses(site: Site, error: ApiError, status: int) -> None:
    file = await site.uploaded()
    site.api.refusal = error
    found, body = await site.create(file)
    assert found == status, body
    assert ("etcd" in body["error"]["message"]) is False


async def test_cancelling(site: Site) -> None:
    _, batch = await site.create(await site.uploaded())
    path, name = f"/v1/batches/{batch['id']}/cancel", str(names.job_of(batch["id"]))
    status, cancelling = await site.ask("POST", path)
    assert (status, cancelling["status"]) == (200, "cancelling")
    assert abs(cancelling["cancelling_at"] - time.time()) < 60
    assert site.api.jobs["search", name]["spec"]["cancel"] is True
    assert (await site.ask("POST", path))[1] == cancelling
    end = iso(EPOCH + 5)
    site.board.put(site.api.status("search", name, phase="Cancelled", completionTime=end))
    _, cancelled = await site.ask("POST", path)
    assert (cancelled["status"], cancelled["cancelled_at"]) == ("cancelled", EPOCH + 5)
    site.board.put(site.api.status("search", name, phase="Succeeded", completionTime=end))
    status, body = await site.ask("POST", path)
    assert (status, body["error"]["message"]) == (409, "Cannot cancel a batch with status 'completed'.")


async def test_lists_have_the_newest_first_and_go_on(site: Site) -> None:
    file = await site.uploaded()
    made = [(await site.create(file, metadata={"n": str(n)}))[1]["id"] for n in range(5)]
    _, page = await site.ask("GET", "/v1/batches?limit=2")
    assert ([b["id"] for b in page["data"]], page["has_more"]) == (made[:2:-1], True)
    _, page = await site.ask("GET", f"/v1/batches?limit=3&after={page['last_id']}")
    assert ([b["id"] for b in page["data"]], page["has_more"]) == (made[2::-1], False)
    assert (await site.ask("GET", "/v1/batches?after=batch_" + "0" * 32))[0] == 400


async def test_editing_a_batchs_job_moves_it_nowhere(site: Site) -> None:
    file = await site.uploaded()
    made = [(await site.create(file, metadata={"n": str(n)}))[1]["id"] for n in range(3)]
    name = str(names.job_of(made[0]))
    notes = site.api.jobs["search", name]["metadata"]["annotations"]
    notes[batches.REQUEST] = json.dumps(json.loads(notes[batches.REQUEST]) | {"at": 9 * 10**15})
    site.board.put(site.api.status("search", name, phase="Queued"))
    assert [b["id"] for b in (await site.ask("GET", "/v1/batches"))[1]["data"]] == made[::-1]
    site.board.lose(site.api.jobs["search", name]["metadata"]["uid"])
    assert [b["id"] for b in (await site.ask("GET", "/v1/batches"))[1]["data"]] == made[:0:-1]


async def test_the_file_of_an_unfinished_batch_stays(site: Site) -> None:
    file = await site.uploaded()
    _, batch = await site.create(file)
    status, body = await site.ask("DELETE", f"/v1/files/{file}")
    assert (status, body["error"]["code"]) == (409, "file_in_use")
    site.api.status("search", str(names.job_of(batch["id"])), phase="Failed")
    assert (await site.ask("DELETE", f"/v1/files/{file}"))[0] == 200


BAD: list[tuple[JSON, str]] = [
    ({"input_file_id": "file-../../x"}, "input_file_id"),
    ({"input_file_id": "file-" + "0" * 32}, "file_id"),
    ({"input_file_id": 5}, "input_file_id"),
    ({"endpoint": "/v1/images"}, "endpoint"),
    ({"endpoint": "/v1/completions"}, "input_file_id"),
    ({"completion_window": "soon"}, "completion_window"),
    ({"completion_window": "0h"}, "completion_window"),
    ({"completion_window": "999d"}, "completion_window"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {"a": "x" * 513}}, "metadata.a"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"metadata": {"priority": "high"}}, "metadata.priority"),
    ({"metadata": {"webhook_url": "ftp://x"}}, "metadata.webhook_url"),
    ({"priority": 5000}, "priority"),
    ({"output_expires_after": {}}, "output_expires_after"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda v: str(v)[:40])
async def test_what_cannot_be_made_is_refused_with_the_field(site: Site, fields: JSON, param: str) -> None:
    body = {"endpoint": "/v1/embeddings", "completion_window": "24h", "input_file_id": await site.uploaded(), **fields}
    status, answer = await site.ask("POST", "/v1/batches", json=body)
    assert (status, answer["error"]["param"], answer["error"]["type"]) == (400, param, "invalid_request_error")
    assert site.api.jobs == {}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{}\n", "invalid_body"),
        (b"nonsense\n", "invalid_json_line"),
        (b"\xff\xfe", "invalid_json_line"),
        (b"[" * 100_000, "invalid_json_line"),
        (b"\n \n", "invalid_json_line"),
        (b"x" * 9_000_000, "invalid_json_line"),
        (json.dumps({"url": "/v1/embeddings", "body": {"model": 3}}).encode(), "missing_model"),
        (request(1, model="gpt-9"), "model_not_found"),
        (request(1, url="/v1/completions"), "mismatched_endpoint"),
    ],
    ids=lambda v: str(v)[:30],
)
async def test_a_file_whose_first_line_is_no_request_for_a_model_that_there_is(
    site: Site, data: bytes, code: str
) -> None:
    status, body = await site.create(await site.uploaded(data))
    assert (status, body["error"]["code"]) == (400, code), body
    if code == "model_not_found":
        assert "'minilm'" in body["error"]["message"]


async def test_blank_lines_before_the_first_request_are_no_harm(site: Site) -> None:
    assert (await site.create(await site.uploaded(b"\n\n" + request(1))))[0] == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff", b"x" * 100_000], ids=lambda b: str(b)[:10])
async def test_a_body_that_is_no_object(site: Site, body: bytes) -> None:
    status, answer = await site.ask("POST", "/v1/batches", data=body, headers={"Content-Type": "application/json"})
    assert status in (400, 413)
    assert answer["error"]["type"] == "invalid_request_error"


# --- workers


@pytest.mark.parametrize(("policy", "status"), [("Accept", 200), ("Refuse", 503)])
async def test_no_worker_for_a_minute(tmp_path: Path, policy: str, status: int) -> None:
    workers = Workers(time.time() - 61)
    async with serving(tmp_path, workers=workers, worker_policy=policy) as site:
        found, body = await site.create(await site.uploaded())
        text = body["warning"] if status == 200 else body["error"]["message"]
        assert (found, text) == (status, "Worker offline (last seen 61s ago)")
        workers.put(raw_node("node-a"))
        found, body = await site.create(await site.uploaded())
        assert (found, body["warning"]) == (200, None)


# --- a job as a batch


def job(status: JSON, **spec: Any) -> JSON:
    asked = {"endpoint": "/v1/embeddings", "input_file_id": "file-1", "completion_window": "24h", "metadata": None}
    meta = {"name": "batch-" + "0" * 32, "namespace": "search", "creationTimestamp": iso(EPOCH), "uid": "u"}
    meta |= {"annotations": {batches.REQUEST: json.dumps(asked)}}
    return {"metadata": meta, "spec": {"completionWindowSeconds": 86400, **spec}, "status": status}


def failed(reason: str, message: str = "why", **status: Any) -> JSON:
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
    return {"phase": "Failed", "conditions": [condition], "completionTime": iso(EPOCH + 9), **status}


@pytest.mark.parametrize(
    ("status", "spec", "word"),
    [
        ({}, {}, "validating"),
        ({"observedGeneration": -1}, {}, "validating"),
        ({"phase": "Held"}, {}, "validating"),
        ({"phase": "Suspended"}, {}, "validating"),
        ({"phase": "Validating"}, {}, "validating"),
        ({"phase": "Queued", "queuePosition": 3}, {}, "in_progress"),
        ({"phase": "Starting"}, {}, "in_progress"),
        ({"phase": "Running", "progress": {"stage": "Processing"}}, {}, "in_progress"),
        ({"phase": "Running", "progress": {"stage": "Uploading"}}, {}, "finalizing"),
        ({"phase": "Running"}, {"cancel": True}, "cancelling"),
        ({"phase": "Cancelled"}, {"cancel": True}, "cancelled"),
        ({"phase": "Succeeded"}, {}, "completed"),
        (failed("CompletionWindowExceeded"), {}, "expired"),
        (failed("EngineFailed"), {}, "failed"),
    ],
)
def test_phases_are_openais_words(status: JSON, spec: JSON, word: str) -> None:
    batch = batches.batch(job(status, **spec))
    Batch.model_validate(batch)
    assert batch["status"] == word


def test_a_batch_that_is_done_says_when_how_much_and_where() -> None:
    timings = {"loadingModel": 3.0, "processing": 5.0, "uploading": 2.0}
    results = {"output": "x", "errors": "y", "total": 3, "completed": 2, "failed": 1, "timings": timings}
    results |= {"usage": {"inputTokens": 10, "outputTokens": 5}}
    valid = {"type": "Validated", "status": "True", "lastTransitionTime": iso(EPOCH + 1)}
    status = {"phase": "Succeeded", "completionTime": iso(EPOCH + 20), "results": results, "conditions": [valid]}
    batch = batches.batch(job(status))
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert batch["usage"] == {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    assert (batch["in_progress_at"], batch["finalizing_at"], batch["completed_at"]) == (
        EPOCH + 1,
        EPOCH + 18,
        EPOCH + 20,
    )
    assert batch["output_file_id"] == f"file-{'0' * 32}-output"
    assert batch["error_file_id"] == f"file-{'0' * 32}-errors"


def test_a_batch_that_waits_says_where_and_until_when() -> None:
    pending = {"reason": "NodesBusy", "message": "all 3 matching nodes are busy", "nextStep": "wait"}
    times = {"estimatedStartTime": iso(EPOCH + 60), "estimatedCompletionTime": iso(EPOCH + 90)}
    status = {"phase": "Queued", "queuePosition": 2, "pending": pending, "inspection": {"requests": 7}, **times}
    batch = batches.batch(job(status))
    assert (batch["queue_position"], batch["estimated_start_time"], batch["estimated_completion_time"]) == (
        2,
        EPOCH + 60,
        EPOCH + 90,
    )
    assert batch["pending"] == {"reason": "NodesBusy", "message": "all 3 matching nodes are busy"}
    assert batch["request_counts"] == {"total": 7, "completed": 0, "failed": 0}


def test_invalid_lines_are_told_one_by_one() -> None:
    lines = ["line 2: missing_model: body.model is missing: write it", "strange"]
    state = failed("InvalidRequests", inspection={"requests": 1, "invalid": 2, "firstErrors": lines})
    errors = batches.batch(job(state))["errors"]["data"]
    assert errors[0] == {
        "code": "missing_model",
        "message": "body.model is missing: write it",
        "param": "body.model",
        "line": 2,
    }
    assert errors[1]["message"] == "strange"
    engine = batches.batch(job(failed("EngineFailed", "out of memory")))
    assert engine["errors"]["data"] == [
        {"code": "engine_failed", "message": "out of memory", "param": None, "line": None}
    ]
    assert engine["failed_at"] == EPOCH + 9


async def test_the_api_server_is_away(tmp_path: Path) -> None:
    api = ApiServer()
    async with serving(tmp_path, api) as site:
        file = await site.uploaded()
        api.down = True
        status, body = await site.create(file)
        assert (status, body["error"]["type"]) == (503, "server_error")
        site.token = "somebody"
        assert (await site.ask("GET", "/v1/batches"))[0] == 503


@pytest.mark.parametrize(
    "annotations",
    [
        {batches.REQUEST: "nonsense"},
        {batches.REQUEST: "[1]"},
        {batches.REQUEST: "[" * 100_000},
        {batches.REQUEST: '{"metadata": 1%s}' % ("0" * 400)},
        {batches.CANCELLING: "yesterday"},
    ],
    ids=lambda a: str(a)[:40],
)
async def test_a_job_that_somebody_made_to_look_like_a_batch_harms_nobody(site: Site, annotations: JSON) -> None:
    forged = job({})
    forged["metadata"] |= {"resourceVersion": "1", "annotations": annotations, "labels": {batches.BATCH: "x"}}
    assert site.board.put(forged) is None
    site.api.jobs["search", forged["metadata"]["name"]] = forged
    assert (await site.ask("GET", "/v1/batches/batch_" + "0" * 32))[0] == 404
    assert (await site.ask("GET", "/v1/batches"))[1]["data"] == []
