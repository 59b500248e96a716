"""What came out of the jobs, read from where they put it: object storage, status, and the webhooks' receiver."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
from obstore.store import S3Store
from standardwebhooks import Webhook

from demo_lib import inputs
from demo_lib.checks import Checks
from demo_lib.console import Console
from demo_lib.queue import Job, table

JSON = dict[str, Any]
NEAREST = 3


def open_bucket(port: int, keys: Mapping[str, str]) -> S3Store:
    """The demo's bucket through a local port."""
    return S3Store(
        "batches",
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id=keys["AWS_ACCESS_KEY_ID"],
        secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def read_lines(bucket: S3Store, key: str) -> list[JSON]:
    """A file of JSON lines; empty if there is none."""
    try:
        content = bytes(bucket.get(key).bytes())
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.splitlines()]


def answered_once(answers: Sequence[JSON], expected: Sequence[str]) -> str:
    """'' if each request has exactly one answer with status 200, else what is wrong."""
    counts = Counter(answer["custom_id"] for answer in answers)
    missing, extra = set(expected) - counts.keys(), counts.keys() - set(expected)
    twice = {name for name, count in counts.items() if count > 1}
    bad = {answer["custom_id"] for answer in answers if (answer.get("response") or {}).get("status_code") != 200}
    found = {"missing": missing, "unexpected": extra, "twice": twice, "not 200": bad}
    return ", ".join(f"{len(names)} {what}" for what, names in found.items() if names)


def ids(lines: Sequence[str]) -> list[str]:
    """The custom_ids of requests."""
    return [json.loads(line)["custom_id"] for line in lines]


def show_summary(console: Console, jobs: Mapping[str, Job]) -> None:
    """What each job says of itself in status."""
    rows = []
    for job in jobs.values():
        results = job.status.get("results") or {}
        usage, timings = results.get("usage") or {}, results.get("timings") or {}
        cells = (results.get("completed"), results.get("failed"), usage.get("inputTokens"), usage.get("outputTokens"))
        spent = [timings.get(key) for key in ("loadingModel", "processing", "uploading")]
        rows.append(
            (
                job.name,
                job.phase,
                *("" if c is None else str(c) for c in cells),
                *(f"{s:.1f} s" if s is not None else "" for s in spent),
            )
        )
    console.heading("The jobs' own account (status.results)")
    head = ("NAME", "PHASE", "COMPLETED", "FAILED", "TOKENS IN", "TOKENS OUT", "LOADING", "PROCESSING", "UPLOADING")
    console.say(*(f"  {line}" for line in table(head, rows)))


def show_embeddings(console: Console, checks: Checks, bucket: S3Store) -> None:
    """Semantic search: the sentences nearest to each query."""
    console.heading("Results: the sentences nearest to a question, by their embeddings")
    answers = read_lines(bucket, "sentences.embeddings.jsonl")
    wrong = answered_once(answers, ids(inputs.embedding_requests()))
    checks.that(f"each of {len(inputs.embedding_requests())} texts has exactly one embedding", not wrong, wrong)
    if wrong:
        return
    vectors: dict[str, list[float]] = {a["custom_id"]: a["response"]["body"]["data"][0]["embedding"] for a in answers}
    sentences = inputs.sentences()
    sensible = True
    for i, (query, modules) in enumerate(inputs.QUERIES.items()):
        near = nearest(vectors[f"query-{i}"], {name: vectors[name] for name in sentences})
        console.say(f"  {query}", *(f"    {cosine:.2f}  {sentences[n]}  ({n})" for cosine, n in near))
        sensible = sensible and any(name.startswith(modules) for _, name in near)
    checks.that("the nearest sentences answer the questions (real weights, real embeddings)", sensible, "see above")


