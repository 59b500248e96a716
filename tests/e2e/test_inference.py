"""Inference jobs end to end: a real vLLM, a real S3 server, webhooks; and what becomes of what is killed half-way."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from obstore.store import S3Store
from standardwebhooks import Webhook, WebhookVerificationError

from demo_lib import inputs
from demo_lib.queue import Job
from demo_lib.results import answered_once, ids, nearest, read_lines
from support.api import Api, eventually
from support.installation import Installation
from support.workloads import batch, on, sleeper

JSON = dict[str, Any]
Say = Callable[[str], None]
RECEIVER = "http://receiver.gpubatch-e2e.svc:8080"
ENGINE_PATIENCE = 600.0  # of a wait for a job with an engine, which takes its time to start
ANSWERED = re.compile(r'"POST /v1/chat/completions HTTP/1.1" 200')


def upload(bucket: S3Store, name: str, lines: Sequence[str]) -> None:
    """The input of a job."""
    bucket.put(f"{name}.jsonl", "\n".join([*lines, ""]).encode())


# --- a chat job and an embedding job, side by side


@dataclass
class Told:
    """A job from its creation until its last webhook: each status that it had, and what came out."""

    requests: list[str]
    statuses: list[JSON] = field(default_factory=list)
    answers: list[JSON] = field(default_factory=list)
    received: list[JSON] = field(default_factory=list)
    events: list[JSON] = field(default_factory=list)

    @property
    def status(self) -> JSON:
        """The last one."""
        return self.statuses[-1]

    def see(self, status: JSON) -> str:
        """Take note of a status; what is new in it, if that is worth a line."""
        before = _gist(self.status) if self.statuses else ""
        if not self.statuses or status != self.status:
            self.statuses.append(status)
        return _gist(status) if _gist(status) != before else ""

    @property
    def settled(self) -> bool:
        """Whether nothing more will change."""
        deliveries = self.statuses[-1].get("webhookDeliveries") if self.statuses else None
        return bool(deliveries) and all(d["state"] != "Pending" for d in deliveries or [])


def _gist(status: JSON) -> str:
    return f"{status.get('phase', '')} {(status.get('progress') or {}).get('stage', '')}".strip()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(installation: Installation, say: Say) -> AsyncIterator[dict[str, Told]]:
    """Both jobs; the chat job has a second webhook, whose receiver refuses it since it isn't signed."""
    jobs = {"chat": Told(inputs.chat_requests(40)), "minilm": Told(inputs.embedding_requests())}
    signed = {"url": f"{RECEIVER}/hooks", "secretName": "webhook-secret"}
    refused = {"url": f"{RECEIVER}/refused", "events": ["succeeded"]}
    with installation.bucket() as bucket:
        async with installation.queue() as api:
            for name, job in jobs.items():
                upload(bucket, name, job.requests)
                await api.create(batch(name, name, webhooks=[signed, refused] if name == "chat" else [signed]))

            async def settled() -> bool:
                for name, raw in (await api.jobs()).items():
                    if said := jobs[name].see(raw.get("status") or {}):
                        say(f"{name}: {said}")
                await asyncio.sleep(0.2)
                return all(job.settled for job in jobs.values())

            await eventually("both jobs to end and their webhooks to be delivered", settled, ENGINE_PATIENCE)
            for name, job in jobs.items():
                job.answers = read_lines(bucket, f"{name}.out.jsonl")
                job.received = installation.received(name)
                job.events = installation.events(name)
    yield jobs


def test_each_chat_request_has_one_answer_in_openais_batch_format(told: dict[str, Told]) -> None:
    chat = told["chat"]
    assert not answered_once(chat.answers, ids(chat.requests))
    for answer in chat.answers:
        assert set(answer) == {"id", "custom_id", "response", "error"}
        assert answer["id"].startswith("batch_req_")
        assert answer["error"] is None
        assert set(answer["response"]) == {"status_code", "request_id", "body"}
        body = answer["response"]["body"]
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["role"] == "assistant"
        assert body["usage"]["completion_tokens"] == 24
    assert len({answer["id"] for answer in chat.answers}) == len(chat.answers)


