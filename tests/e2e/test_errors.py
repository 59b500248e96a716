"""docs/errors.md, row by row: each cause is shown in status with its reason, within the seconds promised there."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio

from demo_lib import inputs
from demo_lib.queue import Job
from demo_lib.results import answered_once, ids, read_lines
from demo_lib.tools import ROOT
from support.api import Api, eventually
from support.installation import Installation
from support.workloads import BUCKET, batch

JSON = dict[str, Any]
Say = Callable[[str], None]
START_TIMEOUT = 5
OWNER = "gpubatch.dev/job"


@dataclass(frozen=True)
class Row:
    """One promise: the reason of this cause is in status so many seconds after something."""

    cause: str
    reason: str
    seconds: int
    after: str
    advice: str


def rows() -> list[Row]:
    """The table of docs/errors.md."""
    pattern = re.compile(
        r"\| (?P<cause>[^|]+) \| `(?P<reason>\w+)` \| (?P<start>startTimeoutSeconds \+ )?(?P<seconds>\d+) s after "
        r"(?P<after>creation|start|the engine's end) \| (?P<advice>[^|]+) \|"
    )
    lines = (ROOT / "docs" / "errors.md").read_text().partition("| Cause |")[2].partition("\n\n")[0].splitlines()[2:]
    found = [pattern.fullmatch(line) for line in lines]
    assert lines
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return [
        Row(m["cause"], m["reason"], int(m["seconds"]) + (START_TIMEOUT if m["start"] else 0), m["after"], m["advice"])
        for m in found
        if m
    ]


LINES = {
    "A line that isn't JSON": "invalid_json_line",
    "A line without `custom_id`": "missing_custom_id",
    "A `custom_id` for the second time": "duplicate_custom_id",
    "A `url` that isn't served": "invalid_url",
    "A model that the job doesn't serve": "model_mismatch",
}
"""Causes that are lines of one input, and the code by which `broken_requests` has one of each."""

JOBS: dict[str, JSON] = {
    "The input doesn't exist": {"inference": {"input": {"url": f"{BUCKET}/forgotten.jsonl"}}},
    "No credentials: the Secret doesn't exist": {"storage": {"secretName": "forgotten"}},
    "Wrong credentials": {"storage": {"secretName": "s3-wrong"}},
    "The output's bucket doesn't exist": {"inference": {"output": {"url": "s3://forgotten/out.jsonl"}}},
    "The engine's image can't be pulled": {"engine": {"image": "registry.invalid/Engine:forgotten"}},
    "The engine never gets ready": {"engine": {"startTimeoutSeconds": START_TIMEOUT}},
    "The engine needs more memory than it may have": {"engine": {"resources": {"limits": {"memory": "300Mi"}}}},
}
"""Causes that are in the manifest, and what makes a good job have them."""


def name_of(cause: str) -> str:
    """The name of the job that has it."""
    return "lines" if cause in LINES else f"job-{list(JOBS).index(cause)}"


def manifest(cause: str) -> JSON:
    """The job that has it."""
    flaw, name = JOBS[cause], name_of(cause)
    inference = {"input": {"url": f"{BUCKET}/good.jsonl"}, **flaw.get("inference", {})}
    job = batch(name, engine=flaw.get("engine"), inference=inference)
    job["spec"]["inference"]["storage"] |= flaw.get("storage", {})
    return job


def test_each_row_of_the_table_is_tested_and_each_test_is_a_row() -> None:
    assert sorted(row.cause for row in rows()) == sorted([*LINES, *JOBS])


# --- all of them at once: those that are found before they wait, and those that take a slot


@dataclass
class Seen:
    """A job from its creation to its end: when each reason was first in its status, and since when it could be."""

    job: Job
    begun: dict[str, float] = field(default_factory=dict)
    shown: dict[str, tuple[float, str]] = field(default_factory=dict)

    def look(self, raw: JSON, pods: list[JSON]) -> None:
        """Take note of what its status says now."""
        self.job = job = Job(self.job.name, raw)
        self.begun["creation"] = _seconds(raw["metadata"]["creationTimestamp"])
        if start := job.status.get("startTime"):
            self.begun["start"] = _seconds(start)
        for end in filter(None, map(_engine_end, pods)):
            self.begun.setdefault("the engine's end", end)
        for found in (job.condition("Failed"), job.status.get("pending") or {}):
            if "reason" in found:
                self.shown.setdefault(found["reason"], (time.time(), found["message"]))
        for error in (job.status.get("inspection") or {}).get("firstErrors", []):
            _, code, message = error.split(": ", 2)
            self.shown.setdefault(code, (time.time(), message))

    def judge(self, row: Row, say: Say) -> str:
        """What was said of a promise that was kept."""
        assert row.reason in self.shown, f"never shown; {self.job.condition('Failed')}"
        at, message = self.shown[row.reason]
        seconds = at - self.begun[row.after]
        say(f"{row.cause}: {row.reason} {seconds:.0f} s after {row.after}, {row.seconds} s promised")
        say(f"  {message[:200]}")
        assert seconds <= row.seconds
        return message


@dataclass(frozen=True)
class Outcome:
    """All jobs as they ended, and the files of the one with broken lines."""

    seen: dict[str, Seen]
    answers: list[JSON]
    errors: list[JSON]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcome(installation: Installation, say: Say) -> Outcome:
    lines, _ = inputs.broken_requests()
    with installation.bucket() as bucket:
        bucket.put("lines.jsonl", "\n".join([*lines, ""]).encode())
        bucket.put("good.jsonl", "\n".join([*inputs.chat_requests(4), ""]).encode())
        async with installation.queue() as api:
            early = [row.cause for row in rows() if row.cause in JOBS and row.after == "creation"]
            late = [cause for cause in JOBS if cause not in early]
            say(f"{len(early)} jobs that should fail before they wait")
            seen = await watch(api, [manifest(cause) for cause in early], say)
            say(f"a job with broken lines, and {len(late)} that should fail later")
            seen |= await watch(api, [batch("lines"), *map(manifest, late)], say)
        return Outcome(seen, *(read_lines(bucket, f"lines.{kind}.jsonl") for kind in ("out", "errors")))


async def watch(api: Api, jobs: list[JSON], say: Say) -> dict[str, Seen]:
    """Create jobs and watch them until all have ended."""
    seen = {job["metadata"]["name"]: Seen(Job(job["metadata"]["name"], job)) for job in jobs}
    for job in jobs:
        await api.create(job)

    async def ended() -> bool:
        pods = await api.pods()
        for name, raw in (await api.jobs()).items():
            if name not in seen:
                continue
            before = seen[name].job.phase
            seen[name].look(raw, [p for p in pods if p["metadata"].get("annotations", {}).get(OWNER) == name])
            if seen[name].job.phase != before:
                say(f"{name}: {seen[name].job.phase}")
        await asyncio.sleep(0.2)
        return all(one.job.phase in ("Succeeded", "Failed") for one in seen.values())

    await eventually("all jobs to end", ended, patience=600)
    return seen


def _engine_end(pod: JSON) -> float | None:
    """When the pod's engine last ended."""
    for status in pod["status"].get("initContainerStatuses") or []:
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            # What a kubelet has lost sight of has ended at no time.
            if status["name"] == "engine" and (at := (state.get("terminated") or {}).get("finishedAt")):
                return _seconds(at)
    return None


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# --- broken lines