def nearest(query: Sequence[float], vectors: Mapping[str, Sequence[float]]) -> list[tuple[float, str]]:
    """The names of the vectors with the greatest cosine, and that."""
    return sorted(((cosine(query, v), name) for name, v in vectors.items()), reverse=True)[:NEAREST]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Cosine of the angle between two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def show_broken(console: Console, checks: Checks, bucket: S3Store, job: Job) -> None:
    """The error file of the job with broken lines."""
    console.heading("Results: the error file of chat-broken-lines")
    lines, expected = inputs.broken_requests()
    found = {}
    for record in read_lines(bucket, "broken.errors.jsonl"):
        error = record["error"] or {}
        found[error.get("line")] = error.get("code")
        console.say(f"  line {error.get('line')}: {error.get('code')}: {error.get('message')}")
    checks.that("the error file names each broken line, with its number and reason", found == expected, found)
    valid = [line for number, line in enumerate(lines, 1) if number not in expected]
    wrong = answered_once(read_lines(bucket, "broken.out.jsonl"), ids(valid))
    checks.that(f"the other {len(valid)} requests of chat-broken-lines were answered", not wrong, wrong)
    inspection = job.status.get("inspection") or {}
    checks.that("status.inspection counted the broken lines", inspection.get("invalid") == len(expected), inspection)


def show_chats(checks: Checks, bucket: S3Store, requests: Mapping[str, Sequence[str]]) -> None:
    """The plain chat jobs: everything answered."""
    for name, lines in requests.items():
        wrong = answered_once(read_lines(bucket, f"{name}.out.jsonl"), ids(lines))
        checks.that(f"each of {len(lines)} requests of chat-{name} was answered exactly once", not wrong, wrong)


def show_failures(console: Console, checks: Checks, jobs: Mapping[str, Job]) -> None:
    """What status says of the jobs that were bound to fail."""
    console.heading("The jobs that fail, in their status")
    for name, reason, text in (
        ("chat-missing-input", "InputNotFound", "forgotten.jsonl"),
        ("training-crash", "", "FileNotFoundError"),
    ):
        condition = jobs[name].condition("Failed")
        message = condition.get("message", "").splitlines() or [""]
        console.say(f"  {name}: {condition.get('reason')}: {message[0]}", *(f"    {line}" for line in message[1:]))
        told = reason in condition.get("reason", "") and text in condition.get("message", "")
        checks.that(f"{name} failed, and status says why ({text})", told, condition)
    missing = jobs["chat-missing-input"]
    checks.that("the missing input was reported without ever taking a GPU", not missing.status.get("attempts"))


def show_webhooks(console: Console, checks: Checks, received: Sequence[JSON]) -> None:
    """The webhooks as their receiver saw them, and what it thought of their signatures."""
    console.heading("Webhooks received")
    verified: dict[str, str] = {}
    for request in {r["headers"]["webhook-id"]: r for r in received}.values():
        event = json.loads(request["body"])
        headers = {
            name: request["headers"].get(name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
        }
        console.say(
            f"  POST {request['path']}",
            *(f"    {name}: {value}" for name, value in headers.items()),
            *(f"    {line}" for line in json.dumps(event, indent=2).splitlines()),
            f"    the signature is {'refused: ' + request['refused'] if request['refused'] else 'valid'}",
        )
        if not request["refused"]:
            verified[event["data"]["job"]["name"]] = event["type"]
    expected = {"embeddings": "gpubatchjob.succeeded", "training-crash": "gpubatchjob.failed"}
    checks.that(
        "both webhooks were received, and their signatures verified by the receiver", verified == expected, verified
    )


def forge_webhook(checks: Checks, port: int) -> None:
    """A webhook of somebody who doesn't know the secret."""
    now, body = datetime.now(UTC), '{"type": "gpubatchjob.succeeded"}'
    signature = Webhook(base64.b64encode(b"a guess").decode()).sign("msg_forged", now, body)
    headers = {
        "webhook-id": "msg_forged",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    answer = httpx.post(f"http://127.0.0.1:{port}/hooks", content=body, headers=headers, trust_env=False)
    checks.that("the receiver refused a webhook that was signed with another secret", answer.status_code == 401, answer)