def test_embeddings_are_real_the_nearest_sentence_answers_the_question(told: dict[str, Told]) -> None:
    job = told["minilm"]
    assert not answered_once(job.answers, ids(job.requests))
    vectors = {a["custom_id"]: a["response"]["body"]["data"][0]["embedding"] for a in job.answers}
    assert {len(vector) for vector in vectors.values()} == {384}
    sentences = {name: vectors[name] for name in inputs.sentences()}
    for i, (query, modules) in enumerate(inputs.QUERIES.items()):
        near = nearest(vectors[f"query-{i}"], sentences)
        assert any(name.startswith(modules) for _, name in near), (query, near)


@pytest.mark.parametrize("name", ["chat", "minilm"])
def test_status_accounts_for_counts_tokens_time_and_attempts(name: str, told: dict[str, Told]) -> None:
    job, results = told[name], told[name].status["results"]
    assert job.status["phase"] == "Succeeded"
    assert results["output"] == f"s3://batches/{name}.out.jsonl"
    assert (results["total"], results["completed"], results["failed"]) == (len(job.requests), len(job.requests), 0)
    usages = [answer["response"]["body"]["usage"] for answer in job.answers]
    assert results["usage"]["inputTokens"] == sum(u["prompt_tokens"] for u in usages)
    assert results["usage"]["outputTokens"] == sum(u.get("completion_tokens") or 0 for u in usages)
    assert results["timings"]["loadingModel"] > 1
    assert results["timings"]["processing"] > 0
    [attempt] = job.status["attempts"]
    assert attempt["state"] == "Succeeded"
    assert attempt["number"] == 1
    assert attempt["node"] in ("gpu-a", "gpu-b")
    assert attempt["podUid"]
    assert attempt["startTime"] < attempt["endTime"]
    conditions = {c["type"]: c["status"] for c in job.status["conditions"]}
    assert conditions["Validated"] == conditions["Admitted"] == conditions["Complete"] == "True"
    assert job.status["inspection"]["requests"] == len(job.requests)


@pytest.mark.parametrize("name", ["chat", "minilm"])
def test_status_was_true_all_the_way(name: str, told: dict[str, Told]) -> None:
    statuses = told[name].statuses
    # A job of a second may be done before anybody has asked how far it is: then it was never seen Running.
    phases = list(dict.fromkeys(s["phase"] for s in statuses if "phase" in s))
    assert (phases[0], phases[-1]) == ("Validating", "Succeeded")
    assert sorted(phases, key=["Validating", "Queued", "Starting", "Running", "Succeeded"].index) == phases
    stages = list(dict.fromkeys(s["progress"]["stage"] for s in statuses if "progress" in s))
    assert "LoadingModel" in stages
    assert stages[-1] == "Done"
    assert sorted(stages, key=["PullingImages", "LoadingModel", "Processing", "Uploading", "Done"].index) == stages
    assert "Running" in {s["phase"] for job in told.values() for s in job.statuses if "phase" in s}
    done = [s["progress"]["completed"] for s in statuses if "completed" in s.get("progress", {})]
    assert done == sorted(done), "progress never goes back"
    assert statuses[-1]["progress"]["percent"] == 100


def test_two_jobs_ran_side_by_side_on_two_nodes(told: dict[str, Told]) -> None:
    attempts = [job.status["attempts"][0] for job in told.values()]
    assert {attempt["node"] for attempt in attempts} == {"gpu-a", "gpu-b"}
    assert max(a["startTime"] for a in attempts) < min(a["endTime"] for a in attempts)


@pytest.mark.parametrize("name", ["chat", "minilm"])
def test_the_webhook_is_delivered_once_and_the_official_library_verifies_it(
    name: str, told: dict[str, Told], installation: Installation
) -> None:
    job, webhook = told[name], Webhook(installation.webhook_secret)
    [request] = [r for r in job.received if r["path"] == "/hooks"]
    event = webhook.verify(request["body"], request["headers"])
    assert event["type"] == "gpubatchjob.succeeded"
    assert event["data"]["job"]["name"] == name
    assert event["data"]["results"]["completed"] == len(job.requests)
    with pytest.raises(WebhookVerificationError):
        webhook.verify(request["body"].replace("succeeded", "failed"), request["headers"])
    delivery = job.status["webhookDeliveries"][0]
    assert delivery["id"] == request["headers"]["webhook-id"]
    assert (delivery["state"], delivery["attempts"], delivery["lastStatusCode"]) == ("Delivered", 1, 204)