@pytest.mark.parametrize("row", [row for row in rows() if row.cause in LINES], ids=lambda row: row.reason)
def test_a_broken_line_is_named_in_status_and_in_the_error_file(row: Row, outcome: Outcome, say: Say) -> None:
    assert row.reason == LINES[row.cause]
    job = outcome.seen["lines"]
    job.judge(row, say)
    number = next(number for number, code in inputs.broken_requests()[1].items() if code == row.reason)
    [shown] = [e for e in job.job.status["inspection"]["firstErrors"] if e.startswith(f"line {number}: ")]
    assert f": {row.reason}: " in shown
    [record] = [e for e in outcome.errors if e["error"]["code"] == row.reason]
    assert record["error"]["line"] == number
    assert record["error"]["message"]
    assert record["response"] is None


def test_the_valid_lines_beside_broken_ones_are_answered(outcome: Outcome) -> None:
    lines, flaws = inputs.broken_requests()
    job = outcome.seen["lines"].job
    assert job.phase == "Succeeded"
    assert job.condition("Validated")["reason"] == "InvalidLinesSkipped"
    assert not answered_once(outcome.answers, ids([x for i, x in enumerate(lines, 1) if i not in flaws]))
    assert len(outcome.errors) == len(flaws)
    results = job.status["results"]
    assert (results["total"], results["completed"], results["failed"]) == (60, 55, 5)


# --- broken jobs


@pytest.mark.parametrize("row", [row for row in rows() if row.cause in JOBS], ids=lambda row: row.cause)
def test_what_is_wrong_with_a_job_is_in_its_status_in_time(row: Row, outcome: Outcome, say: Say) -> None:
    seen = outcome.seen[name_of(row.cause)]
    message = seen.judge(row, say)
    assert len(message) > 20, "a sentence, not a code"
    assert seen.job.phase == "Failed"
    assert seen.job.condition("Failed")["reason"] == row.reason
    took = _seconds(seen.job.status["completionTime"]) - seen.begun["creation"]
    say(f"  Failed {took:.0f} s after creation")
    if row.after == "creation":
        assert "attempts" not in seen.job.status, "it never took a GPU"