def test_a_failing_receiver_is_tried_three_times_then_the_message_is_a_dead_letter(told: dict[str, Told]) -> None:
    chat = told["chat"]
    history = [s["webhookDeliveries"][1] for s in chat.statuses if "webhookDeliveries" in s]
    assert [n for n in dict.fromkeys(d["attempts"] for d in history) if n] == [1, 2, 3]
    next_times = list(dict.fromkeys(d["nextAttemptTime"] for d in history if "nextAttemptTime" in d))
    assert len(next_times) == 2
    assert datetime.fromisoformat(next_times[0]) < datetime.fromisoformat(next_times[1])
    last = history[-1]
    assert (last["state"], last["attempts"], last["lastStatusCode"]) == ("DeadLettered", 3, 401)
    assert "401" in last["lastError"]
    assert "nextAttemptTime" not in last
    arrived = [r["headers"] for r in chat.received if r["path"] == "/refused"]
    assert [headers["webhook-id"] for headers in arrived] == [last["id"]] * 3, "each attempt has the same id"
    times = [int(headers["webhook-timestamp"]) for headers in arrived]
    assert all(a < b for a, b in pairwise(times)), times
    [event] = [e for e in chat.events if e["reason"] == "WebhookDeadLettered"]
    assert event["type"] == "Warning"


# --- kill -9, and deletion, in the middle of a job


SLOW = 120
EARLY, LATE = SLOW // 10, SLOW * 2 // 3
"""Answers with which a job counts as in its middle: status tells them every few seconds, and engines may be quick."""

AT_ONCE = 3


async def half_way(api: Api, bucket: S3Store, say: Say, name: str, **spec: Any) -> JSON:
    """Start a job of slow requests; its pod, when some of them were answered and many were not."""
    upload(bucket, name, slow_requests())
    await api.create(batch(name, inference={"maxConcurrentRequests": AT_ONCE}, **spec))

    async def middle() -> bool:
        job = Job(name, await api.job(name))
        assert job.phase not in ("Succeeded", "Failed"), "it ended too soon to be disturbed"
        return bool(EARLY <= (job.status.get("progress") or {}).get("completed", 0) <= LATE)

    await eventually(f"{name} to be in the middle of its requests", middle, ENGINE_PATIENCE)
    say("in the middle of its requests")
    return await api.pod_of(name)


def slow_requests() -> list[str]:
    """Requests that take the engine a while."""
    return inputs.chat_requests(SLOW, max_tokens=400)


async def answers_of(api: Api, bucket: S3Store, name: str) -> list[JSON]:
    """The answers of a job that must have succeeded; each request has exactly one."""
    job = Job(name, await api.phase(name, "Succeeded", "Failed", patience=ENGINE_PATIENCE))
    assert job.phase == "Succeeded", job.condition("Failed")
    answers = read_lines(bucket, f"{name}.out.jsonl")
    assert not answered_once(answers, ids(slow_requests()))
    results = job.status["results"]
    assert (results["total"], results["completed"], results["failed"]) == (SLOW, SLOW, 0)
    usages = [answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers]
    assert results["usage"]["outputTokens"] == sum(usages), "no answer is counted twice"
    assert len(job.status["attempts"]) == 1, "the pod went on by itself"
    return answers


def restarts(pod: JSON) -> dict[str, int]:
    """How often the kubelet restarted each container."""
    found = [*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"]]
    return {c["name"]: c["restartCount"] for c in found}


async def test_a_runner_killed_with_kill_9_goes_on_where_it_was(
    api: Api, installation: Installation, bucket: S3Store, say: Say
) -> None:
    pod = await half_way(api, bucket, say, "runner-killed")
    name = pod["metadata"]["name"]
    await asyncio.to_thread(installation.kill, pod, "runner")
    await answers_of(api, bucket, "runner-killed")
    assert restarts(await api.client.get(f"{api.pods_path}/{name}")) == {"engine": 0, "runner": 1}
    asked = sum(bool(ANSWERED.search(line)) for line in installation.logs(name, "engine"))
    say(f"{SLOW} requests, {asked} answers of the engine")
    assert SLOW <= asked <= SLOW + AT_ONCE, "only what was in flight when the runner died was asked again"


async def test_an_engine_killed_with_kill_9_is_restarted_and_the_run_goes_on(
    api: Api, installation: Installation, bucket: S3Store, say: Say
) -> None:
    pod = await half_way(api, bucket, say, "engine-killed")
    name = pod["metadata"]["name"]
    await asyncio.to_thread(installation.kill, pod, "engine")

    async def loading() -> bool:
        return (await api.job("engine-killed"))["status"]["progress"]["stage"] == "LoadingModel"

    await eventually("status to say that the model is loaded again", loading)

    async def second_life() -> JSON | None:
        found = await api.client.get(f"{api.pods_path}/{name}")
        return found if restarts(found)["engine"] else None

    await eventually("the engine to be restarted", second_life)
    lives = [installation.logs(name, "engine", previous=True)]  # as long as there is no other that has ended
    await answers_of(api, bucket, "engine-killed")
    assert restarts(await api.client.get(f"{api.pods_path}/{name}")) == {"engine": 1, "runner": 0}
    lives.append(installation.logs(name, "engine"))
    before, after = (sum(bool(ANSWERED.search(line)) for line in life) for life in lives)
    say(f"{SLOW} requests, {before} answers of the first engine, {after} of the second")
    assert before >= EARLY
    assert before + after <= SLOW + AT_ONCE, "only what was in flight when the engine died was asked again"


async def test_deleting_a_running_job_saves_what_it_has_and_frees_the_slot(
    api: Api, installation: Installation, bucket: S3Store, image: str, say: Say
) -> None:
    pod = await half_way(api, bucket, say, "deleted", **on("gpu-b"))
    await api.create(sleeper("next", image, 1, **on("gpu-b")))
    await api.phase("next", "Queued")
    start = time.monotonic()
    await api.client.request("DELETE", f"{api.jobs_path}/deleted")
    await api.phase("next", "Succeeded", patience=180)
    say(f"the next job was done {time.monotonic() - start:.0f} s after the deletion")
    assert pod["metadata"]["uid"] not in {p["metadata"]["uid"] for p in await api.pods()}
    partial = read_lines(bucket, "deleted.out.jsonl.partial")
    assert EARLY <= len(partial) < SLOW
    known = [answer["custom_id"] for answer in partial]
    assert not answered_once(partial, known)
    assert set(known) < set(ids(slow_requests()))
    assert read_lines(bucket, "deleted.out.jsonl") == [], "the output's own name is for complete results"


async def test_deleting_a_job_while_its_model_loads_frees_the_slot_at_once(
    api: Api, bucket: S3Store, image: str, say: Say
) -> None:
    upload(bucket, "loading", slow_requests())
    await api.create(batch("loading", **on("gpu-b")))
    pod = await api.pod_of("loading")

    async def importing() -> bool:
        status = (await api.client.get(f"{api.pods_path}/{pod['metadata']['name']}"))["status"]
        return any("running" in engine["state"] for engine in status.get("initContainerStatuses", []))

    await eventually("the engine to start", importing)
    await asyncio.sleep(2)  # it is importing its libraries now, and doesn't hear SIGTERM
    await api.create(sleeper("next", image, 0, **on("gpu-b")))
    start = time.monotonic()
    await api.client.request("DELETE", f"{api.jobs_path}/loading")
    await api.phase("next", "Succeeded")
    say(f"the next job was done {time.monotonic() - start:.0f} s after the deletion")
    assert time.monotonic() - start < 45, "not only after the grace period of 120 s"


@pytest.mark.parametrize("model", ["chat", "minilm"])
async def test_a_batch_may_mix_all_endpoints_that_the_engine_has(api: Api, bucket: S3Store, model: str) -> None:
    bodies: dict[str, JSON] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
        "/v1/completions": {"prompt": "hello", "max_tokens": 4},
        "/v1/responses": {"input": "hello", "max_output_tokens": 4},
    }
    if model == "minilm":
        bodies = {
            "/v1/embeddings": {"input": "hello"},
            "/v1/score": {"text_1": "hello", "text_2": ["good day", "a car"]},
            "/v1/rerank": {"query": "hello", "documents": ["good day", "a car"]},
        }
    name = f"endpoints-{model}"
    upload(
        bucket,
        name,
        [
            json.dumps({"custom_id": url, "method": "POST", "url": url, "body": {"model": model, **body}})
            for url, body in bodies.items()
        ],
    )
    await api.create(batch(name, model))
    status = (await api.phase(name, "Succeeded", patience=ENGINE_PATIENCE))["status"]
    failed = read_lines(bucket, f"{name}.errors.jsonl")
    assert not failed
    assert not answered_once(read_lines(bucket, f"{name}.out.jsonl"), list(bodies))
    assert status["results"]["usage"]["inputTokens"] > 0
